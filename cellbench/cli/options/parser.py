"""Command-line parser that checks names and values, and reports an error in one line."""

from argparse import Action
from collections.abc import Mapping, Sequence
from types import GenericAlias
from typing import Any, NoReturn

import yaml as pyyaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

from cellbench.cli.options.data_modules import DATA
from cellbench.cli.options.given import KnownOptions, check_given
from cellbench.config import option_types, values, yaml
from cellbench.utils.errors import UserError

set_loader("yaml", yaml.load, exceptions=(pyyaml.YAMLError,))
# Lets --help show the docstrings below the fields of dataclasses.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """jsonargparse's parser, with every option checked against its type before it parses.

    jsonargparse also makes parsers of this class for classes that options name. These have
    `exit_on_error` false, and leave all checks to the command's parser.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.known = KnownOptions()
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Action:
        """Add an option, and remember its type."""
        action: Action = super().add_argument(*args, **kwargs)
        # jsonargparse makes this a method of the parser's groups too.
        if not isinstance(self, Parser):
            return action
        if "type" not in kwargs:
            if action.dest == "config":
                self.known.files |= set(args)
            return action
        kind = kwargs["type"]
        if kwargs.get("nargs") == "+":
            self.known.lists.add(action.dest)
            kind = GenericAlias(list, kind)
        self.known.types[action.dest] = kind
        positional = not action.option_strings and kwargs.get("nargs") != "?"
        if positional or kwargs.get("required"):
            self.known.required[action.dest] = action.dest.upper() if positional else args[0]
        return action

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add the options of a class, and remember their types."""
        if self.exit_on_error:
            own = option_types.parameters(theclass)
            if nested_key is None:
                self.known.types |= own
                self.known.required |= {
                    name: f"--{name}" for name in option_types.required(theclass)
                }
            else:
                self.known.types[nested_key] = own
        names: list[str] = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        return names

    def add_subclass_arguments(
        self, baseclass: Any, nested_key: str, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add an option that names one of several classes, here always data modules."""
        self.known.types[nested_key] = DATA
        if kwargs.get("required"):
            self.known.required[nested_key] = f"--{nested_key}"
        names: list[str] = super().add_subclass_arguments(baseclass, nested_key, *args, **kwargs)
        return names

    def parse_args(self, args: Sequence[str], **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Check a command line and the configuration files that it names, then parse it.

        Raises:
            UserError: An option is unknown or has a wrong value.
        """
        if not self.exit_on_error:
            inner: Namespace = super().parse_args(_with_null(args), **kwargs)
            return inner
        if not {"-h", "--help"} & set(args):
            check_given(args, self.known, self.check_file)
        try:
            found = super().parse_args(args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # any error that jsonargparse does not handle
            raise UserError(f"cannot read the options: {error or type(error).__name__}") from error
        self._check_parsed(found)
        return found

    def check_file(self, path: str, config: Mapping[str, Any]) -> None:
        """Refuse a configuration file that is meant for another command.

        Args:
            path: The file.
            config: Its content.
        """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a mistake that only jsonargparse has found.

        Raises:
            UserError: Always.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        lines = [line.strip(" -") for line in message.splitlines()]
        reasons = [line for line in lines if line and not _is_noise(line)]
        raise UserError(" ".join(dict.fromkeys(reasons)) or message) from ex

    def _check_parsed(self, found: Namespace) -> None:
        """Check values from other sources: nested configuration files, and defaults.

        Raises:
            UserError: A value is null, not finite, or otherwise not of its type.
        """
        parsed = found.clone(with_meta=False).as_dict()
        known = {name: value for name, value in parsed.items() if name in self.known.types}
        values.check_group("", known, self.known.types)


def refuse_sweep_file(path: str, config: Mapping[str, Any]) -> None:
    """Refuse a sweep's file where an experiment is expected.

    Args:
        path: The file.
        config: Its content.

    Raises:
        UserError: The file belongs to a sweep.
    """
    if {"experiment", "space"} <= config.keys():
        raise UserError(
            f"--config: {path} is a sweep's file: python -m cellbench sweep --config {path}"
        )


def take_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Remove an option that the parser does not know from a command line.

    Returns:
        Its value, None if it is not given, and the other arguments.

    Raises:
        UserError: It has no value.
    """
    rest = list(args)
    for i, argument in enumerate(rest):
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}="), rest[:i] + rest[i + 1 :]
        if argument == name:
            if i + 1 == len(rest):
                raise UserError(f"{name}: expected a value")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
    return None, rest


def _is_noise(line: str) -> bool:
    """Return True for a line of a jsonargparse message that lists types or repeats the value."""
    lists_types = line.startswith("Expected a") and line.endswith(">")
    return lists_types or line.startswith(
        ("Does not validate", "Subtypes:", "Errors:", "Expected a path", "Given value")
    )


def _with_null(args: Sequence[str]) -> list[str]:
    """Return arguments with null restored where jsonargparse has replaced it by the text None.

    jsonargparse (4.53) does so when it passes `--data.split.folds=null` on to an inner parser.
    """
    halves = (argument.partition("=") for argument in args)
    return [
        f"{name}=null" if value == "None" else name + equals + value
        for name, equals, value in halves
    ]
