"""Data modules by name: those of cellbench's own files, and what has been imported besides."""

import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellbench.data.datasets
from cellbench.config.values import OneOf
from cellbench.utils.errors import one_line

if TYPE_CHECKING:  # torch and lightning take six seconds, which not every command needs
    from cellbench.data.module import CellDataModule


def data_modules() -> "dict[str, type[CellDataModule]]":
    """Return all data modules, by name."""
    unusable_modules()

    def below(kind: "type[CellDataModule]") -> "Iterator[type[CellDataModule]]":
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    base: Any = import_module("cellbench.data.module").CellDataModule
    return {kind.__name__: kind for kind in below(base) if not inspect.isabstract(kind)}


@cache
def unusable_modules() -> dict[str, str]:
    """Import every file of cellbench/data; return why some cannot be, by their names."""
    # A dataset is one new file: importing it makes its class known by its short name.
    failed = {}
    for module in pkgutil.iter_modules(cellbench.data.datasets.__path__):
        try:
            import_module(f"cellbench.data.datasets.{module.name}")
        except Exception as error:  # a mistake in one dataset's file must not stop the others
            failed[module.name] = f"{type(error).__name__}: {error}"
            reason = one_line(failed[module.name])
            print(
                f"cellbench: warning: cellbench/data/datasets/{module.name}.py cannot be imported, "
                f"so its dataset is not there ({reason})",
                file=sys.stderr,
            )
    return failed


def explain_unusable(name: str) -> str:
    """Return why a dataset or a data module is not there; empty where no file has it."""
    for module, reason in unusable_modules().items():
        paths = [Path(folder, f"{module}.py") for folder in cellbench.data.datasets.__path__]
        text = "".join(p.read_text("utf-8", errors="replace") for p in paths if p.is_file())
        if name == module or re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE):
            return f"; cellbench/data/datasets/{module}.py cannot be imported: {reason}"
    return ""


DATA = OneOf(data_modules, "data module", explain_unusable)
"""Type of the option `data`."""
