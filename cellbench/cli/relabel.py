"""Command `relabel`: find wrong labels in a training split, and write better ones."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellbench.cli.console import show
from cellbench.cli.lightning_cli import CellbenchCLI
from cellbench.cli.parser import take_option
from cellbench.cli.running import prepared
from cellbench.config import yaml
from cellbench.data.labels import flip
from cellbench.data.splits import read_split
from cellbench.errors import UserError
from cellbench.relabel.detection import correct, easy, noisy
from cellbench.runs.claim import Destination
from cellbench.runs.folder import RunFolder, write_text
from cellbench.runs.label_history import read_label_history
from cellbench.runs.run import Run
from cellbench.runs.trainer import count_devices
from cellbench.terminal import say

_HELP = """usage: python -m cellbench relabel --config EXPERIMENT --noise_rate RATE [options of fit]

Trains an experiment three times to tell easy, hard and wrongly labelled images of its training
split apart (HSA-NRL: Zhu et al., IEEE Trans Med Imaging 2022), and writes labels.csv:

  1. with the labels as they are: easy is what keeps a high probability of its label;
  2. on the easy images with RATE of their labels made wrong: what wrong labels look like;
  3. without what looks wrong: this one relabels it.

Then: python -m cellbench fit --config EXPERIMENT --data.train_labels LABELS.CSV

options:
  --noise_rate RATE   the share of wrong labels, as far as it is known, above 0 and below 0.6
  --output FOLDER     for labels.csv, the three runs, the labels that each of them had, and
                      relabel.txt, by which other options are noticed (runs/NAME-relabel)

The three train on one device, on every image once an epoch, and score their last one: balancing,
blending, early stopping and co-teaching are left to the training that takes the labels. Given
again, the command goes on where it was interrupted.
"""


FORCED = (
    "--label_history=true",
    "--checkpoint.monitor=last",
    "--checkpoint.patience=null",
    "--data.balance=none",
    "--data.smote=null",
    "--model.co_teaching=null",
    "--model.mixup=0",
    "--model.cutmix=0",
    "--trainer.devices=1",
)
"""Options that the three trainings have in common, whatever the experiment says."""


def main(args: Sequence[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(args):
        say(_HELP, end="")
        raise SystemExit(0)
    rate, rest = take_option(args, "--noise_rate")
    given, rest = take_option(rest, "--output")
    name, rest = take_option(rest, "--name")
    noise_rate = _rate(rate)
    config, _ = take_option(rest, "--config")
    if config is None:
        raise UserError("relabel: which experiment? give --config")
    yaml.read_mapping(Path(config), "--config")  # what is wrong with it, before a folder is made
    output = Path(given or Path("runs", f"{name or Path(config).stem}-relabel"))
    if (output / "labels.csv").exists():
        raise UserError(
            f"--output: {output / 'labels.csv'} is done; give another folder, or delete it"
        )
    fits = _Fits(rest, output, f"{noise_rate} {rest} {Path(config).read_text('utf-8')}")
    samples = _read_samples(fits.fit("history"))
    is_easy = easy(samples.history, noise_rate)
    is_noisy = _find_noisy(fits, samples, is_easy, noise_rate)
    kept = dict(zip(samples.ids, np.where(is_noisy, "", samples.labels), strict=True))
    run = fits.run("correction", kept)
    final = _correct(run, samples, is_easy, is_noisy)
    kinds = np.where(is_easy, "easy", np.where(is_noisy, "noisy", "hard"))
    columns = {"label": final.tolist(), "given": samples.labels, "kind": kinds.tolist()}
    _write(output / "labels.csv", {"id": samples.ids} | columns)
    _show(run, samples, final, kinds, output / "labels.csv")
    return 0


@dataclass(frozen=True)
class _Samples:
    """Samples of the training split, as the first training saw them."""

    ids: list[str]
    """The sample's id, (n,)."""
    labels: list[str]
    """The sample's label as given, (n,)."""
    history: np.ndarray
    """Probability of the label by epoch, (n, epochs)."""

    @property
    def classes(self) -> list[str]:
        """The classes among the labels, sorted."""
        return sorted(set(self.labels))

    @property
    def numbers(self) -> np.ndarray:
        """Each label's position among the classes, (n,)."""
        return np.array([self.classes.index(label) for label in self.labels])


def _read_samples(first: RunFolder) -> _Samples:
    """Read what the first training has written of its samples.

    Raises:
        UserError: Some have no label, or were not seen in every epoch.
    """
    everything = [row["id"] for row in read_split(first.split) if row["split"] == "train"]
    ids, labels, history = read_label_history(first.label_history)
    if len(ids) < len(everything) or not np.isfinite(history).all():
        raise UserError(
            "relabel: every training image must have a label and be seen in every epoch; remove "
            "data.train_labels and trainer.limit_train_batches"
        )
    return _Samples(ids, labels, history)


