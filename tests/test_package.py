"""What the wheel holds, and that imports run one way."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cellbench"

# What each part may import of the others (DESIGN: cli -> report, audit, sweeps -> runs, models).
MAY_IMPORT = {
    "config": set(),
    "data": set(),
    "models": {"data"},
    "runs": {"data", "models"},
    "audit": {"data", "models", "runs"},
    "relabel": {"data", "models", "runs"},
    "report": {"data", "models", "runs"},
    "sweeps": {"data", "models", "runs"},
    "cli": {"data", "models", "runs", "audit", "relabel", "report", "sweeps"},
}


def imported(path):
    """The parts of cellbench that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "cellbench" and rest and (PACKAGE / rest[0]).is_dir():
                yield rest[0]


@pytest.mark.parametrize(
    "part", [p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()]
)
def test_imports_run_one_way(part):
    for path in (PACKAGE / part).rglob("*.py"):
        assert set(imported(path)) - {part, "config"} <= MAY_IMPORT[part], path


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {path for path in PACKAGE.rglob("*.*") if path.parent.name != "__pycache__"}
    assert names == {str(path.relative_to(ROOT)) for path in ours}


def test_importing_needs_no_display(tmp_path):
    code = (
        "import pkgutil, cellbench\n"
        "from importlib import import_module\n"
        "for m in pkgutil.walk_packages(cellbench.__path__, 'cellbench.'):\n"
        "    if not m.name.endswith('__main__'): import_module(m.name)"
    )
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


def test_no_host_of_a_registry_is_named():
    for path in ROOT.rglob("*"):
        if path.suffix in (".toml", ".yaml", ".yml", ".py", ".md", ".lock", ".txt", ".cfg"):
            if {".venv", ".git", "runs"} & set(path.relative_to(ROOT).parts):
                continue
            text = path.read_text(encoding="utf-8")
            assert "pypi" + ".org" not in text, path
            assert "index" + "-url" not in text, path
