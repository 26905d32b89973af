"""A stand-in for the Hugging Face Hub over real HTTP, that can break off, lie, redirect or refuse."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "c0ff"


class HubStandIn(ThreadingHTTPServer):
    """Repositories of bytes behind the hub's two addresses: the listing and `resolve`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.listed_sizes: dict[str, int] = {}  # where the listing should lie about a file
        self.break_after: list[int] = []  # bytes after which each of the next responses breaks off
        self.honours_range = True
        self.redirects = False  # to another host name, as the hub does for large files
        self.status = 200
        self.requests: list[tuple[str, Message]] = []  # Message: header names in any case

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetches(self) -> list[Message]:
        return [headers for path, headers in self.requests if "/resolve/" in path]


@contextmanager
def hub_stand_in(port: int = 0) -> Iterator[HubStandIn]:
    """Answer as the hub for the length of a `with`, on a free port unless one is given."""
    server = HubStandIn(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
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
        if self.server.status != 200:
            return self._answer(self.server.status, b"")
        if path.startswith("/api/models/"):
            return self._answer(200, self._listing(path.removeprefix("/api/models/")))
        if self.server.redirects and not path.startswith("/cdn/"):
            return self._redirect(f"http://localhost:{self.server.server_address[1]}/cdn{self.path}")
        repo_id, _, file = path.removeprefix("/cdn").strip("/").partition(f"/resolve/{COMMIT}/")
        return self._send_file(self.server.repos[repo_id][file])

    def _listing(self, repo_id: str) -> bytes:
        siblings = [
            {
                "rfilename": name,
                "size": self.server.listed_sizes.get(name, len(content)),
                "blobId": f"{hash(content) & 0xFFFFFFFFFFFF:012x}",
            }
            for name, content in self.server.repos[repo_id].items()
        ]
        return json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode()

    def _send_file(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked and self.server.honours_range else 0
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"stand-in"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        n_bytes = self.server.break_after.pop(0) if self.server.break_after else len(content)
        self.wfile.write(content[start : start + n_bytes])
        self.close_connection = True

    def _redirect(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
