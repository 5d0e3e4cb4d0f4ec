"""A hub on this machine: as much of the Hugging Face Hub's HTTP interface as an upload takes."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLACE = re.compile(r"(?:/api/models)?/([^/]+/[^/]+)/(tree|preupload|commit)/main")
TOKEN = "hf_of_somebody_who_may_write"


class Hub:
    """What it holds.

    Attributes:
        url: of the server.
        repos: files by repository and name.
        private: whether each repository is.
        requests: method and path of each request, in order.
        blobs: what was sent to its large file storage, by SHA-256.
        down: whether it answers everything with 503.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.down = False


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a hub that takes ``TOKEN`` and belongs to ``me``."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        stored = self.command == "PUT" and path.startswith("/blobs/")
        if self.hub.down:
            self._send(503, {"error": "down for maintenance"})
        elif not stored and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif stored:
            self.hub.blobs[path.removeprefix("/blobs/")] = body
            self._send(200, {})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._send(200, {"objects": [self._slot(entry) for entry in json.loads(body)["objects"]]})
        else:
            self._repo(path, body)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in self.hub.repos:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        self.hub.repos[name], self.hub.private[name] = {}, wanted.get("visibility") == "private"
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _slot(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{entry['oid']}"}}}

    def _repo(self, path: str, body: bytes) -> None:
        place = re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/]+)/(tree|preupload|commit|revision|resolve)/(?:main|0{40})/?(.*)", path
        )
        files = self.hub.repos.get(place[1]) if place else None
        if place is None or files is None:
            self._send(404, {"error": "Repository not found"})
        elif place[2] == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._send(200, {"files": modes})
        elif place[2] == "commit":
            for line in map(json.loads, body.splitlines()):
                self._change(files, line["key"], line["value"])
            oid = hashlib.sha1(body).hexdigest()
            self._send(200, {"commitUrl": f"{self.hub.url}/{place[1]}/commit/{oid}", "commitOid": oid, "success": True})
        else:
            self._send(200, [_entry(name, content) for name, content in files.items()])

    def _change(self, files: dict[str, bytes], kind: str, value: dict[str, Any]) -> None:
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = self.hub.blobs[value["oid"]]
        elif kind == "deletedFile":
            del files[value["path"]]

    def _send(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".onnx")) else "regular"


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
