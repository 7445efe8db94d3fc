"""Results of a sweep: a table of all trials, a search's best as an experiment, and figures."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import matplotlib.axes
import matplotlib.figure
import matplotlib.pyplot
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from cellbench.artifacts.folder import as_yaml, whole_file, write_text
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder, merged
from cellbench.sweeps.space import Point
from cellbench.sweeps.study import Study
from cellbench.utils.errors import counted

STATES = {
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "not done",
}
"""Words for the states of a trial."""


def point_of(config: SweepConfig, trial: FrozenTrial) -> Point:
    """Return a trial's parameters with their own values, where Optuna has labels."""
    parameters = config.parameters.parameters
    return {path: parameters[path].value(value) for path, value in trial.params.items()}


def write_trials(folder: SweepFolder, config: SweepConfig, study: Study) -> None:
    """Write trials.csv: one row per trial, with the mean and each run's value of every metric.

    The duration is the sum over a trial's runs in seconds, without what earlier commands ran.
    """
    paths = list(config.parameters.parameters)
    ends = ["duration", "reason"]
    runs = [f"{name} of run {i}" for i in range(len(config.runs)) for name in config.metrics]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *paths, *config.metrics, *runs, *ends])
    for trial in study.trials():
        point = point_of(config, trial)
        values = [value for run in trial.user_attrs.get("values", []) for value in run]
        writer.writerow(
            [
                trial.number,
                STATES[trial.state.name],
                *(json.dumps(point[p]) if p in point else "" for p in paths),
                *(trial.values or [""] * len(config.metrics)),
                *(values or [""] * len(runs)),
                trial.user_attrs.get("duration", ""),
                trial.user_attrs.get("reason", ""),
            ]
        )
    write_text(folder.trials, text.getvalue())


def write_best(
    folder: SweepFolder, name: str, config: SweepConfig, study: Study, experiment: Mapping[str, Any]
) -> None:
    """Write the best trial of a search as best.yaml; a comparison chooses none.

    Args:
        folder: The sweep's folder.
        name: Its name.
        config: The sweep.
        study: Its trials.
        experiment: The experiment's own keys.
    """
    best = None if config.compares else study.best()
    if best is None:
        return
    head = (
        f"# Trial {best.number} of the sweep {name}: mean {config.metrics[0]} {best.values[0]:.4f} "
        f"over {counted(len(config.runs), 'run')}, the best of "
        f"{counted(len(study.trials()), 'trial')}.\n"
    )
    flag = warning_flag(config)
    head += f"# UNRELIABLE: {flag}\n" if flag else ""
    write_text(folder.best, head + as_yaml(merged(experiment, point_of(config, best))))


def warning_flag(config: SweepConfig) -> str | None:
    """Return the reason why a search's test scores are optimistic; None if they are not."""
    if config.compares or not any(path.startswith("data.split.") for path in config.repeat):
        return None
    return (
        "the configuration was chosen by the validation images of all folds, among which are the "
        "test images of each: expect a little less on new ones"
    )


def draw(folder: SweepFolder, config: SweepConfig, study: Study) -> list[str]:
    """Draw the metrics over the parameters, and for a search its progress.

    Returns:
        Names of the figures; none for fewer than three finished trials.
    """
    done = study.trials(TrialState.COMPLETE)
    if len(done) < 3:
        return []
    plots = optuna.visualization.matplotlib
    parameters = config.parameters.parameters
    varied = [path for path in parameters if len({str(t.params.get(path)) for t in done}) > 1]
    kinds: dict[str, Callable[..., Any]] = {}
    if not config.compares:
        kinds["history"] = plots.plot_optimization_history
    if varied:
        kinds["slice"] = partial(plots.plot_slice, params=varied)
    if len(varied) > 1:
        # Shares of the variance (Hutter et al., ICML 2014). Optuna's default only explains what
        # distinguishes the best tenth of the trials, and a search has few others.
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        kinds["importances"] = partial(
            plots.plot_param_importances, evaluator=evaluator, params=varied
        )
        kinds["parallel_coordinates"] = partial(plots.plot_parallel_coordinate, params=varied)
    plotted: dict[str, Callable[[], Any]] = {}
    for k, metric in enumerate(config.metrics):
        several = len(config.metrics) > 1
        end = f"_{metric.rpartition('/')[2]}" if several else ""
        target = partial(_value, k) if several else None
        for kind, plot in kinds.items():
            plotted[kind + end] = partial(plot, study.optuna, target=target, target_name=metric)
    if len(config.metrics) in (2, 3):
        front = partial(plots.plot_pareto_front, study.optuna, target_names=config.metrics)
        plotted["pareto_front"] = front
    return [name for name, plot in plotted.items() if _draw(folder, name, plot)]


def _value(k: int, trial: FrozenTrial) -> float:
    """Return a trial's value of the k-th metric."""
    return float(trial.values[k])


@contextmanager
def _closed_figures() -> Iterator[None]:
    """Close the pyplot figures that the block opens, and no others."""
    before = set(matplotlib.pyplot.get_fignums())
    try:
        yield
    finally:
        for figure in set(matplotlib.pyplot.get_fignums()) - before:
            matplotlib.pyplot.close(figure)


def _draw(folder: SweepFolder, name: str, plot: Callable[[], Any]) -> bool:
    """Draw one figure; return False if Optuna cannot.

    Optuna's plots set matplotlib's style and keep their figures open for the whole process, in
    which a report may be drawn afterwards.
    """
    with warnings.catch_warnings(), matplotlib.rc_context(), _closed_figures():
        warnings.simplefilter("ignore")  # the functions are experimental
        try:
            axes = np.ravel(plot())[0]
        except (ValueError, RuntimeError):  # all values equal, or a parameter with one value
            return False
        assert isinstance(axes, matplotlib.axes.Axes)
        figure = axes.get_figure(root=True)
        assert isinstance(figure, matplotlib.figure.Figure)
        figure.set_size_inches(max(8.0, 3.0 * len(figure.axes)), 5.5)
        for each in figure.axes:
            if any(len(label.get_text()) > 4 for label in each.get_xticklabels()):
                each.tick_params(axis="x", labelrotation=30)
        with whole_file(folder.figure(name)) as beside:
            figure.savefig(beside, format="png", dpi=120, bbox_inches="tight")
    return True
