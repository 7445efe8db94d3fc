"""The command line's start, against the interpreter's and the imports that no run can avoid."""

import subprocess
import sys
import time
from collections.abc import Iterator

from tests.benchmarks.measure import ratios, spread

REPETITIONS = 5
IMPORTS = "import torch, torchvision, torchmetrics, lightning.pytorch.cli, albumentations"
COMMANDS = {
    "nothing": ["-c", ""],
    "help": ["-m", "cellbench", "--help"],
    "imports": ["-c", IMPORTS],
    "config": ["-m", "cellbench", "fit", "--config", "experiments/demo.yaml", "--print_config"],
}


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPETITIONS):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begun)
    extra = [a - b for a, b in zip(seconds["help"], seconds["nothing"], strict=True)]
    yield "start-up: `--help`, seconds beyond an empty interpreter's", spread(extra)
    what = "start-up: `fit --print_config` against the imports of lightning, torchvision, …"
    yield what, ratios(seconds["config"], seconds["imports"])
