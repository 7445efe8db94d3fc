"""Roles of a label table's columns: which one holds the path, the label, the group and so on."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

from cellbench.data.reading.parts import parts_of
from cellbench.data.reading.table_file import Table
from cellbench.data.table import Part
from cellbench.utils.errors import UserError, clip, suggest

Role = Literal["path", "label", "mask", "group", "split", "fold", "domain"]
ROLES: tuple[Role, ...] = get_args(Role)

_MISSING = re.compile(
    r"|--?|\?|\.|nan|<?na>?|n/a|n\.a\.|none|null|nat|#n/a|#(?:ref|value|name|null|div/0)[!?]",
    re.IGNORECASE,
)
"""Values that stand for a missing one: those of pandas, R and Excel."""

_NUMBERED = r"(?:s|ids?|no|nr|num|numbers?|names?|codes?|idx|index|key|uid|uuid|barcode|label)*"

# Names are compared without case and without what separates their words: `Image ID`, `imageId`
# and `image_id` are one.
_USUAL: Mapping[Role, re.Pattern[str]] = {
    "path": re.compile(
        r"(?:rel|relative|full|abs|absolute|local|orig|original|raw|cell|source)?"
        r"(?:images?|imgs?|files?|paths?|pictures?|pics?|photos?|tiles?|patch|patches|crops?)"
        r"(?:files?|paths?|names?|ids?|uris?|urls?|no|num|number)*|fname|fpath|pathname"
    ),
    "label": re.compile(
        r"(?:true|gold|final|expert|consensus|manual|image|img|cell|wbc|tissue|tumou?r)?"
        r"(?:labels?|class|classes|category|categories|targets?|diagnos[ie]s|dx|annotations?)"
        r"(?:names?|ids?|labels?|text|no|num|number|idx|index|codes?)?"
        r"|(?:cell|wbc|tumou?r|tissue)types?(?:names?|ids?)?|(?:ground)?truth|gt|classification|phenotype|subtype"
        r"|findings?|pathology"
    ),
    "mask": re.compile(
        r"(?:cell|nuclei|nucleus|binary|instance|seg)?(?:masks?|seg|segmentations?)"
        r"(?:images?|files?|paths?|names?|ids?)*"
    ),
    "group": re.compile(
        r"(?:anon|anonymi[sz]ed|pseudo)?"
        r"(?:groups?|grp|patients?|pat|pid|mrn|subjects?|donors?|participants?|persons?"
        r"|individuals?|animals?|mouse|mice|slides?|slideimage|wsi|cases?|specimens?|biopsy|biopsies"
        r"|tissueblock|block|accession|lesions?|smears?|samples?|study|exam|examination|plates?"
        r"|wells?|fovs?|fields?|fieldofview|series|video|fall|tiere?|probe)" + _NUMBERED
    ),
    "split": re.compile(
        r"(?:data|train(?:ing)?test|trainvaltest|official)?(?:splits?|subsets?|partitions?)"
        r"(?:s|ids?|names?|types?|sets?)*|traintest|trainvaltest|usage"
        r"|(?:is|in)?(?:train|training|val|valid|validation|test|testing)(?:set)?"
    ),
    "fold": re.compile(
        r"(?:k|cv|test|val|outer|inner|stratified|group)*folds?"
        + _NUMBERED
        + r"|cv(?:split|group)?|crossvalidation"
    ),
    "domain": re.compile(
        r"(?:acquisition|imaging|clinical|source|data|medical)*"
        r"(?:sites?|cent(?:er|re)s?|labs?|laborator(?:y|ies)|scanners?|hospitals?|clinics?"
        r"|institut(?:e|ion)s?|domains?|microscopes?|cohorts?|vendors?|devices?|sources?"
        r"|instruments?|cameras?|machines?|manufacturers?|datasets?|tss|(?:stain(?:ing)?)?batch)"
        r"(?:model|type)?" + _NUMBERED
    ),
}
"""Usual names of the columns of each role; those of path and label are used, the others asked."""

# Taken for the path or the label only where there is no better name.
_WEAK: Mapping[Role, re.Pattern[str]] = {
    "path": re.compile(r"id|name|key|uid|uuid|(?:cell|sample|object)(?:id|name)?|slice"),
    "label": re.compile(
        r"y|types?|kind|species|grade|stage|status|outcome|result|state|condition|disease|score"
        r"|tags?|celltypes|answer"
    ),
}

_GROUP_WORD = re.compile(
    r"patients?|subject|donor|participant|slides?|wsi|case|specimen|biopsy|animal|mouse|lesion|mrn"
)
_GROUP_PART = re.compile(
    r"patient|pacient|pazient|pasient|spender|proband|donneur|donante|donatore|sujet|soggetto"
    r"|objekttr|pr[aä]parat|vetrino"
)
"""Parts of words that mean a patient, a donor or a slide in other languages."""
# A column such as patient_age describes a patient, and does not say which one it is.
_ATTRIBUTE = re.compile(
    r"age|sex|gender|weight|height|race|ethnicity|date|time|year|month|day|status|diagnosis|history"
    r"|type|stage|grade|score|count|size|area|notes?|comments?|remark|width|length|level|quality"
    r"|outcome|treatment|survival|[xyz]|stain|magnification"
)

_IMAGE_NAME = re.compile(r".+\.(?:bmp|jpe?g|png|tiff?|webp|gif|jfif)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The columns of a label table that are used, and those that are not."""

    of_role: Mapping[Role, int]
    """Position of each role's column."""
    by_synonym: tuple[Role, ...]
    """Roles whose column has another name than the role, and was not named by the user."""
    unused: tuple[str, ...]
    """Names of the columns that have no role."""


