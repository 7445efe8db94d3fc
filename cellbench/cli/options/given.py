"""Check of a command line, and of the configuration files that it names, before parsing."""

import dataclasses
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cellbench.config import keys, option_types, values, yaml
from cellbench.utils.errors import UserError

_WITHOUT_VALUE = {"-h", "--help", "--version", "--print_config"}

CheckFile = Callable[[str, Mapping[str, Any]], None]
"""Refuses a configuration file, given its path and content, if it is for another command."""


@dataclasses.dataclass
class KnownOptions:
    """Options of a parser, as far as a check needs them."""

    types: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The type of each option, by name; a group has a dictionary of its options' types."""
    files: set[str] = dataclasses.field(default_factory=set)
    """Options that name a configuration file, such as --config."""
    lists: set[str] = dataclasses.field(default_factory=set)
    """Names of options that take several arguments."""
    required: dict[str, str] = dataclasses.field(default_factory=dict)
    """Required options, by name, in the form that a message shows: positional ones in capitals."""


def check_given(args: Sequence[str], known: KnownOptions, check_file: CheckFile) -> None:
    """Check the names and values of the given options.

    Args:
        args: The command line.
        known: The parser's options.
        check_file: Called with each configuration file.

    Raises:
        UserError: An option is unknown, missing, or has a wrong value.
    """
    types: Mapping[str, Any] = known.types
    named: set[str] = set()
    chosen: set[str] = set()
    for argument in args:
        _check_help(argument.partition("=")[0], types)
    for option, text in _given(args, known.lists):
        name, is_file = option.lstrip("-"), option in known.files
        kind = None
        if name and not is_file:
            _refuse_removed({name: None})
            kind = option_types.find_type(types, name.removesuffix("+"))
            _check_class_is_chosen(name, chosen)
            if name.endswith("+") and kind is not None:
                group = types[name.partition(".")[0]]
                values.check_append(option, kind, in_class=isinstance(group, option_types.OneOf))
        if text is None:
            raise UserError(f"{option}: expected a value")
        if is_file:
            config = _read_config(option, text, types, check_file)
        else:
            if name in known.lists:
                (kind,) = get_args(kind)
            config = {name: _check_option(option, text, kind)}
        types = _with_class(types, config)
        chosen |= _chosen_classes(config)
        named |= {name.partition(".")[0], *config}
    missing = [
        shown
        for name, shown in known.required.items()
        if (name if shown.startswith("-") else "") not in named
        and not getattr(types[name], "default", None)
    ]
    if missing:
        raise UserError(f"missing {', '.join(missing)}; --help says more")


