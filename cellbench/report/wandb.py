"""A report on Weights & Biases: a run with its content, and a workspace for its conditions."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellbench.config import keys
from cellbench.training.loggers import FINISH_TIMEOUT, refusals, run_id
from cellbench.utils.errors import UserError

if TYPE_CHECKING:
    from wandb import Artifact, Run
    from wandb_workspaces.workspaces import Section, Workspace

METRICS = ("best/test/accuracy", "best/test/f1_macro")
"""Metrics that the workspace compares the conditions by."""


def publish(
    folder: Path,
    entity: str | None,
    project: str,
    mode: Literal["online", "offline"],
    name: str,
    conditions: Sequence[str],
    page: Path,
    figures: Sequence[Path],
    table: Sequence[Mapping[str, Any]],
) -> str:
    """Send a report as one run of job type "report", and with it, if online, a workspace.

    The ids of the run and the workspace are made from the folder, so that a report that is sent
    again replaces itself.

    Args:
        folder: The report's folder.
        entity: User or team; None for the account's default.
        project: Project of the compared runs.
        mode: offline to leave the report below the folder, for `wandb sync`.
        name: Name of the report.
        conditions: Options in which the conditions differ, as on the command line: `data.view`.
        page: The report's HTML page.
        figures: PNG files, which are shown by their stems.
        table: One row per condition, all with the same columns.

    Returns:
        The workspace's address; offline the folder for `wandb sync`.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B has no key or does not answer.
    """
    if mode == "online" and importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "--wandb: wandb-workspaces is not installed; pip install 'cellbench[wandb-workspaces]'"
        )

    os.environ.setdefault("WANDB_SILENT", "true")
    with refusals("--wandb"):
        run = _begin(folder, entity, project, mode, name)
        with run:
            logged = _log(run, page, figures, table)
            if mode == "offline":
                return str(run.settings.sync_dir)
            logged.wait()
            return _save(workspace(run.entity, project, conditions, name), run.id)


def _begin(
    folder: Path, entity: str | None, project: str, mode: Literal["online", "offline"], name: str
) -> "Run":
    """Begin the report's run; see `publish` for the arguments."""
    import wandb

    return wandb.init(  # without `resume` it replaces the run of the same id
        id=run_id(folder),
        name=name,
        job_type="report",
        entity=entity,
        project=project,
        mode=mode,
        dir=folder,
        settings=wandb.Settings(finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True),
    )


def _log(
    run: "Run", page: Path, figures: Sequence[Path], table: Sequence[Mapping[str, Any]]
) -> "Artifact":
    """Log the content of a report.

    Args:
        run: The report's run.
        page: The HTML page.
        figures: PNG files.
        table: One row per condition, all with the same columns.

    Returns:
        The artifact with page and table.
    """
    import wandb

    columns: list[str | int] = list(table[0])
    rows = [list(row.values()) for row in table]
    # A table of its own for each: one that was logged would be a reference in the artifact.
    shown, kept = (wandb.Table(columns, rows, allow_mixed_types=True) for _ in range(2))
    images = {f"report/{path.stem}": wandb.Image(str(path)) for path in figures}
    # A single row of history, whose step begins anew each time and replaces the last one.
    run.log({"report/conditions": shown, "report/page": wandb.Html(str(page))} | images)
    files = wandb.Artifact(f"report-{run.id}", type="report")
    files.add_file(str(page), page.name)
    files.add(kept, "conditions")
    return run.log_artifact(files)


def workspace(entity: str, project: str, group_by: Sequence[str], name: str) -> "Workspace":
    """Build a workspace that groups a project's runs by condition and compares the groups.

    Args:
        entity: User or team.
        project: The project.
        group_by: Options in which the conditions differ; empty to group by experiment.
        name: Name of the workspace.

    Returns:
        The workspace, not yet saved; its first section is pinned and open.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters="Metric('JobType') != 'report'",
            groupby=[ws.Config(".".join(keys.path_in_yaml(key))) for key in group_by or ["name"]],
            pinned_columns=[f"summary:{metric}" for metric in METRICS],
        ),
    )


def _sections() -> "list[Section]":
    """Return the sections of a workspace: metrics and curves by condition, then pictures."""
    import wandb_workspaces.reports.v2.interface as wr
    import wandb_workspaces.workspaces as ws

    compared: list[wr.PanelTypes] = [
        *(
            wr.BarPlot(
                title=metric, metrics=[metric], groupby_aggfunc="mean", groupby_rangefunc="stddev"
            )
            for metric in METRICS
        ),
        *(
            wr.LinePlot(
                title=metric,
                x="epoch",
                y=[metric],
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for metric in ("val/loss", "val/accuracy")
        ),
    ]
    pictures = {"Confusion matrices": "confusion", "Sample images": "samples"}
    return [
        ws.Section(
            name="Conditions",
            panels=compared,
            is_open=True,
            pinned=True,
            layout_settings=ws.SectionLayoutSettings(columns=2, rows=2),
        ),
        *(
            ws.Section(
                name=title,
                panels=[wr.MediaBrowser(title=title, media_keys=[key], gallery_axis="run")],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=1, rows=1),
            )
            for title, key in pictures.items()
        ),
    ]


def _save(made: "Workspace", identity: str) -> str:
    """Save a workspace in place of the report's last one, and return its address.

    wandb-workspaces has no public way to choose a view's name: `save` invents one for a new view,
    and so every report would leave another workspace. The two private fields are what it sends.

    Args:
        made: The workspace.
        identity: Id of the report's run.
    """
    import wandb_workspaces.workspaces as ws

    made._internal_name = f"nw-{identity}-v"
    try:
        made._internal_id = ws.Workspace.from_url(made.url)._internal_id
    except ValueError:  # there is no such view yet
        made._internal_id = ""
    made.save()  # type: ignore[no-untyped-call]
    return str(made.url)