def find_columns(table: Table, given: Mapping[str, str | None]) -> Columns:
    """Find the role of each column.

    A column with the name of a role has it. For path and label one of the usual names will do. A
    column that looks like another role under another name is not used without being asked for.

    Args:
        table: The table.
        given: The header of a role's column; None for a role that no column has.

    Raises:
        UserError: A column that is given does not exist; several may be the path or the label; or
            a column that looks like a role is not used.
    """
    of_role = _given_columns(table, given)
    for i, name in enumerate(table.header):
        role = "".join(name.split()).casefold()
        if role in ROLES and role not in given and i not in of_role.values():
            of_role[role] = i
    by_synonym: list[Role] = []
    wanted: Role
    for wanted in ("path", "label"):
        if wanted not in of_role and wanted not in given:
            position = _by_synonym(table, wanted, set(of_role.values()))
            if position is not None:
                of_role[wanted] = position
                by_synonym.append(wanted)
    if "path" not in of_role:
        raise UserError(_without_path(table))
    _check_content(table, of_role, given)
    _check_unused(table, of_role, given)
    used = set(of_role.values())
    others = [i for i in range(len(table.header)) if i not in used]
    no_index = [i for i in others if not _is_index(table.column(i))]
    if "label" not in of_role and "label" not in given and no_index:
        _refuse_without_label(table, no_index)
    unused = [
        table.header[i] or f"column {i + 1} (no name)"
        for i in others
        if table.header[i] or i in no_index
    ]
    return Columns(of_role, tuple(by_synonym), tuple(unused))


def is_missing(value: str) -> bool:
    """Return True for a value that stands for a missing one."""
    return _MISSING.fullmatch(value) is not None


def parts_in(values: Iterable[str]) -> dict[str, Part]:
    """Return the part of a split that each value of a column stands for, if it stands for one.

    A number, as in `Test 2`, makes a value something else than a part.
    """
    return parts_of({value: value for value in values if not re.search(r"\d", value)})


def remedy(columns: Mapping[Role, str | None]) -> str:
    """Return the option that says which columns have which roles, as YAML."""
    pairs = (f"{role}: {_as_yaml(name)}" for role, name in columns.items())
    return f"data.columns: {{{', '.join(pairs)}}}"


def _as_yaml(name: str | None) -> str:
    if name is None:
        return "null"
    plain = re.fullmatch(r"[A-Za-z][\w .-]*", name) and name.lower() not in (
        *("y", "n", "yes", "no", "on", "off", "true", "false", "null"),
    )
    return name if plain else json.dumps(name, ensure_ascii=False)


