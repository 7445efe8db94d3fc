"""cellbench: honest comparison of classifiers for microscopy cell images."""

__version__ = "0.1.0"
