"""One kept HTTP connection to one inference server: what is asked, what is answered, and in how many ways it can fail."""

import functools
import json
import math
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, IncompleteRead
from typing import Any, NamedTuple
from urllib.parse import quote

from urllib3.util import Url
from urllib3.util.wait import wait_for_read

from performance_profile import PerformanceProfile
from settings import RequestSettings
from utils import printable

IMAGE = bytes(range(256)) * (224 * 224 * 3 // 256)
"""The input of every request: 224·224·3 uint8. What it shows does not change how long an inference takes."""

CPU = "cpu"
"""What a server calls its accelerator when it has none."""


NO_MODELS = "/health lists no models: taken to serve all that the profile knows of it"
NO_QUEUE_TIME = "answers hold no queue_time: how long requests waited at the server is not known"
LONGEST_BODY = 64 * 1024
"""No answer of a server is longer, bytes; nor is its head."""


class NodeError(Exception):
    """What went wrong with a node; its text may hold what the node said, and is made fit to be shown.

    Args:
        text: what happened.
        status: HTTP status of the answer, where that is what happened.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(printable(text))
        self.status = status


class NodeUnreachable(NodeError):
    """No connection, no answer in time, or a broken one."""


class NodeTimeout(NodeUnreachable):
    """The request was sent and its time is over: the node may still be computing."""


class NodeFull(NodeError):
    """The node cannot take the request now (408, 429, 503), or does not have the model (404); another may."""


class ModelAbsent(NodeFull):
    """The node says that it does not have the model (404)."""


class NodeFault(NodeError):
    """The node answered with an error of its own, or with something that is no answer."""


class RequestRefused(NodeError):
    """The node says that the request is wrong; where other nodes do not say so, the fault is the node's."""


class Answer(NamedTuple):
    """What a server says of an inference: durations in seconds, on its own clock.

    `queue_time_s`, `model_switched` (whether the inference before was of another model), `server` and `model` are None where the
    server does not say.
    """

    queue_time_s: float | None
    inference_time_s: float
    model_switched: bool | None = None
    server: str | None = None
    model: str | None = None


class Health(NamedTuple):
    """What `/health` says of a node that is ready; `models`, `server` and `accelerator` are None where it does not say."""

    models: frozenset[str] | None
    binary: bool
    server: str | None = None
    accelerator: str | None = None


class _Socket(socket.socket):
    """A socket whose exchange ends at a deadline, however slowly its bytes come, and after a bounded number of bytes."""

    expires_s = math.inf
    received = 0
    was_used = False

    def begin(self, expires_s: float) -> None:
        """An exchange begins that must end by `expires_s` on the monotonic clock."""
        self.expires_s, self.received = expires_s, 0

    def wait_until_expiry(self) -> None:
        """Let the next operation wait for what is left, and no longer."""
        left_s = self.expires_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.wait_until_expiry()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self.wait_until_expiry()
        count = super().recv_into(buffer, nbytes, flags)
        self.received += count
        if self.received > 2 * LONGEST_BODY:
            raise NodeFault(
                f"answer is not as agreed: expected at most {LONGEST_BODY} bytes and a head no longer than that, found more"
            )
        return count


class NodeClient:
    """One kept connection to one node; used by one thread.

    Every exchange ends: at its deadline, connecting, head and body taken together, and after a bounded number of bytes. Whatever
    else goes wrong in one is told as an error of the node.

    Args:
        url: address of `/infer`; `/health` is beside it.
        timeouts: connect and request timeouts.
    """

    def __init__(self, url: Url, timeouts: RequestSettings) -> None:
        self._path = url.path or "/infer"
        self._health_path = self._path.rsplit("/", 1)[0] + "/health"
        self._connection = HTTPConnection((url.host or "").strip("[]"), url.port or 80)
        self._connection.auto_open = 0
        self._broken_off = False
        self._connect_timeout_s = timeouts.connect_timeout_s
        self._request_timeout_s = timeouts.request_timeout_s

    def connect(self) -> None:
        """Open the connection, unless it is open and the server has not closed it meanwhile.

        Raises:
            NodeUnreachable: it cannot be opened.
        """
        if not self._is_open():
            try:
                self._open(time.monotonic() + self._connect_timeout_s)
            except Exception as error:  # an address may break its look-up in many ways
                raise self._unreachable(error, self._connect_timeout_s, NodeUnreachable) from error

    def infer(self, model: str, service_noise: float, binary: bool, overhead_noise: float | None = None) -> Answer:
        """Send one image and wait for the answer; the connection must be open.

        Emulated nodes draw service time and request overhead from the noises, which real servers ignore.

        Raises:
            NodeUnreachable: the connection broke or timed out.
            NodeFull: status 404, 408, 429 or 503.
            NodeFault: an answer that is not as agreed, or any other status that is no 4xx.
            RequestRefused: another 4xx.
        """
        if binary:
            path, body, content_type = self._path + model_query(model), IMAGE, "application/octet-stream"
        else:
            path, body, content_type = self._path, _json_body(model), "application/json"
        headers = {"Content-Type": content_type, "X-Service-Noise": repr(service_noise)}
        if overhead_noise is not None:
            headers["X-Overhead-Noise"] = repr(overhead_noise)
        status, content = self._exchange("POST", path, self._request_timeout_s, body, headers)
        if status == 200:
            return _answer(content)
        text = f"HTTP {status}: {content[:200].decode(errors='replace')}"
        if status == 404:
            raise ModelAbsent(text, status)
        if status in (408, 429, 503):
            raise NodeFull(text, status)
        if 400 <= status < 500:
            raise RequestRefused(text, status)
        raise NodeFault(text, status)

    def health(self) -> Health:
        """Ask `/health`; all of it must be over within the connect timeout.

        Raises:
            NodeUnreachable: no answer, another status than 200, or an answer that is not as agreed.
        """
        if not self._is_open():
            self.close()
        try:
            status, content = self._exchange("GET", self._health_path, self._connect_timeout_s)
            if status != 200:
                raise NodeUnreachable(f"/health says {status}: {content[:200].decode(errors='replace')}")
            fields = _json_object(content, "/health")
        except NodeFault as error:
            raise NodeUnreachable(str(error)) from error
        models = fields.get("models", [])
        if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
            raise NodeUnreachable(f"/health is not as agreed: models: expected a list of names, found {content[:80]!r}")
        return Health(
            frozenset(models) if "models" in fields else None,
            fields.get("binary") is True,
            _text(fields.get("server")),
            _text(fields.get("accelerator")),
        )

    def close(self) -> None:
        """Close the connection; it opens again when it is needed."""
        self._connection.close()

    def abort(self) -> None:
        """Break off, from another thread, the request that is on its way, and begin no other."""
        self._broken_off = True
        if (sock := self._sock) is not None:
            with suppress(OSError):  # the exchange has ended meanwhile
                sock.shutdown(socket.SHUT_RDWR)

    def _is_open(self) -> bool:
        """Whether the connection is open; what the server sends unasked, or its end, makes it useless."""
        return self._sock is not None and not wait_for_read(self._sock, timeout=0.0)

    @property
    def _sock(self) -> _Socket | None:
        sock = self._connection.sock
        return sock if isinstance(sock, _Socket) else None

    def _open(self, expires_s: float) -> _Socket:
        self.close()
        if self._broken_off:
            raise ConnectionAbortedError("broken off")
        sock = self._connection.sock = _connected(self._connection.host, self._connection.port, expires_s)
        return sock

    def _exchange(
        self, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        expires_s = time.monotonic() + timeout_s
        try:
            sock = self._sock or self._open(expires_s)
            try:
                return self._ask(sock, expires_s, method, path, body, headers or {})
            except ConnectionError:  # a server may close a kept connection just as a request goes out
                if not sock.was_used or sock.received:
                    raise
            sock = self._open(min(expires_s, time.monotonic() + self._connect_timeout_s))
            return self._ask(sock, expires_s, method, path, body, headers or {})
        except NodeFault:
            self.close()
            raise
        except Exception as error:  # whatever a server's bytes lead to is no reason for the thread that asked to end
            raise self._unreachable(error, timeout_s, NodeTimeout) from error

    def _ask(
        self, sock: _Socket, expires_s: float, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        sock.begin(expires_s)
        self._connection.request(method, path, body=body, headers=headers)
        with self._connection.getresponse() as response:
            content = response.read(LONGEST_BODY + 1)
            missing = response.length
        if len(content) > LONGEST_BODY:
            raise NodeFault(f"answer is not as agreed: expected at most {LONGEST_BODY} bytes, found more")
        if missing:
            raise IncompleteRead(content, missing)
        sock.was_used = True
        return response.status, content

    def _unreachable(self, error: Exception, timeout_s: float, late: type[NodeUnreachable]) -> NodeUnreachable:
        self.close()
        return late(f"no answer within {timeout_s:g} s") if isinstance(error, TimeoutError) else NodeUnreachable(_cause(error))


def wrong_node(name: str, health: Health, profile: PerformanceProfile) -> str | None:
    """Why what answers at the address of `name` is not that node, or None; names that the profile does not know say nothing."""
    if health.server != name and health.server in profile.nodes:
        return f"its address is that of {health.server}"
    expected = profile.nodes[name].accelerator
    if health.accelerator != expected and health.accelerator in (*profile.cv, CPU):
        return f"its server drives {health.accelerator!r}, the profile expects {expected!r}"
    return None


def _connected(host: str, port: int, expires_s: float) -> _Socket:
    """A connection to the first address of `host` that takes one by `expires_s`."""
    failure = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = _Socket(family, kind, protocol)
        sock.begin(expires_s)
        try:
            sock.wait_until_expiry()
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST_DURATION_S


_LONGEST_DURATION_S = 1e9
_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("inference_time", lambda value: _is_duration(value) and value > 0, "seconds above 0"),
    ("queue_time", _is_duration, "seconds from 0 on"),
    ("server", lambda value: value is None or isinstance(value, str), "text"),
    ("model", lambda value: value is None or isinstance(value, str), "text"),
)
"""What is read of an answer to an inference, what each must be, and how that is said; only the first must be there."""


def _json_object(content: bytes, what: str = "answer") -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise NodeFault(f"{what} is not as agreed: expected a JSON object, found {content[:80]!r}")
    return fields


def _answer(content: bytes) -> Answer:
    """The answer to an inference.

    Raises:
        NodeFault: it is none; the text names the field.
    """
    fields = _json_object(content)
    for name, is_as_agreed, expected in _FIELDS:
        if name in fields and not is_as_agreed(fields[name]):
            raise NodeFault(f"answer is not as agreed: {name}: expected {expected}, found another value in {content[:200]!r}")
    if "inference_time" not in fields:
        raise NodeFault(f"answer is not as agreed: inference_time: expected seconds above 0, found none in {content[:200]!r}")
    queue_time_s = fields.get("queue_time")
    switched = fields.get("model_switched")
    return Answer(
        None if queue_time_s is None else float(queue_time_s),
        float(fields["inference_time"]),
        switched if isinstance(switched, bool) else None,
        fields.get("server"),
        fields.get("model"),
    )


def wrong_answer(name: str, health: Health, profile: PerformanceProfile, model: str, answer: Answer) -> str | None:
    """Why an answer is not that of the node `name` to a request for `model`, or None.

    Names that the profile does not know are taken for others of the same thing, for servers of other projects name models by
    their files and themselves by their pods; but a server that called itself `name` in `/health` does so in every answer.
    """
    if answer.model not in (model, None) and answer.model in profile.latency:
        return f"it is of the model {answer.model}, {model} was asked for"
    if answer.server not in (name, None) and (answer.server in profile.nodes or health.server == name):
        return f"it is of the server {answer.server}, {name} was asked"
    return None


@functools.cache
def model_query(model: str) -> str:
    """The query of `/infer` for a model, whatever its name holds."""
    return f"?model={quote(model, safe='')}"


@functools.cache
def _json_body(model: str) -> bytes:
    return json.dumps({"model": model, "input": b64encode(IMAGE).decode()}).encode()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _cause(error: Exception) -> str:
    """What happened, in a few words."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower() or type(error).__name__
    return repr(error)
