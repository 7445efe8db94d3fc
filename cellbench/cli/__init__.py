"""The commands: one module each, named as the command, with a `main(args) -> int`."""

COMMANDS = {
    "fetch": "get a dataset, or unpack one that you have",
    "fit": "train, then test the best checkpoint once: one run",
    "validate": "score a run's best checkpoint on its validation split",
    "test": "score a run's best checkpoint on its test split",
    "sweep": "many runs of one experiment: a search, or a comparison",
    "relabel": "find wrong labels in a training split, and write better ones",
    "audit": "whether a dataset can be believed: copies, leaks, shortcuts",
    "predict": "classify a folder of images with a run's best checkpoint",
    "export": "write a run's best checkpoint as an ONNX file",
    "explain": "where a network looks, and how much of that is inside the cell",
    "report": "what finished runs say together",
}
"""What each command does, in a line. Nothing heavy is imported to show it."""
