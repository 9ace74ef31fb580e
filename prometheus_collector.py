"""Node state and power: a background poller, the latest sample of each node in memory, and energy over a window.

A decision reads `PrometheusCollector.latest`; it never waits for a poll. Samples come from a Prometheus server, or, where there
is none, from the nodes' own `/metrics`. Times are on the master's monotonic clock.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Self

import numpy as np

from measurement.energy import ANY_POWER, PowerHistory, PowerRange, split_impossible
from measurement.power_sources import _LOOK_EVERY_S, ENERGY_METRIC, POWER_METRIC, HostFigures, Source, _reason
from measurement.summary import UNCOVERED_LIMIT
from task import NodeEnergy, PowerSample
from utils import HarnessError, supervised_thread

logger = logging.getLogger(__name__)
_COUNTER_LOOK_BACK = 10
"""Samples among which the counter's value before the latest is looked for."""
_LONGEST_PAUSE_S = 0.5
_FIRST_POLL_S = 5.0
_FRESH_POLL_S = 1.0
_AFTER_STOP_S = 0.5
"""How long anybody waits for a poll once the run was asked to stop."""
_SOME_POWER_W = 1e-3
"""Idle power that is surely not too large, and not 0, with which a counter may stand still."""
_LEAST_PAUSE = 0.1
"""Share of the interval that the poller rests after a slow answer, so that others get at what it has read."""


