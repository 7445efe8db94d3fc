"""Finds the command's module by its name; imports nothing heavy."""

import errno
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from cellbench import __version__, streams
from cellbench.cli import COMMANDS
from cellbench.errors import Interrupted, UserError, find_user_error, one_line, suggest

_USAGE = """usage: python -m cellbench COMMAND [--help] [options]

Honest comparison of classifiers for microscopy cell images.

commands:
{commands}

options:
  -h, --help     show this help; COMMAND --help shows a command's options
  --version      show the version
  --debug        show the traceback of an error

example:
  python -m cellbench fit --config experiments/demo.yaml
"""


_PRINTED = {"-h", "--help", "--version", "--print_config"}
"""Options that only print a text."""

_FILES = "no more files can be opened; raise the limit (ulimit -n), or close other programs"
_THREADS = (
    "no more threads or processes can be started; raise the limit (ulimit -u), or end other "
    "programs"
)
_MEMORY = (
    "the memory is not enough; end other programs, or give smaller batches or images, or a smaller "
    "network"
)
_EXHAUSTED = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: _THREADS,
    errno.ENOMEM: _MEMORY,
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk's quota is used up; make room",
}
"""Advice for each error number (errno) that means an exhausted resource."""

_EXHAUSTED_WORDS = {
    "Too many open files": _FILES,
    "can't start new thread": _THREADS,
    "Resource temporarily unavailable": _THREADS,
    "can't allocate memory": _MEMORY,
    "out of memory": _MEMORY,
    "Cannot allocate memory": _MEMORY,
}
"""The same advice by the error's text, for libraries that do not pass on the number."""


def program() -> int:
    """Run the command that this process was started with, even if its output cannot be written.

    Returns:
        The command's exit code. Where its output alone was asked for and could not be written: 141
        if the reader has gone, as head does when it has enough, else 2.
    """
    streams.protect()
    try:
        code = main()
    except SystemExit as stopped:  # as --help does
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    failure = streams.output_failure()
    if code or failure is None or not _is_printed(sys.argv[1:]):
        return code
    if isinstance(failure, BrokenPipeError):
        return 128 + signal.SIGPIPE
    mistake = f"cannot write to the standard output: {failure.strerror}; send it elsewhere"
    print(f"cellbench: error: {one_line(mistake)}", file=sys.stderr)
    return 2


def _is_printed(arguments: list[str]) -> bool:
    """Return whether the output is the result that was asked for, and not a mere progress log."""
    options = {argument.partition("=")[0] for argument in arguments}
    asked = options & _PRINTED or any(option.endswith(".help") for option in options)
    return bool(asked) or arguments in ([], ["fetch"]) or arguments[0] == "report"


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        args: The command line without the program; None for sys.argv's.

    Returns:
        The exit code: 0, 2 for a mistake of the user's, 128 and more for a signal.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return run(arguments)
    except BaseException as error:
        return end(error, debug=debug)


def end(error: BaseException, *, debug: bool) -> int:
    """Says in a line why a command has ended.

    Args:
        error: What it has raised.
        debug: Whether a mistake is to show its traceback.

    Returns:
        The exit code.

    Raises:
        BaseException: The error, where it is none of those that a user can mend.
    """
    if isinstance(error, KeyboardInterrupt):  # before a command could take care of it itself
        print("cellbench: SIGINT", file=sys.stderr)
        return 130
    if isinstance(error, Interrupted):
        print(f"cellbench: {one_line(error)}", file=sys.stderr)
        return 128 + error.signum
    told = str(find_user_error(error) or _exhausted(error)) if isinstance(error, Exception) else ""
    if not told or debug:
        raise error
    print(f"cellbench: error: {one_line(told)}", file=sys.stderr)
    return 2


def _exhausted(error: BaseException | None) -> str:
    """Return advice if an error means an exhausted resource, else an empty string."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            file = f"{error.filename}: " if error.filename else ""
            return file + _EXHAUSTED[error.errno]
        if isinstance(error, MemoryError):
            return _MEMORY
        if isinstance(error, OSError | RuntimeError | ImportError):
            for words, told in _EXHAUSTED_WORDS.items():
                if words in str(error):
                    return told
        error = error.__cause__ or error.__context__
    return ""


def run(arguments: list[str]) -> int:
    """Runs a command, and raises what it raises."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        print(_USAGE.format(commands=commands), end="")
        return 0
    if arguments[0] == "--version":
        print(f"cellbench {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}'{suggest(command, COMMANDS)}")
    result: int = import_module(f"cellbench.cli.{command}").main(rest)
    return result


if __name__ == "__main__":
    sys.exit(program())
