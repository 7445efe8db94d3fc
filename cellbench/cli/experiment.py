"""The parser of the commands that take an experiment: Lightning's, with ours."""

from lightning.pytorch.cli import LightningArgumentParser

from cellbench.cli.parsing import Parser, data_modules

data_modules()  # imported, so that their short names are known


class ExperimentParser(Parser, LightningArgumentParser):
    """Lightning's parser, with each mistake told in one line."""
