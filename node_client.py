"""One kept HTTP connection to one inference server: what is asked, what is answered, and in how many ways it can fail."""

import functools
import json
import math
import socket
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

from urllib3.util import Url
from urllib3.util.wait import wait_for_read

from performance_profile import PerformanceProfile
from settings import RequestSettings

IMAGE = bytes(range(256)) * (224 * 224 * 3 // 256)
"""The input of every request: 224·224·3 uint8. What it shows does not change how long an inference takes."""

CPU = "cpu"
"""What a server calls its accelerator when it has none."""


class NodeUnreachable(Exception):
    """No connection, no answer in time, or a broken one."""


class NodeTimeout(NodeUnreachable):
    """The request was sent and its time is over: the node may still be computing."""


class NodeFull(Exception):
    """The node cannot take the request now (408, 429, 503), or does not have the model (404); another may."""


class ModelAbsent(NodeFull):
    """The node says that it does not have the model (404)."""


class NodeFault(Exception):
    """The node answered with an error of its own, or with something that is no answer."""


class RequestRefused(Exception):
    """The node says that the request is wrong; where other nodes do not say so, the fault is the node's."""


class Answer(NamedTuple):
    """What a server says of an inference: durations in seconds, on its own clock.

    `model_switched`: whether the inference before was of another model; None where the server does not say.
    """

    queue_time_s: float
    inference_time_s: float
    model_switched: bool | None = None


class Health(NamedTuple):
    """What `/health` says of a node that is ready; `server` and `accelerator` are None where it does not say."""

    models: frozenset[str]
    binary: bool
    server: str | None = None
    accelerator: str | None = None


class NodeClient:
    """One kept connection to one node; used by one thread.

    Args:
        url: address of `/infer`; `/health` is beside it.
        timeouts: connect and request timeouts.
    """

    def __init__(self, url: Url, timeouts: RequestSettings) -> None:
        self._path = url.path or "/infer"
        self._health_path = self._path.rsplit("/", 1)[0] + "/health"
        self._connection = HTTPConnection((url.host or "").strip("[]"), url.port or 80)
        self._expires_s = math.inf
        self._connect_timeout_s = timeouts.connect_timeout_s
        self._request_timeout_s = timeouts.request_timeout_s

    def connect(self) -> None:
        """Open the connection, unless it is open and the server has not closed it meanwhile.

        Raises:
            NodeUnreachable: it cannot be opened.
        """
        if self._is_open():
            return
        self.close()
        self._connection.timeout = self._connect_timeout_s
        try:
            self._connection.connect()
        except OSError as error:
            raise NodeUnreachable(_cause(error)) from error

    def infer(self, model: str, service_noise: float, binary: bool) -> Answer:
        """Send one image and wait for the answer; the connection must be open.

        Raises:
            NodeUnreachable: the connection broke or timed out.
            NodeFull: status 404, 408, 429 or 503.
            NodeFault: an answer that is not as agreed, or any other status that is no 4xx.
            RequestRefused: another 4xx.
        """
        if binary:
            path, body, content_type = f"{self._path}?model={model}", IMAGE, "application/octet-stream"
        else:
            path, body, content_type = self._path, _json_body(model), "application/json"
        headers = {"Content-Type": content_type, "X-Service-Noise": repr(service_noise)}
        status, content = self._exchange("POST", path, self._request_timeout_s, body, headers)
        if status == 200:
            try:
                fields = json.loads(content)
                switched = fields.get("model_switched")
                answer = Answer(
                    float(fields["queue_time"]),
                    float(fields["inference_time"]),
                    switched if isinstance(switched, bool) else None,
                )
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise NodeFault(f"answer is not as agreed: {content[:80]!r}") from error
            if not all(0 <= duration_s < math.inf for duration_s in (answer.queue_time_s, answer.inference_time_s)):
                raise NodeFault(f"answer holds a duration that is none: {content[:80]!r}")
            return answer
        text = f"HTTP {status}: {content[:200].decode(errors='replace')}"
        if status == 404:
            raise ModelAbsent(text)
        if status in (408, 429, 503):
            raise NodeFull(text)
        if 400 <= status < 500:
            raise RequestRefused(text)
        raise NodeFault(text)

    def health(self) -> Health:
        """Ask `/health`.

        Raises:
            NodeUnreachable: no answer, another status than 200, or an answer that is not as agreed.
        """
        self.connect()
        status, content = self._exchange("GET", self._health_path, self._connect_timeout_s)
        try:
            if status != 200:
                raise NodeUnreachable(f"/health says {status}: {content[:200].decode(errors='replace')}")
            answer = json.loads(content)
            return Health(
                frozenset(map(str, answer["models"])),
                bool(answer.get("binary", False)),
                _text(answer.get("server")),
                _text(answer.get("accelerator")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NodeUnreachable(f"/health is not as agreed: {content[:80]!r}") from error

    def close(self) -> None:
        """Close the connection; it opens again when it is needed."""
        self._connection.close()

    def abort(self, expired_by_s: float = math.inf) -> None:
        """Break off, from another thread, a request whose time was over by `expired_by_s` on the monotonic clock.

        The socket's own timeout starts anew with every byte; a server that sends one now and then would never reach it.
        """
        sock = self._connection.sock
        if sock is not None and self._expires_s <= expired_by_s and self._expires_s < math.inf:
            with suppress(OSError):  # the exchange has ended meanwhile
                sock.shutdown(socket.SHUT_RDWR)

    def _is_open(self) -> bool:
        """Whether the connection is open; what the server sends unasked, or its end, makes it useless."""
        return self._connection.sock is not None and not wait_for_read(self._connection.sock, timeout=0.0)

    def _exchange(
        self, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        self._expires_s = time.monotonic() + timeout_s
        try:
            self._connection.timeout = timeout_s  # of a socket that is still to be opened
            if self._connection.sock is not None:
                self._connection.sock.settimeout(timeout_s)
            self._connection.request(method, path, body=body, headers=headers or {})
            with self._connection.getresponse() as response:
                return response.status, response.read()
        except (HTTPException, OSError) as error:
            self.close()
            if isinstance(error, TimeoutError) or time.monotonic() > self._expires_s:
                raise NodeTimeout(f"no answer within {timeout_s:g} s") from error
            raise NodeUnreachable(_cause(error)) from error
        finally:
            self._expires_s = math.inf


def wrong_node(name: str, health: Health, profile: PerformanceProfile) -> str | None:
    """Why what answers at the address of `name` is not that node, or None; names that the profile does not know say nothing."""
    if health.server != name and health.server in profile.nodes:
        return f"its address is that of {health.server}"
    expected = profile.nodes[name].accelerator
    if health.accelerator != expected and health.accelerator in (*profile.cv, CPU):
        return f"its server drives {health.accelerator!r}, the profile expects {expected!r}"
    return None


@functools.cache
def _json_body(model: str) -> bytes:
    return json.dumps({"model": model, "input": b64encode(IMAGE).decode()}).encode()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _cause(error: BaseException) -> str:
    """The reason at the bottom of an error, in a few words."""
    reason = error.__cause__ or error.__context__ or error
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason) or type(reason).__name__
