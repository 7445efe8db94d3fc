"""Imports of the process that a sweep's runs are forked from; nothing else imports this.

A run that is forked from it need not import these modules again, nor make its parser.
"""

import pkgutil
from contextlib import suppress
from importlib import import_module

import rich.pretty  # noqa: F401  # imported by the first print of a table
import torch.utils.serialization  # noqa: F401  # imported by the first save of a checkpoint

import cellbench.models.networks
from cellbench.cli import fit, test  # noqa: F401
from cellbench.cli.options.lightning_cli import CellbenchCLI

for _module in pkgutil.iter_modules(cellbench.models.networks.__path__):
    with suppress(Exception):  # the error is reported by the run that asks for the network
        import_module(f"{cellbench.models.networks.__name__}.{_module.name}")


CellbenchCLI("fit", ())  # makes the command's parser
