"""A report on Weights & Biases: a run that holds it, and a workspace that compares conditions."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellbench.config import keys
from cellbench.errors import UserError
from cellbench.runs.loggers import FINISH_TIMEOUT, refusals, run_id

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

METRICS = ("best/test/accuracy", "best/test/f1_macro")
"""What the conditions are compared by."""


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
    """Sends a report as one run of job type "report", and online a workspace beside it.

    The run's id and the workspace's are made of the folder: sent again, the report takes its own
    place.

    Args:
        folder: The report's.
        entity: The user or team; None for the account's default.
        project: Where the compared runs are.
        mode: Whether it is sent, or left below the folder for `wandb sync`.
        name: What it is called.
        conditions: The options that tell the conditions apart, as on the command line:
            `data.view`.
        page: Its HTML page.
        figures: PNG files, shown under their stems.
        table: A row a condition, all of the same columns.

    Returns:
        The workspace's address; offline the folder for `wandb sync`.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B has no key or does not answer.
    """
    if mode == "online" and importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "--wandb: wandb-workspaces is not installed; pip install 'cellbench[wandb-workspaces]'"
        )
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    identity = run_id(folder)
    with refusals("--wandb"):
        run = wandb.init(  # without `resume` W&B puts it in the place of what it had
            id=identity,
            name=name,
            job_type="report",
            entity=entity,
            project=project,
            mode=mode,
            dir=folder,
            settings=wandb.Settings(finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True),
        )
        with run:
            columns: list[str | int] = list(table[0])
            rows = [list(row.values()) for row in table]
            # Each its own table: one that was logged would be a reference in the artifact.
            shown, kept = (wandb.Table(columns, rows, allow_mixed_types=True) for _ in range(2))
            images = {f"report/{path.stem}": wandb.Image(str(path)) for path in figures}
            # One row of history: its steps begin anew each time, and take the place of the old.
            run.log({"report/conditions": shown, "report/page": wandb.Html(str(page))} | images)
            files = wandb.Artifact(f"report-{identity}", type="report")
            files.add_file(str(page), page.name)
            files.add(kept, "conditions")
            logged = run.log_artifact(files)
            if mode == "offline":
                return str(run.settings.sync_dir)
            logged.wait()
            return _save(workspace(run.entity, project, conditions, name), identity)


def workspace(entity: str, project: str, group_by: Sequence[str], name: str) -> "Workspace":
    """Builds a workspace that groups a project's runs by condition and compares the groups.

    Args:
        entity: The user or team.
        project: The project.
        group_by: The options that tell the conditions apart; none for one experiment a condition.
        name: What it is called.

    Returns:
        The workspace, not yet saved; its first section is pinned and open.
    """
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
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
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
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters="Metric('JobType') != 'report'",
            groupby=[ws.Config(".".join(keys.path_in_yaml(key))) for key in group_by or ["name"]],
            pinned_columns=[f"summary:{metric}" for metric in METRICS],
        ),
    )


def _save(made: "Workspace", identity: str) -> str:
    """Saves a workspace, in the place of the report's last one; returns its address."""
    import wandb_workspaces.workspaces as ws

    made._internal_name = f"nw-{identity}-v"
    try:
        made._internal_id = ws.Workspace.from_url(made.url)._internal_id
    except ValueError:  # there is none yet
        made._internal_id = ""
    made.save()  # type: ignore[no-untyped-call]
    return str(made.url)
