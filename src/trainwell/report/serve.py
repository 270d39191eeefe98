"""One page over HTTP, through the standard library: GET and HEAD, from memory, for this machine alone.

Another address is served only to whoever knows a token. The name that a browser asked for is checked, so that no page
from elsewhere can read this one by pointing its own name here. Knows bytes, and nothing of what is on the page.
"""

import hmac
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trainwell.errors import ConfigError

_MOST_CONNECTIONS = 256
"""Of which the oldest is closed for the next: whoever only holds one open keeps nobody out."""
_TIMEOUT_S = 10.0
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class PageServer:
    """Serves `page`, which may be replaced at any time, at `url`."""

    def __init__(self, host: str, port: int, token: str | None = None) -> None:
        self.page = b""
        self.token = token if token is not None else None if is_loopback(host) else secrets.token_urlsafe(24)
        try:
            self._server = _Server((host, port), _Handler, self)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot serve at {host}:{port}: {error}; name another with --address HOST:PORT (port 0: any free one)"
            ) from None
        self.host, self.port = host, self._server.server_address[1]

    @property
    def url(self) -> str:
        """Where to find the page, with the token where one is needed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/{'' if self.token is None else f'?token={self.token}'}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve from threads of its own while the block lasts."""
        thread = threading.Thread(target=self._server.serve_forever, name="trainwell-page", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this server; any name will do where a token is asked for."""
        if self.token is not None:
            return True
        return host.lower() in {f"{name}:{self.port}" for name in ("localhost", "127.0.0.1", "[::1]", self.host)}

    def lets_in(self, query: str) -> bool:
        """Whether the query has the token, where one is asked for."""
        if self.token is None:
            return True
        given = parse_qs(query).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], owner: PageServer) -> None:
        self.owner = owner
        self._open: OrderedDict[Any, None] = OrderedDict()
        self._guard = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection; of too many the oldest goes."""
        with self._guard:
            self._open[request] = None
            oldest = self._open.popitem(last=False)[0] if len(self._open) > _MOST_CONNECTIONS else None
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is over."""
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server: _Server
    server_version, sys_version = "trainwell", ""

    def do_GET(self) -> None:
        """Send the page."""
        page = self._head()
        if page is not None:
            self.wfile.write(page)

    def do_HEAD(self) -> None:
        """Send what comes before the page."""
        self._head()

    def _head(self) -> bytes | None:
        """Send the headers of the page and return it; None after a refusal."""
        owner, asked = self.server.owner, urlsplit(self.path)
        if not owner.answers_to(self.headers.get("Host", "")):
            self.send_error(421, "this server goes by another name")
        elif not owner.lets_in(asked.query):
            self.send_error(403, "the address that was printed has a token, and this one has not")
        elif asked.path not in {"/", "/report.html"}:
            self.send_error(404, "there is one page here: /")
        else:
            page = owner.page
            self.send_response(200)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            return page
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal shows the run."""
