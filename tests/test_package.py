"""What the wheel holds, and that imports run one way."""

import ast
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

from cellbench.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cellbench"

MAY_IMPORT = {
    "utils": "",
    "config": "utils",
    "data": "utils config",
    "models": "utils config data",
    "metrics": "",
    "artifacts": "utils config data models metrics",
    "training": "utils config data models metrics artifacts",
    "inference": "utils data models metrics artifacts training",
    "label_noise": "utils data artifacts training",
    "audit": "utils data metrics artifacts",
    "report": "utils config data metrics artifacts training",
    "sweeps": "utils config artifacts training",
    "cli": "utils config data models artifacts training inference label_noise audit report sweeps",
}
"""The packages of cellbench, the lowest first, and those that each may import."""


def imports() -> dict[str, set[str]]:
    """Return the modules that each module of cellbench imports, deferred imports included."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    found = {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[module] = (names & modules.keys()) - {module}
    return found


def room(module: str) -> str:
    """Return the package below cellbench that a module is in; empty for cellbench itself."""
    return module.partition(".")[2].partition(".")[0]


def test_imports_point_down():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == MAY_IMPORT.keys()
    forbidden = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if room(module) in rooms and room(other) in rooms
        if room(other) not in (room(module), *MAY_IMPORT[room(module)].split())
    ]
    assert not forbidden


def test_no_imports_run_in_a_circle():
    order = TopologicalSorter(imports())
    order.prepare()  # raises CycleError, which names the circle


def test_cli_has_one_file_per_command():
    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} == {"__init__", *COMMANDS}


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
