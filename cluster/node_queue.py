"""One node as the master knows it: its queue (FIFO, EDF), its requests in flight, and when it expects them to end."""

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import chain, count
from operator import add

from scheduler import Node
from task import Device, Outcome, Task, TaskResult, from_fields

_RESULT = from_fields(TaskResult)


class Request:
    """A task on its way through the cluster; it changes as the task is placed, sent and, perhaps, placed again."""

    __slots__ = (
        "attempts",
        "device",
        "dispatch_time_s",
        "error",
        "node_name",
        "overhead_noise",
        "refusals",
        "service_noise",
        "start_time_s",
        "task",
        "tried",
    )

    def __init__(self, task: Task, device: Device, service_noise: float, overhead_noise: float | None = None) -> None:
        self.task = task
        self.device = device
        self.service_noise = service_noise
        self.overhead_noise = overhead_noise
        self.attempts = 0
        self.refusals = 0
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
                self.overhead_noise,
            )
        )


_Expected = list[float]
"""When a node's accelerator is expected free, then when each of its connections is, soonest first (seconds)."""

_Waiting = tuple[float, int, float, Request]
"""A place in a node's queue: key of its order, sequence number (no two share one), service time in seconds, request."""

_LARGEST_BLOCK = 256
"""Requests in a block of a queue. A queue that fits into one block is replayed request by request, a longer one by blocks."""
_MOST_CONNECTIONS_SUMMED_UP = 8
"""With more connections than this, replaying a block is cheaper than to sum it up."""


class _Block:
    """Neighbours in a queue, and their replay: what is expected after each of them, as far as it was asked for.

    Args:
        entries: the requests, in service order; not empty.
        half_overhead_s: half of the node's request overhead, seconds.
    """

    __slots__ = ("_connections_s", "_constants", "_free_s", "_half_overhead_s", "entries")

    def __init__(self, entries: list[_Waiting], half_overhead_s: float) -> None:
        self.entries = entries
        self._half_overhead_s = half_overhead_s
        self._free_s: list[float] = []
        self._connections_s: list[float] = []
        self._constants: list[tuple[float, ...]] | None = None

    def enter(self, expected: _Expected) -> None:
        """Begin the replay anew: this is expected before the first request."""
        self._free_s = [expected[0]]
        self._connections_s = expected[1:]

    def expected_before(self, position: int) -> _Expected:
        """What is expected after the first `position` requests."""
        free_s, connections_s = self._free_s, self._connections_s
        replayed = len(free_s) - 1
        if replayed < position:
            self._replay(free_s, connections_s, self.entries[replayed:position])
        return [free_s[position], *connections_s[position : len(connections_s) - len(free_s) + position + 1]]

    def expected_after(self, replayed: bool) -> _Expected:
        """What is expected after all of the block: replayed request by request, or by what the block comes to.

        A replay is linear in max-plus algebra (Baccelli, Cohen, Olsder and Quadrat, "Synchronization and Linearity", Wiley 1992,
        chapter 3): each result is the largest of the inputs, each plus a constant of its own. A replay that begins with 0 for
        one input and with -inf for the others gives that input's constants, which hold until the block changes.
        """
        before = self.expected_before(0)
        if replayed or len(before) - 1 > _MOST_CONNECTIONS_SUMMED_UP:
            return self.expected_before(len(self.entries))
        if self._constants is None:
            of_inputs = []
            for number in range(len(before)):
                unit = [-math.inf] * len(before)
                unit[number] = 0.0
                free_s, connections_s = unit[:1], unit[1:]
                self._replay(free_s, connections_s, self.entries)
                of_inputs.append([free_s[-1], *connections_s[len(self.entries) :]])
            self._constants = list(zip(*of_inputs, strict=True))
        return [max(map(add, before, constants)) for constants in self._constants]

    def insert(self, position: int, entry: _Waiting) -> None:
        """Put a request before the one at `position`; the replay up to there stays."""
        self.entries.insert(position, entry)
        self._constants = None
        if (surplus := len(self._free_s) - 1 - position) > 0:
            del self._free_s[-surplus:], self._connections_s[-surplus:]

    def pop_first(self) -> _Waiting:
        """Take the first request out; the replay must begin anew then."""
        self._constants = None
        return self.entries.pop(0)

    def halves(self) -> list["_Block"]:
        """Two blocks in the place of this one."""
        middle = len(self.entries) // 2
        return [_Block(part, self._half_overhead_s) for part in (self.entries[:middle], self.entries[middle:])]

    def _replay(self, free_s: list[float], connections_s: list[float], entries: Sequence[_Waiting]) -> None:
        """Append when the accelerator, and the connection, are free after each of `entries` (design: Predicted completion).

        Each request ends after those before it, so connections get free in the order of the list, and the n-th request takes
        the n-th.
        """
        half_s, last_s, position = self._half_overhead_s, free_s[-1], len(free_s) - 1
        for _, _, service_s, _ in entries:
            ready_s = connections_s[position] + half_s
            last_s = (ready_s if ready_s > last_s else last_s) + service_s
            free_s.append(last_s)
            connections_s.append(last_s + half_s)
            position += 1


