"""What the figures of a run come to: percentiles, fairness, sums of energy, and whether the run may be believed.

Pure functions of figures that others have gathered; `RunFacts` is what they say of a run beside its tasks.
"""

import functools
import math
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from platform import machine, python_version
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from settings import Settings
from task import NodeEnergy
from utils import git_commit

LAG_P99_LIMIT_S = 5e-3
LAG_MAX_LIMIT_S = 50e-3
WAKE_P99_LIMIT_S = 5e-3
DOWN_LIMIT_S = 5.0
NONE_UP_LIMIT_S = 1.0
LOST_LIMIT = 0.01
BUSY_EXCESS, BUSY_EXCESS_S = 0.05, 1.0
"""How much more than the window, as a share and in seconds, a counter of busy time may make by the times of its samples."""
CHANCE_LIMIT = 0.001
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
        trace: file, SHA-256, seed and load of the trace that was replayed; seed and load None where they are not known. None for
            a load that was drawn.
        performance_profile_sha256: hash of the nodes' figures.
        impossible_energy: what samples of a node's energy cannot be, with their times, by node.
        idle_w: idle power of each node that above-idle energy was taken against, watts.
        down_periods: node, from, until; of one node they do not overlap.
        unreachable_at_start: why, by node.
        wake_late_p99_s: how late the emulated accelerators woke; None elsewhere.
        round_trip_s: what the local connection to each emulated node was measured to take; None elsewhere.
        host_metrics: mean CPU, memory and network figures by node; None where they were not asked for.
        warnings: what a reader of the results must know, one sentence each; they do not make the run invalid.
        counted_busy_s: how long each accelerator was busy by its server's own counters; nodes without one are absent.
        untold_busy_s: how long each was busy with what no answered task tells: probes, and requests that were given up (profile).
        abandoned: how many requests to each were given up while it was computing them.
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
    round_trip_s: Mapping[str, float] | None = None
    host_metrics: Mapping[str, Mapping[str, float]] | None = None
    warnings: Sequence[str] = ()
    counted_busy_s: Mapping[str, float] = field(default_factory=dict)
    untold_busy_s: Mapping[str, float] = field(default_factory=dict)
    abandoned: Mapping[str, int] = field(default_factory=dict)
    impossible_energy: Mapping[str, str] = field(default_factory=dict)
    trace: Mapping[str, Any] | None = None
    performance_profile_sha256: str = ""

    @property
    def guesses_paths(self) -> bool:
        """Whether the run replayed a trace whose devices' paths are not known: figures that need them are estimates."""
        return self.trace is not None and self.trace["seed"] is None


