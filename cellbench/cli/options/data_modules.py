"""Data modules by name: cellbench's own, and those that have been imported."""

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
from cellbench.config.option_types import OneOf
from cellbench.utils.errors import one_line

if TYPE_CHECKING:  # not every command needs torch and lightning, which take six seconds
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
    """Import every file of cellbench/data/datasets; return the errors, by the files' names."""
    # Importing a dataset's file registers its class under its short name.
    failed = {}
    for module in pkgutil.iter_modules(cellbench.data.datasets.__path__):
        try:
            dataset = import_module(f"cellbench.data.datasets.{module.name}")
            # The place of the module in configurations that an earlier version has printed.
            sys.modules.setdefault(f"cellbench.data.{module.name}", dataset)
        except Exception as error:  # an error in one dataset's file must not stop the others
            failed[module.name] = f"{type(error).__name__}: {error}"
            reason = one_line(failed[module.name])
            print(
                f"cellbench: warning: cellbench/data/datasets/{module.name}.py cannot be imported, "
                f"so its dataset is not there ({reason})",
                file=sys.stderr,
            )
    return failed


def explain_unusable(name: str) -> str:
    """Return the reason why a dataset or data module is missing; empty if no file defines it."""
    for module, reason in unusable_modules().items():
        paths = [Path(folder, f"{module}.py") for folder in cellbench.data.datasets.__path__]
        text = "".join(p.read_text("utf-8", errors="replace") for p in paths if p.is_file())
        if name == module or re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE):
            return f"; cellbench/data/datasets/{module}.py cannot be imported: {reason}"
    return ""


DATA = OneOf(data_modules, "data module", explain_unusable)
"""Type of the option `data`."""