class PrometheusCollector:
    """Polls a source in the background and keeps what it said.

    `latest` holds the last sample of each node. Its power is the gauge's, or, where a node has only a counter, the mean between
    the counter's last two samples if they are near enough; a value that is not a number is None there, and an old sample is known
    by its time.

    Args:
        source: where samples come from; None for a cluster without any meter.
        nodes: the nodes of the cluster.
        interval_s: time between polls, seconds.
        read_host: gives figures of the nodes themselves, by node and name, to be read with every poll.
        read_busy: gives the seconds that accelerators were busy between two instants, by node.
        delay_s: how long after each multiple of `interval_s` on the wall clock it polls, seconds. Meters and Prometheus keep to
            that clock too, so equal runs that start at a whole second see equal samples at equal times.
        power_ranges: what a node can draw, by node; a sample that says otherwise is not used. Absent nodes can draw anything.
        stopping: asked while somebody waits for a poll; True ends that soon.
    """

    def __init__(
        self,
        source: Source | None,
        nodes: Sequence[str],
        interval_s: float,
        read_host: Callable[[], HostFigures] | None = None,
        delay_s: float = 0.0,
        read_busy: Callable[[float, float], dict[str, float]] = lambda start_s, end_s: {},
        power_ranges: Mapping[str, PowerRange] = MappingProxyType({}),
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.latest: dict[str, PowerSample] = {}
        self._read_host = read_host
        self._read_busy = read_busy
        self._host_history: list[tuple[float, HostFigures]] = []
        self.failed_polls = 0
        self._failing: set[str] = set()
        self._source = source
        self._interval_s = interval_s
        self._delay_s = delay_s
        self._power_ranges = power_ranges
        self._stopping = stopping
        self._history: dict[str, list[PowerSample]] = {node: [] for node in nodes}
        self._reading = threading.Lock()  # one poll at a time
        self._lock = threading.Lock()  # guards what has been read
        self._polled = threading.Condition()
        self._polled_since_s = -math.inf
        """When the last poll began that has ended."""
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._death: HarnessError | None = None
        self._on_death: Callable[[HarnessError], None] | None = None
        self._thread = supervised_thread("power-poller", self._run, self._died)

    def __enter__(self) -> Self:
        if self._source is not None:
            self._thread.start()
            self.poll_until(lambda: self._polled_since_s > -math.inf, _FIRST_POLL_S)
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_AFTER_STOP_S)  # an exchange that hangs ends with its deadline, or with the process

    def on_death(self, tell: Callable[[HarnessError], None]) -> None:
        """Call `tell`, from the polling thread, when that thread dies; at once if it has."""
        self._on_death = tell
        if self._death:
            tell(self._death)

    def _died(self, death: HarnessError) -> None:
        self._death = death
        if self._on_death:
            self._on_death(death)

    def poll(self) -> None:
        """Read the source once, now. A failure of any kind is counted and logged; the last samples stay, and grow old."""
        if self._source is None:
            return
        with self._reading:
            began_s = time.monotonic()
            try:
                self._store(self._source.read())
            except Exception as error:  # whatever it is, there are no data now, and the next poll may bring some
                self._failed("power", error)
            else:
                self._worked("power")
                self._poll_host()
        with self._polled:
            self._polled_since_s = began_s
            self._polled.notify_all()

    def _store(self, read: Mapping[str, Sequence[PowerSample]]) -> None:
        with self._lock:
            for node, samples in read.items():
                history = self._history[node]
                fresh = [sample for sample in samples if not history or sample.time_s > history[-1].time_s + 1e-3]
                history.extend(fresh)
                if fresh:
                    self.latest[node] = self._seen(node, history[-_COUNTER_LOOK_BACK:])

    def _seen(self, node: str, samples: Sequence[PowerSample]) -> PowerSample:
        """The last of some samples as a decision may see it."""
        power_range = self._power_ranges.get(node, ANY_POWER)
        possible, _ = split_impossible(samples, power_range)
        seen = _with_power(possible[-1], possible[:-1], _COUNTER_LOOK_BACK * self._interval_s)
        can_be = seen.power_w is None or power_range.includes(seen.power_w)
        return seen if can_be else seen._replace(power_w=None)

    def _poll_host(self) -> None:
        if self._read_host:
            try:
                self._host_history.append((time.monotonic(), self._read_host()))
            except Exception as error:  # as above
                self._failed("host", error)
            else:
                self._worked("host")

    def poll_now(self) -> None:
        """Have the source read once more, and wait for that for a short time."""
        asked_s = time.monotonic()
        self.poll_until(lambda: self._polled_since_s >= asked_s, _FRESH_POLL_S)

    def poll_until(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Have the source read until `holds`, at most for a time in seconds; whether it does.

        The poller's thread reads: however long an exchange takes, who waits here goes on in time. Without that thread it is read
        here.
        """
        began_s, asked_s = time.monotonic(), -math.inf
        pause_s = min(self._interval_s, _LONGEST_PAUSE_S)
        while not holds():
            now_s = time.monotonic()
            if now_s - began_s >= (min(within_s, _AFTER_STOP_S) if self._stopping() else within_s):
                return False
            if now_s - asked_s >= pause_s:
                asked_s = now_s
                if self._thread.is_alive():
                    self._wanted.set()
                else:
                    self.poll()
                    continue
            with self._polled:
                self._polled.wait(min(_LOOK_EVERY_S, pause_s))
        return True

    def poll_past(self, time_s: float, max_age_s: float) -> None:
        """Poll until every node that still sends has a sample from `time_s` on, so that its energy reaches up to there.

        Args:
            time_s: an instant on the monotonic clock, of now or shortly before.
            max_age_s: age in seconds from which on a node is no longer waited for.
        """
        self.poll_until(
            lambda: (
                self._polled_since_s >= time_s
                and all(self.latest[node].time_s >= time_s for node in self._history if self.is_up(node, max_age_s))
            ),
            within_s=max(3 * self._interval_s, min(max_age_s, _FIRST_POLL_S)),
        )

    def _failed(self, what: str, error: Exception) -> None:
        self.failed_polls += 1
        log = logger.debug if what in self._failing else logger.warning
        self._failing.add(what)
        log("%s poll failed: %s", what, error if isinstance(error, OSError) else _reason(error))

    def _worked(self, what: str) -> None:
        if what in self._failing:
            self._failing.remove(what)
            logger.warning("%s polls work again", what)

    def is_up(self, node: str, max_age_s: float) -> bool:
        """Whether the latest sample of `node` holds a value and is at most `max_age_s` old."""
        sample = self.latest.get(node)
        has_value = sample is not None and (sample.power_w is not None or sample.energy_j is not None)
        return has_value and sample is not None and time.monotonic() - sample.time_s <= max_age_s

    def metrics(self, max_age_s: float) -> dict[str, tuple[str, ...]]:
        """Which of the two power metrics each node has shown within the last `max_age_s`; none for a node without power data."""
        since_s = time.monotonic() - max_age_s
        found = {}
        with self._lock:
            for node, history in self._history.items():
                recent = [sample for sample in history if sample.time_s >= since_s]
                counter = any(sample.energy_j is not None for sample in recent)
                gauge = any(sample.power_w is not None for sample in recent)
                found[node] = (ENERGY_METRIC,) * counter + (POWER_METRIC,) * gauge
        return found

    def energy(self, start_s: float, end_s: float, idle_w: Mapping[str, float]) -> dict[str, NodeEnergy]:
        """Energy of each node between two instants of the monotonic clock; `idle_w` by node, watts."""
        return self.history().energy(start_s, end_s, idle_w)

    def history(self) -> PowerHistory:
        """All samples up to now."""
        clock_steps = getattr(self._source, "clock_steps", ())
        with self._lock:
            samples = {node: tuple(history) for node, history in self._history.items()}
        return PowerHistory(samples, self._power_ranges, self._interval_s, tuple(clock_steps))

    def busy_s(self, start_s: float, end_s: float) -> dict[str, float]:
        """Seconds that accelerators were busy between two instants of the monotonic clock, for nodes whose servers say so."""
        if not self._reading.acquire(timeout=_AFTER_STOP_S if self._stopping() else _FIRST_POLL_S):
            return {}  # a poll hangs
        try:
            return {} if "power" in self._failing else self._read_busy(start_s, end_s)
        except Exception as error:  # as in `poll`
            self._failed("busy time", error)
            return {}
        finally:
            self._reading.release()

    def host_metrics(self, start_s: float, end_s: float) -> HostFigures:
        """Mean of each host figure between two instants of the monotonic clock, by node."""
        with self._lock:
            inside = [by_node for at_s, by_node in self._host_history if start_s <= at_s <= end_s]
        gathered: dict[str, dict[str, list[float]]] = {}
        for by_node in inside:
            for node, figures in by_node.items():
                for name, value in figures.items():
                    gathered.setdefault(node, {}).setdefault(name, []).append(value)
        return {node: {name: float(np.mean(values)) for name, values in figures.items()} for node, figures in gathered.items()}

    def idle_power_w(self, start_s: float, end_s: float) -> dict[str, float]:
        """Mean power of each node between two instants at which it was idle, watts.

        Over the part of the interval that samples cover, which is what idle power is taken off for. A node whose samples leave
        out more of the interval than a valid energy figure may, or cannot be, is absent.
        """
        in_all = self.energy(start_s, end_s, dict.fromkeys(self._history, _SOME_POWER_W))
        rough_w = {node: energy.total_j / (end_s - start_s) if energy.total_j else 0.0 for node, energy in in_all.items()}
        power_w = {}
        history = self.history()
        energy, impossible = history.energy(start_s, end_s, rough_w), history.impossible(start_s, end_s, rough_w)
        for node, (total_j, above_j, uncovered) in energy.items():
            if node in impossible or uncovered > UNCOVERED_LIMIT:
                continue
            if total_j is not None and above_j is not None and total_j > above_j:
                power_w[node] = rough_w[node] * total_j / (total_j - above_j)
        return power_w

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.clear()
            self.poll()
            self._wanted.wait(self._pause_s(time.time()))

    def _pause_s(self, unix_s: float) -> float:
        """Seconds from `unix_s` until the next poll."""
        least_s = _LEAST_PAUSE * self._interval_s
        return least_s + self._interval_s - (unix_s + least_s - self._delay_s) % self._interval_s


def _with_power(sample: PowerSample, before: Sequence[PowerSample], longest_s: float) -> PowerSample:
    """The sample; of a node that has only a counter, with the mean power since the counter's value before.

    None is worked out for a node with a gauge, which is silent after a gap until it has measured a whole second, and none over
    more than `longest_s` seconds: the meter may have been away, its counter standing still.
    """
    if sample.power_w is not None or sample.energy_j is None or any(earlier.power_w is not None for earlier in before):
        return sample
    for earlier in reversed(before):
        if earlier.energy_j is not None and sample.time_s - earlier.time_s <= longest_s:
            grown_j = sample.energy_j - earlier.energy_j
            return sample._replace(power_w=grown_j / (sample.time_s - earlier.time_s)) if grown_j >= 0 else sample
    return sample
