"""A small Hub on this machine, over HTTP: repositories with commits, as much as `huggingface_hub` asks of."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_what-nobody-may-read"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class FakeHub:
    """What the server holds."""

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    """By repository: commits, the oldest first, with all files of each."""
    private: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded before its commit, by SHA-256."""
    requests: list[str] = field(default_factory=list)

    def serve_empty(self, monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
        """Hold nothing, and let this process ask here, with empty caches and a token."""
        for kept in (self.commits, self.private, self.read_only, self.large, self.requests):
            kept.clear()
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(caches / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of the last commit."""
        return self.commits[repo][-1][1]

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit of just these files; returns its hash."""
        text = repr((repo, len(self.commits.get(repo, [])), sorted(files.items())))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits.setdefault(repo, []).append((oid, files))
        return oid

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit by `main` or by its hash."""
        commits = self.commits[repo]
        return commits[-1] if revision == "main" else next((c for c in commits if c[0] == revision), None)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve an empty Hub."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, answer in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda body: self._json({"errors": [], "warnings": []})),
            (r"/upload/(?P<oid>\w+)", self._upload),
        ):
            if found := re.fullmatch(pattern, path):
                return answer(body, **found.groupdict())
        for pattern, method in (
            (rf"/api/models/{_REPO}/auth-check/write", self._auth_check),
            (rf"/api/models/{_REPO}(/revision/(?P<revision>.+))?", self._info),
            (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", self._tree),
            (rf"/api/models/{_REPO}/preupload/main", self._preupload),
            (rf"/{_REPO}\.git/info/lfs/objects/batch", self._batch),
            (rf"/api/models/{_REPO}/commit/main", self._commit),
            (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._resolve),
        ):
            if found := re.fullmatch(pattern, path):
                repo = found["repo"]
                if repo not in self.state.commits or (repo in self.state.private and not self._knows_token()):
                    return self._refuse(404, "RepoNotFound")
                return method(body, **found.groupdict())
        self._refuse(404, "EntryNotFound")

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not self._knows_token():
            return self._refuse(401, "Unauthorized")
        if repo in self.state.commits:
            return self._json({"error": "there already", "url": f"{self.state.url}/{repo}"}, 409)
        self.state.commit(repo, {".gitattributes": b"*.onnx filter=lfs\n"})
        if asked.get("visibility") == "private":
            self.state.private.add(repo)
        self._json({"url": f"{self.state.url}/{repo}"})

    def _auth_check(self, body: bytes, repo: str) -> None:
        may = self._knows_token() and repo not in self.state.read_only
        self._json({}) if may else self._refuse(403, "Forbidden")

    def _info(self, body: bytes, repo: str, revision: str | None) -> None:
        found = self.state.at(repo, revision or "main")
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        self._json({"id": repo, "sha": found[0], "siblings": [{"rfilename": name} for name in found[1]]})

    def _tree(self, body: bytes, repo: str, revision: str) -> None:
        found = self.state.at(repo, revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in found[1].items()
            ]
        )

    def _preupload(self, body: bytes, repo: str) -> None:
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith((".onnx", ".data")) else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.state.url}/upload/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.state.large[oid] = body
        self._json({})

    def _commit(self, body: bytes, repo: str) -> None:
        if not self._knows_token() or repo in self.state.read_only:
            return self._refuse(403, "Forbidden")
        files = dict(self.state.files(repo))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.state.commit(repo, files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.state.url}/{repo}/commit/{oid}"})

    def _resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        found = self.state.at(repo, revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        if name not in found[1]:
            return self._refuse(404, "EntryNotFound")
        data = found[1][name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": found[0]}
        self._send(200, data, headers)

    def _knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _json(self, content: Any, status: int = 200) -> None:  # noqa: ANN401 - whatever JSON holds
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"said the Hub: {code}"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