def _given(args: Sequence[str], lists: set[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each option with its value, from `--option=value` and `--option value` alike.

    A positional argument has an empty name; an option without its value has None.
    """
    option, has_value = "", True
    for argument in args:
        name, equals, value = argument.partition("=")
        if argument.startswith("-c") and name != "-c":
            raise UserError(f"{argument}: unknown option; give the file behind --config")
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
            if option.lstrip("-") not in lists:
                option = ""
    if not has_value:
        yield option, None


def _prints(option: str) -> bool:
    """Return True for an option that prints a text and takes no value."""
    return option in _WITHOUT_VALUE or option.endswith(".help")


def _check_help(option: str, types: Mapping[str, Any]) -> None:
    """Check an option that asks for help on another; only classes have a help of their own.

    Args:
        option: The option, such as --data.help; any other is ignored.
        types: The options' types, by name.

    Raises:
        UserError: There is no such help.
    """
    name = option.removeprefix("--").removesuffix(".help")
    if f"--{name}.help" != option:
        return
    kind = option_types.find_type(types, name)
    if not isinstance(kind, option_types.OneOf) and not keys.find(name).code:
        page = "--data.help=CLASS" if name.startswith("data.") else "--help"
        raise UserError(f"{option}: {name} has no help of its own; {page} shows all options")


def _check_class_is_chosen(name: str, chosen: Collection[str]) -> None:
    """Check that a class's option comes after the class itself.

    Args:
        name: The option, such as trainer.logger.save_dir; any other is ignored.
        chosen: The options that have named a class so far.

    Raises:
        UserError: No class was named.
    """
    option = keys.find(name.removesuffix("+"))
    names_it = (option.name, f"{option.name}.class_path")
    if option.code and name.removesuffix("+") not in names_it and option.name not in chosen:
        raise UserError(
            f"--{name}: no class was chosen for {option.name}; give --{option.name}=CLASS before it"
        )


def _chosen_classes(config: Mapping[str, Any]) -> set[str]:
    """Return the options that may name a class, and do in a configuration."""
    given = [name for name, value in keys.flatten(config) if value not in (None, False)]
    options = (keys.find(name.removesuffix("+")) for name in given)
    return {option.name for option in options if option.code}


def _read_config(
    option: str, text: str, types: Mapping[str, Any], check_file: CheckFile
) -> dict[str, Any]:
    """Return the configuration that an option gives: a file, or YAML in its place.

    Raises:
        UserError: An option in it is not known, or has a value that it cannot have.
    """
    value = _value(option, text)
    if isinstance(value, dict):
        config, folder, source = value, Path(), ""
    else:
        config, folder = yaml.read_mapping(Path(text), "--config"), Path(text).parent
        source = f"{text}: "
    check_file(text, config)
    config.pop("$schema", None)  # a hint for editors, which jsonargparse drops too
    _refuse_pipe(f"{option}: {text}", config, folder)
    try:
        _refuse_removed(config)
        values.check_group("", config, types)
    except UserError as error:
        raise UserError(f"{source}{error}") from error
    return config


def _check_option(option: str, text: str, kind: Any) -> Any:
    """Check the value of an option, or the file with options of its own that it names.

    Args:
        option: The option.
        text: Its value on the command line.
        kind: Its type; None if only jsonargparse knows it.

    Returns:
        The value, read as YAML.
    """
    value, name = _value(option, text), option.lstrip("-")
    _refuse_pipe(option, value, Path())
    _refuse_removed({name: value})
    if kind is None or name.endswith("+"):  # an element of a list, or several
        return value
    if isinstance(value, str) and option_types.has_options(kind) and os.path.isfile(value):
        value = yaml.read_mapping(Path(value), option)
    try:
        values.check(name, value, kind)
    except UserError as mistake:
        if isinstance(value, str) or not option_types.takes_text(kind):
            raise
        try:
            values.check(name, text, kind)
        except UserError:
            raise mistake from None
    return value


def _value(option: str, text: str) -> Any:
    """Return the value that an option's text stands for."""
    try:
        return yaml.value_of(text)
    except yaml.NotAllowed as error:
        raise UserError(f"{option}: {error}") from error


def _with_class(types: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the types for the following options, which may depend on a class given before.

    Args:
        types: The types so far.
        config: The values given so far, by name.
    """
    changed = {}
    for key, kind in types.items():
        if isinstance(kind, option_types.OneOf):
            given = config.get(key, config.get(f"{key}.class_path"))
            name = given.get("class_path") if isinstance(given, Mapping) else given
            if isinstance(name, str):
                changed[key] = dataclasses.replace(kind, default=name.rpartition(".")[2])
    return {**types, **changed} if changed else types


def _refuse_removed(config: Mapping[str, Any]) -> None:
    """Refuse an option that no longer exists.

    Args:
        config: Options as YAML has them.

    Raises:
        UserError: There is one.
    """
    entry = keys.find_removed(config)
    if entry is not None:
        raise UserError(f"{entry.name} was removed: {entry.removed}; leave it out")


def _refuse_pipe(where: str, value: Any, folder: Path) -> None:
    """Refuse a pipe among the values; jsonargparse would wait for a configuration from it.

    Args:
        where: The option, or the file and key, of the value.
        value: The value; containers are searched.
        folder: Another folder, besides the current one, that relative paths may start at.

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
