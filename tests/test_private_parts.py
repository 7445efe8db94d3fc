"""Every private part of another library that cellbench uses, by name.

A release of one of these libraries may rename such a part without a word. Then a test here fails
and says which; pyproject.toml keeps users below the next release of that kind.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import cellbench

PACKAGE = Path(cellbench.__file__).parent

USED: dict[tuple[str, str], str] = {}
"""Why each is used, by the distribution and the name of the part."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module of cellbench, parsed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_here() -> set[str]:
    """Return the names that cellbench itself gives to functions, classes and attributes."""
    names = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def of_other_objects() -> set[str]:
    """Return private names that are read from objects, or imported, and are not cellbench's."""
    ours, found = defined_here(), set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ours:
                found.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("cellb"):
                found |= {alias.name for alias in node.names if is_private(alias.name)}
    return found


def inherited() -> set[str]:
    """Return private names that a class of cellbench shares with a base class of a library's."""
    found = set()
    for info in pkgutil.walk_packages(cellbench.__path__, "cellbench."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == info.name:
                found |= names_in(kind) & names_of_bases(kind)
    return found


def names_in(kind: type) -> set[str]:
    """Return the private names that a class defines, or reads from itself."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # made by a function, as named tuples are
        return set()
    return set(re.findall(r"\b(?:self|cls|super\(\))\.(_[a-z]\w*)|def (_[a-z]\w*)", source)) and {
        name
        for pair in re.findall(r"\b(?:self|cls|super\(\))\.(_[a-z]\w*)|def (_[a-z]\w*)", source)
        for name in pair
        if name
    }


def names_of_bases(kind: type) -> set[str]:
    """Return the private names of a class's bases that are neither cellbench's nor Python's."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith(("cellbench", "builtins", "typing", "abc", "collections")):
            continue
        names |= {name for name in vars(base) if is_private(name)}
        try:
            names |= set(re.findall(r"self\.(_[a-z]\w*) *(?::[^=]+)?= ", inspect.getsource(base)))
        except (OSError, TypeError):
            continue
    return names
