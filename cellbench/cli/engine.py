"""Lightning's command line, made for cellbench: what fit, validate, test and predict share."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import BaseFileLock, FileLock, Timeout
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from cellbench.cli.console import quieten_lightning, show
from cellbench.cli.experiment import ExperimentParser
from cellbench.cli.launch import launch
from cellbench.cli.options import LIMIT, OWN, SEED
from cellbench.cli.parsing import (
    LINKED,
    check_folder_name,
    data_modules,
    refuse_linked,
    take_option,
)
from cellbench.config import keys, values
from cellbench.data.loading import LoadingPlan
from cellbench.data.module import CellDataModule
from cellbench.errors import OtherRun, UserError, find_user_error
from cellbench.models.classifier import CellClassifier
from cellbench.runs import features, loggers, precision
from cellbench.runs.callbacks import check_callbacks
from cellbench.runs.checkpoint import CheckpointConfig, WholeCheckpointIO, read_checkpoint
from cellbench.runs.conditions import few_groups
from cellbench.runs.folder import RunFolder
from cellbench.runs.loggers import WandbConfig
from cellbench.runs.ranks import Ranks, environment
from cellbench.runs.run import Run, RunCallbacks
from cellbench.terminal import say

# Deterministic algorithms need no memory filled before it is written; it costs a few per cent.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 20,  # Lightning's own is 1,000
    "devices": 1,
    "deterministic": "warn",
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "sync_batchnorm": True,  # else the statistics are those of each device's share
    "use_distributed_sampler": False,
    "logger": False,
}

NOT_OFFERED: dict[str, tuple[Sequence[Any], str]] = {
    "limit_val_batches": ((None,), "metrics over a part of the set are not to be believed"),
    "limit_test_batches": ((None,), "metrics over a part of the set are not to be believed"),
    "limit_train_batches": ((None, *range(1, 10_000)), "give a whole number, at least 1"),
    "overfit_batches": ((None, 0, 0.0), "for a short run use limit_train_batches and max_epochs"),
    "fast_dev_run": ((None, False), "for a short run use limit_train_batches and max_epochs"),
    "check_val_every_n_epoch": ((None, 1), "every epoch is validated, once, at its end"),
    "val_check_interval": ((None,), "every epoch is validated, once, at its end"),
    "max_epochs": (range(1, 1_000_000), "give a number, at least 1"),
    "reload_dataloaders_every_n_epochs": ((0,), "every epoch's order is drawn anew anyway"),
    "max_steps": ((None, -1), "the schedules need whole epochs: use max_epochs"),
    "model_registry": ((None,), "a run writes to its folder; send its checkpoints yourself"),
    "max_time": ((None,), "how far a run gets must not depend on the machine: use max_epochs"),
    "num_nodes": (range(1, 10_000), "give a number, at least 1"),
    "accumulate_grad_batches": (range(1, 10_000), "give a number, at least 1"),
    "default_root_dir": ((None,), "use --runs and --name"),
    "enable_checkpointing": ((None, True), "use checkpoint.monitor"),
    "strategy": (("auto", "ddp"), "runs on several devices are made for ddp"),
    "use_distributed_sampler": ((False,), "cellbench divides the samples among the devices"),
    "barebones": ((False,), "a run without logging has no history.csv"),
}
"""Trainer options whose meaning here would mislead: what is allowed, and what to do instead."""


_PARSERS: dict[str, tuple[Any, ...]] = {}
"""By command: a sweep's runs are forked from a process that has them."""