def _find_noisy(
    fits: "_Fits", samples: _Samples, is_easy: np.ndarray, noise_rate: float
) -> np.ndarray:
    """Train on easy samples with some labels made wrong, and find what looks like these.

    Returns:
        Which samples are noisy, (n,), bool; none of the easy ones.
    """
    ids, classes, numbers = samples.ids, samples.classes, samples.numbers
    chosen = np.flatnonzero(is_easy)
    artificial = flip(numbers[chosen], len(classes), noise_rate, seed=0)
    some = {ids[i]: classes[label] for i, label in zip(chosen, artificial, strict=True)}
    second = fits.fit("artificial", {name: some.get(name, "") for name in ids})
    own, _, curves = read_label_history(second.label_history)
    known = {ids[i]: bool(artificial[k] != numbers[i]) for k, i in enumerate(chosen)}
    flipped = np.array([known[name] for name in own])
    is_noisy = np.zeros(len(ids), dtype=bool)
    if not is_easy.all():
        is_noisy[~is_easy] = noisy(samples.history[~is_easy], curves, flipped, seed=0)
    return is_noisy


def _correct(run: Run, samples: _Samples, is_easy: np.ndarray, is_noisy: np.ndarray) -> np.ndarray:
    """Return each sample's label to train on, (n,), by the last training; empty to leave it out."""
    classes = samples.classes
    predicted = np.array(run.data.classes)[
        run.probabilities()[_positions(run, samples)].argmax(axis=1)
    ]
    judged = np.array([classes.index(label) if label in classes else -2 for label in predicted])
    corrected = correct(samples.numbers, judged, is_easy, is_noisy)
    return np.where(corrected < 0, "", np.where(is_easy, np.array(samples.labels), predicted))


def _positions(run: Run, samples: _Samples) -> np.ndarray:
    """Return the samples' positions in a run's table, (n,)."""
    of_id = {sample.id: i for i, sample in enumerate(run.data.table.samples)}
    return np.array([of_id[name] for name in samples.ids])


def _show(run: Run, samples: _Samples, final: np.ndarray, kinds: np.ndarray, path: Path) -> None:
    """Print how many samples are of each kind, and how many got another label or none."""
    counts = ", ".join(f"{int((kinds == kind).sum())} {kind}" for kind in ("easy", "hard", "noisy"))
    labels = np.array(samples.labels)
    changed = (final != "") & (final != labels)
    say(f"{len(labels)} training images: {counts}; {changed.sum()} relabelled, ", end="")
    say(f"{(final == '').sum()} left out: {path}")
    data = run.data
    if data.label_noise:
        truth = np.array(data.classes)[data.table.labels[_positions(run, samples)]]
        before, after = labels != truth, (final != truth)[final != ""]
        say(f"wrong labels: {before.mean():.1%} before, {after.mean():.1%} of those kept")


class _Fits:
    """Trainings, each a run of its own in a folder of its own.

    Args:
        args: The options of a fit.
        output: Where they lie.
        identity: A text that differs where what they find may do.

    Raises:
        UserError: The folder holds trainings of another identity, or other files.
    """

    def __init__(self, args: Sequence[str], output: Path, identity: str) -> None:
        self._args = [*args, *FORCED, f"--runs={output}"]
        self._output = output
        begun = output / "relabel.txt"
        if begun.is_file() and begun.read_bytes() != identity.encode():
            raise UserError(
                f"--output: {output} holds trainings with other options; give another folder, or "
                "delete it"
            )
        if output.exists() and not output.is_dir():
            raise UserError(f"--output: {output} is a file; give a folder")
        if output.is_dir() and not begun.is_file() and any(output.iterdir()):
            raise UserError(
                f"--output: {output} holds other files; give an empty folder, or none yet"
            )
        RunFolder(output).make()
        write_text(begun, identity)

    def fit(self, name: str, labels: Mapping[str, str] | None = None) -> RunFolder:
        """Return a finished run: that of an earlier call, or a new one."""
        for path in sorted((self._output / name).glob("*/metrics.json")):
            return RunFolder(path.parent)
        return self.run(name, labels).folder

    def run(self, name: str, labels: Mapping[str, str] | None = None) -> Run:
        """Train on other labels, of which the empty ones are left out."""
        args = [*self._args, f"--name={name}"]
        if labels is not None:
            path = self._output / f"{name}.csv"
            _write(path, {"id": list(labels), "label": list(labels.values())})
            args.append(f"--data.train_labels={path}")
        say(f"relabel: {name}", flush=True)
        options = CellbenchCLI("fit", args)
        here, _ = count_devices(options.config.trainer)
        with prepared(options, Destination(resume="auto"), here) as run:
            result = run.fit(test=options.config.test)
        if result is not None:
            show(run.folder, result)
        return run


def _rate(given: str | None) -> float:
    if given is None:
        raise UserError("missing --noise_rate: the share of wrong labels, as far as it is known")
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 0.6:  # else hardly anything is left to be easy
        raise UserError(
            f"--noise_rate: {given} is not above 0 and below 0.6; give the share of wrong labels"
        )
    return rate


def _write(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())
