"""The README's comparisons: `python -m tests.benchmarks.comparisons NAME --shared DIR`.

Every condition is trained on each fold with each seed by the command line's own `fit`, in a few
processes of one thread each. What is finished is kept: given again, the command goes on.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@dataclass(frozen=True)
class Condition:
    """One row of a table."""

    name: str
    """Its name."""
    options: Sequence[str]
    """The command line after `fit`; {shared}, {runs} and {seed} are filled in."""
    before: Sequence[tuple[Sequence[str], str]] = ()
    """Command lines that each of its seeds needs first, and the file or folder that each makes."""


@dataclass(frozen=True)
class Comparison:
    """A table."""

    conditions: Sequence[Condition]
    """Its rows."""
    folds: int | None = 5
    """Number of folds of each row; None without folds."""
    seeds: int = 3
    """Number of seeds of each row."""
    before: tuple[Sequence[str], str] | None = None
    """A command line that all rows need first, and the file or folder that it makes."""


HPV = (f"--config={EXPERIMENTS / 'hpv_raw.yaml'}", "--data.root={shared}/hpv")
SMALL = (*HPV, "--model.backbone=se_resnet8")

NETWORKS = Comparison(
    [
        Condition("se_resnet8", SMALL),
        Condition("bottleneck_resnet", (*HPV, "--model.backbone=bottleneck_resnet")),
        Condition(
            "vgg_style_v1",
            (
                *HPV,
                "--model.backbone=vgg_style_v1",
                "--model.head={hidden: [128], batch_norm: true}",
            ),
        ),
        Condition(
            "vgg_style_v3",
            (*HPV, "--model.backbone=vgg_style_v3", "--model.head={hidden: [1024, 1024]}"),
        ),
        Condition(
            "separable_cnn",
            (
                *HPV,
                "--model.backbone=separable_cnn",
                "--model.head={pool: flatten, hidden: [512, 128, 64], dropout: [0, .7, .5, .3]}",
            ),
        ),
        Condition("resnet18", (*HPV, "--model.backbone=resnet18")),
    ]
)

IMBALANCE = Comparison(
    [
        Condition("as they are", SMALL),
        Condition("class weights", (*SMALL, "--model.class_weights=balanced")),
        Condition("balanced sampling", (*SMALL, "--data.balance=balanced")),
        Condition("focal loss", (*SMALL, "--model.loss.name=focal")),
        Condition("oversampled to 120", (*SMALL, "--data.balance=120")),
        Condition("SMOTE to 120", (*SMALL, "--data.smote.count=120")),
    ],
    seeds=1,
)

PRETRAINED = "--model.weights={runs}/blood_cells"
PRETRAINING = Comparison(
    [
        Condition("from scratch", SMALL),
        Condition("pretrained, all trained", (*SMALL, PRETRAINED)),
        Condition(
            "pretrained, head then all",
            (
                *SMALL,
                PRETRAINED,
                "--model.phases=[{epochs: 10, freeze: backbone}, {epochs: 30}]",
            ),
        ),
        Condition("pretrained, head alone", (*SMALL, PRETRAINED, "--model.freeze=backbone")),
    ],
    before=(
        (
            "fit",
            f"--config={EXPERIMENTS / 'blood_cells.yaml'}",
            "--data.root={shared}/blood_cells",
            "--model.backbone=se_resnet8",
            "--trainer.max_epochs=20",
            "--runs={runs}",
            "--name=blood_cells",
            "--trainer.enable_progress_bar=false",
        ),
        "{runs}/blood_cells",
    ),
)


def noise(rate: float) -> Iterator[Condition]:
    """The ways to train on blood cells of which a share has wrong labels."""
    cells = (
        f"--config={EXPERIMENTS / 'blood_cells.yaml'}",
        "--data.root={shared}/blood_cells",
        "--data.split={protocol: grouped, test: 0.2}",
        "--data.image_size=[60, 80]",
        "--model.backbone=se_resnet8",
        "--trainer.max_epochs=12",
        f"--data.label_noise={rate}",
    )
    shown = f"{100 * rate:.0f} %"
    yield Condition(f"{shown}, cross-entropy", cells)
    if not rate:
        return
    taught = f"--model.co_teaching={{forget_rate: {rate}, momentum: 0.99}}"
    yield Condition(f"{shown}, co-teaching", (*cells, taught))
    folder = f"{{runs}}/relabel-{100 * rate:.0f}-{{seed}}"
    relabel = (
        "relabel",
        *cells,
        "--seed_everything={seed}",
        f"--noise_rate={rate}",
        f"--output={folder}",
        "--trainer.enable_progress_bar=false",
    )
    labels = f"{folder}/labels.csv"
    relabelled = (*cells, f"--data.train_labels={labels}")
    before = ((relabel, labels),)
    yield Condition(f"{shown}, relabelled", relabelled, before)
    left = "{forget_rate: 0.1, momentum: 0.99, warm_up: 6}"
    both = (*relabelled, f"--model.co_teaching={left}")
    yield Condition(f"{shown}, relabelled, then co-teaching", both, before)


NOISE = Comparison([*noise(0.0), *noise(0.2), *noise(0.4)], folds=None, seeds=2)

COMPARISONS = {
    "networks": NETWORKS,
    "imbalance": IMBALANCE,
    "pretraining": PRETRAINING,
    "noise": NOISE,
}


def fill(options: Sequence[str], shared: str, runs: Path, seed: int = 0) -> list[str]:
    """Options with their placeholders filled in."""
    values = {"{shared}": shared, "{runs}": str(runs), "{seed}": str(seed)}
    filled = list(options)
    for name, value in values.items():
        filled = [option.replace(name, value) for option in filled]
    return filled


def newest(options: list[str]) -> list[str]:
    """Weights that name a run's parent folder name its newest run."""
    for i, option in enumerate(options):
        if option.startswith("--model.weights="):
            parent = Path(option.removeprefix("--model.weights="))
            options[i] = f"--model.weights={max(parent.iterdir())}"
    return options


