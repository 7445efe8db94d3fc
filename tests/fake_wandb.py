"""A W&B server on loopback: as much of the protocol as wandb 0.31 needs, and strict about it.

It keeps what it is sent as W&B would show it, and notes what a real server would refuse, and what
was lost or doubled.
"""

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from typing import Any

KEY = "0123456789" * 4
ENTITY = "lab"
STREAMS = ("wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl", "output.log")


@dataclass
class FakeRun:
    """A run as W&B would show it."""

    name: str
    """Id of the run, by the client's name for it."""
    project: str
    entity: str
    fields: dict[str, Any] = field(default_factory=dict)
    """Values that UpsertBucket has sent: groupName, tags, jobType and so on."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its configuration, without the client's own `_wandb`."""
    streams: dict[str, list[str]] = field(default_factory=dict)
    """Lines by file: wandb-history.jsonl and others."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Uploaded files by name."""
    preempting: bool = False
    """True once the client has announced that it is about to be ended."""
    exit_code: int | None = None
    """Exit code; None while the run is in progress."""

    @property
    def state(self) -> str:
        """As W&B names it: 255 is what wandb itself exits with on Ctrl-C."""
        if self.exit_code is None:
            return "running"
        if self.exit_code and self.preempting:
            return "preempted"
        return {0: "finished", 255: "killed"}.get(self.exit_code, "failed")

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", ())]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.streams.get("wandb-summary.json", ["{}"])[-1])


