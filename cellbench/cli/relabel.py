"""Command `relabel`: find wrong labels in a training split, and write better ones."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cellbench.artifacts.folder import RunFolder, write_text
from cellbench.cli.execution.console import show
from cellbench.cli.execution.running import prepared
from cellbench.cli.options.lightning_cli import CellbenchCLI
from cellbench.cli.options.parser import take_option
from cellbench.config import yaml
from cellbench.label_noise.detection import easy
from cellbench.label_noise.hsa_nrl import (
    Samples,
    corrected_labels,
    find_noisy,
    positions,
    read_samples,
)
from cellbench.training.claim import Destination
from cellbench.training.run import Run
from cellbench.training.trainer import count_devices
from cellbench.utils.errors import UserError
from cellbench.utils.terminal import say

_HELP = """usage: python -m cellbench relabel --config EXPERIMENT --noise_rate RATE [options of fit]

Train an experiment three times to tell easy, hard and wrongly labelled images of its training
split apart (HSA-NRL: Zhu et al., IEEE Trans Med Imaging 2022), and write labels.csv:

  1. with the given labels: images whose label stays probable are easy;
  2. on the easy images, with RATE of their labels changed: this shows how wrong labels behave;
  3. without the images that behave like these: this network relabels them.

Then: python -m cellbench fit --config EXPERIMENT --data.train_labels LABELS.CSV

options:
  --noise_rate RATE   estimated share of wrong labels, above 0 and below 0.6
  --output FOLDER     for labels.csv, the three runs with their labels, and relabel.txt, which
                      holds the options, to notice a change (runs/NAME-relabel)

The three trainings use one device, show every image once per epoch, and score their last epoch.
Balancing, blending, early stopping and co-teaching are left to the training that uses the new
labels. The same command again resumes where it was interrupted.
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
"""Options of all three trainings, which override those of the experiment."""


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
    yaml.read_mapping(Path(config), "--config")  # for its errors, before a folder is made
    output = Path(given or Path("runs", f"{name or Path(config).stem}-relabel"))
    if (output / "labels.csv").exists():
        raise UserError(
            f"--output: {output / 'labels.csv'} is done; give another folder, or delete it"
        )
    fits = _Fits(rest, output, f"{noise_rate} {rest} {Path(config).read_text('utf-8')}")
    samples = read_samples(fits.fit("history"))
    is_easy = easy(samples.history, noise_rate)
    is_noisy = find_noisy(fits, samples, is_easy, noise_rate)
    kept = dict(zip(samples.ids, np.where(is_noisy, "", samples.labels), strict=True))
    run = fits.run("correction", kept)
    final = corrected_labels(run, samples, is_easy, is_noisy)
    kinds = np.where(is_easy, "easy", np.where(is_noisy, "noisy", "hard"))
    columns = {"label": final.tolist(), "given": samples.labels, "kind": kinds.tolist()}
    _write(output / "labels.csv", {"id": samples.ids} | columns)
    _show(run, samples, final, kinds, output / "labels.csv")
    return 0


def _show(run: Run, samples: Samples, final: np.ndarray, kinds: np.ndarray, path: Path) -> None:
    """Print the number of samples of each kind, relabelled, and left out."""
    counts = ", ".join(f"{int((kinds == kind).sum())} {kind}" for kind in ("easy", "hard", "noisy"))
    labels = np.array(samples.labels)
    changed = (final != "") & (final != labels)
    say(f"{len(labels)} training images: {counts}; {changed.sum()} relabelled, ", end="")
    say(f"{(final == '').sum()} left out: {path}")
    data = run.data
    if data.label_noise:
        truth = np.array(data.classes)[data.table.labels[positions(run, samples)]]
        before, after = labels != truth, (final != truth)[final != ""]
        say(f"wrong labels: {before.mean():.1%} before, {after.mean():.1%} of those kept")


class _Fits:
    """Trainings of one command, each a run in its own folder.

    Args:
        args: The options of a fit.
        output: Folder of the trainings.
        identity: Text that differs if their results may differ.

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
        """Return a finished run, from an earlier command if there is one."""
        for path in sorted((self._output / name).glob("*/metrics.json")):
            return RunFolder(path.parent)
        return self.run(name, labels).folder

    def run(self, name: str, labels: Mapping[str, str] | None = None) -> Run:
        """Train on other labels, leaving out the samples with an empty one."""
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
        raise UserError("missing --noise_rate: the estimated share of wrong labels")
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 0.6:  # else hardly any image could be easy
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
