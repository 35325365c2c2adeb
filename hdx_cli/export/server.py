"""One page on this machine's loopback address, for a browser on the same machine and nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..errors import ResourceError, UsageError

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")
TIMEOUT_S = 30  # of a connection that says nothing
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest of the policy is in the page
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@contextmanager
def serve(page: bytes, port: int = 0) -> Iterator[str]:
    """Serve one HTML page at http://127.0.0.1:port/ while the context lasts; gives that address.

    A request that names another host is refused, so that a foreign site cannot reach the page by pointing a name of its
    own at this address (DNS rebinding), and so is every path but ``/`` and every method but GET and HEAD.

    Args:
        page: the whole page.
        port: 0 picks a free one.

    Raises:
        UsageError: a port beyond 0..65535.
        ResourceError: the port is taken.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: choose 0 (any free one) to 65535")
    try:
        server = _Server((LOOPBACK, port), _Handler)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"port {port} on {LOOPBACK}: {reason}", hint="use --port 0 to take a free port") from None
    server.page = page
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    page: bytes = b""
    daemon_threads = True
    block_on_close = False  # a browser's idle connection must not hold up the end
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "hdx"
    sys_version = ""
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Answer with the page, or with why not."""
        hosts = self.headers.get_all("Host", [])
        port = self.server.server_port
        own = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        if len(hosts) != 1 or hosts[0] not in own:
            self.send_error(403, "Only for this machine")
        elif self.path != "/":
            self.send_error(404)
        else:
            self.send_response(200)
            for name, value in {**HEADERS, "Content-Length": str(len(self.server.page))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(self.server.page)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not news."""
