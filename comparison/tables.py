"""Tables of a comparison: means and differences by policy, the Pareto front, highest loads, the ablation.

A policy is a scheduler with a queue discipline. Runs of one load and seed have met the same scenario, so policies are compared
by differences paired by seed. Intervals are Student's t over seeds at 95 %; p-values of a family are adjusted by Holm's
procedure, and the interval of a difference is that of its test.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from comparison.load_limits import HIGHEST_LOAD, LOWEST_LOAD, SHARE_OF_ACHIEVABLE, LoadLimit
from measurement.intervals import Interval, Tested, holm_differences, t_interval
from utils import HarnessError

REFERENCE = "earliest_completion"
COMPLIANCE = "fixed_deadline_compliance_rate"
ENERGY = "above_idle_per_task_j"
FAMILY = "all pairs of policies of one load, queue discipline and metric"
"""Tests whose p-values are adjusted together, wherever policies are compared."""
METRICS = (
    "base_deadline_compliance_rate",
    "response_p50_s",
    "response_p99_s",
    ENERGY,
    "above_idle_per_on_time_task_j",
    "load_fairness",
    "rank_reversal_rate",
    "adapted_deadline_compliance_rate",
)
"""Metrics of the comparison beside those against the fixed deadline, which depend on the classes of the settings: the columns
`fixed_` of cells.csv, and `slo_`, their names of before."""

ABLATION_METRICS = (COMPLIANCE, ENERGY)


def with_ends(name: str) -> tuple[str, str, str]:
    """Columns of a mean and its interval."""
    return name, f"{name}_low", f"{name}_high"


KEYS = ("scheduler", "queue_discipline", "load")
_DIFFERENCE = with_ends("difference")
COMPARISON_COLUMNS = (*KEYS, "metric", "seeds", "mean", "low", "high", *_DIFFERENCE, "p_value", "p_holm")
PARETO_COLUMNS = (*KEYS, *with_ends("miss_rate"), *with_ends(ENERGY), "on_front")
LOAD_LIMIT_COLUMNS = ("scheduler", "queue_discipline", "seeds", "found", "mean", "low", "high", "text")
ABLATION_COLUMNS = (*KEYS, "without", "metric", "seeds", "mean", *_DIFFERENCE, "p_holm")


def reference_of(schedulers: Sequence[str]) -> str:
    """The scheduler that differences are taken to: `earliest_completion`, or the first where it is not among them."""
    return REFERENCE if REFERENCE in schedulers else schedulers[0]


def compared(cells: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Means and intervals of every metric, and differences to the reference: comparison.csv.

    A metric without any value has no row; one that lacks a value in some seed has neither mean nor difference, since a mean over
    the other seeds would be unfair. `seeds` counts the values.

    Args:
        cells: a row per run, with the columns of cells.csv.
        reference: the scheduler that differences are taken to, of the same load, seed and queue discipline.

    Raises:
        HarnessError: two policies of one load and seed have met different scenarios.
    """
    _require_same_scenarios(cells)
    slo, fixed = ([column for column in cells.columns if column.startswith(start)] for start in ("slo_", "fixed_"))
    metrics = [metric for metric in (*slo, *METRICS, *fixed) if metric in cells]
    rows: list[dict[str, object]] = []
    for _, group in cells.groupby(["queue_discipline", "load"], sort=False):
        table = [row for metric in metrics for row in _compared_by(group, metric, reference)]
        position = {scheduler: number for number, scheduler in enumerate(group["scheduler"].unique())}
        rows += sorted(table, key=lambda row: position[row["scheduler"]])
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _compared_by(group: pd.DataFrame, metric: str, reference: str) -> list[dict[str, Any]]:
    """Rows of one load, queue discipline and metric."""
    by_seed = values_by_seed(group, metric)
    differences = pair_differences(by_seed)
    rows = []
    for scheduler, values in by_seed.items():
        if values.isna().all():
            continue
        row = {
            **dict.fromkeys(COMPARISON_COLUMNS, math.nan),
            "scheduler": scheduler,
            "queue_discipline": group["queue_discipline"].iloc[0],
            "load": group["load"].iloc[0],
            "metric": metric,
            "seeds": int(values.notna().sum()),
            **t_interval(values)._asdict(),
        }
        if (scheduler, reference) in differences:
            row.update(_difference_fields(differences[scheduler, reference]))
        rows.append(row)
    return rows


