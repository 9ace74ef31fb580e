"""One node as the master knows it: its queue (FIFO, EDF), its requests in flight, and when it expects them to end."""

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import count

from scheduler import Node
from task import Device, Outcome, Task, TaskResult, from_fields

_RESULT = from_fields(TaskResult)


class Request:
    """A task on its way through the cluster; it changes as the task is placed, sent and, perhaps, placed again."""

    __slots__ = ("attempts", "device", "dispatch_time_s", "error", "node_name", "service_noise", "start_time_s", "task", "tried")

    def __init__(self, task: Task, device: Device, service_noise: float) -> None:
        self.task = task
        self.device = device
        self.service_noise = service_noise
        self.attempts = 0
        self.tried: tuple[str, ...] = ()
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
        return _RESULT(
            (
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
        )


_Expected = tuple[float, list[float]]
"""When a node's accelerator is expected free, and when each of its connections is, soonest first (seconds)."""

_Waiting = tuple[float, int, float, Request]
"""A place in a node's queue: key of its order, sequence number (no two share one), service time in seconds, request."""


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

    Attributes:
        untold_busy_s: accelerator time of no answered task, seconds: of probes, and of requests that were abandoned, for which
            the profile's mean stands.
        abandoned: how many requests were abandoned while the accelerator was expected to be busy with them.
        backlog_s: mean service of all that waits ahead of a new task, seconds; 0 in a queue by deadlines, where that depends.
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
        self.offers: frozenset[str] = frozenset()
        self._service_time_s = service_time_s
        self._half_overhead_s = overhead_s / 2
        self._connections = connections
        self._by_deadline = discipline == "edf"
        self._busy_window_s = busy_window_s
        self._busy = (0.0, 0.0)
        self.untold_busy_s = 0.0
        self.abandoned = 0
        self._sequence = count()
        self._waiting: list[_Waiting] = []
        self.backlog_s = 0.0
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

    @property
    def can_send(self) -> bool:
        """Whether a task waits and a connection is free for it."""
        return len(self._waiting) > 0 and len(self._in_flight) < self._connections

    def bring_in(self, models: frozenset[str]) -> None:
        """The node is up and has these models: it offers those of them of which the profile knows what they take there."""
        self.up = True
        self.view.models = models
        self.offers = models & self._service_time_s.keys()

    def take_out(self) -> None:
        """The node is down: it offers nothing."""
        self.up = False
        self.offers = frozenset()

    def put(self, request: Request) -> None:
        """Let a request wait for a connection, at its place in the queue's order."""
        service_s = self._service_time_s[request.task.model_name]
        if self._by_deadline:
            entry = (self._key(request.task), next(self._sequence), service_s, request)
            bisect.insort(self._waiting, entry)
        else:
            entry = (0.0, 0, service_s, request)
            self._waiting.append(entry)
            self.backlog_s += service_s
        if self._tail:  # valid only while all connections are busy, and then no request is sent before they are free
            self._tail = None if self._by_deadline else self._after_sending(self._tail, [entry], -math.inf)

    def take(self, now_s: float) -> Request:
        """The next request in service order, sent at `now_s`."""
        _, _, service_s, request = self._waiting.pop(0)
        if not self._by_deadline:
            self.backlog_s = self.backlog_s - service_s if self._waiting else 0.0
        self._in_flight[request] = now_s
        self._tail = None
        return request

    def take_all_waiting(self) -> list[Request]:
        """Empty the queue, in service order; what is in flight stays."""
        requests = [request for _, _, _, request in self._waiting]
        self._waiting.clear()
        self.backlog_s = 0.0
        self._tail = None
        return requests

    def answered(self, request: Request, now_s: float, inference_time_s: float) -> None:
        """A request was answered: its connection is free, and the accelerator was half an overhead ago."""
        del self._in_flight[request]
        self._tail = None
        self._accelerator_free_s = now_s - self._half_overhead_s
        self._busy = (self.busy_fraction(now_s) + inference_time_s / self._busy_window_s, now_s)

    def gave_up(self, request: Request) -> None:
        """A request ended without an answer: its connection is free."""
        del self._in_flight[request]
        self._tail = None

    def abandon(self, request: Request, now_s: float) -> None:
        """A request was given up whose answer is still to come: its connection is free, its accelerator is not.

        A server goes on with an inference that has begun. One that still waits there is withdrawn with its connection.
        """
        service_s = self._service_time_s[request.task.model_name]
        start_s = max(self._in_flight[request] + self._half_overhead_s, self._accelerator_free_s)
        self.gave_up(request)
        if start_s <= now_s:
            self._accelerator_free_s = start_s + service_s
            self._was_busy(now_s, service_s)
            self.untold_busy_s += service_s
            self.abandoned += 1

    def count_unanswered(self, now_s: float) -> None:
        """The run is over: what the accelerator has spent until now on requests that are not answered."""
        free_s = self._accelerator_free_s
        for request, sent_s in self._in_flight.items():
            start_s = max(sent_s + self._half_overhead_s, free_s)
            if start_s > now_s:
                return
            free_s = start_s + self._service_time_s[request.task.model_name]
            self.untold_busy_s += min(free_s, now_s) - start_s
            self.abandoned += 1

    def probed(self, now_s: float, inference_time_s: float) -> None:
        """An inference that belongs to no task was answered."""
        self._was_busy(now_s, inference_time_s)
        self.untold_busy_s += inference_time_s

    def _was_busy(self, now_s: float, inference_time_s: float) -> None:
        self._busy = (self.busy_fraction(now_s) + inference_time_s / self._busy_window_s, now_s)

    def busy_fraction(self, now_s: float) -> float:
        """Seconds of inference answered per second, weighted exponentially in time; may exceed 1 briefly."""
        value, since_s = self._busy
        return value * math.exp((since_s - now_s) / self._busy_window_s)

    def fill(self, task: Task, now_s: float, safety_margin: float) -> Node:
        """The view for a decision about `task` at `now_s`, its power excepted."""
        view = self.view
        busy, since_s = self._busy
        busy *= math.exp((since_s - now_s) / self._busy_window_s)
        view.predicted_completion_s, view.completion_with_margin_s = self.predicted_completion_s(task, now_s, safety_margin)
        view.service_time_s = self._service_time_s[task.model_name]
        view.queue_depth = len(self._waiting) + len(self._in_flight)
        view.busy_fraction = busy if busy < 1.0 else 1.0
        view.closeness = None
        return view

    def predicted_completion_s(self, task: Task, now_s: float, safety_margin: float) -> tuple[float, float]:
        """When `task` would be answered, were it put into the queue at `now_s`: seconds after its arrival.

        Returns:
            Without a margin, and with the margin on what is still to come.
        """
        arrival_s = task.arrival_time_s
        if self._waiting or self._in_flight:
            end_s = self._end_behind_others_s(task, now_s)
        else:  # the state of most nodes most of the time, in one step
            half_s = self._half_overhead_s
            ready_s, free_s = now_s + half_s, self._accelerator_free_s
            end_s = (ready_s if ready_s > free_s else free_s) + self._service_time_s[task.model_name] + half_s
        spent_s, completion_s = now_s - arrival_s, end_s - arrival_s
        return completion_s, (completion_s - spent_s) * (1 + safety_margin) + spent_s

    @staticmethod
    def _key(task: Task) -> float:
        return task.arrival_time_s + task.adapted_deadline_s

    def _end_behind_others_s(self, task: Task, now_s: float) -> float:
        """When `task` would be answered, were it put into the queue now (design: Predicted completion)."""
        if self._by_deadline:
            ahead = self._waiting[: bisect.bisect(self._waiting, (self._key(task), math.inf))]
            free_s, connections_s = self._after_sending(self._expected_of_in_flight(now_s), ahead, now_s)
        else:
            free_s, connections_s = self._tail_of_queue(now_s)
        half_s, sent_s = self._half_overhead_s, connections_s[0]
        ready_s = (sent_s if sent_s > now_s else now_s) + half_s
        return (ready_s if ready_s > free_s else free_s) + self._service_time_s[task.model_name] + half_s

    def _tail_of_queue(self, now_s: float) -> _Expected:
        """What is expected after all that waits has been sent; kept until something happens or a request is overdue."""
        if self._tail is None or now_s > self._tail_valid_until_s:
            in_flight = self._expected_of_in_flight(now_s)
            tail = self._after_sending(in_flight, self._waiting, now_s) if self._waiting else in_flight
            self._tail_valid_until_s = in_flight[1][0]
            self._tail = tail if len(self._in_flight) == self._connections else None
            return tail
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
        return free_s, connections

    def _after_sending(self, state: _Expected, queue: Sequence[_Waiting], now_s: float) -> _Expected:
        """`state` after more requests have each taken the earliest connection; the connection of the last one comes last."""
        free_s, half_s = state[0], self._half_overhead_s
        connections, earliest = state[1].copy(), 0
        for (
            _,
            _,
            service_s,
            _,
        ) in queue:  # each ends after those before it, so the connections stay in order, from `earliest` round
            sent_s = connections[earliest]
            ready_s = (sent_s if sent_s > now_s else now_s) + half_s
            free_s = (ready_s if ready_s > free_s else free_s) + service_s
            connections[earliest] = free_s + half_s
            earliest = (earliest + 1) % len(connections)
        return free_s, connections[earliest:] + connections[:earliest]
