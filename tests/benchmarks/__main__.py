"""Prints the table of figures.md: `python -m tests.benchmarks [NAME ...]`."""

import os
import platform
import sys
import time
from importlib import import_module, metadata

import torch

NAMES = (
    "startup",
    "epoch",
    "state",
    "features",
    "augmentation",
    "input_path",
    "datasets",
    "smote",
    "sweeps",
    "report",
    "statistics",
    "masks",
)


def main(names: list[str]) -> None:
    """Prints the machine, the versions and the table, as Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "lightning"))
    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    print(f"{time.strftime('%d %B %Y')}; {os.cpu_count()} cores, {cpu}; {platform.platform()};")
    print(f"Python {platform.python_version()}, {versions}.\n\n| what | figure |\n|---|---|")
    for name in names or NAMES:
        for what, figure in import_module(f"tests.benchmarks.{name}").measure():
            print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
