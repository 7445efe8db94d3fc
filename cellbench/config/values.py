"""Plain values checked against the types of the options that they are for.

jsonargparse lets null pass for every option, takes true for a number in places, and imports what a
dotted name names while it tries whether the name fits. What is checked here needs none of that.
"""

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from cellbench.config.yaml import MAX_INTEGER
from cellbench.errors import UserError, suggest

_SCALARS = {bool: "true or false", int: "int", float: "float", str: "str"}
_WORD = re.compile(r"[\w-]*")
_MAX_PATH, _MAX_NAME = 4095, 255  # bytes: Linux' PATH_MAX without its end, and NAME_MAX


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The type of an option that names one of several classes, with arguments.

    Attributes:
        classes: Gives the classes, by the names that `class_path` may have.
    """

    classes: Callable[[], Mapping[str, type]]


def check(key: str, value: Any, kind: Any, *, closed: bool = False) -> None:
    """Check an option's value against its type.

    Args:
        key: The option's name, with dots.
        value: Dictionaries, lists and scalars, as YAML gives them, or what jsonargparse has made
            of them.
        kind: The option's type: a scalar, a container of types, a Literal, a dataclass, OneOf, or
            a dictionary of types by name for a group of options.
        closed: Whether the value comes from a file that may not name code. Then every key must be
            known, and a value that could be taken for the name of a class or of a file of
            configuration is refused. Else what other classes take is left to them.

    Raises:
        UserError: The value does not have the type, or is a number that is not finite or does not
            fit into 64 bits.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, Mapping):
        check_group(key, value, kind, closed=closed)
    elif isinstance(kind, OneOf):
        _check_one_of(key, value, kind, closed)
    elif kind is Any:
        _check_plain(key, value, closed)
    elif origin in (Union, UnionType):
        _check_union(key, value, kind, closed)
    elif origin is Literal:
        if not any(value == each and type(value) is type(each) for each in arguments):
            _refuse(key, value, kind)
    elif kind in (None, NoneType) or kind in _SCALARS:
        _check_scalar(key, value, kind)
    elif isinstance(kind, type) and issubclass(kind, os.PathLike):
        _check_path(key, value)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        if not isinstance(value, kind) and value not in kind.__members__:
            _refuse(key, value, kind)
    elif origin is tuple and Ellipsis not in arguments:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            _refuse(key, value, kind)
        for i, (each, inner) in enumerate(zip(value, arguments, strict=True)):
            check(f"{key}[{i}]", each, inner, closed=closed)
    elif inspect.isclass(origin) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            _refuse(key, value, kind)
        for name, each in value.items():
            check(f"{key} (a key)", name, arguments[0], closed=closed)
            check(f"{key}.{name}", each, arguments[1], closed=closed)
    elif inspect.isclass(origin) and issubclass(origin, Iterable):
        if not isinstance(value, list | tuple):
            _refuse(key, value, kind)
        for i, each in enumerate(value):
            check(f"{key}[{i}]", each, arguments[0], closed=closed)
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not closed and isinstance(value, Mapping) and "init_args" in value:
            value = value["init_args"]  # jsonargparse keeps an element of a list so
        if isinstance(value, Mapping):  # jsonargparse fills in null for what is missing
            _refuse_unknown(key, value, parameters(kind))
            missing = [name for name in _required(kind) if value.get(name) is None]
            if missing:
                raise UserError(f"{key}: missing {', '.join(missing)}")
        check_group(key, value, parameters(kind), closed=closed)
    elif closed:
        _refuse(key, value, kind)


