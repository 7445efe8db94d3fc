"""Checks of plain values against the types of their options.

They come before those of jsonargparse, which reports a mistake in a dozen lines, accepts null for
every option, sometimes accepts true as a number, and imports the target of a dotted name to find
out if it fits.
"""

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from cellbench.config.option_types import (
    SCALARS,
    Linked,
    OneOf,
    expected,
    find_type,
    is_list,
    is_plain,
    options_like,
    parameters,
    refuse_unknown,
    required,
    words,
)
from cellbench.config.yaml import MAX_INTEGER
from cellbench.utils.errors import UserError, suggest

_WORD = re.compile(r"[\w-]*")
_MAX_PATH, _MAX_NAME = 4095, 255  # bytes: Linux' PATH_MAX without its end, and NAME_MAX
_OPTION_FILES = (".yaml", ".yml", ".json")


def check(key: str, value: Any, kind: Any, *, closed: bool = False) -> None:
    """Check an option's value against its type.

    Args:
        key: The option's name, with dots.
        value: Dictionaries, lists and scalars, as YAML gives them or as jsonargparse has
            converted them.
        kind: The option's type: a scalar, a container of types, a Literal, a dataclass, OneOf,
            Linked, or a dictionary of types by name for a group of options.
        closed: True if the value comes from a file that may not name code. Then a value that
            could be taken for the name of a class or of a file of configuration is refused. Else
            it is left to jsonargparse.

    Raises:
        UserError: The value does not have the type, or is a number that is not finite or does not
            fit into 64 bits, or has options that are not known.
    """
    if isinstance(kind, Mapping):
        check_group(key, value, kind, closed=closed)
    elif isinstance(kind, OneOf):
        _check_one_of(key, value, kind, closed)
    elif isinstance(kind, Linked):
        if value is not None:
            raise UserError(
                f"{key}: it is taken from {kind.source}; remove it from the configuration"
            )
    elif kind is Any:
        _check_plain(key, value, closed)
    elif get_origin(kind) in (Union, UnionType):
        _check_union(key, value, kind, closed)
    elif get_origin(kind) is Literal:
        if not any(value == each and type(value) is type(each) for each in get_args(kind)):
            _refuse(key, value, kind)
    elif inspect.isclass(get_origin(kind)):
        _check_container(key, value, kind, closed)
    elif kind in (None, NoneType) or kind in SCALARS:
        _check_scalar(key, value, kind)
    else:
        _check_class(key, value, kind, closed)


def check_group(key: str, value: Any, kinds: Mapping[str, Any], *, closed: bool = False) -> None:
    """Check each option of a group.

    Args:
        key: The group's name; empty for the whole configuration.
        value: The options' values.
        kinds: The options' types, by name.
        closed: As in `check`.

    Raises:
        UserError: As in `check`; or the value is not a mapping.
    """
    _check_options(key, value, kinds, closed)


def check_append(option: str, kind: Any, *, in_class: bool) -> None:
    """Check that values can be appended to an option, as `OPTION+` does.

    Args:
        option: The option, with its + at the end.
        kind: Its type.
        in_class: True for an option of a class that was chosen among several; jsonargparse cannot
            append to these.

    Raises:
        UserError: It is not a list, or it is an option of such a class.
    """
    if in_class or not is_list(kind):
        raise UserError(
            f"{option}: nothing can be appended to this option; give all its values as "
            f"{option.removesuffix('+')}"
        )


def shown(value: Any) -> str:
    """Format a value like short YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{shown(name)}: {shown(each)}' for name, each in value.items())}}}"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "a whole number beyond 64 bits"
    return str(value)


def _check_options(
    key: str,
    value: Any,
    kinds: Mapping[str, Any],
    closed: bool,
    needed: Collection[str] = (),
    owner: str = "",
) -> None:
    """Check the names and values of a mapping of options, and that none is missing.

    Args:
        key: The group's name.
        value: The options' values, by name.
        kinds: Their types, by name.
        closed: As in `check`.
        needed: The options that must be given.
        owner: The class that has the options, if it was chosen among several.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: expected {options_like(kinds)}; got '{shown(value)}'")
    found = {}
    for name in value:
        if name in kinds:
            found[name] = kinds[name]
        elif closed or not isinstance(name, str):
            refuse_unknown(key, str(name), kinds, owner)
        else:  # jsonargparse takes names with dots in a file, and `name+` to append to a list
            kind = find_type(kinds, name.removesuffix("+"), key)
            found[name] = None if name.endswith("+") else kind
            if name.endswith("+"):
                check_append(f"{key}.{name}" if key else name, kind, in_class=bool(owner))
    # jsonargparse fills in null for what is missing.
    missing = [name for name in needed if value.get(name) is None]
    if missing:
        raise UserError(f"{key}: missing {', '.join(missing)}")
    for name, kind in found.items():
        if kind is not None:
            check(f"{key}.{name}" if key else name, value[name], kind, closed=closed)


def _refuse(key: str, value: Any, kind: Any) -> NoReturn:
    wanted = f"expected {expected(kind)}"
    if value is None:
        raise UserError(f"{key}: null is not allowed; {wanted}")
    close = suggest(value, words(kind)) if isinstance(value, str) else ""
    close = close if close.startswith("; closest") else ""  # the others are in `wanted`
    raise UserError(f"{key}: {wanted}; got '{shown(value)}'{close}")


def _check_scalar(key: str, value: Any, kind: Any) -> None:
    if kind in (None, NoneType):
        if value is not None:
            _refuse(key, value, kind)
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and _is_not_finite(value):
        raise UserError(f"{key}: {float(value)} is not a finite number")
    if not (whole if kind is int else isinstance(value, kind) or (kind is float and whole)):
        _refuse(key, value, kind)
    if whole and abs(value) > MAX_INTEGER:
        raise UserError(f"{key}: a whole number beyond 64 bits; at most {MAX_INTEGER}")


