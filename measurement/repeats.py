"""What several equal runs, or the same run with several seeds, gave: mean, interval and spread of each metric."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from measurement.intervals import t_interval


class Metric(NamedTuple):
    """Where a metric stands in a run's summary, and how a person reads it: its label and what its unit is multiplied by."""

    keys: tuple[str, ...]
    label: str
    scale: float = 1.0


METRICS = {
    "fixed_deadline_compliance_rate": Metric(("fixed_deadline_compliance_rate",), "fixed deadlines met, %", 100),
    "adapted_deadline_compliance_rate": Metric(("adapted_deadline_compliance_rate",), "adapted deadlines met, %", 100),
    "response_mean_s": Metric(("response_time_s", "mean"), "response mean, ms", 1e3),
    "response_p50_s": Metric(("response_time_s", "p50"), "response p50, ms", 1e3),
    "response_p95_s": Metric(("response_time_s", "p95"), "response p95, ms", 1e3),
    "response_p99_s": Metric(("response_time_s", "p99"), "response p99, ms", 1e3),
    "above_idle_j": Metric(("energy_j", "above_idle"), "energy above idle, J"),
    "above_idle_per_task_j": Metric(("energy_j", "above_idle_per_task"), "per task, mJ", 1e3),
    "above_idle_per_on_time_task_j": Metric(("energy_j", "above_idle_per_on_time_task"), "per on-time task, mJ", 1e3),
    "load_fairness": Metric(("load_fairness",), "load fairness (Jain)"),
}


class Repeats(NamedTuple):
    """One metric over several runs: how many there are and count, mean, Student's t interval at 95 %, spread; NaN: undefined."""

    metric: str
    runs: int
    counted: int
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    least: float = math.nan
    greatest: float = math.nan


def repeats_table(summaries: Sequence[Mapping[str, Any]]) -> list[Repeats]:
    """A row per metric.

    Of a metric that a run leaves undefined, as an infinite response time, nothing is told but how many runs have it. Only valid
    runs count, and for energy only those whose energy is valid.

    Args:
        summaries: of the runs.
    """
    rows = []
    for metric, (keys, _, _) in METRICS.items():
        of_energy = keys[0] == "energy_j"
        counted = [each for each in summaries if each["valid"] and (each["energy_valid"] or not of_energy)]
        values = [value for each in counted if (value := _value_at(each, keys)) is not None]
        row = Repeats(metric, len(summaries), len(values))
        if values and len(values) == len(counted):
            sd = statistics.stdev(values) if len(values) > 1 else math.nan
            row = Repeats(metric, len(summaries), len(values), *t_interval(values), sd, min(values), max(values))
        rows.append(row)
    return rows


def _value_at(summary: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = summary
    for key in keys:
        value = None if value is None else value[key]
    return None if value is None else float(value)
