"""A sweep's overhead and its workers, against other ways to run the same trainings."""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import yaml

from tests.benchmarks.measure import apart, spread

REPETITIONS = 3
TRIALS = 40
HEADS = 100
ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "demo.yaml"
SHORT = ["--trainer.max_epochs=1", "--data.image_size=32"]
SPACE = {"model.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


def sweep(folder: Path, trials: int, workers: int, *options: str) -> float:
    """Seconds of a sweep of short trials, as a user starts it."""
    file = folder / f"sweep{trials}-{workers}.yaml"
    given = {"experiment": str(EXPERIMENT), "sampler": "random", "trials": trials, "space": SPACE}
    file.write_text(yaml.safe_dump(given))
    command = ["sweep", f"--config={file}", f"--workers={workers}", f"--runs={folder}"]
    begun = time.perf_counter()
    run = [sys.executable, "-m", "cellbench", *command, *SHORT, *options]
    subprocess.run(run, check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - begun


def marginal(folder: Path, workers: int, *options: str) -> float:
    """Seconds of one more trial, once a sweep is warm."""
    few, many = (sweep(folder, n, workers, *options) for n in (TRIALS // 4, TRIALS))
    return (many - few) / (TRIALS - TRIALS // 4)


def command(folder: Path) -> float:
    """Seconds of a command of its own for a trial."""
    begun = time.perf_counter()
    options = [*SHORT, "--test=false", "--trainer.enable_progress_bar=false", f"--runs={folder}"]
    run = [sys.executable, "-m", "cellbench", "fit", f"--config={EXPERIMENT}", *options]
    subprocess.run(run, check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - begun


def loop(threads: int) -> float:
    """Seconds of a trial in a plain loop of Optuna and Lightning in one process, once warm.

    It decodes the images once, makes the model anew for each trial, trains and validates, and
    writes nothing.
    """
    import optuna
    import torch
    from lightning.pytorch import Trainer

    from cellbench.data.datasets.synthetic import SyntheticDataModule
    from cellbench.models.classifier import CellClassifier
    from cellbench.models.config import ModelConfig

    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seconds = []
    data = SyntheticDataModule(augment="flips", image_size=32, batch_size=16)
    data.setup("fit")
    data.plan = data.plan_loading("cpu", 1)

    def objective(trial: optuna.Trial) -> float:
        begun = time.perf_counter()
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        model = CellClassifier(data.classes, (32, 32), ModelConfig("small_cnn", lr=lr, l2=1e-4))
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            precision="bf16-mixed",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(model, datamodule=data)
        seconds.append(time.perf_counter() - begun)
        return float(trainer.callback_metrics["val/f1_macro"])

    with redirect_stdout(io.StringIO()):
        optuna.create_study(direction="maximize").optimize(objective, n_trials=TRIALS // 2)
    return median(seconds[2:])


def head(folder: Path) -> float:
    """Seconds of the sweep over the head of a frozen ResNet-18, on 299 cells."""
    shared = ROOT.parent / "shared" / "data" / "hpv"
    begun = time.perf_counter()
    options = [f"--data.root={shared}", "--workers=2", f"--runs={folder}", f"--trials={HEADS}"]
    run = [sys.executable, "-m", "cellbench", "sweep", "--config=sweeps/hpv_head.yaml", *options]
    subprocess.run(run, check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - begun


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    one, two, plain, own = [], [], [], []
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as folder:
            one.append(marginal(Path(folder), 1))
        with tempfile.TemporaryDirectory() as folder:
            two.append(marginal(Path(folder), 2))
        plain.append(apart(loop, 2))
        with tempfile.TemporaryDirectory() as folder:
            own.append(command(Path(folder)))
    pairs = list(zip(one, plain, strict=True))
    yield (
        "sweep: seconds a trial beyond a plain Optuna + Lightning loop",
        spread([a - b for a, b in pairs]),
    )
    yield "sweep: a trial's time against the plain loop's", spread([a / b for a, b in pairs])
    yield (
        "sweep: a `fit` command for every trial, against a trial's time",
        spread([a / b for a, b in zip(own, one, strict=True)]),
    )
    yield (
        "sweep: two workers' speed against one's, on two cores",
        spread([a / b for a, b in zip(one, two, strict=True)]),
    )
    if (ROOT.parent / "shared" / "data" / "hpv").is_dir():
        with tempfile.TemporaryDirectory() as folder:
            yield (
                f"sweep: minutes of {HEADS} trials on a frozen ResNet-18's features, 299 cells",
                f"{head(Path(folder)) / 60:.1f}",
            )