def _given_columns(table: Table, given: Mapping[str, str | None]) -> dict[Role, int]:
    keys = {_key(name): i for i, name in reversed(list(enumerate(table.header)))}
    exact = {name: i for i, name in enumerate(table.header)}
    of_role: dict[Role, int] = {}
    for role, name in given.items():
        if role not in ROLES:
            raise UserError(f"data.columns: unknown role '{clip(role)}'{suggest(role, ROLES)}")
        if name is None:
            continue
        position = exact.get(name, keys.get(_key(name)))
        if position is None:
            raise UserError(
                f"data.columns.{role}: {table.place} has no column '{clip(name, 20)}'; it has "
                f"{table.names}"
            )
        if position in of_role.values():
            raise UserError(f"data.columns: '{clip(name)}' is given for two roles; choose one")
        of_role[role] = position
    return of_role


def _words(name: str) -> list[str]:
    """Return the words of a column's name in lower case: `PatientID` has patient and id."""
    name = unicodedata.normalize("NFKC", name)
    name = re.sub(r"^metadata[-_. ]+(?=.)", "", name, flags=re.IGNORECASE)  # of CellProfiler
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word for word in re.split(r"[\W_]+", name.casefold()) if word]


def _key(name: str) -> str:
    return "".join(_words(name))


def _by_synonym(table: Table, role: Role, taken: set[int]) -> int | None:
    """Return the position of the only column that has a usual name of a role; None for none.

    Raises:
        UserError: There are several.
    """
    free = {i: _key(name) for i, name in enumerate(table.header) if i not in taken}
    strong = [i for i, key in free.items() if _USUAL[role].fullmatch(key)]
    found = strong or [i for i, key in free.items() if _WEAK[role].fullmatch(key)]
    if len(found) > 1:
        names = [table.header[i] for i in found]
        listed = ", ".join(f"'{clip(name, 20)}'" for name in names)
        raise UserError(
            f"{table.place}: several columns may be the {role}: {listed}; choose one, as "
            f"{remedy({role: names[0]})}"
        )
    return found[0] if found else None


def _without_path(table: Table) -> str:
    """Return the message for a table in which no column looks like the path."""
    if any(_IMAGE_NAME.fullmatch(name) for name in table.header):
        return (
            f"{table.place} has no header: its first line lists an image; put the names of the "
            "columns above it, such as path,label"
        )
    holding = [
        name
        for i, name in enumerate(table.header)
        if table.rows and all(_IMAGE_NAME.fullmatch(row[i]) for row in table.rows[:20])
    ]
    if holding == [""]:
        return f"{table.place}: the column of the images' names has no header; call it path"
    example = holding[0] if holding else "..."
    return (
        f"{table.place}: no column 'path' for the images' names; it has {table.names}; say which "
        f"one it is: {remedy({'path': example}) if holding else 'data.columns: {path: ...}'}"
    )


def _is_index(values: list[str]) -> bool:
    """Return True for the numbers of the rows, which pandas and R write without a header."""
    return any(values == [str(i + first) for i in range(len(values))] for first in (0, 1))


def _check_content(
    table: Table, of_role: Mapping[Role, int], given: Mapping[str, str | None]
) -> None:
    """Refuse a column whose name says one role and whose values say another."""
    if "group" in of_role and "group" not in given:
        values = {value for value in set(table.column(of_role["group"])) if not is_missing(value)}
        if len(values) > 1 and _are_parts(values):
            raise UserError(
                f"{table.place}: column '{clip(table.header[of_role['group']], 20)}' holds the "
                "parts of a split "
                f"({', '.join(clip(value, 12) for value in sorted(values)[:3])}); give "
                f"{remedy({'split': table.header[of_role['group']], 'group': None})}"
            )


def _are_parts(values: set[str]) -> bool:
    return parts_in(values).keys() == values


