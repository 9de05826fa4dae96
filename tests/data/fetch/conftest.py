"""A small web server in a thread, which can give ranges, break off, stall and lie."""

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Site:
    """What the server does.

    Attributes:
        files: Path -> body.
        ranges: Whether it answers a Range with 206.
        breaks: For each of the next requests, after how many bytes of the body it hangs up.
        stall: Seconds to wait at a break before hanging up.
        lengths: Path -> Content-Length that it claims instead of the true one; None: it claims none.
        shift: Bytes by which a range is off.
        asked: (path, Range header) of all requests.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.breaks: list[int] = []
        self.stall = 0.0
        self.lengths: dict[str, int | None] = {}
        self.shift = 0
        self.asked: list[tuple[str, str | None]] = []

    def give(self, path: str, body: bytes) -> str:
        """Offer a file; its address."""
        self.files[path] = body
        return f"{self.url}/{path}"


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            asked = self.headers.get("Range")
            site.asked.append((path, asked))
            if path not in site.files:
                self.send_error(404)
                return
            body = site.files[path]
            match = re.fullmatch(r"bytes=(\d+)-", asked or "")
            start = 0
            if match and site.ranges:
                start = int(match[1]) + site.shift
                if int(match[1]) >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            length = site.lengths.get(path, len(body) - start)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            end = start + site.breaks.pop(0) if site.breaks else len(body)
            self.wfile.write(body[start:end])
            self.wfile.flush()
            if end < len(body):
                time.sleep(site.stall)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    """A running server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    found = Site(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = _handler(found)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between connections, and no proxy between us and ourselves."""
    monkeypatch.setattr("fewlabel.data.fetch.download.PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