def waiting(comparison: Comparison, shared: str, runs: Path) -> Iterator[list[list[str]]]:
    """The command lines of each run that is not done, the seeds outermost."""
    for seed in range(comparison.seeds):
        for fold in range(comparison.folds or 1):
            for condition in comparison.conditions:
                if (fold, seed) in finished(runs / condition.name):
                    continue
                commands = []
                for command, left in condition.before:
                    (path,) = fill([left], shared, runs, seed)
                    if not Path(path).exists():
                        commands.append(fill(command, shared, runs, seed))
                chosen = [f"--seed_everything={seed}", f"--runs={runs}", f"--name={condition.name}"]
                if comparison.folds is not None:
                    chosen.append(f"--data.split.fold={fold}")
                options = newest(fill(condition.options, shared, runs, seed))
                quiet = ["--resume=auto", "--trainer.enable_progress_bar=false"]
                yield [*commands, ["fit", *options, *chosen, *quiet]]


def finished(folder: Path) -> set[tuple[int, int]]:
    """The folds and seeds of a condition that are done."""
    done = set()
    for path in folder.glob("*/metrics.json"):
        found = json.loads(path.read_text())
        done.add((found["split"]["fold"] or 0, found["seed"]))
    return done


def run(commands: list[list[str]]) -> int:
    """Some commands, each after the other, that nobody else has done in the meantime."""
    from cellbench.__main__ import main

    for command in commands:
        outputs = [o.removeprefix("--output=") for o in command if o.startswith("--output=")]
        with FileLock(f"{outputs[0]}.lock") if outputs else nullcontext():
            if outputs and Path(outputs[0], "labels.csv").exists():
                continue
            code = main(command)
        if code:
            return code
    return 0


def table(runs: Path, comparison: Comparison) -> Iterator[str]:
    """A Markdown row for each condition: all folds and seeds together."""
    from cellbench.report.report import build

    yield (
        "| condition | parameters | n | seeds | accuracy [95 % interval] | balanced accuracy | "
        "macro F1 | majority class | seconds of training a run |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for condition in comparison.conditions:
        done = list((runs / condition.name).glob("*/metrics.json"))
        if not done:
            continue
        (every,) = build([runs / condition.name], "accuracy", 0.01).scored
        metrics = every.scores["metrics"]
        shown = [
            f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
            for m in (metrics[key] for key in ("accuracy", "balanced_accuracy", "f1_macro"))
        ]
        histories = [path.with_name("history.csv") for path in done]
        tables = [np.genfromtxt(path, delimiter=",", names=True) for path in histories]
        seconds = [float(rows["seconds"].sum()) for rows in tables]
        parameters = json.loads(done[0].read_text())["parameters"]
        own = every.condition
        yield (
            f"| {condition.name} | {parameters:,} | {own.n} | {len(own.seeds)} | "
            f"{' | '.join(shown)} | {metrics['accuracy']['baseline']:.3f} | "
            f"{statistics.median(seconds):.0f} |"
        )


def main() -> None:
    """Trains what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--shared", default="../shared/data", help="where the real images are")
    parser.add_argument("--runs", type=Path, default=Path("runs/comparisons"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    comparison, runs = COMPARISONS[asked.comparison], asked.runs / asked.comparison
    os.environ["OMP_NUM_THREADS"] = "1"  # before a worker imports torch
    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        if comparison.before is not None:
            command, left = comparison.before
            (path,) = fill([left], asked.shared, runs)
            if not Path(path).exists() and pool.apply(run, ([fill(command, asked.shared, runs)],)):
                raise SystemExit(f"{command[0]} failed")
        jobs = list(waiting(comparison, asked.shared, runs))
        for code in pool.imap_unordered(run, jobs):
            if code:
                raise SystemExit(f"a run ended with {code}")
    print("\n".join(table(runs, comparison)))


if __name__ == "__main__":
    main()
