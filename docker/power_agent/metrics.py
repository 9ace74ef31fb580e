"""Prometheus metrics of the power agent: served over HTTP, or written for node-exporter's textfile collector."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from power_agent.measurement import Measurement

TEXTFILE = "power_agent.prom"


class PowerCollector(Collector):
    """Reads all measurements when Prometheus asks.

    A node whose sensor is lost, or whose latest sample is older than `LONGEST_GAP_S`, has neither watts nor joules: a figure that
    stands still would be taken for a measurement. Its joules go on from where they were when it is back.

    Args:
        measurements: one for each node.
        clock: monotonic seconds, the clock of the samples.
    """

    def __init__(self, measurements: Sequence[Measurement], clock: Callable[[], float] = time.monotonic) -> None:
        self._measurements = measurements
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """All metrics, read now."""
        labels = ["node", "accelerator"]
        power = GaugeMetricFamily("node_power_watts", "Mean power over the last whole second.", labels=labels)
        energy = CounterMetricFamily("node_energy_joules", "Energy measured since the agent started.", labels=labels)
        measured = CounterMetricFamily("node_energy_measured_seconds", "Time that the energy was measured over.", labels=labels)
        age = GaugeMetricFamily("power_agent_sample_age_seconds", "Age of the latest sample.", labels=["node"])
        up = GaugeMetricFamily("power_agent_up", "1 while the node's sensor delivers samples.", labels=["node"])
        errors = CounterMetricFamily("power_agent_errors", "What went wrong with a sensor.", labels=["node", "kind"])
        for measurement in self._measurements:
            snapshot, now_s = measurement.snapshot, self._clock()
            fresh = measurement.is_fresh(now_s)
            up.add_metric([measurement.node], float(fresh))
            for kind, count in measurement.errors.items():
                errors.add_metric([measurement.node, kind], count)
            if snapshot is None:
                continue
            age.add_metric([measurement.node], snapshot.age_s(now_s))
            if fresh:
                energy.add_metric([measurement.node, measurement.accelerator], snapshot.energy_j)
                measured.add_metric([measurement.node, measurement.accelerator], snapshot.measured_s)
                if snapshot.mean_power_w is not None:
                    power.add_metric([measurement.node, measurement.accelerator], snapshot.mean_power_w)
        yield from (family for family in (power, energy, measured, age, up, errors) if family.samples)


def registry_of(measurements: Sequence[Measurement]) -> CollectorRegistry:
    """A registry that holds the agent's metrics and nothing else."""
    registry = CollectorRegistry()
    registry.register(PowerCollector(measurements))
    return registry


def write_textfile(folder: Path, registry: CollectorRegistry) -> None:
    """Write the metrics to a temporary name and rename it, so that node-exporter never sees half a file.

    Raises:
        OSError: the folder cannot be written.
    """
    write_to_textfile(str(folder / TEXTFILE), registry)
