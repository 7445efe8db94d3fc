"""W&B, against a server of the tests' own (tests/fake_wandb.py)."""

import base64
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import matplotlib.pyplot as plt
import numpy as np
import pytest
import wandb

from cellbench.__main__ import main
from cellbench.models.classifier import CellClassifier
from cellbench.report.wandb import publish, workspace
from cellbench.training import loggers
from cellbench.utils.errors import UserError
from tests.conftest import QUICK, TINY, few_cells
from tests.fake_wandb import ENTITY, KEY, FakeWandb

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")

ONLINE = "--wandb.mode=online"
DEMO = Path(__file__).parents[1] / "experiments" / "demo.yaml"
DRAWN = few_cells([])


@pytest.fixture(autouse=True)
def _own_wandb(monkeypatch, tmp_path):
    """wandb's own process keeps the settings it began with: each test has one of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch):
    with FakeWandb() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield fake
        wandb.teardown()
        assert fake.problems == []


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses(run):
    return [(row["epoch"], row["val/loss"]) for row in run.history if "val/loss" in row]


def expected_losses(folder):
    rows = table(folder / "history.csv")
    return [(int(row["epoch"]), pytest.approx(float(row["val/loss"]), rel=1e-5)) for row in rows]


def signal_at(monkeypatch, step, signum):
    """A training in this process gets a signal in one of its steps."""
    training_step = CellClassifier.training_step

    def signalled(self, batch):
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signum)
        return training_step(self, batch)

    monkeypatch.setattr(CellClassifier, "training_step", signalled)


def test_an_online_run_arrives(fit, server):
    folder = fit(
        f"--config={DEMO}",
        *TINY,
        *DRAWN,
        ONLINE,
        "--figures=true",
        "--wandb.project=cells",
        "--wandb.group=views",
        '--wandb.tags=["first","second"]',
        "--data.view=masked",
    )
    (run,) = server.runs.values()
    assert (run.entity, run.project, run.state, run.exit_code) == (ENTITY, "cells", "finished", 0)
    assert run.fields["groupName"] == "views"
    assert run.fields["tags"] == ["first", "second"]
    assert run.fields["displayName"] == f"tiny/{folder.name}"
    assert run.config["data"]["init_args"]["view"] == "masked"
    assert run.config["model"]["l2"] == 1e-4
    assert losses(run) == expected_losses(folder)
    found = json.loads((folder / "metrics.json").read_text())
    for part in ("val", "test"):
        accuracy = found[part]["metrics"]["accuracy"]
        assert run.summary[f"best/{part}/accuracy"] == pytest.approx(accuracy["value"])
        assert run.summary[f"best/{part}/accuracy_low"] == pytest.approx(accuracy["low"])
        assert run.summary[f"best/{part}/accuracy_base"] == pytest.approx(accuracy["baseline"])
    assert run.summary["split_digest"] == found["split"]["digest"]
    for name in ("samples", "confusion", "learning_curves"):
        (image,) = run.summary[name]["filenames"]
        assert run.files[image] == (folder / "figures" / f"{name}.png").read_bytes()


def test_a_run_that_fails_has_failed_there(fails, server, tmp_path):
    options = [*QUICK, *DRAWN, "--model.optimizer=sgd", "--model.lr=1e30", f"--runs={tmp_path}"]
    assert "the training diverged" in fails("fit", *options, ONLINE)
    (run,) = server.runs.values()
    assert (run.state, run.exit_code) == ("failed", 1)


@pytest.mark.parametrize(
    ("signum", "state"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "killed")]
)
def test_a_run_that_is_interrupted_goes_on_as_the_same(
    signum, state, server, tmp_path, monkeypatch
):
    command = ["fit", *QUICK, *DRAWN, f"--runs={tmp_path}", "--name=x", ONLINE]
    with monkeypatch.context() as patched:
        signal_at(patched, 5, signum)  # in the second epoch
        assert main(command) == 128 + signum
    (run,) = server.runs.values()
    assert run.state == state
    assert len(losses(run)) == 1
    (folder,) = (tmp_path / "x").iterdir()
    assert main(["fit", f"--resume={folder}", ONLINE]) == 0
    assert list(server.runs.values()) == [run]
    assert (run.state, run.exit_code) == ("finished", 0)
    assert losses(run) == expected_losses(folder)
    found = json.loads((folder / "metrics.json").read_text())
    expected = found["test"]["metrics"]["accuracy"]["value"]
    assert run.summary["best/test/accuracy"] == pytest.approx(expected)


def test_a_server_that_refuses_the_key_is_said(fails, server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY[::-1])
    line = fails("fit", *QUICK, *DRAWN, f"--runs={tmp_path}", ONLINE)
    assert f"--wandb.mode: no run at {server.url}" in line
    assert "401" in line
    assert not list(tmp_path.rglob("config.yaml"))
    assert server.runs == {}


@pytest.mark.slow
def test_without_a_server_or_a_key_a_run_that_goes_on_loses_nothing(
    fails, server, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        signal_at(patched, 5, signal.SIGTERM)
        command = ["fit", *QUICK, *DRAWN, f"--runs={tmp_path}", "--name=x", ONLINE]
        assert main(command) == 128 + signal.SIGTERM
    (folder,) = (tmp_path / "x").iterdir()
    kept = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    for change, said in (
        ({"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1"}, "no run at http"),
        ({"WANDB_API_KEY": None}, "No API key configured"),
    ):
        with monkeypatch.context() as patched:
            for name, value in change.items():
                patched.delenv(name) if value is None else patched.setenv(name, value)
            wandb.teardown()
            assert said in fails("fit", f"--resume={folder}", ONLINE)
        wandb.teardown()
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == kept
    assert main(["fit", f"--resume={folder}", ONLINE]) == 0
    assert next(iter(server.runs.values())).state == "finished"


@pytest.mark.slow
def test_a_server_that_is_lost_keeps_no_run_from_its_end(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers, "FINISH_TIMEOUT_S", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with FakeWandb() as lost:
        monkeypatch.setenv("WANDB_BASE_URL", lost.url)
        training_step = CellClassifier.training_step

        def loses(self, batch):
            if self.trainer.global_step == 5:
                lost.stop()
            return training_step(self, batch)

        with monkeypatch.context() as patched:
            patched.setattr(CellClassifier, "training_step", loses)
            folder = fit(ONLINE)
    said = capsys.readouterr().out
    (log,) = (folder / "wandb").glob("run-*")
    assert f"W&B does not answer; what it lacks: wandb sync {log}" in said
    assert (folder / "metrics.json").is_file()


def sync(*arguments):
    wandb.teardown()
    command = [Path(sys.executable).with_name("wandb"), "sync", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_an_offline_run_arrives_once_however_often_it_is_sent(fit, server):
    folder = fit("--wandb.mode=offline", "--wandb.group=g", "--figures=true")
    (log,) = (folder / "wandb").glob("offline-run-*")
    assert server.operations.total() == 0
    for again in ([], [], ["--include-synced"]):
        sync(*again, log)
        (run,) = server.runs.values()
        assert run.state == "finished"
        assert run.fields["groupName"] == "g"
        assert losses(run) == expected_losses(folder)
        (image,) = run.summary["confusion"]["filenames"]
        assert run.files[image] == (folder / "figures" / "confusion.png").read_bytes()
        assert 0 < run.summary["best/test/accuracy"] <= 1
    assert server.operations["UpsertBucket"] == 4  # the second time it knew that it was sent


@pytest.mark.slow
def test_an_offline_run_that_was_interrupted_arrives_as_one(server, tmp_path, monkeypatch):
    command = ["fit", *QUICK, *DRAWN, f"--runs={tmp_path}", "--name=x", "--wandb.mode=offline"]
    with monkeypatch.context() as patched:
        signal_at(patched, 5, signal.SIGTERM)
        assert main(command) == 128 + signal.SIGTERM
    (folder,) = (tmp_path / "x").iterdir()
    assert main(["fit", f"--resume={folder}"]) == 0
    logs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(logs) == 2
    for _ in range(2):
        sync(*logs)
        (run,) = server.runs.values()
        assert run.state == "finished"
        assert losses(run) == expected_losses(folder)


@pytest.fixture
def report(tmp_path):
    """What a report hands over."""
    folder = tmp_path / "reports" / "views"
    folder.mkdir(parents=True)
    page, figure = folder / "report.html", folder / "accuracy.png"
    page.write_text("<html><body>raw is better</body></html>")
    plt.imsave(figure, np.zeros((8, 8)))
    return {
        "folder": folder,
        "entity": None,
        "project": "cells",
        "name": "views",
        "conditions": ["data.view", "model.lr"],
        "page": page,
        "figures": [figure],
        "table": [
            {"condition": "raw", "n": 299, "accuracy": 0.935, "p": None},
            {"condition": "masked", "n": 299, "accuracy": 0.934, "p": 0.8},
        ],
    }


def contents(server):
    """The report's artifacts, each as its files by path."""
    return [artifact.files for artifact in server.artifacts if artifact.type == "report"]


