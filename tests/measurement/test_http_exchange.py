"""One exchange: what it returns, that it ends by its deadline and within its bytes, and what is shown of an address."""

import gzip
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from measurement.http_exchange import WrongAnswer, exchange, without_secrets
from tests.helpers import Reply, scripted_server


def test_answer_has_status_headers_and_body():
    with scripted_server(lambda asked: Reply(404, b"nothing here", {"X-Answer": "42"})) as server:
        answer = exchange("POST", f"{server.url}/a/b?c=d", 5.0, {"X-Asked": "1"}, b"sent")
        (asked,) = server.asked
    assert (answer.status, answer.headers["X-Answer"], answer.body) == (404, "42", b"nothing here")
    assert (asked.method, asked.path, asked.body) == ("POST", "/a/b?c=d", b"sent")
    assert asked.headers["X-Asked"] == "1" and asked.headers["Host"] == f"127.0.0.1:{server.port}"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
OLD = b"HTTP/1.0 200 OK\r\n\r\nhello"


@pytest.mark.parametrize("raw", [CHUNKED, UNTIL_CLOSE, OLD])
def test_body_may_be_sent_in_any_form(raw):
    with scripted_server(lambda asked: Reply(raw=raw)) as server:
        assert exchange("GET", server.url, 5.0).body == b"hello"


def test_body_is_decompressed():
    compressed = Reply(content=gzip.compress(b"hello" * 1000), headers={"Content-Encoding": "gzip"})
    with scripted_server(lambda asked: compressed) as server:
        assert exchange("GET", server.url, 5.0).body == b"hello" * 1000


@pytest.mark.parametrize(
    "reply",
    [
        Reply(content=b"x" * 1001),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000\r\n\r\n" + b"x" * 2000),
        Reply(content=gzip.compress(bytes(100_000)), headers={"Content-Encoding": "gzip"}),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhello"),
        Reply(content=b"hello", headers={"Content-Encoding": "br"}),
        Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
    ],
)
def test_answer_that_is_too_long_not_whole_or_cannot_be_decompressed_is_wrong(reply):
    with scripted_server(lambda asked: reply) as server, pytest.raises(WrongAnswer):
        exchange("GET", server.url, 5.0, longest_body=1000)


def test_longest_body_is_taken():
    with scripted_server(lambda asked: Reply(content=b"x" * 1000)) as server:
        assert len(exchange("GET", server.url, 5.0, longest_body=1000).body) == 1000


@contextmanager
def dripping(head, drop):
    """A server that sends `head`, then `drop` again and again."""
    ended = threading.Event()

    def drip(connection):
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            while not ended.wait(0.02):
                connection.sendall(drop)

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=listening.accept()[:1]).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: 1\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    ],
)
def test_server_that_sends_drop_by_drop_is_not_waited_for(head, drop):
    with dripping(head, drop) as url:
        began_s = time.monotonic()
        with pytest.raises(TimeoutError, match=r"^no answer within 0\.3 s$"):
            exchange("GET", url, 0.3)
        assert time.monotonic() - began_s < 5.0  # it would go on for ever


@pytest.mark.parametrize(
    "url",
    [
        "http://10.42..1.7:9090/",
        "http://nobody.invalid/",
        "http://127.0.0.1:99999/",
        "ftp://127.0.0.1/",
        "http:///",
        "http://a\x00b/",
    ],
)
def test_address_that_cannot_be_reached_is_an_os_error(url):
    with pytest.raises(OSError):
        exchange("GET", url, 5.0)


@pytest.mark.parametrize("raw", [b"", b"\x00\xff", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X" * 70_000])
def test_what_is_no_http_is_an_os_error(raw):
    with scripted_server(lambda asked: Reply(raw=raw)) as server, pytest.raises(OSError):
        exchange("GET", server.url, 5.0)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_proxies_of_the_environment_are_not_used(name, monkeypatch):
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    with scripted_server(lambda asked: Reply(content=b"hello")) as server:
        assert exchange("GET", server.url, 5.0).body == b"hello"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:9090/prom", "http://127.0.0.1:9090/prom"),
        ("http://user:secret@host:9090/prom?token=secret#secret", "http://host:9090/prom"),
        ("https://secret@host", "https://host"),
        ("http://user:sec@ret@host/", "http://host/"),
        ("http://user:sec/ret@host/", "http://..."),
        ("http://user:sec?ret@host/", "http://..."),
        ("http://user:sec#ret@host/", "http://..."),
        ("http://host/?token=sec@ret", "http://..."),
        ("user:secret@host:9090", "host:9090"),
        ("host/path?token=secret", "host/path"),
        ("ftp://user:secret@[::1", "ftp://[::1"),
        ("", ""),
    ],
)
def test_address_is_shown_without_its_secrets(url, shown):
    assert without_secrets(url) == shown
    assert "ret" not in without_secrets(url)
