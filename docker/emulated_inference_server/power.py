"""Energy and power of an emulated node.

Idle power always, the rest of the busy power while its accelerator is busy, and `overhead_w` for each request that its host is
receiving or answering.
"""

import math
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from emulated_inference_server.timeline import Timeline


class PowerMeter:
    """Reads energy and power from the timeline of the accelerator.

    Args:
        idle_w: power when idle, in watts.
        busy_w: power while an inference runs, in watts.
        started_s: when the node started, on the clock of the timeline.
        second_s: an instant on that clock at which a second begins; with a common one, all meters of a cluster measure the same
            seconds. None: `started_s`.
        overhead_w: power above idle that each request draws while it is received or answered, in watts.
    """

    def __init__(
        self, idle_w: float, busy_w: float, started_s: float, second_s: float | None = None, overhead_w: float = 0.0
    ) -> None:
        self._idle_w = idle_w
        self._above_idle_w = busy_w - idle_w
        self._overhead_w = overhead_w
        self._started_s = started_s
        self._second_s = started_s if second_s is None else second_s

    def energy_j(self, now_s: float, timeline: Timeline) -> float:
        """Joules from the start to `now_s`."""
        above_idle_j = self._above_idle_w * timeline.busy_s(now_s) + self._overhead_w * timeline.transfer_s(now_s)
        return self._idle_w * (now_s - self._started_s) + above_idle_j

    def power_w(self, now_s: float, timeline: Timeline) -> float:
        """Mean watts over the last whole second before `now_s`.

        Before the first whole second is over, the mean since the start.
        """
        until_s = self._second_s + math.floor(now_s - self._second_s)
        since_s = until_s - 1.0
        if since_s < self._started_s:
            until_s, since_s = now_s, self._started_s
        if until_s <= since_s:
            return self._idle_w
        busy_fraction = (timeline.busy_s(until_s) - timeline.busy_s(since_s)) / (until_s - since_s)
        transfers = (timeline.transfer_s(until_s) - timeline.transfer_s(since_s)) / (until_s - since_s)
        return self._idle_w + self._above_idle_w * min(1.0, busy_fraction) + self._overhead_w * transfers


class PowerCollector(Collector):
    """Hands energy and power to Prometheus.

    Args:
        node: label of the node that is measured.
        accelerator: label of the kind of its device.
        energy_j: reads the joules used so far.
        power_w: reads the watts over the last whole second.
    """

    def __init__(self, node: str, accelerator: str, energy_j: Callable[[], float], power_w: Callable[[], float]) -> None:
        self._labels = [node, accelerator]
        self._energy_j = energy_j
        self._power_w = power_w

    def collect(self) -> Iterator[Metric]:
        """Both metrics, read now."""
        names = ["node", "accelerator"]
        energy = CounterMetricFamily("node_energy_joules", "Energy used since the start of the node.", labels=names)
        energy.add_metric(self._labels, self._energy_j())
        yield energy
        power = GaugeMetricFamily("node_power_watts", "Mean power over the last whole second.", labels=names)
        power.add_metric(self._labels, self._power_w())
        yield power
