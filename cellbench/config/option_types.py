"""Types of options: the options below each, and their description in words for users."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from cellbench.utils.errors import UserError, suggest

SCALARS = {bool: "true or false", int: "int", float: "float", str: "str"}
"""Types of single values, with their description for users."""


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Type of an option that names one of several classes, with arguments."""

    classes: Callable[[], Mapping[str, type]]
    """Function that returns the classes, by the names that `class_path` may have."""
    noun: str = "class"
    """Noun for the classes, for messages."""
    explain: Callable[[str], str] = lambda name: ""
    """Function that explains why a name is not among the classes, as the end of a message; empty if
    it does not know."""
    default: str | None = None
    """Name of the class if a value names none."""


@dataclasses.dataclass(frozen=True)
class Linked:
    """Type of an option that takes the value of another option, and must not be given."""

    source: str
    """Name of the other option."""


def find_type(kinds: Mapping[str, Any], key: str, group: str = "") -> Any:
    """Return the type of an option, by its name with dots.

    Args:
        kinds: The types of a group's options, by name.
        key: The option's name within the group.
        group: The group's own name, for errors.

    Returns:
        The type; None for an option of another library's class, which only jsonargparse knows.

    Raises:
        UserError: There is no such option.
    """
    kind: Any = kinds
    parts = key.split(".")
    for i, name in enumerate(parts):
        owner = ""
        if isinstance(kind, OneOf):
            if name == "class_path":
                return kind
            if name == "init_args":
                continue
            owner = kind.default or ""
        options = _options(kind)
        if options is None:
            return None
        if name not in options:
            above = ".".join(each for each in (group, *parts[:i]) if each)
            refuse_unknown(above, ".".join(parts[i:]), options, owner)
        kind = options[name]
    return kind


def has_options(kind: Any) -> bool:
    """Return True for an option that has options of its own, which may be in a file."""
    return bool(_options(kind))


def expected(kind: Any) -> str:
    """Describe a type in words for users."""
    arguments = get_args(kind)
    if kind in (None, NoneType):
        return "null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(kind.__members__)
    if get_origin(kind) in (Union, UnionType):
        words = [expected(each) for each in arguments if each is not NoneType]
        return " or ".join(dict.fromkeys([*words, *(["null"] if NoneType in arguments else [])]))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, arguments))
    if get_origin(kind) is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values"
    if inspect.isclass(get_origin(kind)):
        return "options" if issubclass(get_origin(kind), Mapping) else "a list"
    if kind in SCALARS:
        return SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return options_like(parameters(kind))
    return "options" if isinstance(kind, Mapping | OneOf) else "a class, as {class_path: ...}"


def options_like(kinds: Mapping[str, Any]) -> str:
    """Describe a group of options in words for users, by an example of its first option."""
    first = next(name for name, kind in kinds.items() if not isinstance(kind, Linked))
    return f"options, as {{{first}: ...}}"


def takes_text(kind: Any) -> bool:
    """Return True for a type whose values may be text, which a command line does not quote."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(takes_text, get_args(kind)))
    return (
        kind is str
        or get_origin(kind) is Literal
        or (isinstance(kind, type) and issubclass(kind, os.PathLike | Enum))
    )


def is_list(kind: Any) -> bool:
    """Return True if a type's values may be lists, which can be appended to; tuples cannot."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(map(is_list, get_args(kind)))
    sequence = inspect.isclass(origin) and issubclass(origin, Iterable)
    return sequence and not issubclass(origin, tuple | Mapping)


def words(kind: Any) -> list[str]:
    """Return the words among a type's values."""
    if get_origin(kind) in (Union, UnionType):
        return [word for each in get_args(kind) for word in words(each)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind.__members__)
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if isinstance(word, str)]
    return []


def is_plain(kind: Any) -> bool:
    """Return True if no value of a type could name code."""
    if get_origin(kind) is Literal:
        return True
    if get_args(kind):
        return all(is_plain(each) for each in get_args(kind) if each is not Ellipsis)
    paths = isinstance(kind, type) and issubclass(kind, os.PathLike | Enum)
    return (
        kind in (None, NoneType, Any) or kind in SCALARS or paths or dataclasses.is_dataclass(kind)
    )


@cache
def parameters(kind: type) -> dict[str, Any]:
    """Return the types of the options that a class takes, by name."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    constructor = inspect.unwrap(kind.__init__)  # type: ignore[misc]  # a class, not an instance
    return {k: v for k, v in get_type_hints(constructor).items() if k != "return"}


def required(kind: type) -> list[str]:
    """Return the options of a dataclass that have no default."""
    signature = inspect.signature(kind).parameters.values()
    return [each.name for each in signature if each.default is inspect.Parameter.empty]


def _options(kind: Any) -> Mapping[str, Any] | None:
    """Return the options of an option, by name; None if they are not known."""
    if isinstance(kind, Mapping):
        return kind
    if isinstance(kind, OneOf):
        classes = kind.classes()
        default = kind.default or ""
        chosen = [classes[default]] if default in classes else classes.values()
        return {name: kind for each in chosen for name, kind in parameters(each).items()}
    if isinstance(kind, Linked):
        return {}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return parameters(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (inspect.isclass(origin) and issubclass(origin, Mapping)):
        return None
    if origin is Literal or not arguments:
        return {} if is_plain(kind) else None
    options: dict[str, Any] = {}
    for each in arguments:
        if each is not Ellipsis:
            inner = _options(each)
            if inner is None:
                return None
            options |= inner
    return options


def _names(kinds: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of all options, with dots."""
    for name, kind in kinds.items():
        yield prefix + name
        yield from _names(_options(kind) or {}, f"{prefix}{name}.")


def refuse_unknown(group: str, name: str, kinds: Mapping[str, Any], owner: str = "") -> NoReturn:
    """Refuse an unknown option, and suggest the closest one.

    Args:
        group: The group's name; empty at the top.
        name: The option's name within the group.
        kinds: The known options.
        owner: The class that has the options, if it was chosen among several.
    """
    path = f"{group}.{name}" if group else name
    owned = f" of {owner}" if owner else ""
    close = suggest(name, kinds, prefix=f"{group}.") if group else suggest(name, _names(kinds))
    raise UserError(f"unknown option '{path}'{owned}{close}")
