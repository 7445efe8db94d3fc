"""The commands: one module each, named as the command, with a `main(args) -> int`."""

COMMANDS = {
    "fetch": "get a dataset, or unpack one that you have",
    "inspect": "show how a folder or a table of images is understood",
    "fit": "train, then test the best checkpoint once: one run",
    "validate": "score a run's best checkpoint on its validation split",
    "test": "score a run's best checkpoint on its test split",
    "sweep": "run one experiment many times: a search, or a comparison",
    "relabel": "find wrong labels in a training split, and write better ones",
    "audit": "check a dataset for copies, leaks, wrong masks and shortcuts",
    "predict": "classify a folder of images with a run's best checkpoint",
    "export": "write a run's best checkpoint as an ONNX file",
    "explain": "show where a network looks, and how much of that is inside the cell",
    "report": "compare finished runs: verdict, tables, tests, figures",
}
"""Description of each command in a line, kept here so that --help imports nothing heavy."""
