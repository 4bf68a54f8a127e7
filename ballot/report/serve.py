"""One page on the loopback address: nothing else of the disk, to nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from ballot.errors import UserError

HOST = "127.0.0.1"
PORT = 8088  # the first one to try where none is named
TRIES = 20
RENEW_S = 30.0  # age at which the page of runs in training is made anew, where nobody else does


class PageServer(ThreadingHTTPServer):
    """Serves the file `page`; `renew` makes it anew and says whether trials still run."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, page: Path, renew: Callable[[], bool], live: bool) -> None:
        super().__init__((HOST, port), PageHandler)
        self.page = page
        self._renew = renew
        self._live = live
        self._took = 0.0
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        """Bind without asking a name server for the name of this machine."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """What a browser is given."""
        return f"http://{HOST}:{self.server_port}/"

    def read_page(self) -> bytes:
        """Return the page, made anew where it is old and trials run."""
        with self._lock:
            age = time.time() - self.page.stat().st_mtime
            if self._live and age > max(RENEW_S, 10 * self._took):
                began = time.time()
                self._live = self._renew()
                self._took = time.time() - began
            return self.page.read_bytes()


class PageHandler(BaseHTTPRequestHandler):
    """Answers `/` with the page and everything else with an error."""

    server: PageServer
    server_version, sys_version = "ballot", ""

    def do_GET(self) -> None:
        """Send the page."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send what stands before the page."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        port = self.server.server_port
        # A page of somebody else can give its own name this address (DNS rebinding).
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "this page is for 127.0.0.1 only")
            return
        if self.path.partition("?")[0] not in ("/", f"/{self.server.page.name}"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = self.server.read_page()
        except (OSError, UserError):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the page cannot be read")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of each visit."""


def open_server(port: int | None, page: Path, renew: Callable[[], bool], live: bool) -> PageServer:
    """Listen on the port, or on the first one that is free; a port in use is a `UserError`."""
    wanted = [port] if port is not None else list(range(PORT, PORT + TRIES))
    for number in wanted:
        try:
            return PageServer(number, page, renew, live)
        except OSError as error:
            why = error.strerror
        except OverflowError:
            why = "is no port"
    raise UserError(f"--serve: port {wanted[0]} cannot be opened ({why}); name another one")
