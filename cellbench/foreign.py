"""Folders that may be anybody's: nothing in them leads out of them."""

import stat
from pathlib import Path

from cellbench.errors import UserError


def inside(folder: Path, *parts: str) -> Path:
    """Return the path of something in a folder, which need not be there.

    Raises:
        UserError: A link on the way leaves the folder, or it is neither a file nor a folder, such
            as a pipe, from which a reader would wait for ever.
    """
    path = folder.joinpath(*parts)
    try:
        leads_out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        leads_out = True
    if leads_out:
        raise UserError(
            f"{path} is, or lies behind, a link that leaves the folder '{folder.name}'; put the "
            "file itself there, or remove the link"
        )
    try:
        mode = path.stat().st_mode
    except OSError:
        return path
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is neither a file nor a folder; remove it")
    return path
