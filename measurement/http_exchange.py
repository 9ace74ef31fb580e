"""One HTTP exchange that always ends: by a deadline over all of it, and within a number of bytes, whatever the server sends.

For Prometheus, Grafana and the metrics pages of nodes. Proxies of the environment are not used: all of these are on this machine
or in the cluster's own network, which a proxy does not know.
"""

import io
import re
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

LONGEST_BODY = 16 * 1024 * 1024
"""Bytes that a body may have, decompressed too."""
_LONGEST_HEAD = 64 * 1024
_DEFAULT_PORT = {"http": 80, "https": 443}
_GZIP = 31
"""What zlib calls the format of gzip."""


class WrongAnswer(OSError):
    """An answer came, and it is not one to go on with."""


class HttpAnswer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Message
    body: bytes


def exchange(
    method: str,
    url: str,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    longest_body: int = LONGEST_BODY,
) -> HttpAnswer:
    """Send one request on a connection of its own and read the whole answer.

    Args:
        method: of HTTP.
        url: absolute http(s) address; a user and a password in it are not sent.
        timeout_s: for connecting, sending and reading together, seconds.
        headers: of the request.
        body: of the request.
        longest_body: bytes that the answer's body may have.

    Raises:
        WrongAnswer: the answer is too long, not whole, or cannot be decompressed.
        OSError: there is no answer; the text says why, in a few words and without the address. `TimeoutError` is the deadline's.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        address = urlsplit(url)
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        with _connected(address, deadline_s) as connected:
            connection = HTTPConnection(address.hostname or "", address.port or _DEFAULT_PORT[address.scheme])
            connection.sock = _BoundedSocket(connected, deadline_s, longest_body + _LONGEST_HEAD)
            connection.request(method, target, body, headers or {})
            with connection.getresponse() as response:
                return HttpAnswer(response.status, response.headers, _decoded(response, longest_body))
    except TimeoutError:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    except WrongAnswer:
        raise
    except OSError as error:
        raise OSError((error.strerror or str(error) or type(error).__name__).lower()) from error
    except HTTPException as error:
        raise OSError(f"its answer is not HTTP: {error!r}") from error
    except Exception as error:  # an address may break its look-up, and an answer its decoding, in many ways
        raise OSError(f"{type(error).__name__}: {error}") from error


class BoundedExchanges(BaseAdapter):
    """Lets `requests`, which prometheus_api_client sends by, exchange as `exchange` does, redirections included."""

    deadline_s = 0.0
    """By when the next exchange must have ended, on the monotonic clock."""

    def send(self, request: PreparedRequest, *_: Any, **__: Any) -> Response:
        """The answer to a request."""
        headers = {name: value for name, value in request.headers.items() if isinstance(value, str)}
        left_s = self.deadline_s - time.monotonic()
        answer = exchange(request.method or "", request.url or "", left_s, {**headers, "Accept-Encoding": "gzip"})
        response = Response()
        response.status_code, response.url, response.request = answer.status, request.url or "", request
        response.headers = CaseInsensitiveDict(answer.headers.items())
        response._content = answer.body
        return response

    def close(self) -> None:
        """There is nothing to close."""


def without_secrets(url: str) -> str:
    """`url` as it may be shown: without user, password, query and fragment, and without all that may be part of one of them."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path = re.split("[?#]", rest[len(authority) :], maxsplit=1)[0]
    is_clear = "@" not in rest[len(authority) :]  # else a password that holds one of these signs is taken for a path
    return scheme + separator + (authority.rpartition("@")[2] + path if is_clear else "...")


def _connected(address: SplitResult, deadline_s: float) -> socket.socket:
    """A connected socket, with TLS for https."""
    port = address.port or _DEFAULT_PORT[address.scheme]
    connected = socket.create_connection((address.hostname or "", port), _left_s(deadline_s))
    if address.scheme != "https":
        return connected
    connected.settimeout(_left_s(deadline_s))
    return ssl.create_default_context().wrap_socket(connected, server_hostname=address.hostname)


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _decoded(response: Any, longest_body: int) -> bytes:
    """The body, decompressed where the server compressed it."""
    content: bytes = response.read(longest_body + 1)
    if response.length and len(content) <= longest_body:
        raise WrongAnswer("its answer breaks off")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "gzip":
        content = zlib.decompressobj(_GZIP).decompress(content, longest_body + 1)
    elif encoding != "identity":
        raise WrongAnswer(f"its answer is encoded as {encoding!r}, expected gzip or none")
    if len(content) > longest_body:
        raise WrongAnswer(f"its answer has more than {longest_body} bytes")
    return content


class _BoundedSocket(io.RawIOBase):
    """A connected socket as http.client uses it, on which all that is sent and read ends at a deadline and after some bytes."""

    def __init__(self, connected: socket.socket, deadline_s: float, longest: int) -> None:
        self._socket = connected
        self._deadline_s = deadline_s
        self._left = longest

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(_left_s(self._deadline_s))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_left_s(self._deadline_s))
        count = self._socket.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise WrongAnswer("its answer is too long")
        return count

    def close(self) -> None:
        """Nothing: http.client closes before it has read what it needs, and the block around the socket closes it at its end."""
