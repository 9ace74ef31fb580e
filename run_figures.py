"""What the figures of a run come to: percentiles, fairness, sums of energy, and whether the run may be believed.

Pure functions of figures that others have gathered; `RunFacts` is what they say of a run beside its tasks.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from platform import machine, python_version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from settings import Settings
from task import NodeEnergy

LAG_P99_LIMIT_S = 5e-3
LAG_MAX_LIMIT_S = 50e-3
WAKE_P99_LIMIT_S = 5e-3
DOWN_LIMIT_S = 5.0
UNCOVERED_LIMIT = 0.05

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RunFacts:
    """What the summary says of a run beside its tasks; times in seconds, energy in joules.

    Attributes:
        cluster: workers, emulated or simulated.
        scheduler: the policy's name as given.
        window_s: from the start of the load to the end of the drain.
        energy: energy of each node over that window.
        idle_w: idle power of each node that above-idle energy was taken against, watts.
        down_periods: node, from, until.
        unreachable_at_start: why, by node.
        wake_late_p99_s: how late the emulated accelerators woke; None elsewhere.
        host_metrics: mean CPU, memory and network figures by node; None where they were not asked for.
        warnings: what a reader of the results must know, one sentence each; they do not make the run invalid.
    """

    experiment_id: str
    started_at: str
    finished_at: str
    interrupted: bool
    cluster: str
    scheduler: str
    settings: Settings
    scenario_sha256: str
    window_s: float
    energy: Mapping[str, NodeEnergy]
    idle_w: Mapping[str, float]
    down_periods: Sequence[tuple[str, float, float]] = ()
    unreachable_at_start: Mapping[str, str] | None = None
    wake_late_p99_s: float | None = None
    host_metrics: Mapping[str, Mapping[str, float]] | None = None
    warnings: Sequence[str] = ()


def percentiles(values: Floats) -> dict[str, float] | None:
    """Mean, percentiles (inverted_cdf: each is a value that occurred) and maximum, NaN left out; None where nothing is left."""
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return None
    names = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 99.9}
    at = np.percentile(present, list(names.values()), method="inverted_cdf").tolist()
    return {"mean": float(present.mean()), **dict(zip(names, at, strict=True)), "max": float(present.max())}


def jain_index(shares: Sequence[float]) -> float | None:
    """Jain's fairness index (Σu)²/(n Σu²), from 1/n to 1; None when all are 0.

    Source: Jain, Chiu and Hawe, DEC Research Report TR-301, 1984.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares > 0 else None


def energy_summary(energy: Mapping[str, NodeEnergy], dispatched: int, on_time: int) -> dict[str, Any]:
    """Joules of the cluster over the window; a figure that needs a node without a meter is None."""
    total = _sum_or_none([node.total_j for node in energy.values()])
    above_idle = _sum_or_none([node.above_idle_j for node in energy.values()])
    return {
        "total": total,
        "above_idle": above_idle,
        "above_idle_per_task": None if above_idle is None else ratio(above_idle, dispatched),
        "above_idle_per_on_time_task": None if above_idle is None else ratio(above_idle, on_time),
        "by_node": {name: node.total_j for name, node in energy.items()},
    }


def invalid_reasons(facts: RunFacts, lag_s: Mapping[str, float] | None) -> list[str]:
    """Why the run must not be believed, in the words of the summary; empty for a valid one."""
    reasons = []
    if facts.interrupted:
        reasons.append("the run was interrupted")
    if lag_s and lag_s["p99"] > LAG_P99_LIMIT_S:
        reasons.append(
            f"dispatch lag p99 {lag_s['p99'] * 1e3:.2f} ms exceeds {LAG_P99_LIMIT_S * 1e3:g} ms: the master was too busy"
        )
    if lag_s and lag_s["max"] > LAG_MAX_LIMIT_S:
        reasons.append(
            f"dispatch lag max {lag_s['max'] * 1e3:.1f} ms exceeds {LAG_MAX_LIMIT_S * 1e3:g} ms: the master was too busy"
        )
    if facts.wake_late_p99_s is not None and facts.wake_late_p99_s > WAKE_P99_LIMIT_S:
        late_ms, limit_ms = facts.wake_late_p99_s * 1e3, WAKE_P99_LIMIT_S * 1e3
        reasons.append(
            f"emulated accelerators woke {late_ms:.1f} ms late at p99, more than {limit_ms:g} ms: this machine was too busy"
        )
    for name, why in (facts.unreachable_at_start or {}).items():
        reasons.append(f"{name} could not be reached at start: {why}")
    for name, since_s, until_s in facts.down_periods:
        if until_s - since_s > DOWN_LIMIT_S:
            reasons.append(f"{name} was down for {until_s - since_s:.1f} s from {since_s:.1f} s on")
    return reasons


def energy_invalid_reasons(energy: Mapping[str, NodeEnergy]) -> list[str]:
    """Why the energy figures must not be believed; empty for valid ones."""
    reasons = []
    for name, node in energy.items():
        if node.total_j is None:
            reasons.append(f"{name} has no power data")
        elif node.uncovered > UNCOVERED_LIMIT:
            reasons.append(
                f"{name}: {node.uncovered:.0%} of the window was not measured, or is further than two polls from a power sample"
            )
    return reasons


@functools.cache
def versions() -> Mapping[str, str]:
    """What the run was made with."""
    packages = ("numpy", "pydantic", "urllib3", "fastapi", "uvicorn", "prometheus-api-client", "prometheus-client")
    return {
        "python": python_version(),
        "platform": sys.platform,
        "machine": machine(),
        **{package: version(package) for package in packages},
    }


def ratio(part: float, whole: float) -> float | None:
    """`part` / `whole`; None where there is no whole."""
    return part / whole if whole else None


def mean(values: Floats | NDArray[np.bool_]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return float(values.mean()) if len(values) else None


def _sum_or_none(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if present and len(present) == len(values) else None
