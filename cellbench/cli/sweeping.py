"""What `sweep` does, once the workers are on their way."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jsonargparse import Namespace

from cellbench import __main__ as program
from cellbench.cli import report
from cellbench.cli.engine import CellbenchCLI
from cellbench.cli.parsing import Parser, check_folder_name, check_yaml, plain, take_option
from cellbench.config import keys, yaml
from cellbench.data.loading import LoadingPlan
from cellbench.errors import CannotWrite, OtherRun, UserError, find_user_error
from cellbench.runs.finished import read_metrics
from cellbench.runs.folder import RunFolder, as_yaml, write_text
from cellbench.runs.loggers import check_tensorboard
from cellbench.runs.progress import EndAtSignal
from cellbench.sweeps import results, workers
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder, merged
from cellbench.sweeps.screen import Screen, shown
from cellbench.sweeps.space import options
from cellbench.sweeps.study import Study, check_storage
from cellbench.sweeps.sweep import OTHER_RUN, UNWRITABLE, OpenTrial, Sweep
from cellbench.terminal import say

SPECIAL = {CannotWrite: UNWRITABLE, OtherRun: OTHER_RUN}
"""The mistakes that a sweep does not take for the trial's."""

WRITE = 10.0
"""Seconds between two writings of trials.csv and best.yaml while a sweep runs."""


def main(args: Sequence[str]) -> int:
    """Runs a sweep, or goes on with it.

    Returns:
        0; 1 where trials have failed.
    """
    own, given = _divide(args)
    if not {"-h", "--help"} & set(own) and take_option(own, "--config")[0] is None:
        raise UserError("sweep: which one? give its file as --config")
    check_yaml(own, from_sweep=True)
    _refuse_experiment(take_option(own, "--config")[0])
    asked = _parser().parse_args(own)
    file = Path(str(asked.config[-1]))
    config = _config(asked, file)
    name = asked.name or file.stem
    check_folder_name(name)
    check_storage(asked.storage)
    gpus = _gpus(config, given)
    slots = workers.divide(asked.workers, gpus, asked.gpus)
    experiment = [f"--config={config.experiment}", *given]
    if gpus and asked.gpus > 1:
        experiment.append(f"--trainer.devices={int(asked.gpus)}")
    experiment += [
        f"--name={name}",
        f"--runs={asked.runs}",
        f"--wandb.group={name}",
        "--figures=false",
        "--trainer.enable_progress_bar=false",
    ]
    if not any(option.startswith("--data.cache") for option in given):
        experiment.append("--data.cache.memory=0")  # decoded once, and mapped by all
    resolved = _check(config, experiment, given, file)
    steps = len(config.runs)
    if steps == 1:
        steps = resolved["trainer"]["max_epochs"]
    if config.pruner != "none" and steps < 2:
        raise UserError(
            f"pruner: {config.pruner} judges by steps, and a trial has one epoch of one run; raise "
            "trainer.max_epochs, repeat folds or seeds, or remove pruner"
        )
    folder = SweepFolder(Path(asked.runs, name))
    hint = "nothing is lost: the same command goes on"
    with EndAtSignal(hint).watching(), _held(folder):
        stored = _stored(folder, asked.storage)
        study = Study(
            name,
            config,
            config.identity(keys.settings_of_sweep(resolved)),
            folder.path,
            asked.storage,
            steps,
            extend=asked.extend,
        )
        _write_file(folder, stored, asked.storage, study.identifier, resolved)
        return _run(Sweep(config, name, study, folder, work, experiment, slots), given)


def work(args: list[str]) -> int:
    """What a worker calls: a command, as a user would.

    Returns:
        Its exit code, or one of SPECIAL.
    """
    try:
        return program.run(args)
    except BaseException as error:
        code = program.end(error, debug=False)
        mistake = find_user_error(error)
        return next((own for kind, own in SPECIAL.items() if isinstance(mistake, kind)), code)


def _run(sweep: Sweep, given: Sequence[str]) -> int:
    config, study, folder = sweep.config, sweep.study, sweep.folder
    total = "" if config.total is None else f"{config.total} trials of "
    say(
        f"sweep      {sweep.name}: {total}{len(config.runs)} run(s), {config.sampler}, "
        f"{sweep.workers} worker(s)\nfolder     {folder.path}",
        flush=True,
    )
    own = yaml.read_mapping(config.experiment)
    overrides = {
        option.removeprefix("--").partition("=")[0]: yaml.value_of(option.partition("=")[2])
        for option in given
    }
    written = time.monotonic()

    def write() -> None:
        results.write_trials(folder, config, study)
        results.write_best(folder, sweep.name, config, study, merged(own, overrides))

    try:
        with Screen() as screen:

            def show(sweep: Sweep, ended: OpenTrial | None) -> None:
                nonlocal written
                screen.show(sweep, ended)
                if ended is not None and time.monotonic() - written > WRITE:
                    write()
                    written = time.monotonic()

            sweep.run(show)
    finally:
        write()
    states = Counter(trial.state.name for trial in study.trials())
    counts = [f"{states[state]} {word}" for state, word in results.STATES.items() if states[state]]
    say(f"{states.total()} trials: {', '.join(counts) or 'none'}; trials.csv has them all")
    if states["FAIL"]:
        say("NOTE       failed trials stay failed; to run them again give another --name")
    drawn = results.draw(folder, config, study)
    if drawn:
        say(f"figures    {folder.path / 'figures'}: {', '.join(drawn)}")
    if config.compares and list((folder.path / "trials").glob("*/metrics.json")):
        report.main([str(folder.path)])  # of those that this machine has
    if len(config.metrics) > 1:
        _show_front(sweep)
    elif not config.compares:
        _show_best(sweep)
    return 1 if states["FAIL"] else 0


