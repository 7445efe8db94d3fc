"""Entry point: imports the module of the command that is named, and nothing heavy besides."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from cellbench import __version__
from cellbench.cli import COMMANDS
from cellbench.cli.execution.exit_code import exit_code
from cellbench.cli.options.repeated import refuse_repeated
from cellbench.utils import streams
from cellbench.utils.errors import UserError, one_line, suggest

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
"""Options that print a text and end the command."""


def program() -> int:
    """Run the command that this process was started with, even if its output cannot be written.

    Returns:
        The command's exit code. If the command only prints, and its output could not be written:
        141 if the reader has closed the pipe, as `head` does, else 2.
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
    """Return True if the output is the command's result, and not just a log of its progress."""
    options = {argument.partition("=")[0] for argument in arguments}
    asked = options & _PRINTED or any(option.endswith(".help") for option in options)
    return bool(asked) or arguments in ([], ["fetch"]) or arguments[0] == "report"


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command line without the program; None for that of sys.argv.

    Returns:
        The exit code: 0, 2 for a user's mistake, 128 and more for a signal.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        # A sweep's command lines have options twice, and the launcher passes them on.
        if args is None and streams.LAUNCHED not in os.environ:
            refuse_repeated(arguments)
        return run(arguments)
    except BaseException as error:
        return exit_code(error, debug=debug)


def run(arguments: list[str]) -> int:
    """Run a command, without handling its exceptions."""
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
