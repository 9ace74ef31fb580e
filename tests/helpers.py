"""What the tests of the harness share: settings and profiles, a virtual-time cluster, and HTTP servers that do as told."""

import heapq
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Self

import numpy as np

from cluster.base import Cluster
from cluster.node_queue import NodeState, Request
from performance_profile import PerformanceProfile, load_profile
from scheduler import BaseScheduler, Node, Task
from settings import Settings, load_settings
from task import Decision, Device, PowerSample, TaskResult

PATIENCE_S = 30.0
DEVICE = Device(0, "fixed", 250.0, 250.0, 0.0, 0.0, True)
"""At the centre of the default cell, at rest: its time to exit is infinite."""


def eventually(holds: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Whether `holds` becomes true within a bound that only a defect reaches."""
    give_up_s = time.monotonic() + within_s
    pause = threading.Event()
    while not holds():
        if time.monotonic() > give_up_s:
            return False
        pause.wait(0.005)
    return True


def default_settings(**changes: Any) -> Settings:
    """The default settings; `changes` are merged key by key, nested mappings too."""
    return Settings.model_validate(_merged(load_settings().model_dump(), changes))


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if nested else value
    return merged


def default_profile() -> PerformanceProfile:
    """The profile of the six reference nodes."""
    return load_profile(load_settings().performance_profile)


def small_profile(
    mean_ms: Mapping[str, Mapping[str, float]],
    overhead_ms: float = 0.0,
    cv: float = 0.0,
    idle_w: float = 2.0,
    busy_w: float = 5.0,
    overhead_w: float = 0.0,
) -> PerformanceProfile:
    """A profile with `mean_ms[node][model]`; every node has its own kind of accelerator, named after it."""
    models = sorted({model for means in mean_ms.values() for model in means})
    return PerformanceProfile.model_validate(
        {
            "nodes": {
                name: {
                    "accelerator": f"kind of {name}",
                    "idle_w": idle_w,
                    "busy_w": busy_w,
                    "power_provenance": "estimated",
                    "request_overhead_ms": overhead_ms,
                    "overhead_provenance": "estimated",
                    "overhead_w": overhead_w,
                }
                for name in mean_ms
            },
            "latency": {
                model: {
                    "provenance": "estimated",
                    "mean_ms": {name: float(means[model]) for name, means in mean_ms.items() if model in means},
                }
                for model in models
            },
            "cv": {f"kind of {name}": cv for name in mean_ms},
        }
    )


def with_node_figures(profile: PerformanceProfile, **figures: float) -> PerformanceProfile:
    """The profile with other figures for all of its nodes."""
    return profile.model_copy(update={"nodes": {name: own.model_copy(update=figures) for name, own in profile.nodes.items()}})


def make_task(
    task_id: int = 0, arrival_s: float = 0.0, deadline_s: float = 1.0, model: str = "resnet50", slo: str = "soft"
) -> Task:
    """A task whose three deadlines are equal."""
    return Task(task_id, 0, "fixed", model, slo, arrival_s, deadline_s, deadline_s, deadline_s)


def rng() -> np.random.Generator:
    """A generator for a policy that draws nothing."""
    return np.random.default_rng(0)


class FirstOffered(BaseScheduler):
    """The first node that is offered; remembers every offer."""

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        super().__init__(settings, rng)
        self.offers: list[list[str]] = []

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The first."""
        self.offers.append([node.name for node in nodes])
        return nodes[0]


class VirtualCluster(Cluster):
    """Nodes that are arithmetic, on a clock that jumps from event to event; one thread, and every run repeats.

    Args:
        profile: figures of the nodes.
        settings: the experiment.
        scheduler: the policy.
        power: latest power samples; their times on this cluster's clock.
        attempt_fails: says why an attempt fails at once (its node, its task), or None where it is answered.
    """

    measures_decisions = False

    def __init__(
        self,
        profile: PerformanceProfile,
        settings: Settings,
        scheduler: BaseScheduler,
        power: Mapping[str, PowerSample] | None = None,
        attempt_fails: Callable[[str, Task], str | None] = lambda node, task: None,
    ) -> None:
        self.results: list[TaskResult] = []
        self.decisions: list[Decision] = []
        super().__init__(
            profile,
            list(profile.nodes),
            settings,
            scheduler,
            power or {},
            self.results.append,
            self.decisions.append,
            nullcontext(),
        )
        self._profile = profile
        self._attempt_fails = attempt_fails
        self._now_s = 0.0
        self._sequence = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._idle_connections = dict.fromkeys(profile.nodes, settings.requests.connections_per_node)
        self._accelerator_free_s = dict.fromkeys(profile.nodes, -math.inf)

    def clock(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def now_s(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def __enter__(self) -> Self:
        """Every node is up and serves what the profile says."""
        for node in self.nodes:
            self._came_up(node, frozenset(self._profile.service_time_s(node.name)))
        return self

    def __exit__(self, *exc: object) -> None:
        """There is nothing to end."""

    def start_load(self) -> None:
        """Set the clock to zero."""
        self._now_s = 0.0

    def advance_to(self, time_s: float) -> bool:
        """Let everything happen that is due by `time_s`."""
        while self._events and self._events[0][0] <= time_s and not self.stopping:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
        if self.stopping:
            return False
        self._now_s = max(self._now_s, time_s)
        return True

    def drain(self) -> None:
        """Let the open tasks end, at most until the drain timeout."""
        give_up_s = self._now_s + self._settings.requests.drain_timeout_s
        while self._open and self._events and self._events[0][0] <= give_up_s and not self.stopping:
            self.advance_to(self._events[0][0])
        if self._open and not self.stopping:
            self._now_s = give_up_s
        self._end_all_open()

    def at(self, time_s: float, happen: Callable[[], None]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (time_s, next(self._sequence), happen))

    def node(self, name: str) -> NodeState:
        """The state of a node."""
        return next(node for node in self.nodes if node.name == name)

    def take_out(self, name: str, reason: str = "unplugged") -> None:
        """The node is found dead: what is in flight there breaks, what waits is placed elsewhere."""
        state = self.node(name)
        broken = list(state._in_flight)
        self._take_out(state, reason)
        for request in broken:
            self._idle_connections[name] += 1
            self._attempt_failed(state, request, f"{name}: {reason}")

    def bring_in(self, name: str) -> None:
        """The node answers again."""
        self._came_up(self.node(name), self.node(name).models)

    def _work_arrived(self, node: NodeState) -> None:
        while node.has_waiting and self._idle_connections[node.name]:
            self._idle_connections[node.name] -= 1
            self._send(node, node.take(self._now_s))

    def _send(self, node: NodeState, request: Request) -> None:
        request.start_time_s = self._now_s
        if reason := self._attempt_fails(node.name, request.task):
            self.at(self._now_s, lambda: self._broke(node, request, reason))
            return
        half_s = true_overhead_s(self._profile, node.name, request.overhead_noise) / 2
        ready_s = self._now_s + half_s
        start_s = max(ready_s, self._accelerator_free_s[node.name])
        service_s = true_service_s(self._profile, node.name, request.task.model_name, request.service_noise)
        self._accelerator_free_s[node.name] = start_s + service_s
        self.at(start_s + service_s + half_s, lambda: self._came_back(node, request, start_s - ready_s, service_s))

    def _came_back(self, node: NodeState, request: Request, queue_s: float, service_s: float) -> None:
        if request in node._in_flight:
            self._idle_connections[node.name] += 1
            self._answered(node, request, self._now_s, queue_s, service_s)
            self._work_arrived(node)

    def _broke(self, node: NodeState, request: Request, reason: str) -> None:
        if request in node._in_flight:
            self._idle_connections[node.name] += 1
            self._attempt_failed(node, request, f"{node.name}: {reason}")
            self._work_arrived(node)


def true_service_s(profile: PerformanceProfile, node: str, model: str, noise: float) -> float:
    """The design's service time: profile mean × exp(σz − σ²/2)."""
    sigma = profile.sigma(node)
    return profile.service_time_s(node)[model] * math.exp(sigma * noise - sigma**2 / 2)


def true_overhead_s(profile: PerformanceProfile, node: str, noise: float | None) -> float:
    """The same for the request overhead; without noise its mean."""
    sigma = math.sqrt(math.log(1 + profile.nodes[node].overhead_cv ** 2))
    return profile.overhead_s(node) * (1.0 if noise is None else math.exp(sigma * noise - sigma**2 / 2))


@dataclass(frozen=True)
class Asked:
    """One HTTP request as a scripted server received it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """Which of the server's connections it came on, counted from 0."""


@dataclass(frozen=True)
class Reply:
    """What a scripted server does with a request.

    Attributes:
        status: of the answer.
        content: bytes, or something that becomes JSON.
        headers: beside Content-Length.
        raw: sent instead of an answer, and the connection is closed.
        reset: the connection is reset instead.
        hangs_up: the connection is closed after the answer, which does not say so.
        after: waited for before the answer.
    """

    status: int = 200
    content: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    reset: bool = False
    hangs_up: bool = False
    after: threading.Event | None = None

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


class ScriptedServer:
    """An HTTP server on a free port of this machine that answers as `reply` tells it, and remembers what it was asked."""

    def __init__(self, reply: Callable[[Asked], Reply]) -> None:
        self.reply = reply
        self.asked: list[Asked] = []
        self.port = 0
        self._ending = threading.Event()
        self._connections: dict[int, socket.socket] = {}
        self._connection_count = count()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._ending.clear()
        self._server = _HttpServer(("127.0.0.1", self.port), _handler_of(self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name=f"scripted-{self.port}").start()

    def stop(self) -> None:
        """Close the port and every connection; a second call does nothing."""
        if self._server is None:
            return
        self._ending.set()
        self._server.shutdown()
        for connection in list(self._connections.values()):
            with suppress(OSError):  # it may have ended by itself meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._server = None

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [asked.path for asked in self.asked]

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(0.01) and not self._ending.is_set():
            pass


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter here."""


def _handler_of(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self._number = next(server._connection_count)
            server._connections[self._number] = self.connection

        def finish(self) -> None:
            del server._connections[self._number]
            super().finish()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:  # noqa: N802 - the name that the base class calls
            self._answer()

        def do_POST(self) -> None:  # noqa: N802
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, self.path, dict(self.headers), body, self._number)
            server.asked.append(asked)
            reply = server.reply(asked)
            if reply.after is not None:
                server._wait(reply.after)
            if reply.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                self.close_connection = True
                return
            self.send_response_only(reply.status)
            headers = {"Date": self.date_time_string(), "Content-Length": str(len(reply.body)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            if reply.hangs_up:
                self.close_connection = True

    return Handler


@contextmanager
def scripted_server(reply: Callable[[Asked], Reply]) -> Iterator[ScriptedServer]:
    """A scripted server that ends with the block."""
    server = ScriptedServer(reply)
    try:
        yield server
    finally:
        server.stop()
