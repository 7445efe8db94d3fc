"""Finds the command's module by its name; imports nothing heavy."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cellbench import __version__
from cellbench.cli import COMMANDS
from cellbench.errors import Interrupted, UserError, find_user_error, suggest

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
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt):  # before a command could take care of it itself
        print("cellbench: SIGINT", file=sys.stderr)
        return 130
    if isinstance(error, Interrupted):
        print(f"cellbench: {error}", file=sys.stderr)
        return 128 + error.signum
    mistake = find_user_error(error) if isinstance(error, Exception) else None
    if mistake is None or debug:
        raise error
    print(f"cellbench: error: {' '.join(str(mistake).split())}", file=sys.stderr)
    return 2


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
    sys.exit(main())