@dataclass
class FakeArtifact:
    """A version of an artifact."""

    id: str
    """The server's id."""
    run: str
    """The run that has logged it."""
    name: str
    """Name of its collection."""
    type: str
    digest: str
    """Digest of its contents; the same digest again makes no new version."""
    committed: bool = False
    """True once it is complete."""
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Uploaded files by path."""


class Refused(Exception):
    """A request that the server answers with an error."""


class FakeWandb:
    """The server, as a context manager."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        """Runs by name."""
        self.artifacts: list[FakeArtifact] = []
        """Versions in the order in which they were made."""
        self.views: dict[str, dict[str, Any]] = {}
        """Workspaces and reports by id."""
        self.operations: Counter[str] = Counter()
        """Number of requests for each GraphQL operation."""
        self.errors: list[str] = []
        """Requests that a real server would have refused."""
        self._uploads: list[Callable[[bytes], None]] = []
        self._lock = RLock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        """Value for WANDB_BASE_URL."""

    def __enter__(self) -> "FakeWandb":
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on nobody answers; more than once is no harm."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def problems(self) -> list[str]:
        """The errors, and what was begun and never ended."""
        return [
            *self.errors,
            *(f"{r.name}: never completed" for r in self.runs.values() if r.exit_code is None),
            *(f"{a.name}: never committed" for a in self.artifacts if not a.committed),
        ]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Any:
        """Answers one request; raises Refused."""
        with self._lock:
            if method == "PUT" and path.startswith("/storage/"):
                return self._uploads[int(path.removeprefix("/storage/"))](body)
            if path.startswith("/sdk/otel/"):  # the client's telemetry
                return None
            given = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
            if headers.get("Authorization") != given:
                raise PermissionError("invalid API key")
            if method == "POST" and path == "/graphql":
                return {"data": self._graphql(json.loads(body))}
            stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
            if method == "POST" and stream:
                return self._stream(self._run(*stream.groups()), json.loads(body))
            raise Refused(f"{method} {path} is not known")

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        found = re.match(r"\s*(query|mutation)\s+(\w+)\s*(\([^)]*\))?", request["query"])
        if found is None:
            raise Refused(f"no named GraphQL operation: {request['query'][:60]!r}")
        operation, variables = found[2], request.get("variables") or {}
        self.operations[operation] += 1
        for name in re.findall(r"\$(\w+)\s*:\s*[\w\[\]!]+!\s*[,)\s]", found[3] or ""):
            if variables.get(name) is None:
                raise Refused(f"{operation}: ${name} is missing")
        method = getattr(self, f"_on_{operation[0].lower()}{operation[1:]}", None)
        if method is None:
            raise Refused(f"{operation}: an operation that is not known")
        return method(variables)

    def _run(self, entity: str | None, project: str, name: str) -> FakeRun:
        run = self.runs.get(name)
        if run is None or (run.entity, run.project) != (entity or ENTITY, project):
            raise Refused(f"{entity}/{project}/{name}: no such run")
        return run

    def _upload(self, keep: Callable[[bytes], None]) -> str:
        self._uploads.append(keep)
        return f"{self.url}/storage/{len(self._uploads) - 1}"

    # Whoever asks, and what this server can do

    def _on_viewer(self, v: dict[str, Any]) -> Any:
        names = {"id": "VXNlcjox", "entity": ENTITY, "username": "me", "email": "me@example.org"}
        return {"viewer": names | {"flags": "{}", "teams": {"edges": []}}}

    def _on_serverFeaturesQuery(self, v: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _on_organizationCoreWeaveOrganizationID(self, v: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    # Runs

    def _on_runResumeStatus(self, v: dict[str, Any]) -> Any:
        entity = v["entity"] or ENTITY
        model = {"id": "p", "name": v["project"], "entity": {"id": "e", "name": entity}}
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": model | {"bucket": None}}
        lines = {name: run.streams.get(name, []) for name in STREAMS}
        bucket = {
            "id": run.name,
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.fields.get("displayName"),
            "logLineCount": len(lines["output.log"]),
            "historyLineCount": len(lines["wandb-history.jsonl"]),
            "eventsLineCount": len(lines["wandb-events.jsonl"]),
            "historyTail": json.dumps(lines["wandb-history.jsonl"][-1:]),
            "eventsTail": json.dumps(lines["wandb-events.jsonl"][-1:]),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "tags": run.fields.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": {"value": {}}}),
        }
        return {"model": model | {"bucket": bucket}}

    def _on_upsertBucket(self, v: dict[str, Any]) -> Any:
        entity, name = v["entity"] or ENTITY, v["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, FakeRun(name, v["project"], entity))
        self._run(entity, v["project"], name)
        if run.exit_code is not None:
            run.exit_code, run.preempting = None, False
        run.fields |= {key: value for key, value in v.items() if value is not None}
        config = json.loads(v["config"] or "{}")
        run.config |= {key: entry["value"] for key, entry in config.items() if key != "_wandb"}
        bucket = dict.fromkeys(("description", "sweepName", "historyLineCount")) | {
            "id": name,
            "name": name,
            "displayName": run.fields.get("displayName", name),
            "config": v["config"],
            "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": entity}},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_createRunFiles(self, v: dict[str, Any]) -> Any:
        run = self._run(v["entity"], v["project"], v["run"])
        files = [
            {"name": n, "uploadUrl": self._upload(lambda body, n=n: run.files.update({n: body}))}
            for n in v["files"]
        ]
        return {"createRunFiles": {"runID": run.name, "uploadHeaders": [], "files": files}}

    def _stream(self, run: FakeRun, sent: dict[str, Any]) -> Any:
        if run.exit_code is not None:
            raise Refused(f"{run.name}: more was sent when it was complete")
        for name, chunk in sent.get("files", {}).items():
            if name not in STREAMS:
                raise Refused(f"{run.name}: there is no stream {name}")
            lines = run.streams.setdefault(name, [])
            begin, content = chunk["offset"], chunk["content"]
            if begin > len(lines):
                raise Refused(f"{run.name}: {name} begins at {begin} where {len(lines)} were sent")
            lines[begin : begin + len(content)] = content
        steps = [row["_step"] for row in run.history]
        if steps != sorted(set(steps)):
            raise Refused(f"{run.name}: steps of its history out of order: {steps}")
        json.dumps(run.summary)
        run.preempting |= bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_code = int(sent["exitcode"])
        return {}

    # Artifacts

    def _artifact(self, number: str) -> FakeArtifact:
        return self.artifacts[int(number)]

    def _on_artifactType(self, v: dict[str, Any]) -> Any:
        name = v["name"].partition(":")[0]
        types = [a.type for a in self.artifacts if a.name == name]
        found = {"artifactType": {"name": types[-1]}} if types else None
        return {"project": {"artifact": found}}

    def _on_createArtifact(self, v: dict[str, Any]) -> Any:
        given = v["input"]
        self._run(given["entityName"], given["projectName"], given["runName"])
        name = given["artifactCollectionName"]
        versions = [a for a in self.artifacts if a.name == name and a.committed]
        same = [a for a in versions if a.digest == given["digest"]]
        made = FakeArtifact(
            str(len(self.artifacts)),
            given["runName"],
            name,
            given["artifactTypeName"],
            given["digest"],
        )
        self.artifacts += [] if same else [made]
        latest = {"id": versions[-1].id} if versions else None
        artifact = {
            "id": same[0].id if same else made.id,
            "state": "COMMITTED" if same else "PENDING",
            "artifactSequence": {"id": name, "latestArtifact": latest},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _on_createArtifactManifest(self, v: dict[str, Any]) -> Any:
        return {"createArtifactManifest": self._manifest(v["artifactID"], v["includeUpload"])}

    def _on_updateArtifactManifest(self, v: dict[str, Any]) -> Any:
        return {"updateArtifactManifest": self._manifest(v["artifactManifestID"], True)}

    def _manifest(self, number: str, uploads: bool) -> Any:
        artifact = self._artifact(number)
        file: dict[str, Any] = {"id": number}
        if uploads:
            url = self._upload(lambda body: artifact.manifest.update(json.loads(body)))
            file |= {"uploadUrl": url, "uploadHeaders": []}
        return {"artifactManifest": {"id": number, "file": file}}

    def _on_createArtifactFiles(self, v: dict[str, Any]) -> Any:
        edges = []
        for given in v["input"]["artifactFiles"]:
            artifact = self._artifact(given["artifactID"])
            url = self._upload(lambda body, a=artifact, n=given["name"]: a.files.update({n: body}))
            node = {"storagePath": f"{artifact.id}/{given['name']}", "uploadUrl": url}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": artifact.id}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_commitArtifact(self, v: dict[str, Any]) -> Any:
        artifact = self._artifact(v["artifactID"])
        missing = artifact.manifest["contents"].keys() - artifact.files.keys()
        if missing:
            raise Refused(f"{artifact.name}: committed without {sorted(missing)}")
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _on_artifactByID(self, v: dict[str, Any]) -> Any:
        artifact = self._artifact(v["id"])
        run = self.runs[artifact.run]
        entity = {"id": "e", "internalId": "RW50aXR5OjE=", "name": run.entity}
        project = {"id": "p", "internalId": "UHJvamVjdDox", "name": run.project}
        project |= {"entity": entity}
        versions = [a.id for a in self.artifacts if a.name == artifact.name]
        unset = ("description", "metadata", "historyStep", "updatedAt", "commitHash")
        found = dict.fromkeys(unset) | {
            "id": artifact.id,
            "artifactSequence": {"name": artifact.name, "project": project},
            "versionIndex": versions.index(artifact.id),
            "artifactType": {"name": artifact.type},
            "ttlDurationSeconds": 0,
            "ttlIsInherited": True,
            "tags": [],
            "aliases": [],
            "state": "COMMITTED" if artifact.committed else "PENDING",
            "size": sum(map(len, artifact.files.values())),
            "digest": artifact.digest,
            "fileCount": len(artifact.files),
            "createdAt": "2026-01-01T00:00:00Z",
        }
        return {"artifact": found}

    # Workspaces and reports

    def _on_getProjects(self, v: dict[str, Any]) -> Any:
        project = {"isBenchmark": False, "createdAt": "2026-01-01T00:00:00Z", "user": None}
        nodes = [
            project | {"id": name, "name": name, "entityName": v["entity"]}
            for name in {run.project for run in self.runs.values()}
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}

    def _on_createProject(self, v: dict[str, Any]) -> Any:
        project = {"id": "p", "name": v["input"]["name"], "entityName": v["input"]["entityName"]}
        unset = dict.fromkeys(("description", "access", "views"))
        return {"result": {"project": project | unset, "model": None, "inserted": True}}

    def _on_view(self, v: dict[str, Any]) -> Any:
        found = [(k, view) for k, view in self.views.items() if view["name"] == v["viewName"]]
        edges = [
            {"id": k, "displayName": view["displayName"], "spec": json.dumps(view["spec"])}
            for k, view in found
        ]
        return {"project": {"allViews": {"edges": [{"node": node} for node in edges]}}}

    def _on_upsertView(self, v: dict[str, Any]) -> Any:
        spec = json.loads(v["spec"])
        number = v.get("id") or next(
            (key for key, view in self.views.items() if view["name"] == v["name"]),
            f"view{len(self.views)}",
        )
        inserted = number not in self.views
        self.views[number] = v | {"spec": spec}
        names = {key: v.get(key) for key in ("type", "name", "displayName", "description")}
        project = {"id": "p", "name": v["projectName"], "entityName": v["entityName"]}
        view = names | {"id": number, "project": project, "spec": v["spec"], "updatedAt": None}
        return {"upsertView": {"view": view, "inserted": inserted}}

    _on_upsertView2 = _on_upsertView


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error: wandb-core closes its connections at its end."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeWandb

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, answer = 200, None
        try:
            answer = self.fake.answer(self.command, self.path, self.headers, body)
        except PermissionError as error:
            status, answer = 401, {"errors": [{"message": str(error)}]}
        except Exception as error:  # 400: the client is not to try again
            self.fake.errors.append(str(error) if isinstance(error, Refused) else repr(error))
            status, answer = 400, {"errors": [{"message": self.fake.errors[-1]}]}
        text = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _answer
