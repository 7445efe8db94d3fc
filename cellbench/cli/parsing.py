"""The command line's parser, with each mistake told in one line."""

import dataclasses
import inspect
import os
import pkgutil
import re
import stat
import sys
from argparse import Action
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import yaml as pyyaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

import cellbench.data
from cellbench.config import keys, values, yaml
from cellbench.errors import UserError, one_line, suggest

if TYPE_CHECKING:  # torch and lightning take six seconds, which not every command needs
    from cellbench.data.module import CellDataModule

LINKED = {"model.classes": "data.classes", "model.image_size": "data.input_size"}
"""What the model takes from the data; never typed."""


set_loader("yaml", yaml.load, exceptions=(pyyaml.YAMLError,))
set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help shows a field's docstring


class _Unexplained(UserError):
    """A message of jsonargparse's that cellbench has no better words for."""


class Parser(ArgumentParser):
    """Raises UserError instead of printing a usage of several pages.

    Attributes:
        types: The type of each option, by name; a group has a dictionary of its options' types.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.types: dict[str, Any] = {}
        self._lists: set[str] = set()  # options with several values, each an argument
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Action:
        """Add an option, and remember its type."""
        action: Action = super().add_argument(*args, **kwargs)
        # jsonargparse makes this a method of the parser's groups as well.
        if isinstance(self, Parser) and "type" in kwargs:
            several = kwargs.get("nargs") == "+"
            if several:
                self._lists.add(action.dest)
            self.types[action.dest] = (
                GenericAlias(list, kwargs["type"]) if several else kwargs["type"]
            )
        return action

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add the options of a class, and remember their types."""
        if self.exit_on_error:  # a parser within a parser is made for other libraries' classes
            own = values.parameters(theclass)
            self.types.update(own if nested_key is None else {nested_key: own})
        names: list[str] = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        return names

    def add_subclass_arguments(
        self, baseclass: Any, nested_key: str, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add an option for one of several classes; those of data modules are known."""
        self.types[nested_key] = values.OneOf(data_modules)
        names: list[str] = super().add_subclass_arguments(baseclass, nested_key, *args, **kwargs)
        return names

    def parse_args(self, args: Sequence[str], **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse a command line, and check every value against its option's type.

        Raises:
            UserError: An option is not known, or has a value that it cannot have.
        """
        if not self.exit_on_error:  # a parser within a parser: the outer one tells of mistakes
            inner: Namespace = super().parse_args(_with_null(args), **kwargs)
            return inner
        _refuse_pipes(self._given(args))
        _refuse_removed(self._given(args))
        try:
            found = super().parse_args(args, **kwargs)
        except Exception as error:  # whatever jsonargparse has let through
            self._find_mistake(args)
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read the options: {error or type(error).__name__}") from error
        self._find_mistake(args)
        self.check(found)
        return found

    def _find_mistake(self, args: Sequence[str]) -> None:
        """Check values as they were given.

        jsonargparse tells of mistakes in its own words, and reads 1:30 as 90 and 010 as 10.

        Raises:
            UserError: One is wrong.
        """
        for option, text in self._given(args):
            try:
                self._check_given(option, text)
            except yaml.NotAllowed as error:
                raise UserError(f"{option}: {error}") from error
            except pyyaml.YAMLError:  # no value of YAML, but any text
                continue

    def _check_given(self, option: str, text: str) -> None:
        value, key = yaml.load(text), option.lstrip("-")
        if option in ("--config", "-c"):
            config = value if isinstance(value, dict) else yaml.read_mapping(Path(text))
            values.check_group("", config, self.types)
            return
        kind = values.find_type(self.types, key)
        if key in self._lists:
            (kind,) = get_args(kind)
        # A group's options may be in a file, and `refuse_linked` tells of what is linked.
        if kind is None or key in LINKED or os.path.isfile(text):
            return
        try:
            values.check(key, value, kind)
        except UserError as mistake:
            if isinstance(value, str) or not values.takes_text(kind):
                raise
            try:
                values.check(key, text, kind)
            except UserError:
                raise mistake from None

    def _given(self, args: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield each option with its value, of `--option=value` and `--option value` alike."""
        option = ""
        for argument in args:
            name, equals, value = argument.partition("=")
            if argument.startswith("-") and equals:
                yield name, value
            elif argument.startswith("--") or argument == "-c":
                option = argument
            else:
                yield option, argument
                if option.lstrip("-") not in self._lists:
                    option = ""

    def check(self, found: Namespace) -> None:
        """Check parsed values against their options' types.

        Raises:
            UserError: One is null, no finite number, or otherwise not of its type.
        """
        if self.exit_on_error:  # else a parser within a parser, which has a part of the values
            values.check_group("", plain(found), self.types)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Tells the mistake in a line.

        Raises:
            UserError: Always.
        """
        if not self.exit_on_error:  # a parser within a parser: the outer one tells it all
            super().error(message, ex)
        commands = [a.choices for a in self._actions if isinstance(a.choices, dict)]
        if message.startswith("the following arguments are required: "):
            missing = message.split(": ")[1].split(", ")
            for command in (name for choices in commands for name in choices):
                missing = [name.removeprefix(f"{command}.") for name in missing]
            positional = {action.dest for action in self._actions if not action.option_strings}
            shown = [name.upper() if name in positional else f"--{name}" for name in missing]
            raise UserError(f"missing {', '.join(shown)}; --help says more") from ex
        parsers = [self, *(parser for choices in commands for parser in choices.values())]
        keys = {action.dest for parser in parsers for action in parser._actions}
        keys |= set(_data_keys(None))
        explained = explain(message, keys)
        if explained is None:
            raise _Unexplained(message) from ex
        raise UserError(explained) from ex

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No abbreviations: --trainer.max_epoch would be taken for --trainer.max_epochs."""
        return []


def explain(message: str, keys: set[str]) -> str | None:
    """Make one line of jsonargparse's message; None where it is not known what it means.

    Args:
        message: The message, of one line or of a dozen.
        keys: The keys that there are, with dots, to name the closest.
    """
    inside = re.search(r"Problem with given class_path '(?:.*\.)?(\w+)'", message)
    if inside and inside[1] not in data_modules():
        inside = None
    prefix = "data." if inside else ""
    if inside:
        keys = set(_data_keys(inside[1]))
    of_config = _explain_config(message, prefix, keys)
    if of_config:
        return of_config
    unknown = re.search(
        r"unrecognized arguments: --([^\s=]+)|(?:Group '(?P<group>[\w.]+)' does not accept "
        r"|does not accept |^\s*)option '(?P<option>[^']+)'",
        message,
        re.MULTILINE | re.IGNORECASE,
    )
    if unknown:
        group = f"{unknown['group']}." if unknown["group"] else ""
        return _unknown_key(prefix + group + (unknown[1] or unknown["option"]), keys, inside)
    linked = re.search(r'Linked "([^"]+)" must be given via "([^"]+)"', message)
    if linked:
        return _linked(linked[1], linked[2])
    named = re.findall(r'Parser key "([^"]+)"', message)
    if "Expected a dot import path string" in message and named[-1:] == ["data"]:
        name = message.split("Expected a dot import path string: ")[1].split()[0]
        close = explain_unusable(name) or suggest(name, data_modules())
        return f"data: unknown data module '{name}'{close}"
    foreign = re.search(r"Problem with given class_path '([^']+)':\s*[- ]*(.*)", message)
    if foreign and not inside and named:
        return f"{named[-1]}: cannot use {foreign[1]}: {foreign[2]}"
    *_, last = re.split(r'(?=Parser key ")', message)
    key = re.match(r'Parser key "([^"]+)"', last)
    expected = list(dict.fromkeys(_expected(last)))
    if key and expected:
        value = re.search(r"(?:Got value|Given value): (.*)", last)
        if value and value[1] == "None":
            return f"{prefix}{key[1]}: null is not allowed; expected {' or '.join(expected)}"
        got = f"; got '{value[1]}'" if value else ""
        choices = [choice for kind in expected for choice in kind.split(", ")]
        close = suggest(value[1], choices) if value and len(choices) > 2 else ""
        close = close if close.startswith("; closest") else ""
        return f"{prefix}{key[1]}: expected {' or '.join(expected)}{got}{close}"
    return None


def _explain_config(message: str, prefix: str, keys: set[str]) -> str | None:
    """Explain a wrong value of an option that has options of its own; None where it is none."""
    named = re.findall(r'Parser key "([^"]+)"', message)
    whole = re.search(r"Unable to load config '([^']*)'", message)
    subtypes = re.findall(r"(cellbench\.[\w.]+\.\w+)(?='>|\])", message)
    kinds = [path for path in subtypes if path.rpartition(".")[2] not in data_modules()]
    kinds = [path for path in kinds if not path.endswith(".CellDataModule")]
    if whole and named:
        key = named[-1] if named[-1] in keys else f"data.{named[-1]}"
        return f"{key}: it has options of its own, as --{key}.help tells; got '{whole[1]}'"
    if not kinds or not named:
        return None
    key = f"{prefix}{named[-1]}"
    module, _, name = kinds[-1].rpartition(".")
    allowed = [each.name for each in dataclasses.fields(getattr(import_module(module), name))]
    unknown = re.findall(r"[Oo]ption '([^']+)' is not accepted", message)
    if unknown:
        return f"unknown option '{key}.{unknown[-1]}'{suggest(unknown[-1], allowed)}"
    bare = re.search(r"Expected a dot import path string: (.*)", message)
    if bare:
        example = f"{{{allowed[0]}: ...}}"
        return (
            f"{key}: expected options, as {example}; got '{bare[1]}'; allowed: {', '.join(allowed)}"
        )
    return None


def _unknown_key(name: str, keys: set[str], inside: re.Match[str] | None) -> str:
    name = name.removeprefix("data.init_args.") if inside else name
    name = f"data.{name}" if inside and not name.startswith("data.") else name
    where = f" of {inside[1]}" if inside else ""
    return f"unknown option '{name}'{where}{suggest(name, keys)}; --help lists them all"


def _expected(message: str) -> Iterator[str]:
    """The types that a message asks for, in plain words; None only where nothing else is said."""
    for kind in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", message, re.MULTILINE):
        literal = re.search(r"Literal\[(.*)\]", kind)
        if literal:
            yield literal[1].replace("'", "")
        elif "NoneType" not in kind and not kind.startswith("path but"):
            yield re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind)


def _with_null(args: Sequence[str]) -> list[str]:
    """Return arguments with null where jsonargparse has made it the text None.

    It does so (4.53) when it hands the null of `--data.split.folds=null` on to a parser of its own.
    """
    halves = (argument.partition("=") for argument in args)
    return [
        f"{name}=null" if value == "None" else name + equals + value
        for name, equals, value in halves
    ]


def _refuse_pipes(given: Iterator[tuple[str, str]]) -> None:
    """Refuse values that name a pipe: jsonargparse would wait for a configuration from it.

    Args:
        given: Options with their values.

    Raises:
        UserError: There is one.
    """
    for option, text in given:
        _refuse_pipe(option, text, Path())
        is_file = option in ("--config", "-c")
        try:
            value = yaml.read(Path(text), option) if is_file else yaml.value_of(text)
        except UserError:  # what is wrong is said where the value is taken
            continue
        if is_file:
            _refuse_pipe(f"{option}: {text}", value, Path(text).parent)
        else:
            _refuse_pipe(option, value, Path())


def _refuse_pipe(where: str, value: Any, folder: Path) -> None:
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


def _refuse_removed(given: Iterator[tuple[str, str]]) -> None:
    """Name an option that no longer exists, on the command line or in a file of it.

    Args:
        given: Options with their values.

    Raises:
        UserError: There is one.
    """
    for option, text in given:
        try:
            value = yaml.value_of(text)
            if option not in ("--config", "-c"):
                value = {option.lstrip("-"): value}
            elif not isinstance(value, dict):
                value = yaml.read(Path(text), option)
        except UserError:  # what is wrong is said where the value is taken
            continue
        entry = keys.find_removed(value) if isinstance(value, dict) else None
        if entry is not None:
            raise UserError(f"{entry.name} was removed: {entry.removed}; leave it out")


def plain(value: Any) -> Any:
    """Return what jsonargparse has parsed as dictionaries, lists and scalars."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


@cache
def unusable_modules() -> dict[str, str]:
    """Import every file of cellbench/data; return why some cannot be, by their names."""
    # A dataset is one new file: importing it makes its class known by its short name.
    failed = {}
    for module in pkgutil.iter_modules(cellbench.data.__path__):
        try:
            import_module(f"cellbench.data.{module.name}")
        except Exception as error:  # a mistake in one dataset's file must not stop the others
            failed[module.name] = f"{type(error).__name__}: {error}"
            reason = one_line(failed[module.name])
            print(
                f"cellbench: warning: cellbench/data/{module.name}.py cannot be imported, so its "
                f"dataset is not there ({reason})",
                file=sys.stderr,
            )
    return failed


def explain_unusable(name: str) -> str:
    """Return why a dataset or a data module is not there; empty where no file has it."""
    for module, reason in unusable_modules().items():
        paths = [Path(folder, f"{module}.py") for folder in cellbench.data.__path__]
        text = "".join(p.read_text("utf-8", errors="replace") for p in paths if p.is_file())
        if name == module or re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE):
            return f"; cellbench/data/{module}.py cannot be imported: {reason}"
    return ""


def data_modules() -> "dict[str, type[CellDataModule]]":
    """All data modules, by name."""
    unusable_modules()

    def below(kind: "type[CellDataModule]") -> "Iterator[type[CellDataModule]]":
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    base: Any = import_module("cellbench.data.module").CellDataModule
    return {kind.__name__: kind for kind in below(base) if not inspect.isabstract(kind)}


def _data_keys(name: str | None) -> Iterator[str]:
    """The keys of one data module, or of all."""
    for module, kind in data_modules().items():
        if name in (None, module):
            yield from _field_keys("data", kind)


def _field_keys(prefix: str, kind: Any) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        if field.init:
            yield f"{prefix}.{field.name}"
            if dataclasses.is_dataclass(field.type):
                yield from _field_keys(f"{prefix}.{field.name}", field.type)


def refuse_linked(config: Namespace) -> None:
    """Refuses a value for what the model takes from the data: it would be ignored in silence.

    Raises:
        UserError: There is one.
    """
    for target, source in LINKED.items():
        if config.get(target) is not None:
            raise UserError(_linked(target, source))


def _linked(target: str, source: str) -> str:
    return f"{target}: it is taken from {source}; remove it from the configuration"


def check_yaml(args: Sequence[str], *, from_sweep: bool = False) -> None:
    """Names the configuration file that is missing or not valid YAML; the parser does not.

    Args:
        args: The command line.
        from_sweep: Whether the file is to be a sweep's.

    Raises:
        UserError: There is one.
    """
    for i, argument in enumerate(args):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        if not equals and i + 1 == len(args):
            raise UserError(f"{option}: expected a value")
        path = Path(value if equals else args[i + 1])
        config = yaml.read(path, "--config")
        if not isinstance(config, dict):
            raise UserError(f"--config: {path} holds no keys; expected data, model and trainer")
        if not from_sweep and {"experiment", "space"} <= config.keys():
            raise UserError(
                f"--config: {path} is a sweep's file: python -m cellbench sweep --config {path}"
            )
        for key in {"data", "model", "trainer", "checkpoint", "wandb"} & config.keys():
            named = key == "data" and isinstance(config[key], str)  # a class name alone
            if not named and not isinstance(config[key], dict):
                shown = values.shown(config[key])
                raise UserError(f"--config: {path}: {key} must hold keys; got '{shown}'")


def check_folder_name(name: str) -> None:
    """Check that a name can be a folder's, below another, and a title.

    Raises:
        UserError: It has a separator or a control character, begins with a dot, is too long or not
            UTF-8.
    """
    is_one = Path(name).name == name and not name.startswith(".") and name.isprintable()
    if not is_one or not 0 < len(name.encode(errors="replace")) <= 200:
        raise UserError(f"--name: '{name}' is no folder name")


def take_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Takes an option that the parser does not know off the command line.

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
