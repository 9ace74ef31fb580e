"""The same cluster in virtual time: an event-driven model of the nodes that an emulated run plays on the wall clock.

A node is its queue, its pool of connections, half the request overhead before and half after, and one accelerator served first
come first served in the order of sending. The service time of a task is the profile's mean times the task's own noise, as on an
emulated node; so is its request overhead where the profile lets that vary. Power is seen as the real pipeline sees it, a mean
over the last whole second that arrives late; energy is exact.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from typing import Self

from cluster.base import Cluster
from cluster.node_queue import NodeState, Request
from performance_profile import PerformanceProfile
from scheduler import BaseScheduler
from settings import Settings, load_settings
from task import Decision, NodeEnergy, PowerSample, Task, TaskResult

ServiceTime = Callable[[Task, float], float]
"""True service time, seconds, of a task with its standard normal noise."""

_NOT_MODELLED = {
    "requests": ("max_attempts", "connect_timeout_s", "request_timeout_s", "health_interval_s"),
    "power": ("host_metrics",),
}
_ANSWER, _SAMPLE = 0, 1
"""Of events at one instant, answers come before samples, and both before an arrival at that instant."""


class _Intervals:
    """Seconds spent in intervals, up to an instant that never goes back."""

    def __init__(self) -> None:
        self._recent: list[tuple[float, float]] = []
        self._past_s = 0.0

    def add(self, start_s: float, end_s: float) -> None:
        """One more interval; it may lie ahead."""
        self._recent.append((start_s, end_s))

    def spent_s(self, until_s: float) -> float:
        """Seconds of all intervals together before `until_s`."""
        self._recent, recent = [], self._recent
        spent_s = 0.0
        for start_s, end_s in recent:
            if end_s <= until_s:
                self._past_s += end_s - start_s
            else:
                self._recent.append((start_s, end_s))
                spent_s += max(0.0, until_s - start_s)
        return self._past_s + spent_s


class Accelerator:
    """One accelerator, first come first served, and the power of the node around it.

    Args:
        service_time_s: true service time of a task there.
        idle_w: power of the node with an idle accelerator, watts.
        busy_w: power with a busy one, watts.
        servers: requests it can serve at once; 1 on every real node.
        overhead_w: power above idle that each request draws while it is received or answered, watts.
    """

    def __init__(
        self, service_time_s: ServiceTime, idle_w: float, busy_w: float, servers: int = 1, overhead_w: float = 0.0
    ) -> None:
        self._service_time_s = service_time_s
        self._idle_w = idle_w
        self._above_idle_w = busy_w - idle_w
        self._free_s = [-math.inf] * servers
        self._overhead_w = overhead_w
        self._busy = _Intervals()
        self._overhead = _Intervals()
        self._spent_at_sample_s = 0.0, 0.0

    def serve(self, task: Task, noise: float, ready_s: float) -> tuple[float, float]:
        """Start and end of the service of a request that is ready at `ready_s`; requests come as they get ready."""
        start_s = max(ready_s, self._free_s[0])
        end_s = start_s + self._service_time_s(task, noise)
        heapq.heapreplace(self._free_s, end_s)
        self._busy.add(start_s, end_s)
        return start_s, end_s

    def transfer(self, start_s: float, end_s: float) -> None:
        """A request is received, or answered, in this time."""
        if self._overhead_w > 0:
            self._overhead.add(start_s, end_s)

    def busy_s(self, until_s: float) -> float:
        """Server seconds spent serving up to an instant, which never goes back."""
        return self._busy.spent_s(until_s)

    def energy_j(self, until_s: float) -> tuple[float, float]:
        """Total and above-idle energy from 0 to an instant, joules."""
        above_idle_j = self._above_idle_w * self.busy_s(until_s) + self._overhead_w * self._overhead.spent_s(until_s)
        return self._idle_w * until_s + above_idle_j, above_idle_j

    def mean_power_w(self, until_s: float, over_s: float) -> float:
        """Mean power since the last call, which was `over_s` ago, watts."""
        spent_s = self._busy.spent_s(until_s), self._overhead.spent_s(until_s)
        busy, overhead = ((now_s - before_s) / over_s for now_s, before_s in zip(spent_s, self._spent_at_sample_s, strict=True))
        self._spent_at_sample_s = spent_s
        return self._idle_w + self._above_idle_w * busy + self._overhead_w * overhead


class SimulatedCluster(Cluster):
    """Nodes in virtual time, on one thread; see `Cluster` for the arguments not named here.

    Args:
        service_time: true service time of a task on a node (its name, the task, its noise), seconds; None: the profile's
            log-normal one.
        servers: requests that each accelerator serves at once; 1 on every real node.
    """

    measures_decisions = False

    def __init__(
        self,
        profile: PerformanceProfile,
        node_names: Sequence[str],
        settings: Settings,
        scheduler: BaseScheduler,
        on_end: Callable[[TaskResult], None],
        on_decision: Callable[[Decision], None] | None = None,
        service_time: Callable[[str, Task, float], float] | None = None,
        servers: int = 1,
    ) -> None:
        self._samples: dict[str, PowerSample] = {}
        super().__init__(profile, node_names, settings, scheduler, self._samples, on_end, on_decision, nullcontext())
        self._profile = profile
        self._now_s = 0.0
        self._sequence = count()
        self._events: list[tuple[float, int, int, NodeState | None, Request | None, float, float]] = []
        self._half_overhead_s = {name: profile.overhead_s(name) / 2 for name in node_names}
        self._overhead_sigma = {name: profile.overhead_sigma(name) for name in node_names}
        self._accelerators = {
            name: Accelerator(
                _true_service_time(profile, name) if service_time is None else _at_node(service_time, name),
                profile.nodes[name].idle_w,
                profile.nodes[name].busy_w,
                servers,
                profile.nodes[name].overhead_w,
            )
            for name in node_names
        }

    def clock(self) -> float:
        """Virtual seconds since the start of the load."""
        return self._now_s

    def now_s(self) -> float:
        """Virtual seconds since the start of the load."""
        return self._now_s

    def __enter__(self) -> Self:
        """All nodes are up at once and serve what the profile says."""
        for node in self.nodes:
            self._came_up(node, frozenset(self._profile.service_time_s(node.name)))
            self._samples[node.name] = PowerSample(0.0, node.idle_w)
        self._sample_at(self._settings.power.poll_interval_s + self._settings.power.power_delay_s)
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to end."""

    def start_load(self) -> None:
        """The clock stands at zero already."""

    def advance_to(self, time_s: float) -> bool:
        """Let everything happen that is due by `time_s`."""
        events = self._events
        while events and events[0][0] <= time_s and not self._stop:
            self._happen()
        if not self._stop:
            self._now_s = max(self._now_s, time_s)
        return not self._stop

    def drain(self) -> None:
        """Let the open tasks end, at most until the drain timeout."""
        give_up_s = self._now_s + self._settings.requests.drain_timeout_s
        while self._open and not self._stop and self._events[0][0] <= give_up_s:
            self._happen()
        if self._open and not self._stop:
            self._now_s = give_up_s
        self._end_all_open()

    def energy(self) -> Mapping[str, NodeEnergy]:
        """Exact energy of each node from the start of the load to now."""
        return {name: NodeEnergy(*accelerator.energy_j(self._now_s), 0.0) for name, accelerator in self._accelerators.items()}

    def _sample_at(self, time_s: float) -> None:
        heapq.heappush(self._events, (time_s, _SAMPLE, next(self._sequence), None, None, 0.0, 0.0))

    def _happen(self) -> None:
        """The next event: an answer comes, or a power sample is seen."""
        self._now_s, _, _, node, request, queue_s, service_s = heapq.heappop(self._events)
        if node is None or request is None:
            self._sample()
            return
        self._answered(node, request, self._now_s, queue_s, service_s)
        self._work_arrived(node)

    def _work_arrived(self, node: NodeState) -> None:
        while node.can_send:
            self._send(node)

    def _send(self, node: NodeState) -> None:
        now_s = self._now_s
        request = node.take(now_s)
        request.start_time_s = now_s
        half_s = self._half_overhead_s[node.name]
        if request.overhead_noise is not None:
            sigma = self._overhead_sigma[node.name]
            half_s *= math.exp(sigma * request.overhead_noise - sigma**2 / 2)
        ready_s = now_s + half_s
        accelerator = self._accelerators[node.name]
        start_s, end_s = accelerator.serve(request.task, request.service_noise, ready_s)
        accelerator.transfer(now_s, ready_s)
        accelerator.transfer(end_s, end_s + half_s)
        heapq.heappush(
            self._events, (end_s + half_s, _ANSWER, next(self._sequence), node, request, start_s - ready_s, end_s - start_s)
        )

    def _sample(self) -> None:
        """Every node's mean power since the last sample, seen `power_delay_s` after the instant it is of."""
        power = self._settings.power
        at_s = self._now_s - power.power_delay_s
        for name, accelerator in self._accelerators.items():
            self._samples[name] = PowerSample(at_s, accelerator.mean_power_w(at_s, power.poll_interval_s))
        self._sample_at(self._now_s + power.poll_interval_s)


def ignored_settings(settings: Settings) -> list[str]:
    """Says which settings differ from their defaults although virtual time does not model what they set."""
    default, own = load_settings(), {"requests": settings.requests, "power": settings.power}
    changed = [
        f"{group}.{name}"
        for group, names in _NOT_MODELLED.items()
        for name in names
        if getattr(own[group], name) != getattr(getattr(default, group), name)
    ]
    return [f"virtual time does not model {', '.join(changed)}: what the settings say there has no effect"] if changed else []


def _true_service_time(profile: PerformanceProfile, node: str) -> ServiceTime:
    """Profile mean × exp(σz − σ²/2), σ² = ln(1 + cv²): log-normal with the profile's mean and coefficient of variation."""
    mean_s, sigma = profile.service_time_s(node), profile.sigma(node)
    shift = sigma**2 / 2
    return lambda task, noise: mean_s[task.model_name] * math.exp(sigma * noise - shift)


def _at_node(service_time: Callable[[str, Task, float], float], node: str) -> ServiceTime:
    return lambda task, noise: service_time(node, task, noise)