def _show_front(sweep: Sweep) -> None:
    """Show the Pareto front of several metrics, from which nothing is chosen."""
    config = sweep.config
    say("no trial is better in every metric than these:")
    for trial in sweep.study.front():
        values = zip(config.metrics, trial.values, strict=True)
        scores = ", ".join(f"{name} {value:.4g}" for name, value in values)
        say(f"  trial {trial.number}: {scores} ({shown(results.point_of(config, trial))})")
    if config.compares:
        say("a grid chooses none of them; report compares all conditions on the test split")
    else:
        say("choose one, and test it: python -m cellbench test --run RUN")
    if warning := results.stamp(config):
        say(f"NOT TO BE BELIEVED: {warning}")


def _show_best(sweep: Sweep) -> None:
    """Show the trial that a search has chosen, and its score on the test split."""
    config, study = sweep.config, sweep.study
    best = study.best()
    if best is None:
        say("no trial has finished")
        return
    say(
        f"best       trial {best.number}, validation {config.metrics[0]} {best.values[0]:.4f}: "
        f"{shown(results.point_of(config, best))}\n"
        f"again      python -m cellbench fit --config {sweep.folder.best}"
    )
    if not sweep.is_over:
        say("test       once all trials are done: give the same command again")
        return
    tested = sweep.test_best()
    for run in tested:
        found = read_metrics(run)
        try:
            say(f"test       {_scores(found['test'])} ({run.path})")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot read {run.metrics}: {error!r}; delete {run.path}, and go on"
            ) from error
        for one in found["stamps"]:
            say(f"NOT TO BE BELIEVED: {one}")
    if not tested:
        say("test       on the machine that has the best trial's checkpoint")


def _scores(test: Mapping[str, Any]) -> str:
    """The scores of a test split in a line, as metrics.json has them."""
    scores = test["metrics"]
    told = ", ".join(
        f"{key} {scores[key]['value']:.3f} [{scores[key]['low']:.3f}, {scores[key]['high']:.3f}]"
        for key in ("accuracy", "f1_macro")
    )
    baseline = scores["accuracy"]["baseline"]
    return f"n = {test['n']}: {told}; majority class {baseline:.3f}"


def _refuse_experiment(file: str | None) -> None:
    """Says so where the file is an experiment's; the parser would name some key of it."""
    if file is None:
        return
    content = yaml.read_mapping(Path(file), "--config")
    _refuse_classes(Path(file), content)
    if "experiment" not in content and {"data", "model", "trainer"} & content.keys():
        raise UserError(
            f"--config: {file} is an experiment; a sweep's file names one as `experiment`, and "
            "what varies as `space`"
        )


