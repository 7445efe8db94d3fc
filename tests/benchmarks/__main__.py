"""Prints one table of ratios: `python -m tests.benchmarks`."""

import platform

import torch

from tests.benchmarks import epoch, input_path


def main() -> None:
    """Prints the machine, the versions and the table."""
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}")
    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    print(f"{cpu}, {torch.get_num_threads()} threads; median (least to greatest) of the ratios")
    for module in (epoch, input_path):
        for what, figure in module.measure():
            print(f"{what:72} {figure}", flush=True)


if __name__ == "__main__":
    main()
