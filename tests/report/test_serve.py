"""One page over HTTP: read and nothing else, by its own name, and to strangers only with the token."""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest

from trainwell.errors import ConfigError
from trainwell.report.serve import PageServer, is_loopback

PAGE = "<!doctype html><p>größer".encode()


@pytest.fixture
def server() -> Iterator[PageServer]:
    made = PageServer("127.0.0.1", 0)
    made.page = PAGE
    with made.serving():
        yield made


def ask(server: PageServer, method: str = "GET", path: str = "/", host: str | None = None) -> HTTPResponse:
    line = HTTPConnection("127.0.0.1", server.port, timeout=20)
    line.request(method, path, headers={} if host is None else {"Host": host})
    return line.getresponse()


def test_the_page_is_served_as_it_is(server: PageServer) -> None:
    answer = ask(server)
    assert (answer.status, answer.read()) == (200, PAGE)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Frame-Options"] == "DENY"
    server.page = b"newer"
    assert ask(server).read() == b"newer"


def test_head_sends_what_comes_before_the_page(server: PageServer) -> None:
    answer = ask(server, "HEAD")
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, str(len(PAGE)), b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
def test_nothing_but_reading_is_done(server: PageServer, method: str) -> None:
    assert ask(server, method).status == 501


@pytest.mark.parametrize("path", ["/metrics.jsonl", "/../env.json", "//etc/passwd", "/report.html/x"])
def test_there_is_one_page(server: PageServer, path: str) -> None:
    assert ask(server, path=path).status == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", ""])
def test_a_request_by_another_name_is_refused(server: PageServer, host: str) -> None:
    assert ask(server, host=host).status == 421
    assert ask(server, host=f"localhost:{server.port}").status == 200


def test_another_address_is_served_with_the_token_alone() -> None:
    server = PageServer("0.0.0.0", 0)
    server.page = PAGE
    with server.serving():
        assert server.url.startswith(f"http://0.0.0.0:{server.port}/?token=")
        assert ask(server, host="box.lan").status == 403
        assert ask(server, path="/?token=wrong", host="box.lan").status == 403
        assert ask(server, path=f"/?token={server.token}", host="box.lan").read() == PAGE


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
                                           ("192.168.1.4", False), ("box.lan", False)])  # fmt: skip
def test_what_others_can_reach_is_no_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_whoever_holds_connections_open_keeps_nobody_out(server: PageServer) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(200)]
    try:
        for each in held:
            each.sendall(b"GET / HT")
        assert ask(server).read() == PAGE
    finally:
        for each in held:
            each.close()


def test_an_address_that_is_taken_is_said(server: PageServer) -> None:
    with pytest.raises(ConfigError, match="name another with --address"):
        PageServer("127.0.0.1", server.port)
    with pytest.raises(ConfigError, match="cannot serve at nowhere"):
        PageServer("nowhere.invalid", 0)