class NodeState:
    """What the master knows of one node: its queue, its requests in flight, and when it expects them to end.

    Times are seconds on the cluster's clock.

    Args:
        view: the node as schedulers see it. They may write into it: nothing but its identity is read back from it.
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
        self.idle_w = view.idle_w
        self._figures = view.name, view.accelerator, view.idle_w, view.busy_w, view.overhead_j
        self.up = False
        self.models: frozenset[str] = frozenset()
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
        self._blocks: list[_Block] = []
        self._waiting = 0
        self.backlog_s = 0.0
        self._in_flight: dict[Request, float] = {}
        self._accelerator_free_s = -math.inf
        self._expected: _Expected = []
        self._expected_until_s = -math.inf
        self._entered = 0

    @property
    def queue_depth(self) -> int:
        """Tasks waiting and in flight."""
        return self._waiting + len(self._in_flight)

    @property
    def has_waiting(self) -> bool:
        """Whether a task waits for a connection."""
        return self._waiting > 0

    @property
    def can_send(self) -> bool:
        """Whether a task waits and a connection is free for it."""
        return self._waiting > 0 and len(self._in_flight) < self._connections

    def bring_in(self, models: frozenset[str]) -> None:
        """The node is up and has these models: it offers those of them of which the profile knows what they take there."""
        self.up = True
        self.models = models
        self.offers = models & self._service_time_s.keys()

    def take_out(self) -> None:
        """The node is down: it offers nothing."""
        self.up = False
        self.offers = frozenset()

    def put(self, request: Request) -> None:
        """Let a request wait for a connection, at its place in the queue's order."""
        service_s = self._service_time_s[request.task.model_name]
        entry = (self._key(request.task), next(self._sequence), service_s, request)
        self._waiting += 1
        if not self._by_deadline:
            self.backlog_s += service_s
        if not self._blocks:
            self._blocks.append(_Block([entry], self._half_overhead_s))
            return
        number, position = self._place(entry)
        block = self._blocks[number]
        block.insert(position, entry)
        self._entered = min(self._entered, number + 1)
        if len(block.entries) > _LARGEST_BLOCK:
            self._blocks[number : number + 1] = block.halves()
            self._entered = min(self._entered, number)

    def take(self, now_s: float) -> Request:
        """The next request in service order, sent at `now_s`."""
        block = self._blocks[0]
        _, _, service_s, request = block.pop_first()
        if not block.entries:
            del self._blocks[0]
        self._waiting -= 1
        if not self._by_deadline:
            self.backlog_s = self.backlog_s - service_s if self._waiting else 0.0
        self._in_flight[request] = now_s
        self._expected_until_s = -math.inf
        return request

    def take_all_waiting(self) -> list[Request]:
        """Empty the queue, in service order; what is in flight stays."""
        requests = [request for _, _, _, request in chain.from_iterable(block.entries for block in self._blocks)]
        self._blocks.clear()
        self._waiting = self._entered = 0
        self.backlog_s = 0.0
        return requests

    def answered(self, request: Request, now_s: float, inference_time_s: float) -> None:
        """A request was answered: its connection is free, and the accelerator was half an overhead ago."""
        del self._in_flight[request]
        self._expected_until_s = -math.inf
        self._accelerator_free_s = now_s - self._half_overhead_s
        self._busy = (self.busy_fraction(now_s) + inference_time_s / self._busy_window_s, now_s)

    def gave_up(self, request: Request) -> None:
        """A request ended without an answer: its connection is free."""
        del self._in_flight[request]
        self._expected_until_s = -math.inf

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
        view.name, view.accelerator, view.idle_w, view.busy_w, view.overhead_j = self._figures
        view.models = self.models
        view.predicted_completion_s, view.completion_with_margin_s = self.predicted_completion_s(task, now_s, safety_margin)
        view.service_time_s = self._service_time_s[task.model_name]
        view.queue_depth = self._waiting + len(self._in_flight)
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

    def _key(self, task: Task) -> float:
        """What the queue is ordered by; equal keys are served in the order of coming."""
        return task.arrival_time_s + task.adapted_deadline_s if self._by_deadline else 0.0

    def _place(self, entry: tuple[float, float] | _Waiting) -> tuple[int, int]:
        """Number of the block, and position there, at which `entry` keeps the queue in order; the queue is not empty."""
        blocks = self._blocks
        number = min(bisect.bisect(blocks, entry, key=lambda block: block.entries[-1]), len(blocks) - 1) if len(blocks) > 1 else 0
        return number, bisect.bisect(blocks[number].entries, entry)

    def _end_behind_others_s(self, task: Task, now_s: float) -> float:
        """When `task` would be answered, were it put into the queue now (design: Predicted completion)."""
        half_s = self._half_overhead_s
        free_s, sent_s, *_ = self._expected_ahead_of(task, now_s)
        ready_s = sent_s + half_s
        return (ready_s if ready_s > free_s else free_s) + self._service_time_s[task.model_name] + half_s

    def _expected_ahead_of(self, task: Task, now_s: float) -> _Expected:
        """What is expected when `task` is next to be sent; what was replayed is kept for as long as it holds."""
        if now_s > self._expected_until_s:
            self._expected = self._expected_of_in_flight(now_s)
            self._expected_until_s = self._expected[1]
            self._entered = 0
        blocks = self._blocks
        if not blocks:
            return self._expected
        number, position = self._place((self._key(task), math.inf))
        for entered in range(self._entered, number + 1):
            blocks[entered].enter(blocks[entered - 1].expected_after(replayed=entered == 1) if entered else self._expected)
        self._entered = max(self._entered, number + 1)
        return blocks[number].expected_before(position)

    def _expected_of_in_flight(self, now_s: float) -> _Expected:
        """Replay of what was sent and is not answered; an overdue request counts as ending now, a free connection is free now."""
        half_s = self._half_overhead_s
        free_s = self._accelerator_free_s
        expected = [free_s, *[now_s] * (self._connections - len(self._in_flight))]
        for request, sent_s in self._in_flight.items():
            free_s = max(sent_s + half_s, free_s) + self._service_time_s[request.task.model_name]
            if free_s + half_s < now_s:
                free_s = now_s - half_s
            expected.append(max(free_s + half_s, now_s))
        expected[0] = free_s
        return expected
