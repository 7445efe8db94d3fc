"""The README's comparisons: `python -m tests.benchmarks.comparisons networks --shared DIR`.

Every condition is trained on each fold with each seed by the command line's own `fit`, in a few
processes of one thread each. What is finished is kept: given again, the command goes on.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FOLDS, SEEDS = range(5), range(3)
EXPERIMENTS = Path(__file__).parents[2] / "experiments"

Condition = tuple[str, list[str]]
"""A name, and the command line behind `fit`."""


def hpv(name: str, *options: str, experiment: str = "hpv_raw") -> Condition:
    """A condition on the hpv cells."""
    return name, [f"--config={EXPERIMENTS / experiment}.yaml", "--data.root={shared}/hpv", *options]


NETWORKS = [
    hpv("se_resnet8", "--model.backbone=se_resnet8"),
    hpv("bottleneck_resnet", "--model.backbone=bottleneck_resnet"),
    hpv(
        "vgg_style_v1",
        "--model.backbone=vgg_style_v1",
        "--model.head={hidden: [128], batch_norm: true}",
    ),
    hpv(
        "vgg_style_v3",
        "--model.backbone=vgg_style_v3",
        "--model.head={hidden: [1024, 1024]}",
    ),
    hpv(
        "separable_cnn",
        "--model.backbone=separable_cnn",
        "--model.head={pool: flatten, hidden: [512, 128, 64], dropout: [0, 0.7, 0.5, 0.3]}",
    ),
    hpv("resnet18", "--model.backbone=resnet18"),
]

COMPARISONS = {"networks": NETWORKS}


def jobs(conditions: list[Condition]) -> Iterator[tuple[str, int, int, list[str]]]:
    """Condition, fold, seed and options, the seeds outermost: after a third there is a table."""
    for seed in SEEDS:
        for fold in FOLDS:
            for name, options in conditions:
                chosen = [f"--data.split.fold={fold}", f"--seed_everything={seed}"]
                yield name, fold, seed, [*options, *chosen]


def finished(runs: Path, name: str) -> set[tuple[int, int]]:
    """The folds and seeds of a condition that are done."""
    done = set()
    for path in (runs / name).glob("*/metrics.json"):
        found = json.loads(path.read_text())
        done.add((found["split"]["fold"] or 0, found["seed"]))
    return done


def run(options: list[str]) -> int:
    """One fit."""
    from cellbench.__main__ import main

    return main(["fit", *options])


def table(runs: Path, conditions: list[Condition]) -> Iterator[str]:
    """A Markdown row for each condition: all folds and seeds together."""
    from cellbench.report.pool import pool

    yield (
        "| condition | parameters | n | seeds | accuracy [95 % interval] | balanced accuracy | "
        "macro F1 | majority class | seconds of training a run |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, _ in conditions:
        if not (runs / name).is_dir():
            continue
        *_, every = pool([runs / name])
        metrics = every.scores["metrics"]
        shown = [
            f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
            for m in (metrics[key] for key in ("accuracy", "balanced_accuracy", "f1_macro"))
        ]
        done = list((runs / name).glob("*/metrics.json"))
        histories = [path.with_name("history.csv") for path in done]
        tables = [np.genfromtxt(path, delimiter=",", names=True) for path in histories]
        seconds = [float(rows["seconds"].sum()) for rows in tables]
        parameters = json.loads(done[0].read_text())["parameters"]
        yield (
            f"| {name} | {parameters:,} | {every.n} | {len(every.seeds)} | {' | '.join(shown)} | "
            f"{metrics['accuracy']['baseline']:.3f} | {statistics.median(seconds):.0f} |"
        )


def main() -> None:
    """Trains what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--shared", default="../shared/data", help="where the real images are")
    parser.add_argument("--runs", type=Path, default=Path("runs/comparisons"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    conditions, runs = COMPARISONS[asked.comparison], asked.runs / asked.comparison
    os.environ["OMP_NUM_THREADS"] = "1"  # before a worker imports torch
    waiting = []
    for name, fold, seed, options in jobs(conditions):
        if (fold, seed) not in finished(runs, name):
            filled = [option.replace("{shared}", asked.shared) for option in options]
            filled += [f"--runs={runs}", f"--name={name}", "--resume=auto"]
            waiting.append([*filled, "--trainer.enable_progress_bar=false"])
    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        for code in pool.imap_unordered(run, waiting):
            if code:
                raise SystemExit(f"a run ended with {code}")
    print("\n".join(table(runs, conditions)))


if __name__ == "__main__":
    main()