def _is_not_finite(value: Any) -> bool:
    """Return True for NaN and infinity, in YAML's spelling and in Python's."""
    if not isinstance(value, float | str):
        return False
    try:
        return not math.isfinite(float(value))
    except ValueError:
        return False


def _check_container(key: str, value: Any, kind: Any, closed: bool) -> None:
    """Check a list, a tuple or a dictionary of types."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and Ellipsis not in arguments:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            _refuse(key, value, kind)
        for i, (each, inner) in enumerate(zip(value, arguments, strict=True)):
            check(f"{key}[{i}]", each, inner, closed=closed)
    elif issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            _refuse(key, value, kind)
        for name, each in value.items():
            check(f"{key} (a key)", name, arguments[0], closed=closed)
            check(f"{key}.{name}", each, arguments[1], closed=closed)
    elif issubclass(origin, Iterable):
        if not isinstance(value, list | tuple):
            _refuse(key, value, kind)
        for i, each in enumerate(value):
            check(f"{key}[{i}]", each, arguments[0], closed=closed)
    elif closed:
        _refuse(key, value, kind)


def _check_class(key: str, value: Any, kind: Any, closed: bool) -> None:
    """Check a path, a word of an Enum, or the options of a dataclass."""
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        _check_path(key, value)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        if not isinstance(value, kind) and value not in kind.__members__:
            _refuse(key, value, kind)
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not closed and isinstance(value, Mapping) and "init_args" in value:
            value = value["init_args"]  # jsonargparse has already converted elements of a list
        _check_options(key, value, parameters(kind), closed, required(kind))
    elif closed:
        _refuse(key, value, kind)


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
    of_code = [each for each in members if not is_plain(each)]
    # A dotted name would be imported, and a file of that name read as a configuration.
    is_name = isinstance(value, str) and (not _WORD.fullmatch(value) or os.path.isfile(value))
    if closed and of_code and is_name:
        _refuse_class(key, kind)
    if not closed and of_code and _could_name_classes(value):
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Mapping) and isinstance(each.get("class_path"), str):
                _import(key, each["class_path"])
        return  # the arguments are checked by the class itself
    errors = []
    for each in members if closed else filter(is_plain, members):
        try:
            check(key, value, each, closed=closed)
            return
        except UserError as error:
            errors.append((each, error))
    if closed and of_code:
        _refuse_class(key, kind)
    fitting = [error for each, error in errors if _has_form(value, each)]
    if len(fitting) == 1:  # of the right form, with a wrong value in it
        raise fitting[0]
    _refuse(key, value, kind)


def _could_name_classes(value: Any) -> bool:
    """Return True for a class given by name or `class_path`, and for a list of classes."""
    candidates = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(candidate, str | Mapping) for candidate in candidates)


def _refuse_class(key: str, kind: Any) -> NoReturn:
    plain = " or ".join(expected(each) for each in get_args(kind) if is_plain(each))
    raise UserError(
        f"{key} names a class, and only data.class_path may in a run's folder; expected {plain}"
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
        is_path = isinstance(kind, type) and issubclass(kind, os.PathLike)
        return is_path or (kind is float and _is_not_finite(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and kind is (int if isinstance(value, int) else float)


def _check_plain(key: str, value: Any, closed: bool) -> None:
    """Check the numbers in an argument of another library; refuse classes if `closed`."""
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
    elif type(value) in SCALARS:
        _check_scalar(key, value, type(value))


def _check_one_of(key: str, value: Any, kind: OneOf, closed: bool) -> None:
    """Check the name of a class, and its arguments."""
    if isinstance(value, str) and not closed:
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        wanted = "{class_path: ..., init_args: ...}"
        raise UserError(f"{key}: expected {wanted}; got '{shown(value)}'")
    spec = {"class_path", "init_args"}
    if not closed and not value.keys() & spec:
        value = {"init_args": value}
    if value.keys() - spec:
        names = ", ".join(map(str, value))
        raise UserError(f"{key}: expected class_path and init_args; got {names}")
    name = value.get("class_path", None if closed else kind.default)
    if not closed and (name is None or _is_file_of_options(name)):
        return
    chosen = _find_class(key, name, kind, closed)
    arguments = value.get("init_args", {})
    _check_options(key, arguments, parameters(chosen), closed, owner=chosen.__name__)


def _find_class(key: str, name: Any, kind: OneOf, closed: bool) -> type:
    """Return the class of a name, or of a dotted path if code may be named.

    Raises:
        UserError: There is none.
    """
    classes = kind.classes()
    if isinstance(name, str) and name in classes:
        return classes[name]
    if isinstance(name, str) and "." in name and not closed:
        found: type = _import(key, name)
        if found in kind.classes().values():  # the import may have added it
            return found
    close = kind.explain(str(name)) or suggest(name, classes)
    where = f"{key}.class_path" if closed else key
    raise UserError(f"{where}: unknown {kind.noun} '{shown(name)}'{close}")


def _import(key: str, path: str) -> Any:
    """Import the target of a dotted path; names without dots are left to jsonargparse.

    Raises:
        UserError: It does not exist, or its module cannot be imported.
    """
    module, _, name = path.rpartition(".")
    if not module:
        return None
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # any error of the user's module
        raise UserError(f"{key}: cannot use {path}: {error}") from error


def _is_file_of_options(name: Any) -> bool:
    """Return True for a file name in place of options, which jsonargparse would read."""
    return isinstance(name, str) and (name.endswith(_OPTION_FILES) or os.path.isfile(name))
