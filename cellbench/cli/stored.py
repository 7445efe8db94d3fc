"""Reader of a run's stored configuration, which may have been downloaded.

Nothing in it may name code, nor a place to write to.
"""

from typing import Any

from cellbench.artifacts.folder import RunFolder
from cellbench.cli.options import stored_types
from cellbench.cli.parser import Parser
from cellbench.config import keys, values, yaml
from cellbench.data.module import CellDataModule
from cellbench.utils.errors import UserError


def read_config(folder: RunFolder, *, whole: bool) -> dict[str, Any]:
    """Read a run's configuration, as fit has written it.

    jsonargparse imports what a dotted name names before it refuses it, and follows the names of
    further configurations. So every key and value is checked here, before it comes there: the only
    class that may be named is one of the data modules.

    The folder of the cache is left out: files are written there, and what lies there is trusted.

    Args:
        folder: The run.
        whole: True for all that a training needs; False for what scoring does: of the trainer
            nothing but the precision, if one was asked for.

    Raises:
        UserError: It is not a run's configuration, or what is given could name code.
    """
    config = yaml.read_mapping(folder.config)
    for key in ("seed_everything", "data", "model", "trainer"):
        if key not in config:
            raise UserError(f"{folder.config} is not a run's configuration: it has no {key}")
    keys.drop_removed(config)
    if not whole:
        config = keys.settings_for_scoring(config)
    try:
        values.check_group("", config, stored_types(), closed=True)
    except UserError as error:
        hint = ""
        if whole and any(key.code and key.name in str(error) for key in keys.KEYS):
            hint = "; to go on with a run of your own, give its command again with --resume auto"
        raise UserError(f"{folder.config}: {error}{hint}") from error
    keys.drop_places(config)
    return config


def read_data(folder: RunFolder) -> CellDataModule:
    """Return a run's data module, with no image read yet.

    Raises:
        UserError: The configuration is none, or names code.
    """
    parser = Parser()
    parser.add_subclass_arguments(CellDataModule, "data", fail_untyped=False, required=True)
    given = parser.parse_object({"data": read_config(folder, whole=False)["data"]})
    data: CellDataModule = parser.instantiate(given).data
    return data
