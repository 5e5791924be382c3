"""A web server on this machine that can do everything a bad one does: break off, ignore Range, redirect, lie."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What lies at one path. Lists are used up, one entry a request.

    breaks: bytes after which an answer's connection is closed. statuses: answered instead. ranges: Range is honoured.
    length: the Content-Length, instead of the true one; 0 for none. drip: after so many bytes, wait for `go_on`.
    """

    body: bytes = b""
    etag: str | None = '"v1"'
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    length: int | None = None
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drip: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)


@dataclass
class Site:
    """A running server: `pages` by path, and the headers of every request so far."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, Message]] = field(default_factory=list)

    def put(self, path: str, page: Page) -> str:
        """The page's address."""
        self.pages[path] = page
        return self.url + path

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of every GET."""
        return [headers["Range"] for verb, headers in self.requests if verb == "GET"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.site.requests.append((self.command, self.headers))
        page = self.server.site.pages.get(self.path, Page(statuses=[404] * 9))
        if page.statuses:
            return self._head(page, page.statuses.pop(0), 0, [])
        if page.location is not None:
            return self._head(page, 302, 0, [("Location", page.location)])
        start, total = self._start(page), len(page.body)
        if start >= total > 0:
            return self._head(page, 416, 0, [("Content-Range", f"bytes */{total}")])
        rest = [("Content-Range", f"bytes {start}-{total - 1}/{total}")] if start else []
        length = total - start if page.length is None else page.length
        self._head(page, 206 if start else 200, length, rest)
        if self.command == "GET":
            self._send(page, page.body[start:])

    def _start(self, page: Page) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        same = condition is None or condition in (page.etag, page.last_modified)
        return int(match[1]) if match and page.ranges and same else 0

    def _head(self, page: Page, status: int, length: int, more: list[tuple[str, str]]) -> None:
        self.send_response(status)
        if length or status != 200 or not page.body:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", page.content_type)
        known = [("ETag", page.etag), ("Last-Modified", page.last_modified), *page.headers.items(), *more]
        for name, value in known:
            if value is not None:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, page: Page, body: bytes) -> None:
        if page.breaks:
            body = body[: page.breaks.pop(0)]
        elif page.drip is not None and not page.go_on.is_set():
            self.wfile.write(body[: page.drip])
            self.wfile.flush()
            page.go_on.wait(20)
            body = body[page.drip :]
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Site]:
    """A server that lives as long as the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.site = Site(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.site
    finally:
        for page in server.site.pages.values():
            page.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