def describe_run(
    settings: Settings, scenario_sha256: str, performance_profile_sha256: str, trace: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a run is made of, for its summary and, from its start on, its settings.json.

    In a replay, seed and load are those of the trace, None where nobody knows them; `policy_seed` is what the policy draws from.
    """
    plain = settings.model_dump(mode="json")
    if trace is not None:
        plain |= {"seed": trace["seed"], "load": trace["load"]}
    return {
        "scheduler": settings.scheduler,
        "seed": plain["seed"],
        "policy_seed": settings.seed,
        "trace": trace,
        "settings": plain,
        "scenario_sha256": scenario_sha256,
        "performance_profile_sha256": performance_profile_sha256,
        "git_commit": git_commit(),
    }


def percentiles(values: Floats) -> dict[str, float] | None:
    """Mean, percentiles (inverted_cdf: each is a value that occurred) and maximum, NaN left out; None where nothing is left."""
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return None
    names = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 99.9}
    at = np.percentile(present, list(names.values()), method="inverted_cdf").tolist()
    return {"mean": float(present.mean()), **dict(zip(names, at, strict=True)), "max": float(present.max())}


def times_of_all(values: Floats) -> dict[str, float | None] | None:
    """`percentiles` of tasks of which those without an answer (NaN) took for ever; a figure that is then infinite is None."""
    figures = percentiles(np.where(np.isnan(values), np.inf, values))
    return {name: value if math.isfinite(value) else None for name, value in figures.items()} if figures else None


def jain_index(shares: Sequence[float]) -> float | None:
    """Jain's fairness index (Σu)²/(n Σu²), from 1/n to 1; None when all are 0.

    Source: Jain, Chiu and Hawe, DEC Research Report TR-301, 1984.
    """
    squares = sum(share * share for share in shares)
    total = sum(shares)
    return total * total / (len(shares) * squares) if squares > 0 else None


def energy_summary(energy: Mapping[str, NodeEnergy], dispatched: int, on_time: int, not_drawn_j: float = 0.0) -> dict[str, Any]:
    """Joules of the cluster over the window; a figure that needs a node without a meter is None.

    Args:
        energy: what was drawn, by node.
        dispatched: tasks that were dispatched.
        on_time: those of them that were answered in time.
        not_drawn_j: what the tasks without an answer would have taken, above idle and beyond what was drawn; it enters the
            figures per task alone.
    """
    total = _sum_or_none([node.total_j for node in energy.values()])
    above_idle = _sum_or_none([node.above_idle_j for node in energy.values()])
    return {
        "total": total,
        "above_idle": above_idle,
        "above_idle_per_task": None if above_idle is None else ratio(above_idle + not_drawn_j, dispatched),
        "above_idle_per_on_time_task": None if above_idle is None else ratio(above_idle + not_drawn_j, on_time),
        "by_node": {name: node.total_j for name, node in energy.items()},
    }


def busy_s(facts: RunFacts, told_s: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each node's accelerator was busy.

    By its server's own counter where there is one, which may miss a little at the edges of the window, but never less than the
    answers tell; else what the answers tell and the profile's mean of the requests that were given up.

    Args:
        facts: of the run.
        told_s: sum of the inference times of all answers, by node.
    """
    counted_s = _believed_counters_s(facts)
    return {
        node: max(in_answers_s, counted_s[node]) if node in counted_s else in_answers_s + facts.untold_busy_s.get(node, 0.0)
        for node, in_answers_s in told_s.items()
    }


def _believed_counters_s(facts: RunFacts) -> dict[str, float]:
    """What the servers' counters say, without those by which an accelerator was busy for longer than the window."""
    most_s = facts.window_s + max(BUSY_EXCESS_S, BUSY_EXCESS * facts.window_s)
    return {node: counted_s for node, counted_s in facts.counted_busy_s.items() if counted_s <= most_s}


def busy_estimated(facts: RunFacts) -> list[str]:
    """The nodes whose busy time is an estimate, because of requests that were given up and are in no counter."""
    counted_s = _believed_counters_s(facts)
    return [node for node, number in facts.abandoned.items() if number and node not in counted_s]


def busy_warnings(facts: RunFacts) -> list[str]:
    """What a reader must know of busy times that are estimates, and of counters that are not believed."""
    counted_s = _believed_counters_s(facts)
    return [
        f"busy time of {node}: a counter of its server makes {wrong_s:.4g} s of {facts.window_s:.4g} s, which cannot be: "
        "what its answers say is taken instead"
        for node, wrong_s in facts.counted_busy_s.items()
        if node not in counted_s
    ] + [
        f"busy time of {node} is an estimate: {facts.abandoned[node]} requests to it were given up while it was computing them, "
        "and no counter of its server says how long that took; the profile's means stand in"
        for node in busy_estimated(facts)
    ]


def outages(down_periods: Sequence[tuple[str, float, float]]) -> dict[str, dict[str, Any]]:
    """How often and how long each node was out, seconds, with every period; nodes that were never out are absent."""
    periods: dict[str, list[tuple[float, float]]] = {}
    for name, since_s, until_s in down_periods:
        periods.setdefault(name, []).append((since_s, until_s))
    return {
        name: {
            "count": len(of_node),
            "down_s": sum(until_s - since_s for since_s, until_s in of_node),
            "periods": sorted(of_node),
        }
        for name, of_node in periods.items()
    }


def none_up_s(down_periods: Sequence[tuple[str, float, float]], nodes: Collection[str]) -> float:
    """Seconds in which all of `nodes` were out at once."""
    changes = sorted(
        (at_s, change, name) for name, since_s, until_s in down_periods for at_s, change in ((since_s, 1), (until_s, -1))
    )
    out, total_s, before_s = Counter[str](), 0.0, 0.0
    for at_s, change, name in changes:
        if all(out[node] > 0 for node in nodes):
            total_s += at_s - before_s
        out[name] += change
        before_s = at_s
    return total_s


def invalid_reasons(
    facts: RunFacts, lag_s: Mapping[str, float] | None, dispatched: int | None = None, lost: int = 0
) -> list[str]:
    """Why the run must not be believed, in the words of the summary; empty for a valid one.

    Args:
        facts: of the run.
        lag_s: percentiles of the dispatch lag.
        dispatched: how many tasks were dispatched to their end; None: not known.
        lost: how many of these failed or got no answer.
    """
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
    return reasons + _node_reasons(facts, dispatched, lost)


def impossible_reasons(met: int, dispatched: int) -> list[str]:
    """What tasks that met a deadline which no node can meet say against the run; empty where there are none."""
    if not met:
        return []
    return [
        f"{met} of {dispatched} dispatched tasks met a deadline that no idle node can meet: the nodes are quicker than the "
        "profile, which profile_nodes.py measures, or their answers are invented"
    ]


def exceeds_achievable(met: int, achievable: int, dispatched: int) -> bool:
    """Whether so many more tasks met their fixed deadline than idle nodes could that it is no chance: 0.1 % and more than one."""
    return met - achievable > max(1.0, CHANCE_LIMIT * dispatched)


def achievable_text(met_rate: float, achievable_rate: float) -> str:
    """What to say where more tasks met their fixed deadline than idle nodes could."""
    return (
        f"{met_rate:.2%} of the tasks met their fixed deadline, {achievable_rate:.2%} could by the profile: nodes are quicker "
        "than it says, or answers are invented; profile_nodes.py measures the profile anew"
    )


def _node_reasons(facts: RunFacts, dispatched: int | None, lost: int) -> list[str]:
    """What nodes and tasks that failed say against the run.

    Every rule that a declared fault suspends stands here: its periods and the tasks lost to it are to be left out of
    `down_periods`, `dispatched` and `lost` at this place.
    """
    reasons = []
    for name, outage in outages(facts.down_periods).items():
        if outage["down_s"] > DOWN_LIMIT_S:
            times = f" in {outage['count']} outages" if outage["count"] > 1 else ""
            reasons.append(f"{name} was down for {outage['down_s']:.1f} s{times} from {outage['periods'][0][0]:.1f} s on")
    if (nobody_s := none_up_s(facts.down_periods, facts.energy)) > NONE_UP_LIMIT_S:
        reasons.append(f"no node was up for {nobody_s:.1f} s, more than {NONE_UP_LIMIT_S:g} s")
    if dispatched == 0:
        reasons.append("no task was dispatched: nothing was measured")
    elif dispatched is not None and lost > LOST_LIMIT * dispatched:
        reasons.append(
            f"{lost} of {dispatched} dispatched tasks ({lost / dispatched:.1%}) failed or got no answer, more than "
            f"{LOST_LIMIT:.0%}: column error of master_inference_results.csv says why"
        )
    return reasons


def unanswered_warning(unanswered: int, dispatched: int) -> list[str]:
    """What a reader of the summary must know of tasks without an answer; empty where there are none."""
    if not unanswered:
        return []
    return [
        f"{unanswered} of {dispatched} dispatched tasks have no answer: their response time counts as infinite, and "
        f"energy per task holds what they would have taken"
    ]


def energy_invalid_reasons(energy: Mapping[str, NodeEnergy], impossible: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Why the energy figures must not be believed; empty for valid ones.

    Args:
        energy: of each node.
        impossible: what samples of a node cannot be, by node.
    """
    silent, partly = [], {}
    for name, node in energy.items():
        if name in impossible:
            continue  # what is missing of it follows from that
        if node.total_j is None:
            silent.append(f"{name} has no power data")
        elif node.uncovered > UNCOVERED_LIMIT:
            partly[name] = (
                f"{node.uncovered:.0%} of the window was not measured, or is further than two polls from a power sample; "
                "where power is scraped less often than every power.poll_interval_s, raise that"
            )
    return [*_lines_by_nodes(impossible), *silent, *_lines_by_nodes(partly)]


def _lines_by_nodes(said: Mapping[str, str]) -> list[str]:
    """What is said of each node, in one line for all nodes of which the same is said."""
    nodes_of: dict[str, list[str]] = {}
    for name, what in said.items():
        nodes_of.setdefault(what, []).append(name)
    return [f"{', '.join(names)}: {what}" for what, names in nodes_of.items()]


def with_finite_numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with null in place of every number that is not finite, at any depth, and a reason for each.

    A meter or a server can say what makes a sum infinite; that is no reason to lose all other figures. A reason that concerns
    energy makes the energy invalid, another one is a warning.
    """
    found: dict[str, float] = {}
    finite: dict[str, Any] = _with_finite_numbers(summary, "", found)
    for name, value in found.items():
        of_energy = name.startswith(("energy_j.", "idle_w."))
        finite["energy_valid"] = finite["energy_valid"] and not of_energy
        finite["energy_invalid_reasons" if of_energy else "warnings"].append(
            f"{name} is null: it came to {value}, which is no number"
        )
    return finite


def _with_finite_numbers(content: Any, name: str, found: dict[str, float]) -> Any:
    if isinstance(content, Mapping):
        return {key: _with_finite_numbers(each, f"{name}.{key}" if name else key, found) for key, each in content.items()}
    if isinstance(content, (list, tuple)):
        return [_with_finite_numbers(each, name, found) for each in content]
    if isinstance(content, float) and not math.isfinite(content):
        found[name] = content
        return None
    return content


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
