"""The cluster as the experiment sees it, and what every kind of cluster shares.

`Cluster` is the small interface that `run_experiment()` drives. Its subclasses differ only in their clock and in how a request
travels; placing, retrying and ending a task, each node's queue and the prediction of completions are the same code here.
"""

import bisect
import math
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple, Self

from performance_profile import PerformanceProfile
from scheduler import BaseScheduler, Node
from settings import Settings
from slo_monitor import verdict
from task import Decision, Device, Outcome, PowerSample, Task, TaskResult
from utils import HarnessError


class Request:
    """A task on its way through the cluster; it changes as the task is placed, sent and, perhaps, placed again."""

    __slots__ = ("attempts", "device", "dispatch_time_s", "error", "node_name", "service_noise", "start_time_s", "task", "tried")

    def __init__(self, task: Task, device: Device, service_noise: float) -> None:
        self.task = task
        self.device = device
        self.service_noise = service_noise
        self.attempts = 0
        self.tried: set[str] = set()
        self.node_name: str | None = None
        self.dispatch_time_s: float | None = None
        self.start_time_s: float | None = None
        self.error: str | None = None

    def ended(
        self,
        outcome: Outcome,
        completion_time_s: float | None = None,
        server_queue_time_s: float | None = None,
        inference_time_s: float | None = None,
    ) -> TaskResult:
        """The task's record, now that it has ended; an error stands in it only where there was no answer."""
        return TaskResult(
            self.task,
            self.device,
            self.service_noise,
            outcome,
            self.node_name,
            self.attempts,
            self.dispatch_time_s,
            self.start_time_s,
            completion_time_s,
            server_queue_time_s,
            inference_time_s,
            self.error if completion_time_s is None else None,
        )


class _Expected(NamedTuple):
    """When a node's accelerator is expected free, and when each of its connections is, soonest first (seconds)."""

    accelerator_s: float
    connections_s: tuple[float, ...]


class _Waiting(NamedTuple):
    """A place in a node's queue, in the order of service; no two share a sequence number."""

    key: float
    sequence: int
    service_s: float
    request: Request


