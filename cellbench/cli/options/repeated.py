"""Check of a typed command line for options that are given twice."""

from collections.abc import Sequence

from cellbench.utils.errors import UserError

_SEVERAL = {"--config", "-c"}
"""Options that may be given several times."""


def refuse_repeated(arguments: Sequence[str]) -> None:
    """Refuse an option that is given twice, as only the last value would count.

    An option such as `--trainer.callbacks+`, which appends to a list, may be repeated, and so may
    the options of the elements that it appends.

    Args:
        arguments: The command line without the program.

    Raises:
        UserError: There is one.
    """
    seen: set[str] = set()
    for argument in arguments:
        name = argument.partition("=")[0].replace(".init_args.", ".")
        if not name.startswith("--") or name in _SEVERAL:
            continue
        if name in seen:
            raise UserError(f"{name}: it is given twice; give it once")
        if name.endswith("+"):
            seen = {each for each in seen if not each.startswith(f"{name[:-1]}.")}
        else:
            seen.add(name)