def test_a_report_is_one_run_however_often_it_is_sent(report, server):
    for accuracy, versions in ((0.935, 1), (0.935, 1), (0.91, 2)):
        report["table"][0]["accuracy"] = accuracy
        address = publish(mode="online", **report)
        (run,) = server.runs.values()
        assert (run.state, run.fields["jobType"], run.project) == ("finished", "report", "cells")
        (row,) = run.history
        shown = json.loads(run.files[row["report/conditions"]["path"]])
        assert shown["columns"] == ["condition", "n", "accuracy", "p"]
        assert shown["data"] == [["raw", 299, accuracy, None], ["masked", 299, 0.934, 0.8]]
        assert run.files[row["report/accuracy"]["path"]] == report["figures"][0].read_bytes()
        assert b"raw is better" in run.files[row["report/page"]["path"]]
        assert len(contents(server)) == versions
        assert contents(server)[-1]["report.html"] == report["page"].read_bytes()
        assert json.loads(contents(server)[-1]["conditions.table.json"])["data"] == shown["data"]
        (view,) = server.views.values()
        assert (view["entityName"], view["projectName"]) == (ENTITY, "cells")
        assert view["displayName"] == "views"
        assert view["type"] == "project-view"
        assert address == f"{server.url}/{ENTITY}/cells?nw={run.name}"


