"""Lightning's output: which of its messages are shown, and its progress bar."""

import logging
import sys
import warnings

from lightning.pytorch.callbacks import RichProgressBar

# Advice that does not apply here (the loaders need no workers, a frozen backbone is in evaluation
# mode, a run resumes in its own folder at the exact batch), and Lightning's own use of torch.
_NOISE = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*in eval mode at the start of training.*",
    ".*exists and is not empty.*",
    ".*your dataloader is not resumable.*",
    ".*Grad strides do not match bucket view strides.*",
)


def quieten_lightning() -> None:
    """Hide Lightning's hints; errors are still shown."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def progress_bar() -> RichProgressBar:
    """Return Lightning's progress bar, which moves only if the output is a terminal.

    With FORCE_COLOR, rich would move the cursor in a file, too.
    """
    options = {} if sys.stdout.isatty() else {"force_terminal": False}
    return RichProgressBar(console_kwargs=options)
