"""Every private part of another library that cellbench uses, by name.

A release of one of these libraries may rename such a part without a word. Then a test here fails
and says which one; until then pyproject.toml keeps users below the next release of that kind.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

import cellbench

PACKAGE = Path(cellbench.__file__).parent

USED = {
    "_broadcast_sigterm_tensor": "lightning",
    "_internal_id": "wandb-workspaces",
    "_internal_name": "wandb-workspaces",
}
"""The library of each private name that cellbench uses."""

BY_LAYOUT = {"lightning", "torch"}
"""Libraries whose undocumented data or messages cellbench reads; each has a test below."""

OF_PYTHON = ("builtins", "typing", "abc", "collections", "enum", "argparse", "logging", "threading")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def trees() -> Iterator[ast.Module]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ast.parse(path.read_text("utf-8"))


def defined_here() -> set[str]:
    """Return the names that cellbench itself gives to functions, classes and attributes."""
    names = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                names.add(node.attr)
    return names


def read_from_objects() -> set[str]:
    """Return private names that are imported, or read from objects, and are not cellbench's."""
    ours, found = defined_here(), set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ours:
                found.add(node.attr)
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
                parts = {part for name in names for part in name.split(".")}
                if not names[0].startswith("cellbench"):
                    found |= set(filter(is_private, parts))
    return found


def inherited() -> set[str]:
    """Return private names that a class of cellbench shares with a base class of a library."""
    found = set()
    for info in pkgutil.walk_packages(cellbench.__path__, "cellbench."):
        if info.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(kind) and kind.__module__ == info.name:
                found |= own_names(kind) & names_of_bases(kind)
    return found


def own_names(kind: type) -> set[str]:
    """Return the private names that a class defines, or reads from itself."""
    pairs = re.findall(r"\b(?:self|cls|super\(\))\.(_[a-z]\w*)|def (_[a-z]\w*)", source(kind))
    return {name for pair in pairs for name in pair if name}


def names_of_bases(kind: type) -> set[str]:
    """Return the private names of a class's bases that are neither cellbench's nor Python's."""
    names: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith(("cellbench", *OF_PYTHON)):
            names |= set(filter(is_private, vars(base)))
            names |= set(re.findall(r"self\.(_[a-z]\w*) *(?::[^=]+)?= ", source(base)))
    return names


def source(kind: type) -> str:
    """Return the text of a class; empty if it was made by a function, as named tuples are."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def test_these_are_all():
    assert read_from_objects() | inherited() == USED.keys()


@pytest.mark.parametrize("library", sorted({*USED.values(), *BY_LAYOUT}))
def test_each_library_has_a_ceiling(library):
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    optional = [each for some in project["optional-dependencies"].values() for each in some]
    given = [
        each
        for each in (*project["dependencies"], *optional)
        if re.split(r"[\[<>=]", each)[0] == library
    ]
    assert given
    assert all("<" in each for each in given)


def test_lightning_broadcasts_a_signal_in_a_method_of_the_epoch_loop():
    loop = Trainer(logger=False, enable_checkpointing=False).fit_loop.epoch_loop
    assert callable(loop._broadcast_sigterm_tensor)


def test_lightning_saves_the_batches_of_the_epoch_under_this_key():
    loops = Trainer(logger=False, enable_checkpointing=False).fit_loop.state_dict()
    progress = loops["epoch_loop.batch_progress"]
    assert set(progress["current"]) >= {"ready", "started", "processed", "completed"}
    assert progress["is_last_batch"] is False


def test_torch_names_a_batch_of_one_value_in_these_words():
    norm = torch.nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.zeros(1, 2))


def test_a_workspace_has_these_fields():
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    made = workspaces.Workspace(entity="me", project="mine", sections=[])
    assert isinstance(made._internal_name, str)
    assert isinstance(made._internal_id, str)
