"""A Hugging Face hub on 127.0.0.1: what huggingface_hub asks of it, and the ways in which it can fail."""

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

LOGIN = b"<!DOCTYPE html><html><body>Please accept our terms</body></html>" * 50
MOST = 256 << 20  # what an endless answer has in truth
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """repos: name -> file -> content. `break_after`: a download's connection ends after so many bytes, once.
    `down`: every request gets 503. `seen`: method, path and Range of each request."""

    repos: dict[str, dict[str, bytes]]
    endpoint: str = ""
    commit: str = COMMIT
    break_after: int | None = None
    down: bool = False
    gated: set[str] = field(default_factory=set)
    damaged: bool = False
    cdn: str | None = None  # where downloads are redirected to, as the real hub does
    whole_only: bool = False  # knows no ranges
    portal: str = ""  # every request that matches gets the page of a login, with status 200
    endless: bool = False  # ranges are ignored, and files of any size are sent
    sent: int = 0  # bytes of bodies that went out
    only_tree: bool = False  # a mirror that lists files by /tree only
    authorised: list[str] = field(default_factory=list)  # Host headers of requests with a token
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)

    def ranges(self) -> list[str | None]:
        """The Range headers of all downloads so far."""
        return [range for method, path, range in self.seen if method == "GET" and not path.startswith("/api/")]


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """`hub` at its `endpoint`, within the block."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients hang up in the middle."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append((self.command, path, self.headers.get("Range")))
        if "Authorization" in self.headers:
            self.hub.authorised.append(self.headers["Host"])
        if self.hub.portal and re.search(self.hub.portal, f"{self.command} {path}"):
            self._send(200, LOGIN, {"Content-Type": "text/html"}, with_body)
        elif self.hub.endless and self.command == "GET" and not path.startswith("/api/"):
            self._send_endless()
        elif self.hub.down:
            self._send(503, b"down", {}, with_body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            self._tree(match[1], with_body)
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._content(self.hub.repos[match[1]][match[2]], {}, with_body)
        elif self.hub.only_tree and path.startswith("/api/"):
            self._send(404, b"", {}, with_body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._model(match[1], with_body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(match[1], match[2], with_body)
        else:
            self._send(404, b"", {}, with_body)

    def _model(self, repo: str, with_body: bool) -> None:
        if self._refused(repo, with_body):
            return
        siblings = [{"rfilename": name} for name in ["README.md", *self.hub.repos[repo]]]
        body = json.dumps({"id": repo, "modelId": repo, "sha": self.hub.commit, "siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"}, with_body)

    def _tree(self, repo: str, with_body: bool) -> None:
        if self._refused(repo, with_body):
            return
        files = self.hub.repos[repo]
        entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, with_body)

    def _file(self, repo: str, file: str, with_body: bool) -> None:
        if self._refused(repo, with_body):
            return
        content = self.hub.repos[repo].get(file)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if self.hub.cdn is None:
            self._content(content, {**headers, "ETag": etag}, with_body)
            return
        linked = {"X-Linked-ETag": etag, "X-Linked-Size": str(len(content)), "ETag": '"other"'}
        self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.cdn}/cdn/{repo}/{file}"}, with_body)

    def _content(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        if self.hub.damaged:
            content = content[:4] + bytes(len(content) - 4)
        status, start, end = 200, 0, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not self.hub.whole_only:
            status, start = 206, int(wanted[1])
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._send(status, content[start:end], headers, with_body)

    def _refused(self, repo: str, with_body: bool) -> bool:
        if repo in self.hub.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        elif repo not in self.hub.repos:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        else:
            return False
        return True

    def _send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        self.close_connection = True
        block = bytes(1 << 16)
        try:
            while self.hub.sent < MOST:
                self.wfile.write(block)
                self.hub.sent += len(block)
        except OSError:
            return  # nobody listens any more

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if self.hub.break_after is not None and body and not self.path.startswith("/api/"):
            body, self.hub.break_after, self.hub.down = body[: self.hub.break_after], None, True
            self.close_connection = True
        self.wfile.write(body)