def _check_unused(
    table: Table, of_role: Mapping[Role, int], given: Mapping[str, str | None]
) -> None:
    """Refuse a table with a column that looks like a role, and is not used.

    Raises:
        UserError: There is one; the message names the option that settles it.
    """
    found: dict[Role, list[tuple[int, int]]] = {}
    for role, position, distinct in _suspects(table, of_role):
        if role not in given:
            found.setdefault(role, []).append((distinct, position))
    if not found:
        return
    listed = [
        f"'{clip(table.header[i], 20)}' ({role})"
        for role, columns in found.items()
        for _, i in columns
    ]
    what = f"column {listed[0]} is" if len(listed) == 1 else f"columns {', '.join(listed)} are"
    # Of several columns the one with the fewest values is the coarsest: the patient, not the slide.
    use: dict[Role, str | None] = {
        role: table.header[min(columns)[1]] for role, columns in found.items()
    }
    leave: dict[Role, str | None] = {
        role: table.header[of_role[role]] if role in of_role else None for role in found
    }
    raise UserError(
        f"{table.place}: {what} not used; give {remedy(use)}, or {remedy(leave)} to leave "
        f"{'it' if len(listed) == 1 else 'them'} unused"
    )


def _suspects(table: Table, of_role: Mapping[Role, int]) -> Iterator[tuple[Role, int, int]]:
    """Yield each unused column that looks like a role, with its number of values."""
    used = set(of_role.values())
    for i, name in enumerate(table.header):
        if i in used:
            continue
        distinct = {value for value in set(table.column(i)) if not is_missing(value)}
        if len(distinct) < 2:
            continue  # it divides nothing
        role = _looks_like(name, distinct, len(table.rows))
        if role is None:
            continue
        # Where the role has a column, another one matters only if it shows that groups are wrong.
        if role not in of_role or (role == "group" and _is_divided(table, i, of_role[role])):
            yield role, i, len(distinct)


def _looks_like(name: str, values: set[str], rows: int) -> Role | None:
    """Return the role that a column looks like, by its name and its values."""
    words, key = _words(name), _key(name)
    if _are_parts(values) or _USUAL["split"].fullmatch(key):
        return "split"
    if _USUAL["mask"].fullmatch(key) and not all(map(_is_number, values)):
        return "mask"
    if _USUAL["fold"].fullmatch(key):
        return "fold"
    if len(values) < rows:  # as many groups as images divide nothing
        named = _USUAL["group"].fullmatch(key) or (
            (any(map(_GROUP_WORD.fullmatch, words)) or _GROUP_PART.search(key))
            and not any(map(_ATTRIBUTE.fullmatch, words))
        )
        # Several crops of one image, which a second column of image names tells, are a group too.
        source = _USUAL["path"].fullmatch(key) and not re.search("tile|patch|crop", key)
        if named or source:
            return "group"
        if _USUAL["domain"].fullmatch(key):
            return "domain"
    return None


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(?:[.,]\d*)?", value) is not None


def _is_divided(table: Table, column: int, groups: int) -> bool:
    """Return True if rows with one value in a column are in several groups."""
    first: dict[str, str] = {}
    return any(
        not is_missing(row[column]) and first.setdefault(row[column], row[groups]) != row[groups]
        for row in table.rows
    )


def _refuse_without_label(table: Table, others: Sequence[int]) -> NoReturn:
    """Refuse a table that has no label, and other columns of which one may be it."""
    bits = {"0", "1", "0.0", "1.0"}
    one_hot = [i for i in others if bits.issuperset(table.column(i))]
    rows = ([float(row[i]) for i in one_hot] for row in table.rows)
    if len(one_hot) > 1 and all(sum(row) == 1 for row in rows):
        names = ", ".join(clip(table.header[i], 16) for i in one_hot[:4])
        raise UserError(
            f"{table.place}: {names}{', ...' if len(one_hot) > 4 else ''} are one column per "
            "class; write one column 'label' with the class's name (pandas: "
            "table[names].idxmax(axis=1))"
        )
    raise UserError(
        f"{table.place}: no column 'label'; it has {table.names}; say which one it is: "
        "data.columns: {label: ...}, or {label: null} where the folders' names are the classes"
    )
