"""A server on this machine that speaks as much of the hub's API as pushing and downloading a model need."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_right"
OWNER = "somebody"
MODEL = r"(?P<name>[^/]+/[^/]+)"


class Hub:
    """What the server holds: files of each repository as bytes, and the large ones by their SHA-256.

    Attributes:
        url: where it is.
        files: repository -> path -> content.
        large: of what was uploaded by LFS.
        by_lfs: the paths that were.
        commits: summaries, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.by_lfs: set[str] = set()
        self.commits: list[str] = []

    def revision(self, name: str) -> str:
        return hashlib.sha1(f"{name} {len(self.commits)}".encode()).hexdigest()


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str):
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


def create(hub: Hub, body: bytes, **_: str) -> Any:
    asked = json.loads(body)
    name = f"{asked.get('organization') or OWNER}/{asked['name']}"
    owner = name.partition("/")[0]
    if owner != OWNER:
        raise Refused(403, f"You don't have the rights to create a model under the namespace {owner}")
    if name in hub.files:
        raise Refused(409, "You already created this model repo", url=f"{hub.url}/{name}")
    hub.files[name] = {}
    hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"  # older clients, newer ones
    return {"url": f"{hub.url}/{name}", "name": name}


def content_of(hub: Hub, name: str) -> dict[str, bytes]:
    if name not in hub.files:
        raise Refused(404, "Repository not found", "RepoNotFound")
    return hub.files[name]


def info(hub: Hub, body: bytes, name: str) -> Any:
    files = content_of(hub, name)
    return {"id": name, "sha": hub.revision(name), "siblings": [{"rfilename": path} for path in files], "tags": []}


def tree(hub: Hub, body: bytes, name: str) -> Any:
    return [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        | (
            {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
            if path in hub.by_lfs
            else {}
        )
        for path, data in content_of(hub, name).items()
    ]


def preupload(hub: Hub, body: bytes, name: str) -> Any:
    content_of(hub, name)
    paths = [file["path"] for file in json.loads(body)["files"]]
    modes = ["lfs" if path.endswith((".safetensors", ".png")) else "regular" for path in paths]
    kinds = zip(paths, modes, strict=True)
    return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in kinds]}


def batch(hub: Hub, body: bytes, name: str) -> Any:
    def answer(wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in hub.large:
            return wanted
        upload = {"href": f"{hub.url}/lfs/{wanted['oid']}"}
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{hub.url}/lfs-verify"}}}

    return {"transfer": "basic", "objects": [answer(wanted) for wanted in json.loads(body)["objects"]]}


def store(hub: Hub, body: bytes, oid: str) -> Any:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "the content is another")
    hub.large[oid] = body
    return {}


def check(hub: Hub, body: bytes) -> Any:
    asked = json.loads(body)
    if len(hub.large.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "there is no such object")
    return {}


def validate(hub: Hub, body: bytes) -> Any:
    metadata = json.loads(body)["content"].split("---\n")[1]
    if not isinstance(yaml.safe_load(metadata), dict):
        raise Refused(400, "the metadata of the card are no mapping")
    return {"errors": [], "warnings": []}


def commit(hub: Hub, body: bytes, name: str) -> Any:
    files = content_of(hub, name)
    for line in map(json.loads, body.splitlines()):
        kind, value = line["key"], line["value"]
        if kind == "header":
            hub.commits.append(value["summary"])
        elif kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
            hub.by_lfs.add(value["path"])
        elif kind == "deletedFile":
            del files[value["path"]]
        else:
            raise Refused(400, f"no operation {kind}")
    return {"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": hub.revision(name)}


ROUTES = [
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("GET", rf"/api/models/{MODEL}(/revision/[^/]+)?", info),
    ("GET", rf"/api/models/{MODEL}/tree/[^/]+", tree),
    ("POST", rf"/api/models/{MODEL}/preupload/[^/]+", preupload),
    ("POST", rf"/api/models/{MODEL}/commit/[^/]+", commit),
    ("POST", rf"/{MODEL}\.git/info/lfs/objects/batch", batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", store),
    ("POST", "/lfs-verify", check),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            writes = self.command == "POST" and not path.startswith("/lfs")
            if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Invalid username or password.")
            for method, pattern, act in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    self.send(200, json.dumps(act(self.hub, body, **found.groupdict())).encode())
                    return
            file = re.fullmatch(rf"/{MODEL}/resolve/[^/]+/(?P<file>.+)", path)
            if file:
                data = content_of(self.hub, file["name"]).get(file["file"])
                if data is None:
                    raise Refused(404, "Entry not found", "EntryNotFound")
                etag = hashlib.sha256(data).hexdigest()
                self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.revision(file["name"])})
            else:
                self.send(200 if path in ("", "/") else 404, b"")
        except Refused as error:
            body = json.dumps({"error": str(error), **error.more}).encode()
            self.send(error.status, body, {"X-Error-Message": str(error), "X-Error-Code": error.code})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