class NodeState:
    """What the master knows of one node: its queue, its requests in flight, and when it expects them to end.

    Times are seconds on the cluster's clock.

    Args:
        view: the node as schedulers see it.
        service_time_s: profile mean accelerator time by model, seconds.
        overhead_s: request overhead, seconds: half before the accelerator, half after.
        connections: requests that may be in flight at once.
        discipline: order of the queue: "fifo", or "edf", earliest absolute deadline first.
        busy_window_s: time constant of the busy fraction, seconds.
    """

    def __init__(
        self,
        view: Node,
        service_time_s: Mapping[str, float],
        overhead_s: float,
        connections: int,
        discipline: str,
        busy_window_s: float,
    ) -> None:
        self.view = view
        self.name = view.name
        self.up = False
        self._service_time_s = service_time_s
        self._half_overhead_s = overhead_s / 2
        self._connections = connections
        self._by_deadline = discipline == "edf"
        self._busy_window_s = busy_window_s
        self._busy = (0.0, 0.0)
        self._sequence = count()
        self._waiting: list[_Waiting] = []
        self._in_flight: dict[Request, float] = {}
        self._accelerator_free_s = -math.inf
        self._tail: _Expected | None = None
        self._tail_valid_until_s = -math.inf

    @property
    def queue_depth(self) -> int:
        """Tasks waiting and in flight."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def has_waiting(self) -> bool:
        """Whether a task waits for a connection."""
        return bool(self._waiting)

    def serves(self, model: str) -> bool:
        """Whether the node is up and offers `model`, and the profile knows what that takes there."""
        return self.up and model in self.view.models and model in self._service_time_s

    @property
    def in_flight(self) -> int:
        """Requests that were sent and are not answered."""
        return len(self._in_flight)

    def put(self, request: Request) -> None:
        """Let a request wait for a connection, at its place in the queue's order."""
        service_s = self._service_time_s[request.task.model_name]
        bisect.insort(self._waiting, _Waiting(self._key(request.task), next(self._sequence), service_s, request))
        if self._tail:  # valid only while all connections are busy, and then no request is sent before they are free
            self._tail = None if self._by_deadline else self._after_sending(self._tail, [service_s], -math.inf)

    def take(self, now_s: float) -> Request:
        """The next request in service order, sent at `now_s`."""
        request = self._waiting.pop(0).request
        self._in_flight[request] = now_s
        self._tail = None
        return request

    def take_all_waiting(self) -> list[Request]:
        """Empty the queue, in service order; what is in flight stays."""
        requests = [entry.request for entry in self._waiting]
        self._waiting.clear()
        self._tail = None
        return requests

    def answered(self, request: Request, now_s: float, inference_time_s: float) -> None:
        """A request was answered: its connection is free, and the accelerator was half an overhead ago."""
        self.gave_up(request)
        self._accelerator_free_s = now_s - self._half_overhead_s
        self._busy = (self.busy_fraction(now_s) + inference_time_s / self._busy_window_s, now_s)

    def gave_up(self, request: Request) -> None:
        """A request ended without an answer: its connection is free."""
        del self._in_flight[request]
        self._tail = None

    def busy_fraction(self, now_s: float) -> float:
        """Seconds of inference answered per second, weighted exponentially in time; may exceed 1 briefly."""
        value, since_s = self._busy
        return value * math.exp((since_s - now_s) / self._busy_window_s)

    def fill(self, task: Task, now_s: float, safety_margin: float) -> Node:
        """The view for a decision about `task` at `now_s`, its power excepted."""
        view = self.view
        spent_s = now_s - task.arrival_time_s
        completion_s = self._predicted_end_s(task, now_s) - task.arrival_time_s
        view.service_time_s = self._service_time_s[task.model_name]
        view.queue_depth = self.queue_depth
        view.predicted_completion_s = completion_s
        view.completion_with_margin_s = (completion_s - spent_s) * (1 + safety_margin) + spent_s
        view.busy_fraction = min(1.0, self.busy_fraction(now_s))
        view.closeness = None
        return view

    def _key(self, task: Task) -> float:
        return task.arrival_time_s + task.adapted_deadline_s if self._by_deadline else 0.0

    def _predicted_end_s(self, task: Task, now_s: float) -> float:
        """When `task` would be answered, were it put into the queue now (design: Predicted completion)."""
        service_s = self._service_time_s[task.model_name]
        if not self._waiting and not self._in_flight:  # the state of most nodes most of the time, in one step
            half_s = self._half_overhead_s
            return max(now_s + half_s, self._accelerator_free_s) + service_s + half_s
        if self._by_deadline:
            ahead = self._waiting[: bisect.bisect(self._waiting, (self._key(task), math.inf))]
            state = self._after_sending(self._expected_of_in_flight(now_s), [entry.service_s for entry in ahead], now_s)
        else:
            state = self._tail_of_queue(now_s)
        return self._after_sending(state, [service_s], now_s).connections_s[-1]

    def _tail_of_queue(self, now_s: float) -> _Expected:
        """What is expected after all that waits has been sent; kept until something happens or a request is overdue."""
        if self._tail is None or now_s > self._tail_valid_until_s:
            in_flight = self._expected_of_in_flight(now_s)
            all_busy = len(self._in_flight) == self._connections
            self._tail_valid_until_s = in_flight.connections_s[0] if all_busy else -math.inf
            self._tail = self._after_sending(in_flight, [entry.service_s for entry in self._waiting], now_s)
        return self._tail

    def _expected_of_in_flight(self, now_s: float) -> _Expected:
        """Replay of what was sent and is not answered; an overdue request counts as ending now."""
        half_s = self._half_overhead_s
        free_s = self._accelerator_free_s
        connections = [-math.inf] * (self._connections - len(self._in_flight))
        for request, sent_s in self._in_flight.items():
            free_s = max(sent_s + half_s, free_s) + self._service_time_s[request.task.model_name]
            if free_s + half_s < now_s:
                free_s = now_s - half_s
            connections.append(free_s + half_s)
        return _Expected(free_s, tuple(connections))

    def _after_sending(self, state: _Expected, services_s: Sequence[float], now_s: float) -> _Expected:
        """`state` after more requests have each taken the earliest connection; the connection of the last one comes last."""
        free_s, half_s = state.accelerator_s, self._half_overhead_s
        connections, earliest = list(state.connections_s), 0
        for service_s in services_s:  # each ends after those before it, so the connections stay in order, from `earliest` round
            sent_s = connections[earliest]
            ready_s = (sent_s if sent_s > now_s else now_s) + half_s
            free_s = (ready_s if ready_s > free_s else free_s) + service_s
            connections[earliest] = free_s + half_s
            earliest = (earliest + 1) % len(connections)
        return _Expected(free_s, (*connections[earliest:], *connections[:earliest]))


