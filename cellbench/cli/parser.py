"""Command-line parser that checks names and values, and tells each mistake in one line."""

import dataclasses
import os
import stat
from argparse import Action
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any, NoReturn, get_args

import yaml as pyyaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

from cellbench.cli.data_modules import DATA
from cellbench.config import keys, values, yaml
from cellbench.errors import UserError

set_loader("yaml", yaml.load, exceptions=(pyyaml.YAMLError,))
# --help shows the docstrings that follow the fields of dataclasses.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

_WITHOUT_VALUE = {"-h", "--help", "--version", "--print_config"}


class Parser(ArgumentParser):
    """jsonargparse's parser, with every option checked against its type before it parses.

    jsonargparse makes parsers of this class for the classes that options name. They have
    `exit_on_error` false, and leave all checks to the parser that was made by a command.
    """

    types: dict[str, Any]
    """The type of each option, by name; a group has a dictionary of its options' types."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.types = {}
        self._config_options: set[str] = set()  # those that name a file of configuration
        self._lists: set[str] = set()  # options with several values, each an argument
        self._required: dict[str, str] = {}  # what must be given, as a message shows it
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Action:
        """Add an option, and remember its type."""
        action: Action = super().add_argument(*args, **kwargs)
        # jsonargparse makes this a method of the parser's groups as well.
        if not isinstance(self, Parser):
            return action
        if "type" not in kwargs:
            if action.dest == "config":
                self._config_options |= set(args)
            return action
        several = kwargs.get("nargs") == "+"
        if several:
            self._lists.add(action.dest)
        self.types[action.dest] = GenericAlias(list, kwargs["type"]) if several else kwargs["type"]
        positional = not action.option_strings and kwargs.get("nargs") != "?"
        if positional or kwargs.get("required"):
            self._required[action.dest] = action.dest.upper() if positional else args[0]
        return action

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add the options of a class, and remember their types."""
        if self.exit_on_error:
            own = values.parameters(theclass)
            if nested_key is None:
                self.types |= own
                self._required |= {name: f"--{name}" for name in values.required(theclass)}
            else:
                self.types[nested_key] = own
        names: list[str] = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        return names

    def add_subclass_arguments(
        self, baseclass: Any, nested_key: str, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add an option for one of several classes, which are data modules everywhere."""
        self.types[nested_key] = DATA
        if kwargs.get("required"):
            self._required[nested_key] = f"--{nested_key}"
        names: list[str] = super().add_subclass_arguments(baseclass, nested_key, *args, **kwargs)
        return names

    def parse_args(self, args: Sequence[str], **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Check a command line and the files of configuration that it names, and parse it.

        Raises:
            UserError: An option is not known, or has a value that it cannot have.
        """
        if not self.exit_on_error:
            inner: Namespace = super().parse_args(_with_null(args), **kwargs)
            return inner
        if not {"-h", "--help"} & set(args):
            self._check_given(args)
        try:
            found = super().parse_args(args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # whatever jsonargparse has let through
            raise UserError(f"cannot read the options: {error or type(error).__name__}") from error
        self.check(found)
        return found

    def check(self, found: Namespace) -> None:
        """Check parsed values against their options' types.

        Raises:
            UserError: One is null, no finite number, or otherwise not of its type.
        """
        parsed = found.clone(with_meta=False).as_dict()
        known = {name: value for name, value in parsed.items() if name in self.types}
        values.check_group("", known, self.types)

    def check_file(self, path: str, config: Mapping[str, Any]) -> None:
        """Refuse a file of configuration that is meant for another command.

        Args:
            path: The file.
            config: What it holds.
        """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Tell a mistake that only jsonargparse has found.

        Raises:
            UserError: Always.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        lines = [line.strip(" -") for line in message.splitlines()]
        told = [line for line in lines if line and not _is_noise(line)]
        raise UserError(" ".join(dict.fromkeys(told)) or message) from ex

    def _check_given(self, args: Sequence[str]) -> None:
        """Check the names and values of options as they were given.

        Raises:
            UserError: One is wrong, or one that is required is missing.
        """
        types: Mapping[str, Any] = self.types
        named: set[str] = set()
        for option, text in self._given(args):
            if text is None:
                if option not in self._config_options:
                    values.find_type(types, option.lstrip("-"))
                raise UserError(f"{option}: expected a value")
            if option in self._config_options:
                config = self._read_config(option, text)
                _refuse_removed(config)
                values.check_group("", config, types)
            else:
                name = option.lstrip("-")
                config = {name: self._check_option(option, text, types)}
                named.add(name.partition(".")[0])
            types = _with_class(types, config)
            named |= config.keys()
        missing = [
            shown
            for dest, shown in self._required.items()
            if (dest if shown.startswith("-") else "") not in named
            and not getattr(types[dest], "default", None)
        ]
        if missing:
            raise UserError(f"missing {', '.join(missing)}; --help says more")

    def _read_config(self, option: str, text: str) -> dict[str, Any]:
        """Return the configuration that an option gives: a file, or YAML in its place."""
        value = _value(option, text)
        if isinstance(value, dict):
            config, folder = value, Path()
        else:
            config, folder = yaml.read_mapping(Path(text), "--config"), Path(text).parent
            self.check_file(text, config)
        config.pop("$schema", None)  # for editors; jsonargparse drops it too
        _refuse_pipe(f"{option}: {text}", config, folder)
        return config

    def _check_option(self, option: str, text: str, types: Mapping[str, Any]) -> Any:
        """Check the name and the value of an option.

        Returns:
            The value, as YAML reads it.
        """
        value, name = _value(option, text), option.lstrip("-")
        _refuse_pipe(option, value, Path())
        _refuse_removed({name: value})
        kind = values.find_type(types, name.removesuffix("+")) if name else None
        if kind is None or name.endswith("+"):
            return value
        if name in self._lists:
            (kind,) = get_args(kind)
        if isinstance(value, str) and values.has_options(kind) and os.path.isfile(value):
            value = yaml.read_mapping(Path(value), option)
        try:
            values.check(name, value, kind)
        except UserError as mistake:
            if isinstance(value, str) or not values.takes_text(kind):
                raise
            try:
                values.check(name, text, kind)
            except UserError:
                raise mistake from None
        return value

    def _given(self, args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Yield each option with its value, of `--option=value` and `--option value` alike.

        A positional argument has an empty option; an option that lacks its value has None.
        """
        option, has_value = "", True
        for argument in args:
            name, equals, value = argument.partition("=")
            if argument.startswith("--") or name == "-c":
                if not has_value:
                    yield option, None
                option, has_value = name, bool(equals) or _prints(name)
                if equals and not _prints(name):
                    yield name, value
                if has_value:
                    option = ""
            else:
                yield option, argument
                has_value = True
                if option.lstrip("-") not in self._lists:
                    option = ""
        if not has_value:
            yield option, None


def refuse_sweep_file(path: str, config: Mapping[str, Any]) -> None:
    """Refuse a sweep's file where an experiment is expected.

    Args:
        path: The file.
        config: What it holds.

    Raises:
        UserError: It is a sweep's.
    """
    if {"experiment", "space"} <= config.keys():
        raise UserError(
            f"--config: {path} is a sweep's file: python -m cellbench sweep --config {path}"
        )


def take_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take an option that the parser does not know off a command line.

    Returns:
        Its value, None where it is not given, and the other arguments.

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


def _prints(option: str) -> bool:
    """Return True for an option that only prints a text, and needs no value."""
    return option in _WITHOUT_VALUE or option.endswith(".help")


def _is_noise(line: str) -> bool:
    """Return True for a line of jsonargparse's that only lists types, or repeats the value."""
    lists_types = line.startswith("Expected a") and line.endswith(">")
    return lists_types or line.startswith(
        ("Does not validate", "Subtypes:", "Errors:", "Expected a path", "Given value")
    )


def _value(option: str, text: str) -> Any:
    """Return what an option's text stands for."""
    try:
        return yaml.value_of(text)
    except yaml.NotAllowed as error:
        raise UserError(f"{option}: {error}") from error


def _with_class(types: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the types for the options that follow, if some name the class of an earlier one.

    Args:
        types: The types so far.
        config: What was given, by name.
    """
    changed = {}
    for key, kind in types.items():
        if isinstance(kind, values.OneOf):
            given = config.get(key, config.get(f"{key}.class_path"))
            name = given.get("class_path") if isinstance(given, Mapping) else given
            if isinstance(name, str):
                changed[key] = dataclasses.replace(kind, default=name.rpartition(".")[2])
    return {**types, **changed} if changed else types


def _with_null(args: Sequence[str]) -> list[str]:
    """Return arguments with null where jsonargparse has made it the text None.

    It does so (4.53) when it hands the null of `--data.split.folds=null` on to a parser of its own.
    """
    halves = (argument.partition("=") for argument in args)
    return [
        f"{name}=null" if value == "None" else name + equals + value
        for name, equals, value in halves
    ]


def _refuse_removed(config: Mapping[str, Any]) -> None:
    """Name an option that no longer exists.

    Args:
        config: Options as YAML has them.

    Raises:
        UserError: There is one.
    """
    entry = keys.find_removed(config)
    if entry is not None:
        raise UserError(f"{entry.name} was removed: {entry.removed}; leave it out")


def _refuse_pipe(where: str, value: Any, folder: Path) -> None:
    """Refuse a pipe among the values: jsonargparse would wait for a configuration from it.

    Args:
        where: The option, or the file and the key, that the value is of.
        value: The value, with what is in it.
        folder: The folder that relative paths may start at, besides the current one.

    Raises:
        UserError: There is one.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_pipe(f"{where}: {key}", inner, folder)
    elif isinstance(value, list):
        for inner in value:
            _refuse_pipe(where, inner, folder)
    elif isinstance(value, str):
        for path in {value, os.path.join(folder, value)}:
            try:
                is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
            except (OSError, ValueError):
                continue
            if is_pipe:
                raise UserError(f"{where}: '{value}' is a pipe; give a file")
