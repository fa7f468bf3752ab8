"""Tracking servers on the loopback: one that takes runs as W&B does, one that refuses every key, one that is silent."""

import gzip
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, answer = self.server.answer(self.path, body)  # type: ignore[attr-defined]
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Keeps what it is sent: ``runs`` by id, with the history as the lines that a real server would hold."""

    daemon_threads = True

    def __init__(self, *, refusing: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refusing = refusing
        self.stuck: threading.Event | None = None
        """While it is set to an event, uploads wait for that."""
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, list[tuple[str, str]]] = {}
        """(Run, digest of the content) of every artifact that was logged, by name."""
        self.used: list[tuple[str, str]] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.uploaded: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def history(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[run]["history"]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up when they are done."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refusing:
            return 401, {"errors": [{"message": "invalid api key"}]}
        if path.endswith("/graphql"):
            query = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            name, variables = found.group(1) if found else "", query.get("variables") or {}
            self.operations.append((name, variables))
            return 200, {"data": getattr(self, f"_{name}", lambda _: {})(variables)}
        if self.stuck is not None:
            self.stuck.wait(60)
        if path.endswith("/file_stream"):
            self._take(path.split("/")[-2], json.loads(body))
        elif "/upload/" in path:
            self.uploaded[path.partition("/upload/")[2]] = body
        return 200, {}

    def _take(self, run: str, sent: dict[str, Any]) -> None:
        history = self.runs[run]["history"]
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                history[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
            elif name == "wandb-summary.json":
                self.runs[run]["summary"] = json.loads(part["content"][-1])
        if "exitcode" in sent:
            self.runs[run]["exit_code"] = sent["exitcode"]

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        user = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": user}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {"bucket": None}}
        tail = json.dumps(run["history"][-1:])
        bucket = {
            **{"name": variables["name"], "displayName": "run", "config": "{}", "summaryMetrics": "{}", "tags": []},
            **{"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "wandbConfig": json.dumps({"t": 1})},
            **{"historyLineCount": len(run["history"]), "historyTail": tail},
        }
        return {"model": {"bucket": bucket}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(name, {"history": [], "config": {}, "summary": {}, "exit_code": None})
        run |= {key: variables[key] for key in ("groupName", "jobType", "tags") if variables.get(key)}
        run["config"] |= json.loads(variables.get("config") or "{}")
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
        bucket = {
            **{"id": name, "name": name, "displayName": "run", "description": "", "sweepName": None},
            **{"config": json.dumps(run["config"]), "historyLineCount": len(run["history"]), "project": project},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": not run["history"]}}

    def _ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        asked = variables["input"]
        self.artifacts.setdefault(asked["artifactCollectionName"], []).append((asked["runName"], asked["digest"]))
        # As if it had the content already: then nothing is uploaded.
        sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
        return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}

    def _UseArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.used.append((variables["input"]["runName"], variables["input"]["artifactID"]))
        return {"useArtifact": {"artifact": {"id": "a", "digest": "", "description": "", "state": "COMMITTED"}}}

    def _ArtifactByID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": None}

    def _UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.views[variables["name"]] = variables
        return {
            "upsertView": {"view": {"id": f"id of {variables['name']}", "name": variables["name"]}, "inserted": True}
        }

    def _View(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = self.views.get(variables["viewName"])
        node = found and {"id": variables["viewName"], "displayName": found["displayName"], "spec": found["spec"]}
        return {"project": {"allViews": {"edges": [{"node": node}] if node else []}}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.address}/upload/{variables['run']}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


@contextmanager
def serving(*, refusing: bool = False) -> Iterator[Server]:
    """A server of runs, or one that answers 401 to everything."""
    server = Server(refusing=refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        if server.stuck is not None:
            server.stuck.set()
        server.shutdown()
        server.server_close()


@contextmanager
def silence() -> Iterator[str]:
    """Address of a server, or proxy, that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
