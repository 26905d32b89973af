"""A stand-in for the Hugging Face Hub over real HTTP, that can break off, lie, redirect or refuse."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "c0ff"
LARGE_BYTES = 512  # from which a file has a SHA-256 in the listing, as the hub's large files do
PAGE = b"<html>log in</html>"


class HubStandIn(ThreadingHTTPServer):
    """Repositories of bytes behind the hub's two addresses: the listing and `resolve`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.listed_sizes: dict[str, int] = {}  # where the listing should lie about a file
        self.listing: dict[str, dict[str, object]] = {}  # fields of the listing that should be other ones, by file
        self.served: dict[str, bytes] = {}  # what is sent in place of a file, by its path in the repository
        self.pages: set[str] = set()  # of "api", "HEAD", "GET": what a login page answers in place of the hub
        self.statuses: list[int] = []  # with which each of the next fetches is refused
        self.is_endless = False  # a file's bytes go on after its end
        self.stall_after: int | None = None  # bytes after which a response waits for `go_on`
        self.go_on = threading.Event()
        self.break_after: list[int] = []  # bytes after which each of the next responses breaks off
        self.honours_range = True
        self.range_shift = 0  # bytes by which the rest of a file begins elsewhere than it says
        self.redirects = False  # to another host name, as the hub does for large files
        self.status = 200
        self.requests: list[tuple[str, Message]] = []  # all but HEAD; Message: header names in any case

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetches(self) -> list[Message]:
        return [headers for path, headers in self.requests if "/resolve/" in path]


@contextmanager
def hub_stand_in(port: int = 0, repos: dict[str, dict[str, bytes]] | None = None) -> Iterator[HubStandIn]:
    """Answer as the hub for the length of a `with`, on a free port unless one is given."""
    server = HubStandIn(port)
    server.repos = repos or {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if not path.startswith("/api/models/") and "/resolve/" not in path:
            return self._answer(404, b"")  # the hub library asks for more than the test is about
        self.server.requests.append((path, self.headers))
        if ("GET" if "/resolve/" in path else "api") in self.server.pages:
            return self._answer(200, PAGE, "text/html")
        if self.server.status != 200:
            return self._answer(self.server.status, b"")
        if "/resolve/" in path and self.server.statuses:
            return self._answer(self.server.statuses.pop(0), b"")
        if path.startswith("/api/models/"):
            return self._answer(200, self._listing(path.removeprefix("/api/models/")))
        if self.server.redirects and not path.startswith("/cdn/"):
            return self._redirect(f"http://localhost:{self.server.server_address[1]}/cdn{self.path}")
        repo_id, _, file = path.removeprefix("/cdn").strip("/").partition(f"/resolve/{COMMIT}/")
        return self._send_file(self.server.served.get(file, self.server.repos[repo_id][file]))

    def do_HEAD(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if "HEAD" in self.server.pages:
            return self._answer(200, PAGE, "text/html")
        if self.server.status != 200:
            return self._answer(self.server.status, b"")
        repo_id, _, file = path.strip("/").partition(f"/resolve/{COMMIT}/")
        content = self.server.repos[repo_id][file]
        self.send_response(302 if self.server.redirects else 200)
        if self.server.redirects:
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/cdn{self.path}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(self.server.listed_sizes.get(file, len(content))))
        self.send_header("X-Linked-ETag", f'"{_checksums(content)[-1]}"')
        self.send_header("Content-Length", "0" if self.server.redirects else str(len(content)))
        self.end_headers()
        return None

    def _listing(self, repo_id: str) -> bytes:
        siblings = []
        for name, content in self.server.repos[repo_id].items():
            size = self.server.listed_sizes.get(name, len(content))
            git, *lfs = _checksums(content)
            pointer = [{"lfs": {"sha256": sha256, "size": size, "pointerSize": 134}} for sha256 in lfs]
            siblings.append({"rfilename": name, "size": size, "blobId": git, **(pointer[0] if pointer else {})})
            siblings[-1] |= self.server.listing.get(name, {})
        return json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode()

    def _send_file(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked and self.server.honours_range else 0
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"stand-in"')
        self.send_header("X-Repo-Commit", COMMIT)
        if not self.server.is_endless:
            self.send_header("Content-Length", str(len(content) - start - (self.server.range_shift if start else 0)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        start += self.server.range_shift if start else 0
        stop = start + (self.server.break_after.pop(0) if self.server.break_after else len(content))
        with suppress(OSError):  # the other side may have had enough, or been killed
            if self.server.stall_after is not None:
                self.wfile.write(content[start : min(stop, start + self.server.stall_after)])
                self.wfile.flush()
                start += self.server.stall_after
                self.server.go_on.wait()
            self.wfile.write(content[start:stop])
            while self.server.is_endless:
                self.wfile.write(bytes(1024))
        self.close_connection = True

    def _redirect(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _checksums(content: bytes) -> list[str]:
    """Return the SHA-1 that git knows a file by and, of a large one, the SHA-256."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return [git, hashlib.sha256(content).hexdigest()] if len(content) >= LARGE_BYTES else [git]
