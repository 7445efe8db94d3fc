"""Lightning's command line with cellbench's options, for fit, validate and test."""

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from cellbench.artifacts.checkpoint import CheckpointConfig
from cellbench.cli import COMMANDS
from cellbench.cli.options.checks import check_options
from cellbench.cli.options.data_modules import DATA, data_modules
from cellbench.cli.options.parser import Parser, refuse_sweep_file, take_option
from cellbench.cli.options.types import LIMIT, LINKED, OWN, experiment_types
from cellbench.config import keys, option_types
from cellbench.data.module import CellDataModule
from cellbench.models.classifier import FlatCellClassifier
from cellbench.training.lightning_output import quieten_lightning
from cellbench.training.loggers import WandbConfig
from cellbench.training.trainer import TRAINER_DEFAULTS
from cellbench.utils.errors import UserError, find_user_error

Command = Literal["fit", "validate", "test"]

_PARSERS: dict[str, LightningArgumentParser] = {}
"""Parsers by command, made once: a sweep's runs are forked with them."""


class ExperimentParser(Parser, LightningArgumentParser):
    """Parser of the commands that take an experiment."""

    def check_file(self, path: str, config: Mapping[str, Any]) -> None:
        """Refuse a file that belongs to a sweep."""
        refuse_sweep_file(path, config)

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """Serialise options, those of the trainer in the order of Lightning's documentation."""
        if "trainer" in namespace:
            namespace = namespace.clone()
            own = namespace["trainer"]
            order = [name for name in option_types.parameters(Trainer) if name in own]
            ordered: Any = {name: own[name] for name in order}
            namespace["trainer"] = Namespace(**ordered)  # type: ignore[no-untyped-call]
        text: str = super().dump(namespace, *args, **kwargs)
        return text


class CellbenchCLI(LightningCLI):
    """Options of one command, parsed and checked; `instantiate` makes what they name.

    Args:
        command: The command.
        args: The command line after it.
    """

    def __init__(self, command: Command, args: Sequence[str]) -> None:
        self.command = command
        quieten_lightning()
        asked, _ = take_option(args, "--data.help")
        if asked in data_modules():  # only the first line, as the parser's own help
            print(inspect.getdoc(data_modules()[asked]), end="\n\n")
        super().__init__(
            FlatCellClassifier,
            CellDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=ExperimentParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": f"python -m cellbench {command}",
                "description": f"{COMMANDS[command]}.",
            },
            args=list(args),
            run=False,  # `run_command` runs it
        )

    def setup_parser(self, *args: Any) -> None:
        """Make the command's parser, or take the one that this process has already made."""
        if self.command not in _PARSERS:
            super().setup_parser(*args)
            _PARSERS[self.command] = self.parser
        self.parser = _PARSERS[self.command]

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the trainer, the model and the data.

        Lightning's type of trainer.limit_train_batches is `int | float`. Python caches such unions,
        and keeps the order that a process has used first, so that a sweep's 1 could become 1.0,
        which means all batches. Therefore that option is added with a type of its own.
        """
        limit = "limit_train_batches"
        parser.add_class_arguments(
            Trainer,
            "trainer",
            skip={limit},
            fail_untyped=False,
            instantiate=False,
            sub_configs=True,
        )
        assert parser.groups is not None
        parser.groups["trainer"].add_argument(
            f"--trainer.{limit}", type=LIMIT, default=None, help="batches of a training epoch"
        )
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(FlatCellClassifier, "model")
        parser.add_lightning_class_args(CellDataModule, "data", subclass_mode=True)
        for target, source in LINKED.items():
            parser.link_arguments(source, f"model.{target}", apply_on="instantiate")
        parser.set_defaults({"data": {"class_path": "SyntheticDataModule"}})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add cellbench's own options, and those of the Trainer's method of the same name."""
        assert isinstance(parser, ExperimentParser)

        def add(name: str, default: Any, text: str | None = None) -> None:
            parser.add_argument(f"--{name}", type=OWN[name], default=default, help=text)

        add("name", None, "experiment's name (config's file name)")
        # --resume, --folder and --run are removed from the command line before this parser gets it;
        # they are added for --help.
        if self.command == "fit":
            parser.add_argument("--resume", type=str | None, help=_RESUME)
            parser.add_argument("--folder", type=str | None, help=_FOLDER)
            add("test", True, "score the test split at the end; false leaves it to `test --run`")
            add("figures", True, "draw figures")
        else:
            parser.add_argument("--run", type=str | None, help="the run's folder")
        add("runs", Path("runs"), "folder of all runs")
        add("checkpoint", CheckpointConfig())
        add("wandb", WandbConfig())
        add("tensorboard", False, "write event files")
        add("label_history", False, _LABEL_HISTORY)
        skipped = set(LightningCLI.subcommands()[self.command])
        added = parser.add_method_arguments(Trainer, self.command, skip=skipped)
        parser.known.types |= experiment_types() | dict.fromkeys(added, Any)
        parser.known.types["data"] = dataclasses.replace(DATA, default="SyntheticDataModule")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and check options that depend on each other."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        check_options(self.command, self.config)

    def instantiate_classes(self) -> None:
        """Instantiate nothing yet, as several devices first need a process each."""

    def instantiate(self) -> Namespace:
        """Instantiate the data module, the model, and the classes that the trainer's options name.

        Returns:
            The options, with objects in place of their descriptions.

        Raises:
            UserError: One cannot be made.
        """
        try:
            made: Namespace = self.parser.instantiate(self.config)
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            if (mistake := find_user_error(error)) is not None:
                raise mistake from error
            cause: BaseException = error
            while cause.__cause__ is not None:  # jsonargparse's errors say where, but not why
                cause = cause.__cause__
            raise UserError(
                f"the configuration names a class that cannot be made: {cause or repr(cause)}; "
                "--debug shows more"
            ) from error
        return made

    def plain(self) -> dict[str, Any]:
        """Return the configuration in the form of config.yaml: dictionaries, lists and scalars."""
        # It is valid, as it was parsed before; JSON is read a hundred times as fast as YAML.
        text = self.parser.dump(self.config, skip_unset=False, skip_validation=True, format="json")
        config = keys.settings_of_run(json.loads(text))
        data, trainer = config["data"], config["trainer"]
        data["class_path"] = data["class_path"].rpartition(".")[2]
        config["trainer"] = {name: value for name, value in trainer.items() if value is not None}
        return config


_RESUME = (
    "a run's folder to go on with, and nothing else (but --wandb.mode=online, which a run that is "
    "online needs); or auto, beside the options of a fit: the newest unfinished run of the same "
    "configuration, if there is one"
)
_FOLDER = (
    "the run's own folder, in the place of RUNS/NAME/TIME; given again, an interrupted run there "
    "goes on"
)
_LABEL_HISTORY = "write label_history.csv: how probable each training label was, epoch by epoch"
