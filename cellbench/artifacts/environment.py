"""Environment of a run: the machine, the versions and the command."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import cellbench
from cellbench.artifacts.folder import write_text

PACKAGES = (
    "albumentations",
    "lightning",
    "numpy",
    "opencv-python-headless",
    "torch",
    "torchmetrics",
    "torchvision",
)


def describe(device: torch.device, devices: int, precision: str) -> dict[str, Any]:
    """Describe what a run's numbers may depend on besides its configuration.

    Args:
        device: Device that the model runs on.
        devices: Number of such devices.
        precision: Lightning's name of the precision.

    Returns:
        Content of environment.json, but for the peak of the memory.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cellbench": cellbench.__version__,
        "commit": _commit(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "devices": devices,
        "gpu": gpu,
        "precision": precision,
    }


def _commit() -> str | None:
    """Return the commit of the source; None unless cellbench runs from a checkout."""
    source = Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write_environment(path: Path, described: dict[str, Any]) -> None:
    """Write environment.json, with the peak memory so far.

    Args:
        path: The file.
        described: The environment, as `describe` gives it.

    Raises:
        UserError: The file cannot be written.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    memory = {"peak_memory_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10))}
    if torch.cuda.is_available():
        memory["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() >> 20
    write_text(path, json.dumps(described | memory, indent=2) + "\n")
