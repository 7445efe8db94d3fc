"""Strict YAML: plain values only, no duplicate keys, and limits on everything.

PyYAML takes the last of two equal keys, expands aliases without bound, and lets a mapping contain
itself. A configuration may come from an untrusted source, so its size is checked before any value
is built.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import read_bytes

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 50_000
"""Greatest number of keys and values of a document; an alias counts as its whole content."""
MAX_INTEGER = 2**63 - 1

_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ["null", "bool", "int", "float", "str", "seq", "map", "merge"]
}

# libyaml is ten times as fast, if PyYAML was built with it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotAllowed(UserError):
    """Valid YAML that is refused: a duplicate key, an exceeded limit, a tag."""


class _Loader(_Base):  # type: ignore[misc]  # one of two classes
    """Loader with the numbers of YAML 1.2: 1e-3 is one; 1:30, 010, 0b1 and dates are text."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return PyYAML's rules for plain scalars, without those for numbers, dates and ``=``."""
    left_out = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "value")]
    return {
        first: [rule for rule in rules if rule[0] not in left_out]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""), base=0)


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0o[0-7_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which PyYAML or `_Loader` would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeLoader.yaml_implicit_resolvers.get(first, []),
        *_Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in yaml.SafeLoader.yaml_implicit_resolvers.keys()
    | _Loader.yaml_implicit_resolvers.keys()
}


def dump(value: Any) -> str:
    """Return plain values as YAML that `load` reads back as they were."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def load(text: str) -> Any:
    """Read one YAML document.

    Returns:
        Dictionaries, lists, text, numbers, booleans and None.

    Raises:
        yaml.YAMLError: The text is not valid YAML.
        NotAllowed: It has a duplicate key, refers to itself, has a tag such as !!python, or
            exceeds the limits above.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # a file's name that is not UTF-8
        raise yaml.YAMLError("it is not UTF-8") from error
    if size > MAX_BYTES:
        raise NotAllowed(f"it has {size:,} bytes; at most {MAX_BYTES:,} are read")
    if text.isidentifier():  # a fast path for the commonest values; null, yes and true are shorter
        return _construct(text) if len(text) < 6 else text
    _check_structure(text)
    return _construct(text)


def value_of(text: str) -> Any:
    """Return the value of an option's text; the text itself if it is not YAML."""
    try:
        return load(text)
    except yaml.YAMLError:
        return text


def read(path: Path, option: str | None = None) -> Any:
    """Read a YAML file.

    Args:
        path: The file, in UTF-8.
        option: The option that named the file, for errors.

    Raises:
        UserError: The file cannot be read, or `load` refuses it.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except UserError as error:
        raise UserError(str(error) if option is None else f"{option}: {error}") from error
    return parse(content, str(path) if option is None else f"{option}: {path}")


def parse(content: bytes, source: str) -> Any:
    """Return the value of a YAML file's content.

    Args:
        content: The content, in UTF-8.
        source: The file, for errors.

    Raises:
        UserError: It is not YAML, or `load` refuses it.
    """
    try:
        return load(content.decode("utf-8-sig"))
    except NotAllowed as error:
        raise UserError(f"{source}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not valid YAML: {_in_a_line(error)}") from error


def read_mapping(path: Path, option: str | None = None) -> dict[str, Any]:
    """Read a YAML file that must hold keys.

    Raises:
        UserError: As `read`; or the file holds something else.
    """
    found = read(path, option)
    if not isinstance(found, dict):
        source = str(path) if option is None else f"{option}: {path}"
        raise UserError(f"{source} holds no keys")
    return found


def _in_a_line(error: Exception) -> str:
    """Return an error's reason and place, without the excerpt that PyYAML adds."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return str(reason) if mark is None else f"{reason}, line {mark.line + 1}"


def _construct(text: str) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        for node in _nodes(root):
            if isinstance(node, yaml.MappingNode):
                _check_keys(loader, node)
            elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int":
                _check_integer(node)
        return loader.construct_document(root)
    except RecursionError as error:
        raise NotAllowed(f"nested deeper than {MAX_DEPTH} levels") from error
    except (
        ValueError,
        OverflowError,
        AttributeError,
    ) as error:  # errors that PyYAML does not catch
        raise yaml.YAMLError(f"a value that cannot be read: {error}") from error
    finally:
        loader.dispose()


def _check_structure(text: str) -> None:
    """Check size, depth and tags of a text before any value is built.

    Raises:
        NotAllowed: It exceeds a limit, refers to itself, or has a tag.
    """
    sizes: dict[str, tuple[int, int]] = {}  # of each anchor: values, and levels
    opened: list[list[Any]] = []  # of each open collection: anchor, values before it, levels
    total, documents = 0, 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise NotAllowed(f"a second document begins, line {_line(event)}; give one")
        values, levels = 1, 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append([event.anchor, total, 1])
            if len(opened) > MAX_DEPTH:
                raise NotAllowed(f"nested deeper than {MAX_DEPTH} levels, line {_line(event)}")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, levels = opened.pop()
            values = 0
            if anchor is not None:
                sizes[anchor] = (total - before, levels)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = (1, 0)
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == each[0] for each in opened):
                raise NotAllowed(f"'{event.anchor}' contains itself, line {_line(event)}")
            values, levels = sizes.get(
                str(event.anchor), (1, 0)
            )  # an unknown one is an error below
        else:
            continue
        total += values
        if opened:
            opened[-1][2] = max(opened[-1][2], levels + 1)
            if len(opened) + levels > MAX_DEPTH:
                raise NotAllowed(f"nested deeper than {MAX_DEPTH} levels, line {_line(event)}")
        if total > MAX_VALUES:
            raise NotAllowed(f"more than {MAX_VALUES:,} values, line {_line(event)}")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _TAGS:
            raise NotAllowed(f"the tag {tag} is not allowed, line {_line(event)}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield each node of a document once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_keys(loader: Any, node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise NotAllowed(f"a key must be a plain value, line {line}")
        value = key.value if key.tag == "tag:yaml.org,2002:merge" else loader.construct_object(key)
        if value in seen:
            raise NotAllowed(f"the key '{key.value}' is given twice, line {line}; remove one")
        seen.add(value)


def _check_integer(node: yaml.ScalarNode) -> None:
    digits = sum(character.isdigit() for character in node.value)
    if digits > 70:  # 64 bits in base 2, with room for a prefix
        raise NotAllowed(
            f"a whole number of {digits:,} digits, line {node.start_mark.line + 1}; at most "
            f"{MAX_INTEGER:,}"
        )
