"""Tables of a comparison: means and differences by policy, the Pareto front, highest loads, the ablation.

A policy is a scheduler with a queue discipline. Runs of one load and seed have met the same scenario, so policies are compared
by differences paired by seed. Intervals are Student's t over seeds at 95 %; p-values of a family are adjusted by Holm's
procedure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from comparison.intervals import Difference, Interval, holm, paired_difference, t_interval
from comparison.load_limits import HIGHEST_LOAD, LOWEST_LOAD, SHARE_OF_ACHIEVABLE, LoadLimit
from utils import HarnessError

REFERENCE = "earliest_completion"
COMPLIANCE = "fixed_deadline_compliance_rate"
ENERGY = "above_idle_per_task_j"
METRICS = (
    "base_deadline_compliance_rate",
    "response_p50_s",
    "response_p99_s",
    ENERGY,
    "above_idle_per_on_time_task_j",
    "load_fairness",
    "rank_reversal_rate",
)
"""Metrics of the comparison beside the `slo_` columns, which depend on the classes of the settings."""

ABLATION_METRICS = ("slo_compliance_rate", ENERGY)


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

    Seeds without a value are left out and not counted; a metric without any has no row. Holm's family: the other policies of
    one load, queue discipline and metric.

    Args:
        cells: a row per run, with the columns of cells.csv.
        reference: the scheduler that differences are taken to, of the same load, seed and queue discipline.

    Raises:
        HarnessError: two policies of one load and seed have met different scenarios.
    """
    _require_same_scenarios(cells)
    slo = [column for column in cells.columns if column.startswith("slo_")]
    rows: list[dict[str, object]] = []
    for _, group in cells.groupby(["queue_discipline", "load"], sort=False):
        table = [row for metric in (*slo, *METRICS) for row in _compared_by(group, metric, reference)]
        position = {scheduler: number for number, scheduler in enumerate(group["scheduler"].unique())}
        rows += sorted(table, key=lambda row: position[row["scheduler"]])
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _compared_by(group: pd.DataFrame, metric: str, reference: str) -> list[dict[str, Any]]:
    """Rows of one load, queue discipline and metric."""
    by_seed = values_by_seed(group, metric)
    rows = []
    for scheduler in by_seed.columns:
        values = by_seed[scheduler].dropna()
        if values.empty:
            continue
        whole = len(values) == len(by_seed)  # a mean over those seeds alone in which a figure exists would be unfair
        row = {
            **dict.fromkeys(COMPARISON_COLUMNS, math.nan),
            "scheduler": scheduler,
            "queue_discipline": group["queue_discipline"].iloc[0],
            "load": group["load"].iloc[0],
            "metric": metric,
            "seeds": len(values),
            **(t_interval(values)._asdict() if whole else {}),
        }
        if whole and scheduler != reference and reference in by_seed and by_seed[reference].notna().all():
            row.update(_difference_fields(difference_by_seed(by_seed, scheduler, reference)))
        rows.append(row)
    return _with_holm(rows)


def values_by_seed(group: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Values of `metric`, a row per seed and a column per scheduler in the order of the cells; NaN where there is none."""
    wide = group.assign(value=pd.to_numeric(group[metric])).pivot(index="seed", columns="scheduler", values="value")
    return wide[group["scheduler"].unique()].astype(float)


def difference_by_seed(by_seed: pd.DataFrame, of: object, to: object) -> Difference:
    """The difference of two columns over the seeds that have both."""
    pairs = by_seed[[of, to]].dropna()
    return paired_difference(pairs[of].to_numpy(), pairs[to].to_numpy())


def _difference_fields(difference: Difference) -> dict[str, float]:
    return dict(zip((*_DIFFERENCE, "p_value"), difference, strict=True))


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
            misses = t_interval(1 - runs[COMPLIANCE].astype(float).dropna())
            energy = t_interval(runs[ENERGY].astype(float).dropna())
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
            family = [
                {**dict(zip(KEYS, key, strict=True)), "without": criterion, **_ablated(runs, full[key], metric)}
                for criterion, runs in of_policy.groupby("without", sort=False)
            ]
            rows += _with_holm(family)
    return pd.DataFrame(rows, columns=ABLATION_COLUMNS)


def _ablated(runs: pd.DataFrame, full: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Fields of one metric of one policy without one criterion, over the seeds that have a value with and without it."""
    by_seed = pd.DataFrame({"without": runs.set_index("seed")[metric], "full": full.set_index("seed")[metric]})
    by_seed = by_seed.astype(float).dropna()
    difference = difference_by_seed(by_seed, "without", "full")
    mean = t_interval(by_seed["without"]).mean
    return {"metric": metric, "seeds": len(by_seed), "mean": mean, **_difference_fields(difference)}


def _with_holm(family: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one family of tests, each with its adjusted p-value."""
    adjusted = holm([row["p_value"] for row in family])
    return [{**row, "p_holm": p_holm} for row, p_holm in zip(family, adjusted, strict=True)]


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
