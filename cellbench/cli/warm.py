"""Imports of the process that a sweep's runs are forked from; nothing else imports this.

Whatever each run would import and make anew is there when it begins.
"""

import pkgutil
from contextlib import suppress
from importlib import import_module

import rich.pretty  # noqa: F401  # what a table's first print imports
import torch.utils.serialization  # noqa: F401  # what a checkpoint's first save imports

import cellbench.models.networks
from cellbench.cli import fit, test  # noqa: F401
from cellbench.cli.lightning_cli import CellbenchCLI

for _module in pkgutil.iter_modules(cellbench.models.networks.__path__):
    with suppress(Exception):  # one that cannot be imported is said where it is asked for
        import_module(f"{cellbench.models.networks.__name__}.{_module.name}")


CellbenchCLI("fit", ())  # makes the command's parser
