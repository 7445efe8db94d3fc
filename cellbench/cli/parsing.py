"""The command line's parser, with each mistake told in one line."""

import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

import cellbench.data
from cellbench.errors import UserError, suggest

if TYPE_CHECKING:  # torch and lightning take six seconds, which not every command needs
    from cellbench.data.base import CellDataModule

LINKED = {"model.classes": "data.classes", "model.image_size": "data.input_size"}
"""What the model takes from the data; never typed."""


class Parser(ArgumentParser):
    """Raises UserError instead of printing a usage of several pages."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Tells the mistake in a line.

        Raises:
            UserError: Always.
        """
        if not self.exit_on_error:  # a parser within a parser: the outer one tells it all
            super().error(message, ex)
        if message.startswith("the following arguments are required: "):
            names = message.split(": ")[1].split(", ")
            options = {action.dest for action in self._actions if action.option_strings}
            shown = ", ".join(f"--{name}" if name in options else name.upper() for name in names)
            raise UserError(f"missing {shown}; --help says more") from ex
        commands = [a.choices for a in self._actions if isinstance(a.choices, dict)]
        parsers = [self, *(parser for choices in commands for parser in choices.values())]
        keys = {action.dest for parser in parsers for action in parser._actions}
        keys |= set(_data_keys(None))
        raise UserError(explain(message, keys)) from ex

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No abbreviations: --trainer.max_epoch would be taken for --trainer.max_epochs."""
        return []


def explain(message: str, keys: set[str]) -> str:
    """Makes one line of jsonargparse's message.

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
    of_config = _explain_config(message, prefix)
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
    if "Expected a dot import path string" in message:
        name = message.split("Expected a dot import path string: ")[1].split()[0]
        return f"data: unknown data module '{name}'{suggest(name, data_modules())}"
    *_, last = re.split(r'(?=Parser key ")', message)
    key = re.match(r'Parser key "([^"]+)"', last)
    expected = list(_expected(last))
    if key and expected:
        value = re.search(r"(?:Got value|Given value): (.*)", last)
        got = f"; got '{value[1]}'" if value else ""
        choices = [choice for kind in expected for choice in kind.split(", ")]
        close = suggest(value[1], choices) if value and len(choices) > 2 else ""
        close = close if close.startswith("; closest") else ""
        return f"{prefix}{key[1]}: expected {' or '.join(expected)}{got}{close}"
    return " ".join(message.split())


def _explain_config(message: str, prefix: str) -> str | None:
    """Explains a wrong value of an option that has options of its own; None where it is none."""
    named = re.findall(r'Parser key "([^"]+)"', message)
    whole = re.search(r"Unable to load config '([^']*)'", message)
    subtypes = re.findall(r"(cellbench\.[\w.]+\.\w+)(?='>|\])", message)
    kinds = [path for path in subtypes if path.rpartition(".")[2] not in data_modules()]
    kinds = [path for path in kinds if not path.endswith(".CellDataModule")]
    if whole and named:
        return (
            f"{named[-1]}: it has options of its own, as --{named[-1]}.help tells; got '{whole[1]}'"
        )
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
        elif "NoneType" not in kind:
            yield re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind)


def data_modules() -> "dict[str, type[CellDataModule]]":
    """All data modules, by name."""
    # A dataset is one new file: importing it makes its class known by its short name.
    for module in pkgutil.iter_modules(cellbench.data.__path__, "cellbench.data."):
        import_module(module.name)

    def below(kind: "type[CellDataModule]") -> "Iterator[type[CellDataModule]]":
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    base: Any = import_module("cellbench.data.base").CellDataModule
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
        path = Path(value if equals else "".join(args[i + 1 : i + 2]))
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--config: cannot read {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config: {path} is not valid YAML: {error}") from error
        if not isinstance(config, dict):
            raise UserError(f"--config: {path} holds no keys; expected data, model and trainer")
        if not from_sweep and {"experiment", "space"} <= config.keys():
            raise UserError(
                f"--config: {path} is a sweep's file: python -m cellbench sweep --config {path}"
            )
        for key in {"data", "model", "trainer", "checkpoint", "wandb"} & config.keys():
            named = key == "data" and isinstance(config[key], str)  # a class name alone
            if not named and not isinstance(config[key], dict):
                raise UserError(f"--config: {path}: {key} must hold keys; got '{config[key]}'")


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