def _refuse_classes(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse classes among what is varied, but data modules: they would be imported here."""
    for where in ("space", "repeat"):
        varied = content.get(where)
        for path, value in varied.items() if isinstance(varied, dict) else ():
            if path != "data" and (path == "class_path" or keys.names_class(value)):
                raise UserError(
                    f"{file}: {where}: {path}: a class cannot be varied; give class_path in the "
                    "experiment, or vary data"
                )


def _divide(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sweep's own options, and the experiment's as --key=value."""
    own: list[str] = []
    given: list[str] = []
    rest = list(args)
    while rest:
        option = rest.pop(0)
        key = option.partition("=")[0]
        if key.removeprefix("--").split(".")[0] not in keys.OF_EXPERIMENT:
            own.append(option)
        elif "=" in option:
            given.append(option)
        elif rest:
            given.append(f"{option}={rest.pop(0)}")
        else:
            raise UserError(f"{option}: expected a value")
    return own, given


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cellbench sweep",
        description="Varies an experiment, as a sweep's file says. Given again, the command goes "
        "on with what is not done; options of fit (--data.root ...) change the experiment for all "
        "trials. Ends with 1 where trials have failed.",
    )
    parser.add_argument("--config", action="config", help="the sweep's file")
    parser.add_class_arguments(SweepConfig, as_group=False)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time on this machine")
    parser.add_argument(
        "--gpus",
        type=float,
        default=1.0,
        help="GPUs of each run, where there are any; below 1 several runs share one",
    )
    parser.add_argument(
        "--storage",
        type=str,
        default="journal",
        help="journal or sqlite, for a file in the sweep's folder; postgresql://HOST/DATABASE, "
        "where several machines give the same command (the password is PGPASSWORD's, or .pgpass')",
    )
    parser.add_argument("--extend", type=bool, default=False, help="the ranges may have changed")
    parser.add_argument("--name", type=str | None, help="the sweep's name (its file's name)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    return parser


def _config(asked: Namespace, file: Path) -> SweepConfig:
    """The sweep's file, with the command line's options."""
    fields = {key: plain(asked[key]) for key in SweepConfig.__dataclass_fields__}
    with _named(file):
        config = SweepConfig(**fields)
    path = config.experiment if config.experiment.is_file() else file.parent / config.experiment
    if not path.is_file():
        raise UserError(f"{file}: experiment: there is no file {path}")
    return replace(config, experiment=path)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Says in which file a mistake is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _gpus(config: SweepConfig, given: Sequence[str]) -> list[str]:
    """The GPUs that runs are divided among, as CUDA_VISIBLE_DEVICES names them."""
    own = yaml.read_mapping(config.experiment).get("trainer")
    configured = own.get("accelerator", "auto") if isinstance(own, dict) else "auto"
    asked = [option.partition("=")[2] for option in given if "trainer.accelerator=" in option]
    if (asked or [configured])[-1] not in ("auto", "gpu", "cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


class _Checked(CellbenchCLI):
    """Makes all of a run but its folder and its trainer, and trains nothing."""

    def instantiate_classes(self) -> None:
        """Makes the data and the model."""
        self._count_devices()
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")

    def fit(self, **kwargs: Any) -> None:
        """Trains nothing."""

    def plain(self) -> dict[str, Any]:
        """The whole configuration."""
        return self._plain_config()

    def check(self, args: Sequence[str]) -> None:
        """Takes another command line, with the same parser."""
        self.parse_arguments(self.parser, ["fit", *args])
        self.instantiate_classes()


def _check(
    config: SweepConfig, experiment: Sequence[str], given: Sequence[str], file: Path
) -> dict[str, Any]:
    """Makes sure, before the first trial, that every parameter and every value is one.

    Returns:
        The experiment's whole configuration.

    Raises:
        UserError: One is not.
    """
    check_yaml(experiment)
    for option in given:
        path = option.removeprefix("--").partition("=")[0]
        for where in ("space", "repeat"):
            if path in getattr(config, where):
                raise UserError(f"--{path}: it is in the sweep's {where}; choose one")
    try:
        checked = _Checked("fit", experiment, experiment)
    except UserError as error:
        raise UserError(f"{config.experiment}: {error}") from error
    resolved = checked.plain()
    if resolved["tensorboard"]:
        check_tensorboard()
    checked.datamodule.plan = LoadingPlan(seed=resolved["seed_everything"])
    checked.datamodule.setup("fit")  # what it decodes, the workers find
    repeated = [{path: value} for path, values in config.repeat.items() for value in values]
    for where, points in (("repeat", repeated), ("space", config.parameters.covering())):
        for point in points:
            try:
                checked.check([*experiment, *options(point)])
            except UserError as error:
                raise UserError(f"{file}: {where}: {error}") from error
    return resolved


@contextmanager
def _held(folder: SweepFolder) -> Iterator[None]:
    """Keeps other sweeps off a folder."""
    RunFolder(folder.path).make()
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--name: another sweep is running in {folder.path}; use its --workers, or give "
            "another --name"
        ) from error
    except OSError as error:
        raise CannotWrite(f"cannot write {folder.lock}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _stored(folder: SweepFolder, storage: str) -> dict[str, Any] | None:
    """What sweep.yaml says, if there is one; it must be of the same storage."""
    if not folder.file.is_file():
        return None
    stored = yaml.read_mapping(folder.file)
    for key in ("storage", "study"):
        if not isinstance(stored.get(key), str):
            raise UserError(f"{folder.file} is not a sweep's: it has no {key}")
    if stored["storage"] != storage:
        raise UserError(
            f"--storage: the sweep in {folder.path} was begun with {stored['storage']}, and here "
            f"is {storage}; give that one, or another --name"
        )
    return stored


def _write_file(
    folder: SweepFolder,
    stored: Mapping[str, Any] | None,
    storage: str,
    identifier: str,
    resolved: Mapping[str, Any],
) -> None:
    """Writes sweep.yaml; what lies in the folder must be of the same study."""
    if stored is None:
        text = {"command": " ".join(sys.argv[1:]), "storage": storage, "study": identifier}
        write_text(folder.file, as_yaml(text | {"experiment": dict(resolved)}))
    elif stored["study"] != identifier:
        raise UserError(
            f"--storage: it has another study than the one that {folder.path} was begun with; "
            "give another --name, or delete the folder"
        )
