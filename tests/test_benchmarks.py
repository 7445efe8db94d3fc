"""The benchmarks run, and their figures mean what they say; here with next to nothing to do."""

import re
from importlib import import_module

import pytest

from tests.benchmarks.__main__ import NAMES, main
from tests.benchmarks.measure import ratios, spread

SLOW = pytest.mark.slow

SMALL = {
    "startup": {"REPETITIONS": 1},
    "epoch": {"REPETITIONS": 1, "NETWORKS": ["small_cnn"], "WARM_UP": 0, "TIMED": 1},
    "state": {"REPETITIONS": 1},
    "features": {"REPETITIONS": 1, "NETWORK": "squeezenet1_1", "EPOCHS": 1},
    "datasets": {"REPETITIONS": 1, "IMAGES": 200, "AUDITED": 200, "COPIES": 40},
    "sweeps": {"REPETITIONS": 1, "TRIALS": 8, "HEADS": 2},
    "report": {"REPETITIONS": 1, "CONDITIONS": 2, "SEEDS": 1, "TESTED": 12},
    "statistics": {"TRIALS": 10, "verdicts.TRIALS": 10, "verdicts.SIZES": (60,)},
    "smote": {"IMAGES": 120, "SIZE": 32, "REPETITIONS": 1},
    "augmentation": {"REPETITIONS": 1, "IMAGES": 4},
    "masks": {"STEP": 150, "VARIANTS": ("as it is", "weak stain", "pale laboratory")},
    "input_path": {"REPETITIONS": 1, "IMAGES": 200, "SIZE": 32, "POLICIES": ["flips"]},
}


@pytest.mark.parametrize(
    "name", [name if name == "input_path" else pytest.param(name, marks=SLOW) for name in NAMES]
)
def test_a_benchmark_prints_its_rows(name, monkeypatch, capfd):
    module = import_module(f"tests.benchmarks.{name}")
    for constant, value in SMALL[name].items():
        *inner, constant = constant.split(".")
        owner = getattr(module, *inner) if inner else module
        assert hasattr(owner, constant)
        monkeypatch.setattr(owner, constant, value)
    if hasattr(module, "apart"):
        monkeypatch.setattr(module, "apart", lambda function, *args: function(*args))
    main([name])
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) > 2
    for row in rows[1:]:
        figures = [
            float(f.replace(",", "")) for f in re.findall(r"[\d,]+(?:\.\d+)?", row.split("|")[2])
        ]
        assert figures
        assert all(figure >= 0 for figure in figures)


def test_a_spread_is_median_least_and_greatest():
    assert spread([3.0, 1.0, 2.0, 10.0]) == "2.50 (1.00 to 10.00)"
    assert ratios([1.0, 4.0, 9.0], [2.0, 2.0, 3.0]) == "2.00 (0.50 to 3.00)"
