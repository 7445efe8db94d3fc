"""A frozen VGG16 with a dense head on the hpv cells: features kept against the long way."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision

from cellbench.training import precision
from tests.benchmarks.measure import apart, quietly, ratios, spread
from tests.conftest import SHARED

REPETITIONS = 3
OPTIONS = [
    "--data.image_size=128",
    "--data.batch_size=17",  # as published
    "--model.freeze=backbone",
    "--model.head.hidden=[512]",
    "--model.head.dropout=0.5",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
NETWORK, EPOCHS = "vgg16", 20


def fit(folder: str, chosen: str, *args: str) -> tuple[float, str]:
    """Seconds of `fit`, from the command line's parsing to the last figure, and its predictions."""
    if (SHARED / "hpv").is_dir():  # else drawn cells
        data = ["--data=HPVDataModule", f"--data.root={SHARED / 'hpv'}"]
    else:
        data = ["--data.samples=299"]
    options = [*data, *OPTIONS, f"--trainer.precision={chosen}", f"--runs={folder}/runs"]
    # What the first run of a process costs once (fonts, thread pools) is no run's own.
    first = ["--model.backbone=small_cnn", "--trainer.max_epochs=1", "--name=first"]
    assert quietly("fit", *options, *first, "--data.cache.features=false") == 0
    begun = time.perf_counter()
    network = [f"--model.backbone={NETWORK}", f"--model.weights={folder}/weights.pt"]
    rest = [f"--trainer.max_epochs={EPOCHS}", "--name=frozen", *args]
    assert quietly("fit", *options, *network, *rest) == 0
    seconds = time.perf_counter() - begun
    run = max(Path(folder, "runs", "frozen").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return seconds, (run / "predictions.csv").read_text()


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    fastest, _ = precision.choose("cpu", grouped=False)
    with tempfile.TemporaryDirectory() as folder:
        weights = torchvision.models.get_model(NETWORK).state_dict()
        torch.save(weights, f"{folder}/weights.pt")
        for chosen in dict.fromkeys(("32-true", fastest)):
            seconds: dict[str, list[float]] = {"first": [], "again": [], "long": []}
            for number in range(REPETITIONS):
                cache = f"--data.cache.folder={folder}/{chosen}{number}"
                first, expected = apart(fit, folder, chosen, cache)
                again, same = apart(fit, folder, chosen, cache)
                long, reference = apart(fit, folder, chosen, "--data.cache.features=false")
                assert expected == same == reference
                for name, value in (("first", first), ("again", again), ("long", long)):
                    seconds[name].append(value)
            what = f"frozen {NETWORK}, 299 images, 128 px, {EPOCHS} epochs, {chosen}: `fit` in full"
            yield f"{what}, s", spread(seconds["long"], 1)
            yield (
                "  against features computed in the run",
                ratios(seconds["long"], seconds["first"]),
            )
            yield "  against features from the disk", ratios(seconds["long"], seconds["again"])
