"""Reader of a run's stored configuration.

The run may have been downloaded, so its configuration must not name code or a place to write to.
"""

from typing import Any

from cellbench.artifacts.folder import RunFolder
from cellbench.cli.options.parser import Parser
from cellbench.cli.options.types import stored_types
from cellbench.config import keys, values, yaml
from cellbench.data.module import CellDataModule
from cellbench.utils.errors import UserError


def read_config(folder: RunFolder, *, whole: bool) -> dict[str, Any]:
    """Read the configuration that fit has written for a run.

    jsonargparse imports the target of a dotted name before it refuses the name, and reads further
    configurations that a value names. So every key and value is checked here first. The only class
    that may be named is a data module.

    The folder of the cache is left out, as files are written there, and its files are trusted.

    Args:
        folder: The run.
        whole: True for all that a training needs; False for what scoring needs, which is only the
            precision of the trainer's options, if one was asked for.

    Raises:
        UserError: It is not the configuration of a run, or a value could name code.
    """
    config = yaml.read_mapping(folder.config)
    for key in ("seed_everything", "data", "model", "trainer"):
        if key not in config:
            raise UserError(f"{folder.config} is not a run's configuration: it has no {key}")
    if whole and keys.depends_on_removed(config):
        raise UserError(
            f"{folder.config}: its training began with data.augment_on device, which was removed; "
            "begin it afresh"
        )
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
    """Return a run's data module; no image is read yet.

    Raises:
        UserError: The configuration is not valid, or names code.
    """
    parser = Parser()
    parser.add_subclass_arguments(CellDataModule, "data", fail_untyped=False, required=True)
    given = parser.parse_object({"data": read_config(folder, whole=False)["data"]})
    data: CellDataModule = parser.instantiate(given).data
    return data
