"""Command `fetch`: download a dataset, or unpack an archive of it."""

import inspect
import shlex
import signal
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import DefaultHelpFormatter

from cellbench.cli.options.data_modules import data_modules, explain_unusable
from cellbench.cli.options.parser import Parser
from cellbench.data.download.archive import unpack
from cellbench.data.download.transfer import GitHub, OnRequest, Source, writing
from cellbench.data.file_module import FileDataModule
from cellbench.utils.errors import Interrupted, UserError, suggest
from cellbench.utils.terminal import say


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help formatter that keeps the lines of the epilog, one per dataset."""


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code is 1 if the dataset must be requested from its owners."""
    datasets = _datasets()
    parser = _parser(datasets)
    given = parser.parse_args(list(args))
    name, to, archive = given.name, given.to, given.archive
    if name is None:
        parser.print_help()
        return 0
    if name not in datasets:
        close = explain_unusable(name) or suggest(name, datasets)
        raise UserError(f"unknown dataset '{name}'{close}")
    if archive is not None and not archive.is_file():
        raise UserError(f"--archive: there is no file {archive}")
    kind, source = datasets[name], _source(datasets[name])
    to = to or kind.root
    if archive is None and isinstance(source, OnRequest):
        say(_page(name, kind, source, to))
        return 1
    try:
        folder = _get(kind, source, to.resolve(), archive)
        _report(name, kind, to if folder == to.resolve() else folder)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, "SIGINT; give the same command to go on") from None
    return 0


def _datasets() -> dict[str, type[FileDataModule]]:
    """Return the data modules of all datasets, by the names of their files."""
    return {
        kind.__module__.rpartition(".")[2]: kind
        for kind in data_modules().values()
        if issubclass(kind, FileDataModule) and vars(kind).get("source") is not None
    }


def _source(kind: type[FileDataModule]) -> Source:
    assert kind.source is not None
    return kind.source


def _parser(datasets: dict[str, type[FileDataModule]]) -> Parser:
    width = max(map(len, datasets)) + 2
    lines = [
        f"  {name:{width}}{_source(kind).licence:16}{_docstring(kind).splitlines()[0]}"
        for name, kind in sorted(datasets.items())
    ]
    parser = Parser(
        prog="python -m cellbench fetch",
        description="Get a dataset, check it, and show what is in it.",
        epilog="\n".join(("datasets, with their licence:", *lines)),
        formatter_class=_Formatter,
    )
    parser.add_argument("name", nargs="?", help="the dataset")
    parser.add_argument("--to", type=Path | None, help="the folder to put it in (data/NAME)")
    parser.add_argument(
        "--archive",
        type=Path | None,
        help="a .zip, .tar or .tar.gz of it that a browser has saved: unpack it, download nothing",
    )
    return parser


def _docstring(kind: type[FileDataModule]) -> str:
    return inspect.getdoc(kind) or ""


def _page(name: str, kind: type[FileDataModule], source: OnRequest, to: Path) -> str:
    """Return a page about a dataset: its description, its owners, and the folder to put it in."""
    where = "" if to == kind.root else f" --to {shlex.quote(str(to))}"
    return (
        f"{name} cannot be downloaded.\n\n{_docstring(kind)}\n\n"
        f"How to get it: {kind.how_to_get}.\nLicence: {source.licence}.\n"
        f"Put it at {to}; an archive is unpacked there by\n"
        f"  python -m cellbench fetch {name} --archive FILE{where}"
    )


def _get(kind: type[FileDataModule], source: Source, root: Path, archive: Path | None) -> Path:
    """Download or unpack a dataset, and return its folder."""

    def find(folder: Path) -> Path:
        found = _find(kind, folder)
        if isinstance(source, GitHub):
            source.missing(found)
        return found

    with writing(root):
        if archive is not None:
            unpack(archive, root, find)
            return root
        assert not isinstance(source, OnRequest)
        return source.fetch(root)


def _find(kind: type[FileDataModule], folder: Path) -> Path:
    """Return the folder that the data module can read: the given one, or the only one in it."""
    try:
        kind(root=folder).list_samples()
        return folder
    except UserError as error:
        inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
        if len(inside) != 1 or not inside[0].is_dir():
            raise
        try:
            kind(root=inside[0]).list_samples()
            return inside[0]
        except UserError as other:
            raise UserError(f"{error}; and below it: {other}") from other


def _report(name: str, kind: type[FileDataModule], root: Path) -> None:
    """Print the content of the dataset, and the next command to type."""
    data = kind(root=root)
    counts = np.bincount(data.table.labels, minlength=len(data.classes))
    of_class = ", ".join(f"{n:,} {label}" for n, label in zip(counts, data.classes, strict=True))
    say(f"{name}: {len(data.table):,} images in {root}: {of_class}")
    if data.note is not None:
        say(data.note)
    say(f"Licence: {_source(kind).licence}")
    where = "" if root == kind.root else f" --data.root {shlex.quote(str(root))}"
    say(f"Next: python -m cellbench fit --data {kind.__name__}{where}")