def test_a_workspace_compares_conditions():
    built = workspace("lab", "cells", ["data.view", "data.class_path", "model.lr"], "views")
    spec = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    (runs,) = spec["section"]["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("config", "data.value.init_args.view"),
        ("config", "data.value.class_path"),
        ("config", "model.value.lr"),
    ]
    assert runs["filters"]["filters"][0]["key"] == {"section": "run", "name": "jobType"}
    assert [f["op"] for f in runs["filters"]["filters"]] == ["!="]
    first, *others = spec["section"]["panelBankConfig"]["sections"]
    assert (first["pinned"], first["isOpen"]) == (True, True)
    assert first["localPanelSettings"]["useRunsTableGroupingInPanels"]
    assert [(panel["viewType"], panel["config"]["metrics"]) for panel in first["panels"]] == [
        ("Bar Chart", ["best/test/accuracy"]),
        ("Bar Chart", ["best/test/f1_macro"]),
        ("Run History Line Plot", ["val/loss"]),
        ("Run History Line Plot", ["val/accuracy"]),
    ]
    assert [panel["config"].get("xAxis") for panel in first["panels"]][2:] == ["epoch", "epoch"]
    shown = [panel["config"]["mediaKeys"] for section in others for panel in section["panels"]]
    assert shown == [["confusion"], ["samples"]]


def test_a_workspace_groups_by_what_a_run_sends(fit, server):
    """The path that a workspace groups by is there in the configuration of a run."""
    fit(ONLINE, "--data.view=masked")
    (run,) = server.runs.values()
    spec = workspace("lab", "cells", ["data.view", "name"], "views")._to_model().spec
    found = []
    for key in spec.section.run_sets[0].grouping:
        first, _, *rest = key.name.split(".")
        value = run.config[first]
        for part in rest:
            value = value[part]
        found.append(value)
    assert found == ["masked", "tiny"]


def test_the_server_takes_reports_of_wandb_workspaces(server):
    import wandb_workspaces.reports.v2.interface as wr

    saved = wr.Report(entity=ENTITY, project="cells", title="Masks", blocks=[wr.H1("Masks")])
    saved.save()
    (view,) = server.views.values()
    assert (view["type"], view["displayName"]) == ("runs", "Masks")
    assert saved.id in server.views


def test_a_report_that_is_offline_is_sent_later(report, server):
    log = publish(mode="offline", **report)
    assert server.operations.total() == 0
    sync(log)
    (run,) = server.runs.values()
    assert (run.state, run.fields["jobType"]) == ("finished", "report")
    (sent,) = contents(server)
    assert sent["report.html"] == report["page"].read_bytes()


def test_a_report_without_a_key_or_the_extra_is_said(report, monkeypatch):
    with pytest.raises(UserError, match="--wandb: No API key configured; set WANDB_API_KEY"):
        publish(mode="online", **report)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'cellbench\[wandb-workspaces\]'"):
        publish(mode="online", **report)


def post(server, path, body, key=KEY):
    token = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {token}"}
    try:
        with urlopen(Request(server.url + path, body, headers)) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_the_server_of_these_tests_is_strict():
    query = "mutation UpsertBucket ($name: String!) { upsertBucket { inserted } }"
    begins = {"name": "r", "project": "p", "entity": None, "config": "{}"}
    rows = [json.dumps({"_step": step}) for step in (1, 0)]
    for path, body, said in (
        ("/graphql", b"{", "JSONDecodeError"),
        ("/graphql", {"query": "mutation Unheard { x }"}, "Unheard: an operation that is not"),
        ("/graphql", {"query": query, "variables": {"project": "p"}}, "$name is missing"),
        ("/files/lab/p/none/file_stream", {"complete": True, "exitcode": 0}, "no such run"),
        ("/files/lab/p/r/file_stream", stream(0, rows), "out of order: [1, 0]"),
        ("/files/lab/p/r/file_stream", stream(9, rows), "begins at 9 where 0 were sent"),
    ):
        with FakeWandb() as fake:
            assert post(fake, "/graphql", encoded({"query": query, "variables": begins})) == 200
            assert post(fake, path, body if isinstance(body, bytes) else encoded(body)) == 400
            (error,) = fake.errors
            assert said in error
            assert fake.problems == [error, "r: never completed"]
            assert post(fake, "/graphql", b"", key="another") == 401


def encoded(body):
    return json.dumps(body).encode()


def stream(offset, rows):
    return {"files": {"wandb-history.jsonl": {"offset": offset, "content": rows}}}
