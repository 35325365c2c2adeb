"""A Hub on the loopback: the routes that huggingface_hub uses for a model, with every fault a test asks for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1000  # files of so many bytes are stored as the Hub stores large ones, by sha256


def commit_of(files: dict[str, bytes]) -> str:
    """A commit for a tree of files, as unlike another's as git's."""
    whole = hashlib.sha1()
    for name in sorted(files):
        whole.update(name.encode() + b"\0" + files[name])
    return whole.hexdigest()


@dataclass
class Hub:
    """What is served, and how it is broken.

    Attributes:
        repos: {OWNER/NAME: {revision or commit: files}}.
        gated: repositories whose terms nobody accepted: {name: 401 or 403}.
        delivered: (file name, bytes) sent in place of the right ones.
        listed: (file name, size) told in the listing in place of the right one.
        status: answer everything with this status.
        hang_up_after: close the connection of every download after so many bytes.
        log: "METHOD path" of every request; tokens: the Authorization headers that came.
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    delivered: dict[str, bytes] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    plain_answer: bytes | None = None
    hang_up_after: int | None = None
    log: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    address: str = ""

    def publish(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Serve a tree under a revision and under its commit, which is returned."""
        commit = commit_of(files)
        self.repos.setdefault(repo, {}).update({revision: files, commit: files})
        return commit


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The Hub at ``hub.address`` as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client went away, as some tests make it
                pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.log.append(f"{self.command} {path}")
            if self.headers.get("Authorization"):
                hub.tokens.append(self.headers["Authorization"])
            if hub.status is not None:
                return self._send(hub.status, b"broken")
            if hub.plain_answer is not None:
                return self._send(200, hub.plain_answer)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
                return self._api(*found.groups())
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._file(*found.groups())
            self._send(404, b"no such route")

        def _tree(self, repo: str, revision: str) -> dict[str, bytes] | None:
            if repo not in hub.repos:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in hub.repos[repo]:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return hub.repos.get(repo, {}).get(revision)

        def _api(self, repo: str, what: str, revision: str) -> None:
            files = self._tree(repo, revision)
            if files is None:
                return
            if what == "revision":
                facts: object = {"id": repo, "sha": commit_of(files), "siblings": [{"rfilename": n} for n in files]}
            else:
                facts = [self._entry(name, content) for name, content in files.items()]
            self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

        def _entry(self, name: str, content: bytes) -> dict[str, object]:
            size = hub.listed.get(name, len(content))
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": blob}
            if len(content) >= LARGE:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
            return entry

        def _file(self, repo: str, revision: str, name: str) -> None:
            if repo in hub.gated:
                return self._send(hub.gated[repo], b"", {"X-Error-Code": "GatedRepo"})
            files = self._tree(repo, revision)
            if files is None:
                return
            if name not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = files[name]
            headers = {"X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes"}
            if len(content) >= LARGE:
                headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
                headers["X-Linked-Size"] = str(len(content))
            headers["ETag"] = '"' + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() + '"'
            body, status = hub.delivered.get(name, content), 200
            if self.command == "HEAD":
                return self._send(200, content, headers)
            if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(found[1])
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body, status = body[start:], 206
            self._send(status, body, headers, hub.hang_up_after)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