class Cluster(ABC):
    """Nodes, their queues and the scheduler that fills them.

    One lock guards the state of the nodes. Whoever drives the cluster holds it over adapting and placing one task, so that
    nothing a decision sees changes in its middle.

    Args:
        profile: figures of the nodes.
        node_names: the nodes of this cluster, in the order in which schedulers see them; all must be in the profile.
        settings: the experiment.
        scheduler: the policy.
        power: latest power sample by node, read at each decision; times on `clock()`.
        on_end: told of every task that ends; called under the lock.
        on_decision: told of every decision; called under the lock.
        lock: guards the nodes; a null context where there is one thread only.
    """

    measures_decisions = True
    """Whether a decision's duration in wall-clock time means anything."""

    def __init__(
        self,
        profile: PerformanceProfile,
        node_names: Sequence[str],
        settings: Settings,
        scheduler: BaseScheduler,
        power: Mapping[str, PowerSample],
        on_end: Callable[[TaskResult], None],
        on_decision: Callable[[Decision], None] | None,
        lock: AbstractContextManager[object],
    ) -> None:
        self.lock = lock
        self.failure: HarnessError | None = None
        self._settings = settings
        self._scheduler = scheduler
        self._power = power
        self._on_end = on_end
        self._on_decision = on_decision
        self._open: dict[Request, None] = {}
        self._stop = False
        self.nodes = [
            NodeState(
                Node(name, figures.accelerator, figures.idle_w, figures.busy_w),
                profile.service_time_s(name),
                profile.overhead_s(name),
                settings.requests.connections_per_node,
                settings.queue_discipline,
                settings.power_aware_topsis.busy_window_s,
            )
            for name, figures in ((name, profile.nodes[name]) for name in node_names)
        ]
        self._state_of = {state.name: state for state in self.nodes}

    # What a kind of cluster brings.

    @abstractmethod
    def clock(self) -> float:
        """Seconds on the clock of the power samples."""

    @abstractmethod
    def now_s(self) -> float:
        """Seconds since the start of the load."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Bring the nodes up.

        Raises:
            HarnessError: no node is up.
        """

    @abstractmethod
    def start_load(self) -> None:
        """Set the load's clock to zero."""

    @abstractmethod
    def __exit__(self, *exc: object) -> None:
        """End what was started."""

    @abstractmethod
    def advance_to(self, time_s: float) -> bool:
        """Let time pass until `time_s`; False when the run is to stop."""

    @abstractmethod
    def drain(self) -> None:
        """Let the open tasks end; what is open after the drain timeout, or when the run is to stop, is ended here."""

    @abstractmethod
    def _work_arrived(self, node: NodeState) -> None:
        """A request waits at `node`: let a free connection send it."""

    # What all share.

    unreachable_at_start: Mapping[str, str] = MappingProxyType({})
    """Why a node could not be reached when the cluster was entered, by node."""

    def down_periods(self) -> list[tuple[str, float, float]]:
        """Each time a node was out during the load: its name, from and until when, seconds since the start of the load."""
        return []

    def stop(self, failure: HarnessError | None = None) -> None:
        """Ask the run to stop, from any thread or signal handler; `failure` says why, where it is not a person's wish."""
        self.failure = self.failure or failure
        self._stop = True

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stop

    def observe(self, task: Task) -> Iterator[Node]:
        """The healthy nodes that serve `task`, each filled with what may be known of it now as it is asked for. Hold the lock."""
        now_s, clock_s = self.now_s(), self.clock()
        for state in self._serving(task.model_name):
            yield self._filled(state, task, now_s, clock_s)

    def place(self, task: Task, device: Device, service_noise: float) -> None:
        """Put a new task into the queue of the node that the scheduler chooses. Hold the lock."""
        request = Request(task, device, service_noise)
        self._open[request] = None
        self._place(request)

    def _serving(self, model: str) -> list[NodeState]:
        """The healthy nodes that serve `model`, in the cluster's order."""
        return [state for state in self.nodes if state.serves(model)]

    def _filled(self, state: NodeState, task: Task, now_s: float, clock_s: float) -> Node:
        node = state.fill(task, now_s, self._settings.safety_margin)
        sample = self._power.get(state.name)
        if sample is None:
            node.power_age_s = node.power_w = None
        else:
            node.power_age_s = age_s = clock_s - sample.time_s
            node.power_w = sample.power_w if age_s <= self._settings.power.max_age_s else None
        return node

    def _offered(self, request: Request) -> list[Node]:
        """The nodes that may serve `request` now, filled unless nobody would look at them."""
        task, tried = request.task, request.tried
        serving = self._serving(task.model_name)
        if tried:
            serving = [state for state in serving if state.name not in tried]
        if self._on_decision is None and not self._scheduler.looks_at_nodes:
            return [state.view for state in serving]
        now_s, clock_s = self.now_s(), self.clock()
        return [self._filled(state, task, now_s, clock_s) for state in serving]

    def _place(self, request: Request) -> None:
        task = request.task
        offered = self._offered(request)
        if not offered:
            request.error = request.error or f"no node serves {task.model_name}"
            self._end(request, Outcome.FAILED)
            return
        decided_at_s = self.now_s()
        started = perf_counter()
        try:
            chosen = self._scheduler.schedule(task, offered)
        except Exception as error:  # the policy may be the user's own: whatever it raises ends the run and is named
            at = traceback.extract_tb(error.__traceback__)[-1]
            self._policy_failed(request, f"raised {type(error).__name__}: {error} at {at.filename}:{at.lineno}")
            return
        duration_s = perf_counter() - started
        if not any(node is chosen for node in offered):
            self._policy_failed(request, f"returned {chosen!r}, which is none of the nodes it was offered")
            return
        state = self._state_of[chosen.name]
        request.attempts += 1
        request.node_name = state.name
        request.start_time_s = None
        if request.dispatch_time_s is None:
            request.dispatch_time_s = self.now_s()
        state.put(request)
        self._work_arrived(state)
        if self._on_decision:
            seen = {n.name: (n.queue_depth, n.power_w, n.predicted_completion_s, n.closeness) for n in offered}
            measured = duration_s if self.measures_decisions else None
            self._on_decision(Decision(task.task_id, request.attempts, decided_at_s, state.name, seen, measured))

    def _policy_failed(self, request: Request, how: str) -> None:
        request.error = f"scheduler {how}"
        self.stop(HarnessError(f"scheduler {self._settings.scheduler} {how} (task {request.task.task_id})"))

    def _answered(self, state: NodeState, request: Request, now_s: float, queue_time_s: float, inference_time_s: float) -> None:
        """An answer came at `now_s`. Hold the lock."""
        state.answered(request, now_s, inference_time_s)
        outcome = verdict(request.task, now_s - request.task.arrival_time_s)
        self._end(request, outcome, now_s, queue_time_s, inference_time_s)

    def _attempt_failed(self, state: NodeState, request: Request, error: str, retry: bool = True) -> None:
        """An attempt ended without an answer: place the task elsewhere, or end it. Hold the lock."""
        state.gave_up(request)
        request.error = error
        self._retry_or_fail(state, request, retry)

    def _retry_or_fail(self, state: NodeState, request: Request, retry: bool) -> None:
        task = request.task
        request.tried.add(state.name)
        in_time = self.now_s() < task.arrival_time_s + task.adapted_deadline_s
        if retry and in_time and request.attempts < self._settings.requests.max_attempts and request in self._open:
            self._place(request)
        else:
            self._end(request, Outcome.FAILED)

    def _take_out(self, state: NodeState, reason: str) -> None:
        """The node does not answer: offer it no more, and place what waits for it elsewhere. Hold the lock."""
        state.up = False
        for request in state.take_all_waiting():
            request.error = f"{state.name} is out: {reason}"
            self._retry_or_fail(state, request, retry=True)

    def _end(
        self,
        request: Request,
        outcome: Outcome,
        completion_time_s: float | None = None,
        queue_time_s: float | None = None,
        inference_time_s: float | None = None,
    ) -> None:
        """Record how a task ended, once; a later answer to a task that was given up changes nothing. Hold the lock."""
        if request not in self._open:
            return
        del self._open[request]
        self._on_end(request.ended(outcome, completion_time_s, queue_time_s, inference_time_s))

    def _end_all_open(self) -> None:
        """End what is still open: unfinished when the run was stopped, late or failed after the drain timeout. Hold the lock."""
        for request in list(self._open):
            deadline_s = request.task.arrival_time_s + request.task.adapted_deadline_s
            if self._stop:
                request.error = request.error or "interrupted"
                self._end(request, Outcome.UNFINISHED)
            else:
                request.error = "drain_timeout"
                self._end(request, Outcome.LATE if self.now_s() > deadline_s else Outcome.FAILED)