def check_group(key: str, value: Any, kinds: Mapping[str, Any], *, closed: bool = False) -> None:
    """Check each option of a group.

    Args:
        key: The group's name; empty for the whole configuration.
        value: The options' values.
        kinds: The options' types, by name.
        closed: As in `check`.

    Raises:
        UserError: As in `check`; or the value is not a mapping, or has an unknown key.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: expected {_options_like(kinds)}; got '{shown(value)}'")
    if closed:
        _refuse_unknown(key, value, kinds)
    for name, each in value.items():
        if name in kinds:
            check(f"{key}.{name}" if key else name, each, kinds[name], closed=closed)


def find_type(kinds: Mapping[str, Any], key: str) -> Any:
    """Return the type of an option by its name with dots; None where there is no such option."""
    kind: Any = kinds
    for name in key.split("."):
        if isinstance(kind, OneOf):
            if name == "init_args":
                continue
            kind = {k: v for each in kind.classes().values() for k, v in parameters(each).items()}
        for each in (kind, *get_args(kind)):
            if isinstance(each, type) and dataclasses.is_dataclass(each):
                kind = parameters(each)
        if not isinstance(kind, Mapping) or name not in kind:
            return None
        kind = kind[name]
    return kind


def expected(kind: Any) -> str:
    """Describe a type in a user's words."""
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
    if kind in _SCALARS:
        return _SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _options_like(parameters(kind))
    return "options" if isinstance(kind, Mapping | OneOf) else "a class, as {class_path: ...}"


def takes_text(kind: Any) -> bool:
    """Return True for a type with values that are text, which a command line does not quote."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(takes_text, get_args(kind)))
    return (
        kind is str
        or get_origin(kind) is Literal
        or (isinstance(kind, type) and issubclass(kind, os.PathLike | Enum))
    )


def shown(value: Any) -> str:
    """Return a value as YAML would write a short one."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{shown(name)}: {shown(each)}' for name, each in value.items())}}}"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "a whole number beyond 64 bits"
    return str(value)


@cache
def parameters(kind: type) -> dict[str, Any]:
    """Return the types of the options that a class takes, by name."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    constructor = inspect.unwrap(kind.__init__)  # type: ignore[misc]  # a class, no instance
    return {k: v for k, v in get_type_hints(constructor).items() if k != "return"}


def _refuse_unknown(key: str, value: Mapping[Any, Any], kinds: Mapping[str, Any]) -> None:
    for name in value:
        if name not in kinds:
            path = f"{key}.{name}" if key else str(name)
            raise UserError(f"unknown option '{path}'{suggest(name, kinds)}")


def _required(kind: type) -> list[str]:
    """Return the options of a dataclass that have no default."""
    signature = inspect.signature(kind).parameters.values()
    return [each.name for each in signature if each.default is inspect.Parameter.empty]


def _options_like(kinds: Mapping[str, Any]) -> str:
    return f"options, as {{{next(iter(kinds))}: ...}}"


def _refuse(key: str, value: Any, kind: Any) -> NoReturn:
    wanted = f"expected {expected(kind)}"
    if value is None:
        raise UserError(f"{key}: null is not allowed; {wanted}")
    close = suggest(value, _words(kind)) if isinstance(value, str) else ""
    close = close if close.startswith("; closest") else ""  # the others are in `wanted`
    raise UserError(f"{key}: {wanted}; got '{shown(value)}'{close}")


def _words(kind: Any) -> list[str]:
    """Return the words among a type's values."""
    if get_origin(kind) in (Union, UnionType):
        return [word for each in get_args(kind) for word in _words(each)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind.__members__)
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if isinstance(word, str)]
    return []


def _check_scalar(key: str, value: Any, kind: Any) -> None:
    if kind in (None, NoneType):
        if value is not None:
            _refuse(key, value, kind)
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole if kind is int else isinstance(value, kind) or (kind is float and whole)):
        _refuse(key, value, kind)
    if kind is float and not whole and not math.isfinite(value):
        raise UserError(f"{key}: {value} is not a finite number")
    if whole and abs(value) > MAX_INTEGER:
        raise UserError(f"{key}: a whole number beyond 64 bits; at most {MAX_INTEGER}")


def _check_path(key: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike):
        _refuse(key, value, Path)
    path = os.fsencode(value)
    if b"\0" in path:
        raise UserError(f"{key}: no path has a NUL character")
    if len(path) > _MAX_PATH or any(len(name) > _MAX_NAME for name in path.split(b"/")):
        raise UserError(f"{key}: the path is too long: '{shown(value)}'")