class CellbenchCLI(LightningCLI):
    """Parses one subcommand, checks all that can be checked, and holds the run's parts.

    Args:
        command: fit, validate or test.
        args: The command line behind it.
        typed: The command line as the user gave it, for the processes of several devices.
        parent: Where the folder of what is written is made; None for --runs and --name.
        resume: A run to go on with, or "auto" for the newest unfinished one of the same
            configuration, if there is one.
        folder: The run's own folder, where neither `parent` nor --runs and --name are to choose
            one; what is unfinished there goes on.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str],
        typed: Sequence[str],
        parent: Path | None = None,
        resume: RunFolder | Literal["auto"] | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        self.exit_code = 0
        self._lock: BaseFileLock | None = None
        self._command = command
        self._typed = typed
        self._parent = parent
        self._resume = resume
        self._own_folder = folder
        quieten_lightning()
        asked, _ = take_option(args, "--data.help")
        if asked in data_modules():  # the parser's own help has the first line alone
            print(inspect.getdoc(data_modules()[asked]), end="\n\n")
        super().__init__(
            CellClassifier,
            CellDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=ExperimentParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "python -m cellbench"},
            args=[command, *args],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in Lightning
        """Only the one asked for: each costs the building of a parser."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def setup_parser(self, *args: Any) -> None:
        """Makes the command's parser, or takes the one that this process has made before."""
        if self._command not in _PARSERS:
            super().setup_parser(*args)
            own = (self.parser, self._subcommand_parsers, self._subcommand_method_arguments)
            _PARSERS[self._command] = own
        made = _PARSERS[self._command]
        self.parser, self._subcommand_parsers, self._subcommand_method_arguments = made

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds cellbench's own options, and links the model to the data."""
        parser.add_argument(
            "--name", type=OWN["name"], help="experiment's name (config's file name)"
        )
        # Taken off the command line before it comes here; shown by --help.
        if self._command == "fit":
            parser.add_argument(
                "--resume",
                type=str | None,
                help="a run's folder to go on with, and nothing else (but --wandb.mode=online, "
                "which a run that is online needs); or auto, beside the options "
                "of a fit: the newest unfinished run of the same configuration, if there is one",
            )
            parser.add_argument(
                "--folder",
                type=str | None,
                help="the run's own folder, in the place of RUNS/NAME/TIME; given again, an "
                "interrupted run there goes on",
            )
            parser.add_argument(
                "--test",
                type=OWN["test"],
                default=True,
                help="score the test split at the end; false leaves it to `test --run`",
            )
            parser.add_argument("--figures", type=OWN["figures"], default=True, help="draw figures")
        else:
            parser.add_argument("--run", type=str | None, help="the run's folder")
        parser.add_argument(
            "--runs", type=OWN["runs"], default=Path("runs"), help="folder of all runs"
        )
        parser.add_argument("--checkpoint", type=OWN["checkpoint"], default=CheckpointConfig())
        parser.add_argument("--wandb", type=OWN["wandb"], default=WandbConfig())
        parser.add_argument(
            "--tensorboard", type=OWN["tensorboard"], default=False, help="write event files"
        )
        parser.add_argument(
            "--label_history",
            type=OWN["label_history"],
            default=False,
            help="write label_history.csv: how probable each training label was, epoch by epoch",
        )
        (limit,) = (a for a in parser._actions if a.dest == "trainer.limit_train_batches")
        limit._typehint = LIMIT  # type: ignore[attr-defined]
        assert isinstance(parser, ExperimentParser)
        parser.types["trainer"] = parser.types["trainer"] | {"limit_train_batches": LIMIT}
        parser.types["seed_everything"] = SEED
        for target, source in LINKED.items():
            parser.link_arguments(source, target, apply_on="instantiate")
        parser.set_defaults({"data": {"class_path": "SyntheticDataModule"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and refuses what would be ignored."""
        super().parse_arguments(parser, args)
        refuse_linked(self.config[self._command])
        for option in ("resume", "folder", "run"):
            if self.config[self._command].get(option) is not None:
                raise UserError(f"{option}: give it on the command line, as --{option}")
        config = self.config[self._command]
        if not 0 <= int(config.seed_everything) < 2**32:
            raise UserError(f"seed_everything: {config.seed_everything} is not in 0 to 2**32 - 1")
        for name, (allowed, reason) in NOT_OFFERED.items():
            if config.trainer[name] not in allowed:
                given = values.shown(config.trainer[name])
                raise UserError(f"trainer.{name}: {given} is not offered; {reason}")
        if "xla" in str(config.trainer.profiler).lower():
            raise UserError(
                "trainer.profiler: XLA's is for TPUs, which are not offered; use simple"
            )
        phases = config.model.phases
        epochs = sum(phase["epochs"] for phase in phases) if phases else None
        if self._command == "fit" and epochs not in (None, config.trainer.max_epochs):
            raise UserError(
                f"model.phases: they last {epochs} epochs, and trainer.max_epochs is "
                f"{config.trainer.max_epochs}; make them equal"
            )
        model = config.model
        blended = [name for name in ("mixup", "cutmix") if model[name]]
        blended += ["smote"] if config.data.init_args.smote is not None else []
        judged = ["co_teaching"] if model.co_teaching is not None else []
        judged += ["label_history"] if config.label_history else []
        if blended and judged:
            raise UserError(
                f"{judged[0]}: beside {blended[0]} an image has no label of its own to be judged; "
                "choose one of the two"
            )
        if self._command == "fit" and config.ckpt_path is not None:
            raise UserError("--ckpt_path: fit starts afresh; to go on with a run use --resume RUN")
        if self._command != "fit" and config.ckpt_path is None:
            raise UserError(f"{self._command}: which run? give its folder as --run")

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no Lightning hyperparameters here; Lightning would look for them."""

    def instantiate_classes(self) -> None:
        """Makes the data, the model and the trainer; the data are checked before the rest."""
        self._devices = self._count_devices()
        if self._devices > 1 and environment() is None:
            self.config_init, self.model, self.datamodule = self.config, None, None
            return
        self._device = _device(self._get(self.config, "trainer"))
        self.ranks = Ranks.join(self._device)
        try:
            self.config_init = self.parser.instantiate(self.config)
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            if (mistake := find_user_error(error)) is not None:
                raise mistake from error
            cause: BaseException = error
            while cause.__cause__ is not None:  # jsonargparse's own say where, and not why
                cause = cause.__cause__
            raise UserError(
                f"the configuration names a class that cannot be made: {cause or repr(cause)}; "
                "--debug shows more"
            ) from error
        self.datamodule = self._get(self.config_init, "data")
        seed = self._get(self.config, "seed_everything")
        self.datamodule.plan = LoadingPlan(seed, self.ranks.rank, self.ranks.size)
        self.model = self._get(self.config_init, "model")
        self.datamodule.setup(self._command)
        self.trainer = self.instantiate_trainer()

    def _count_devices(self) -> int:
        """How many devices the run has on all nodes.

        Raises:
            UserError: They are not there, or another number of processes was started.
        """
        asked = self._get(self.config, "trainer")
        with _trainer_errors(asked):
            self.trainer = Trainer(
                accelerator=asked.accelerator,
                devices=asked.devices,
                num_nodes=asked.num_nodes,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        self._here = int(self.trainer.num_devices)
        devices = self._here * int(asked.num_nodes)
        told = environment()
        if told is None and asked.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes: {asked.num_nodes}, but one process was started; start the "
                "command on every node, by torchrun or srun"
            )
        if told is not None and told.world_size() != devices:
            raise UserError(
                f"{told.world_size()} processes were started, but trainer.devices x "
                f"trainer.num_nodes is {devices}; make them equal"
            )
        return devices

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the run's folder, choose the precision, make the trainer that writes to the folder.

        Raises:
            UserError: The machine lacks what was asked for, or the folder cannot be made.
        """
        asked = self._get(self.config_init, "trainer")
        callbacks = _as_list(asked.get("callbacks"))
        logged = (
            bool(_as_list(asked.get("logger")))
            or self._get(self.config_init, "tensorboard")
            or self._get(self.config_init, "wandb").mode != "disabled"
        )
        if self._command == "fit":
            check_callbacks(callbacks, self.model.logged, logged=logged)
        if asked.get("precision") is not None:
            named = precision.normalise(asked["precision"])
            self.config[self._command].trainer.precision = named
        name = self.config[self._command].name = self._experiment_name()
        kept = features.suffice(self.model, self.datamodule)
        epochs = 1 + (self.datamodule.variants or 0) if kept else asked["max_epochs"]
        plan = self.datamodule.plan_loading(self._device, epochs, self._here)
        self.datamodule.plan, loading = plan, str(plan)
        config = self._plain_config()
        path, fresh = self.ranks.agree(
            self._folder(self._parent or self._get(self.config, "runs") / name, config)
            if self.ranks.first
            else (Path(), False)
        )
        folder = RunFolder(path)
        checkpoint_config = self._get(self.config_init, "checkpoint")
        hint = "nothing is lost: give the command again"
        if self._command == "fit" and self._own_folder is None:
            hint = f"go on with: python -m cellbench fit --resume {path}"
            if self._get(self.config_init, "wandb").mode == "online":
                hint += " --wandb.mode=online"
            if keys.named_code(config):  # it is not taken from a run
                hint = "go on with the same command and --resume auto"
        ours = RunCallbacks.make(
            folder,
            self.datamodule,
            checkpoint_config,
            self.ranks,
            hint,
            label_history=self._get(self.config_init, "label_history"),
        )
        own: list[Logger] = []
        told = environment()
        try:
            if self.ranks.first:
                own += loggers.build(
                    folder,
                    name,
                    self._get(self.config_init, "wandb"),
                    self._get(self.config_init, "tensorboard"),
                )
            chosen, reason = self._precision(folder)
            with _trainer_errors(asked):
                trainer = super().instantiate_trainer(
                    **kwargs,
                    precision=chosen,
                    default_root_dir=str(folder.path),
                    enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
                    sync_batchnorm=asked["sync_batchnorm"] and self._device == "cuda",
                    logger=[*own, *_as_list(asked.get("logger"))] or False,
                    callbacks=[*callbacks, *ours.in_order()],
                    plugins=[
                        *_as_list(asked.get("plugins")),
                        *([] if told is None else [told]),
                        WholeCheckpointIO(),
                    ],
                )
        except UserError:
            loggers.finish(own, failed=True)
            self._release()
            if fresh and self.ranks.first:
                folder.discard()
            raise
        self.run = Run(
            folder,
            config,
            self.model,
            self.datamodule,
            trainer,
            checkpoint_config,
            ours,
            self.ranks,
            trains=self._command == "fit",
            draws=bool(self.config[self._command].get("figures", True)),
        )
        if self.ranks.first:
            say(self._announcement(trainer, str(chosen), reason, loading), flush=True)
        return trainer

    def _precision(self, folder: RunFolder) -> tuple[str, str]:
        """Give the precision and the reason for it.

        The configuration has what was asked for. A choice is the machine's: it is in the
        checkpoint that a run goes on from, or is scored with, so that it stays the same.
        """
        asked = self._get(self.config, "trainer").precision
        if asked is not None:
            return str(asked), "as configured"
        scored = self._get(self.config, "ckpt_path")
        begun = folder.last if self._command == "fit" else Path(scored)
        if begun.is_file():
            trained = read_checkpoint(begun)[0].precision
            return precision.normalise(trained), "as its training began"
        return precision.choose(self._device, grouped=self.model.grouped)

    def _folder(self, parent: Path, config: Mapping[str, Any]) -> tuple[Path, bool]:
        """The run's folder, and whether it is a new one."""
        if isinstance(self._resume, RunFolder):
            self._take(self._resume, "--resume")
            return self._resume.path, False
        if self._own_folder is not None:
            return self._begun_here(self._own_folder, config)
        if self._resume == "auto" and parent.is_dir():
            for old in map(RunFolder, sorted(parent.iterdir(), reverse=True)):
                if not (old.unfinished and old.has_config(config)):
                    continue
                if self._hold(old):
                    if old.unfinished:  # still, now that nobody else has it
                        return old.path, False
                    self._release()
        if self._resume == "auto":
            say("--resume auto: no unfinished run of this configuration; a new one begins")
        new = RunFolder.create(parent)
        self._hold(new)
        return new.path, True

    def _begun_here(self, folder: RunFolder, config: Mapping[str, Any]) -> tuple[Path, bool]:
        """The same for --folder."""
        folder.make()
        self._take(folder, "--folder", patience=60.0)  # one that was just told to end is saving
        if not folder.config.is_file():
            others = [path.name for path in folder.path.iterdir() if path != folder.lock]
            if others:  # where nothing comes of the run, its folder is deleted
                raise UserError(
                    f"--folder: {folder.path} holds no run, but {others[0]}; give an empty folder, "
                    "or none yet"
                )
            return folder.path, True
        if not folder.unfinished:
            raise UserError(f"--folder: the run {folder.path} is finished; give another folder")
        if not folder.has_config(config):
            raise OtherRun(
                f"--folder: the run in {folder.path} has another configuration, as its config.yaml "
                "tells; give another folder"
            )
        return folder.path, False

    def _take(self, folder: RunFolder, option: str, patience: float = 0.0) -> None:
        """Holds a run, or says that another process does."""
        if not self._hold(folder, patience):
            raise UserError(f"{option}: another process has the run {folder.path} open")

    def _hold(self, folder: RunFolder, patience: float = 0.0) -> bool:
        """Keeps other processes off a run until this one ends, if none has it."""
        self._lock = FileLock(folder.lock)
        try:
            self._lock.acquire(timeout=patience)
        except Timeout:
            return False
        return True

    def _release(self) -> None:
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _experiment_name(self) -> str:
        name = self._get(self.config, "name")
        if name is None:
            configs = self._get(self.config, "config") or []
            name = Path(str(configs[-1])).stem if configs else type(self.datamodule).__name__
        check_folder_name(str(name))
        return str(name)

    def _plain_config(self) -> dict[str, Any]:
        """The whole configuration, as config.yaml will hold it."""
        parser = self._parser(self._command)
        # Parsed, and so valid; and JSON is read a hundred times as fast as YAML.
        text = parser.dump(
            self.config[self._command], skip_unset=False, skip_validation=True, format="json"
        )
        config = keys.settings_of_run(json.loads(text))
        data = config["data"]
        data["class_path"] = data["class_path"].rsplit(".", 1)[-1]
        config["trainer"] = {k: v for k, v in config["trainer"].items() if v is not None}
        return config

    def _announcement(self, trainer: Trainer, chosen: str, reason: str, loading: str) -> str:
        """What is about to run, in a few lines."""
        data, model = self.datamodule, self.model
        n = {part: len(data.drawn.indices(part)) for part in ("train", "val", "test")}
        total = sum(p.numel() for p in model.parameters())
        fold = "" if data.split.folds is None else f", fold {data.split.fold or 0}"
        purged = int((data.drawn.parts == "purged").sum())
        out = f", {purged} images purged: they share a group with a scored part" if purged else ""
        lines = [
            f"data       {type(data).__name__}, {len(data.classes)} classes, view {data.view}: "
            f"{n['train']} train, {n['val']} val, {n['test']} test images",
            f"split      {data.split.protocol}{fold}, digest {data.drawn.digest[:12]}{out}",
            f"images     {data.where}, {loading}",
            *([f"epoch      {data.shown}"] if self._command == "fit" and data.shown else []),
            f"model      {model.arguments['backbone']}, {total:,} parameters, "
            f"{model.trained:,} trained",
            *([f"weights    {model.loaded}"] if model.loaded else []),
            f"device     {trainer.strategy.root_device.type} x {trainer.world_size}, channels_last,"
            f" precision {chosen} ({reason})",
            f"run        {trainer.default_root_dir}",
        ]
        lines += [f"NOTE       {note}" for note in self._notes()]
        lines += [f"STAMP      {stamp}" for stamp in self.run.stamps]
        return "\n".join(lines)

    def _notes(self) -> Iterator[str]:
        """What is allowed and seldom meant."""
        if self.datamodule.note:
            yield self.datamodule.note
        drawn = self.datamodule.drawn
        batches = self._get(self.config, "trainer").limit_train_batches
        if self._command == "fit" and batches is not None:
            yield f"an epoch ends after {batches} batches: trainer.limit_train_batches"
        if self._command == "fit" and self.datamodule.train_labels is not None:
            training = self.datamodule.training
            out = len(drawn.indices("train")) - len(training.positions)
            changed = training.all_labels != self.datamodule.table.labels
            other = int(changed[training.positions].sum())
            yield (
                f"data.train_labels leaves {out} training images out, and gives {other} another "
                "label than the dataset's"
            )
        elif self.datamodule.label_noise:
            yield f"{self.datamodule.label_noise:.0%} of the training labels replaced by others"
        tested = drawn.indices("test")
        labels = self.datamodule.table.labels[tested]
        yield from few_groups(
            drawn.groups[tested].tolist(), [self.datamodule.classes[label] for label in labels]
        )
        swapped = self.model.arguments["norm"] == "group" and self.model.loaded is not None
        if swapped and self.model.trained < sum(p.numel() for p in self.model.parameters()):
            yield "what is frozen was trained with batch norm, and has group norm now"
        if self.model.freezes and self._get(self.config, "model").weights == "none":
            yield "the frozen backbone has random weights; give model.weights"

    def fit(self, **kwargs: Any) -> None:
        """Trains and tests; Lightning's own arguments are not used."""
        self._run(lambda: self.run.fit(test=self._get(self.config, "test")))

    def validate(self, **kwargs: Any) -> None:
        """Scores the checkpoint on the validation split."""
        self._run(lambda: self.run.score("val", Path(kwargs["ckpt_path"])))

    def test(self, **kwargs: Any) -> None:
        """Scores the checkpoint on the test split."""
        self._run(lambda: self.run.score("test", Path(kwargs["ckpt_path"])))

    def _run(self, command: Callable[[], dict[str, Any] | None]) -> None:
        """Runs the command here, or in a process for each device."""
        if self.model is None:
            self.exit_code = launch([self._command, *self._typed], self._devices)
            return
        try:
            result = command()
        finally:
            self._release()
        self.ranks.leave()  # where it failed the others may wait for us, and we for them
        if result is not None:
            show(self.run.folder, result)


@contextmanager
def _trainer_errors(asked: Mapping[str, Any]) -> Iterator[None]:
    """Says in one line what Lightning's Trainer did not like."""
    try:
        yield
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        RuntimeError,
        ImportError,  # of what a profiler or a plugin needs
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer: {reason} (accelerator {asked['accelerator']}, devices {asked['devices']}; "
            "leave both out to take what is there)"
        ) from error


def _device(trainer: Mapping[str, Any]) -> str:
    """The kind of device that Lightning will take for trainer.accelerator."""
    asked = trainer["accelerator"]
    if asked in ("gpu", "cuda") or (asked == "auto" and torch.cuda.is_available()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if asked == "auto" else str(asked)


def _as_list(value: Any) -> list[Any]:
    if value in (None, False, True):
        return []
    return list(value) if isinstance(value, list) else [value]