def pair_differences(by_seed: pd.DataFrame) -> dict[tuple[Any, Any], Tested]:
    """Differences of all pairs of policies, in both directions: the one family of tests of a load, queue discipline and metric.

    Policies without a value in some seed are left out.

    Args:
        by_seed: values of one metric, from `values_by_seed`.

    Returns:
        by (policy, the policy it is compared with).
    """
    whole = by_seed.dropna(axis="columns")
    pairs = list(combinations(whole.columns, 2))
    differences: dict[tuple[Any, Any], Tested] = {}
    for (one, other), found in zip(pairs, holm_differences([(whole[one], whole[other]) for one, other in pairs]), strict=True):
        differences[one, other] = found
        differences[other, one] = found._replace(mean=0 - found.mean, low=0 - found.high, high=0 - found.low)
    return differences


def by_fixed_deadline(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table with each metric once: `slo_` metrics are another name of `fixed_` ones, and all that old files have.

    Args:
        table: as comparison.csv or ablation.csv holds it.
    """
    names = {"slo_compliance_rate": COMPLIANCE}
    named = table["metric"].map(lambda metric: names.get(metric, re.sub("^slo_", "fixed_", metric)))
    return table.assign(metric=named).drop_duplicates([key for key in (*KEYS, "without", "metric") if key in table])


def values_by_seed(group: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Values of `metric`, a row per seed and a column per scheduler in the order of the cells; NaN where there is none."""
    wide = group.assign(value=pd.to_numeric(group[metric])).pivot(index="seed", columns="scheduler", values="value")
    return wide[group["scheduler"].unique()].astype(float)


def _difference_fields(difference: Tested) -> dict[str, float]:
    return dict(zip((*_DIFFERENCE, "p_value", "p_holm"), difference, strict=True))


def _require_same_scenarios(cells: pd.DataFrame) -> None:
    for (load, seed), group in cells.groupby(["load", "seed"], sort=False):
        first = group.iloc[0]
        for _, cell in group[group["scenario_sha256"] != first["scenario_sha256"]].iterrows():
            raise HarnessError(
                f"load {load:g}, seed {seed}: {policy_name(cell['scheduler'], cell['queue_discipline'])} met scenario "
                f"{cell['scenario_sha256'][:12]}, {policy_name(first['scheduler'], first['queue_discipline'])} "
                f"{first['scenario_sha256'][:12]}: only runs of the same scenario can be compared"
            )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each point is on the front: none is at least as small in both coordinates and smaller in one.

    Equal points are on it together; a point with a NaN is not on it.
    """
    return [not math.isnan(x + y) and not any(u <= x and v <= y and (u < x or v < y) for u, v in points) for x, y in points]


def pareto(cells: pd.DataFrame) -> pd.DataFrame:
    """Misses of the fixed deadline against energy above idle, by policy: pareto.csv.

    The front is that of the means, over all policies of one load, whatever their queue discipline.
    """
    rows: list[dict[str, object]] = []
    for load, of_load in cells.groupby("load", sort=False):
        points = []
        for (scheduler, queue), runs in of_load.groupby(["scheduler", "queue_discipline"], sort=False):
            misses = t_interval(1 - runs[COMPLIANCE].astype(float))
            energy = t_interval(runs[ENERGY].astype(float))
            points.append((misses.mean, energy.mean))
            rows.append(dict(zip(PARETO_COLUMNS, (scheduler, queue, load, *misses, *energy), strict=False)))
        for row, on_front in zip(rows[-len(points) :], pareto_front(points), strict=True):
            row["on_front"] = on_front
    return pd.DataFrame(rows, columns=PARETO_COLUMNS)


def ablation(cells_full: pd.DataFrame, cells_without: pd.DataFrame) -> pd.DataFrame:
    """What each criterion of a TOPSIS policy is worth: ablation.csv.

    Differences are the policy without the criterion minus the full one, paired by seed. Holm's family: the criteria of one
    policy, load and metric.

    Args:
        cells_full: runs of the full policies, among others.
        cells_without: runs with one criterion's weight at 0, with the columns of `cells_full` and the criterion in `without`.

    Raises:
        HarnessError: a policy without a criterion met another scenario than the full one.
    """
    if cells_without.empty:
        return pd.DataFrame(columns=ABLATION_COLUMNS)
    met = [*KEYS, "seed", "scenario_sha256"]
    _require_same_scenarios(pd.concat([cells_without[met], cells_full[met]]))
    rows: list[dict[str, Any]] = []
    full = dict(list(cells_full.groupby(list(KEYS), sort=False)))
    for key, of_policy in cells_without.groupby(list(KEYS), sort=False):
        for metric in ABLATION_METRICS:
            by_seed = of_policy.pivot(index="seed", columns="without", values=metric).astype(float)
            of_full = full[key].set_index("seed")[metric].astype(float).reindex(by_seed.index)
            criteria = of_policy["without"].unique()
            differences = holm_differences([(by_seed[criterion], of_full) for criterion in criteria])
            for criterion, difference in zip(criteria, differences, strict=True):
                found = {"metric": metric, "seeds": len(by_seed), "mean": t_interval(by_seed[criterion]).mean}
                fields = {"without": criterion, **found, **_difference_fields(difference)}
                rows.append({**dict(zip(KEYS, key, strict=True)), **fields})
    return pd.DataFrame(rows, columns=ABLATION_COLUMNS)


def load_limits(
    limits: Mapping[tuple[str, str], Sequence[LoadLimit]], low: float = LOWEST_LOAD, high: float = HIGHEST_LOAD
) -> pd.DataFrame:
    """The highest load of each policy over seeds: load_limits.csv.

    Mean and interval only where every seed has a limit between `low` and `high`, the loads that were tried.

    Args:
        limits: by scheduler and queue discipline, one for each seed.
        low: lowest load tried.
        high: highest load tried.
    """
    rows = []
    for (scheduler, queue), of_policy in limits.items():
        found = [limit.load for limit in of_policy if limit.load is not None]
        interval = t_interval(found if len(found) == len(of_policy) else [])
        text = _limit_text(of_policy, interval, low, high)
        rows.append((scheduler, queue, len(of_policy), len(found), *interval, text))
    return pd.DataFrame(rows, columns=LOAD_LIMIT_COLUMNS)


def _limit_text(limits: Sequence[LoadLimit], interval: Interval, low: float, high: float) -> str:
    seeds = len(limits)
    found = [limit.load for limit in limits if limit.load is not None]
    if len(found) == seeds:
        between = "one seed, no interval" if seeds == 1 else f"{interval.low:.2f} to {interval.high:.2f}"
        return f"{interval.mean:.2f} ({between})"
    below, above, unknown = (sum(limit.kind == kind for limit in limits) for kind in ("below", "above", "unknown"))
    texts = []
    if below:
        share = f"{SHARE_OF_ACHIEVABLE:.0%}".replace("%", " %")
        texts.append(f"not reached: below {share} at load {low:g} already ({below} of {seeds} seeds)")
    if above:
        texts.append(f"{high:g} or more ({above} of {seeds} seeds)")
    if unknown:
        texts.append(f"not known: no task was dispatched ({unknown} of {seeds} seeds)")
    if found:
        span = f"{min(found):.2f}" + (f" to {max(found):.2f}" if len(found) > 1 else "")
        texts.append(f"{span} ({len(found)} of {seeds} seeds)")
    return "; ".join(texts)


def policy_name(scheduler: str, queue_discipline: str | None) -> str:
    """The policy for a person."""
    return scheduler if queue_discipline is None else f"{scheduler} ({queue_discipline})"