def _check_union(key: str, value: Any, kind: Any, closed: bool) -> None:
    members = get_args(kind)
    of_code = [each for each in members if not _is_plain(each)]
    # A dotted name would be imported, and a file of that name read as a configuration.
    is_name = isinstance(value, str) and (not _WORD.fullmatch(value) or os.path.isfile(value))
    if closed and of_code and is_name:
        _refuse_class(key, kind)
    if not closed and of_code and _could_name_classes(value):
        return  # what the classes take is theirs to say
    errors = []
    for each in members if closed else filter(_is_plain, members):
        try:
            check(key, value, each, closed=closed)
            return
        except UserError as error:
            errors.append((each, error))
    if closed and of_code:
        _refuse_class(key, kind)
    fitting = [error for each, error in errors if _has_form(value, each)]
    if len(fitting) == 1:  # of the right form, with something wrong in it
        raise fitting[0]
    _refuse(key, value, kind)


def _could_name_classes(value: Any) -> bool:
    """Return True for a class by its name or by `class_path`, and for a list of such."""
    each = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(one, str | Mapping) for one in each)


def _refuse_class(key: str, kind: Any) -> NoReturn:
    plain = " or ".join(expected(each) for each in get_args(kind) if _is_plain(each))
    raise UserError(
        f"{key} names a class, and only data.class_path may in a run's folder; expected {plain}"
    )


def _is_plain(kind: Any) -> bool:
    """Return True where no value of a type could name code."""
    if get_origin(kind) is Literal:
        return True
    if get_args(kind):
        return all(_is_plain(each) for each in get_args(kind) if each is not Ellipsis)
    paths = isinstance(kind, type) and issubclass(kind, os.PathLike | Enum)
    return (
        kind in (None, NoneType, Any) or kind in _SCALARS or paths or dataclasses.is_dataclass(kind)
    )


def _has_form(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(kind) or (
            inspect.isclass(origin) and issubclass(origin, Mapping)
        )
    if isinstance(value, list | tuple):
        return inspect.isclass(origin) and issubclass(origin, Sequence) and origin is not str
    if isinstance(value, str):
        return isinstance(kind, type) and issubclass(kind, os.PathLike)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and kind is (int if isinstance(value, int) else float)


def _check_plain(key: str, value: Any, closed: bool) -> None:
    """Check the numbers in an argument of another library's, and refuse classes if `closed`."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            if closed and name in ("class_path", "init_args", "dict_kwargs"):
                raise UserError(f"{key}.{name}: no class may be named here")
            _check_plain(f"{key}.{name}", each, closed)
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            _check_plain(f"{key}[{i}]", each, closed)
    elif isinstance(value, str):
        if closed and not _WORD.fullmatch(value):  # jsonargparse reads text as YAML once more
            raise UserError(f"{key}: expected a word or a number; got '{value}'")
    elif type(value) in _SCALARS:
        _check_scalar(key, value, type(value))


def _check_one_of(key: str, value: Any, kind: OneOf, closed: bool) -> None:
    if not closed and isinstance(value, str):  # the name alone
        return
    if not isinstance(value, Mapping):
        wanted = "{class_path: ..., init_args: ...}"
        raise UserError(f"{key}: expected {wanted}; got '{shown(value)}'")
    classes, name = kind.classes(), value.get("class_path")
    if not closed and isinstance(name, str):
        name = name.rpartition(".")[2]
    if not isinstance(name, str) or name not in classes:
        if closed:
            raise UserError(
                f"{key}.class_path: '{shown(name)}' is not a data module here"
                f"{suggest(name, classes)}"
            )
        return
    if closed and value.keys() - {"class_path", "init_args"}:
        raise UserError(f"{key}: expected class_path and init_args; got {', '.join(value)}")
    given = value.get("init_args", {})
    check_group(key, given, parameters(classes[name]), closed=closed)
