"""The statistics of a comparison of scheduling policies, and what they allow to be said.

Pure functions: tables of cells (one simulated run each) in, tables and sentences out. A policy is a scheduler with a queue
discipline. Runs of one load and seed have met the same scenario, so policies are compared by differences paired by seed.
Intervals are Student's t over seeds at 95 %; p-values of a family are adjusted by Holm's procedure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from utils import HarnessError

LEVEL = 0.95
"""Confidence level of the intervals; 1 − LEVEL is the level of the tests."""

SHARE_OF_ACHIEVABLE = 0.98
"""Compliance that counts as keeping up with the load, as a share of the achievable compliance of the same run."""

REFERENCE = "earliest_completion"
FEWEST_SEEDS = 10
LOWEST_LOAD, HIGHEST_LOAD, LOAD_RESOLUTION = 0.25, 6.0, 0.05

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


def _with_ends(name: str) -> tuple[str, str, str]:
    """Columns of a mean and its interval."""
    return name, f"{name}_low", f"{name}_high"


_KEYS = ("scheduler", "queue_discipline", "load")
_DIFFERENCE = _with_ends("difference")
COMPARISON_COLUMNS = (*_KEYS, "metric", "seeds", "mean", "low", "high", *_DIFFERENCE, "p_value", "p_holm")
PARETO_COLUMNS = (*_KEYS, *_with_ends("miss_rate"), *_with_ends(ENERGY), "on_front")
GAP_COLUMNS = (
    *(*_KEYS, "miss_rate", "miss_rate_bound", *_with_ends("miss_gap")),
    *(ENERGY, "energy_bound_at_its_misses_j", *_with_ends("energy_excess")),
)
FRONTIER_COLUMNS = ("load", "miss_rate", ENERGY)
LOAD_LIMIT_COLUMNS = ("scheduler", "queue_discipline", "seeds", "found", "mean", "low", "high", "text")
ABLATION_COLUMNS = (*_KEYS, "without", "metric", "seeds", "mean", *_DIFFERENCE, "p_holm")

Values = Sequence[float] | NDArray[np.float64]
Policy = tuple[str, str]
"""Scheduler and queue discipline."""


class Interval(NamedTuple):
    """A mean and its confidence interval; the ends are NaN where one value or none gives no interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of paired differences, its confidence interval and the p-value of the hypothesis that it is 0."""

    mean: float
    low: float
    high: float
    p_value: float


def t_interval(values: Values, level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of independent `values`; equal values give a point."""
    sample = np.asarray(values, dtype=float)
    count = len(sample)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sample.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(sample) == 0:
        return Interval(float(sample[0]), float(sample[0]), float(sample[0]))
    half = float(stdtrit(count - 1, (1 + level) / 2) * sample.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def paired_difference(values: Values, reference: Values, level: float = LEVEL) -> Difference:
    """`values` minus `reference`, pair by pair, with the two-sided paired t-test.

    A difference that is the same in every pair has p-value 0, or 1 where it is 0. What is smaller than the rounding of sums
    in another order (1e-12 of the values) counts as no difference and as no spread. One pair or none has no interval and no
    p-value (NaN).
    """
    ours, theirs = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    differences = ours - theirs
    count = len(differences)
    if count < 2:
        return Difference(*t_interval(differences, level), math.nan)
    rounding = 1e-12 * float(max(np.abs(ours).max(), np.abs(theirs).max()))
    if np.ptp(differences) <= rounding:
        constant = float(differences.mean())
        constant = constant if abs(constant) > rounding else 0.0
        return Difference(constant, constant, constant, float(constant == 0))
    interval = t_interval(differences, level)
    statistic = interval.mean / (differences.std(ddof=1) / math.sqrt(count))
    return Difference(*interval, float(2 * stdtr(count - 1, -abs(statistic))))


def holm(p_values: Values) -> list[float]:
    """Holm's adjusted p-values of a family of tests, in the given order; NaN stays NaN and is not counted.

    Of m sorted p-values the i-th becomes the largest of min(1, (m − k + 1) p_k) over k ≤ i. Rejecting what is below a level
    keeps the chance of any false rejection below that level, however the tests depend on each other. Source: Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    given = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(given), math.nan)
    order = np.argsort(given)[: int((~np.isnan(given)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * given[order]))
    return [float(p_value) for p_value in adjusted]


# Tables.


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
    by_seed = _by_seed(group, metric)
    rows = []
    for scheduler in by_seed.columns:
        values = by_seed[scheduler].dropna()
        if values.empty:
            continue
        row = {
            **dict.fromkeys(COMPARISON_COLUMNS, math.nan),
            "scheduler": scheduler,
            "queue_discipline": group["queue_discipline"].iloc[0],
            "load": group["load"].iloc[0],
            "metric": metric,
            "seeds": len(values),
            **t_interval(values)._asdict(),
        }
        if scheduler != reference and reference in by_seed:
            row.update(_difference_fields(_difference(by_seed, scheduler, reference)))
        rows.append(row)
    return _with_holm(rows)


def _by_seed(group: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Values of `metric`, a row per seed and a column per scheduler in the order of the cells; NaN where there is none."""
    wide = group.assign(value=pd.to_numeric(group[metric])).pivot(index="seed", columns="scheduler", values="value")
    return wide[group["scheduler"].unique()].astype(float)


def _difference(by_seed: pd.DataFrame, of: object, to: object) -> Difference:
    pairs = by_seed[[of, to]].dropna()
    return paired_difference(pairs[of].to_numpy(), pairs[to].to_numpy())


def _difference_fields(difference: Difference) -> dict[str, float]:
    return dict(zip((*_DIFFERENCE, "p_value"), difference, strict=True))


def _require_same_scenarios(cells: pd.DataFrame) -> None:
    for (load, seed), group in cells.groupby(["load", "seed"], sort=False):
        first = group.iloc[0]
        for _, cell in group[group["scenario_sha256"] != first["scenario_sha256"]].iterrows():
            raise HarnessError(
                f"load {load:g}, seed {seed}: {_name(cell['scheduler'], cell['queue_discipline'])} met scenario "
                f"{cell['scenario_sha256'][:12]}, {_name(first['scheduler'], first['queue_discipline'])} "
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
    met = [*_KEYS, "seed", "scenario_sha256"]
    _require_same_scenarios(pd.concat([cells_without[met], cells_full[met]]))
    rows: list[dict[str, Any]] = []
    full = dict(list(cells_full.groupby(list(_KEYS), sort=False)))
    for key, of_policy in cells_without.groupby(list(_KEYS), sort=False):
        for metric in ABLATION_METRICS:
            family = [
                {**dict(zip(_KEYS, key, strict=True)), "without": criterion, **_ablated(runs, full[key], metric)}
                for criterion, runs in of_policy.groupby("without", sort=False)
            ]
            rows += _with_holm(family)
    return pd.DataFrame(rows, columns=ABLATION_COLUMNS)


def _ablated(runs: pd.DataFrame, full: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Fields of one metric of one policy without one criterion, over the seeds that have a value with and without it."""
    by_seed = pd.DataFrame({"without": runs.set_index("seed")[metric], "full": full.set_index("seed")[metric]})
    by_seed = by_seed.astype(float).dropna()
    difference = _difference(by_seed, "without", "full")
    mean = t_interval(by_seed["without"]).mean
    return {"metric": metric, "seeds": len(by_seed), "mean": mean, **_difference_fields(difference)}


def _with_holm(family: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one family of tests, each with its adjusted p-value."""
    adjusted = holm([row["p_value"] for row in family])
    return [{**row, "p_holm": p_holm} for row, p_holm in zip(family, adjusted, strict=True)]


# The clairvoyant bound.


class Bound(Protocol):
    """What no schedule of a scenario's tasks can do better.

    `prices` holds pairs (λ, V): every schedule that answers all tasks and misses m fixed deadlines needs at least V − λ m
    joules above idle. V is a lower bound of a concave function of λ.
    """

    @property
    def tasks(self) -> int:
        """How many tasks the bound is about."""

    @property
    def misses(self) -> int:
        """The fewest fixed deadlines that must be missed."""

    @property
    def prices(self) -> Sequence[tuple[float, float]]:
        """Joules per miss λ, and V in joules."""

    def energy_j(self, misses: float) -> float:
        """The least energy above idle of all tasks together with at most so many misses, joules."""


def gaps(cells: pd.DataFrame, bounds: Mapping[tuple[float, int], Bound]) -> pd.DataFrame:
    """How far each policy is from the possible: gaps.csv.

    Gap and excess are taken run by run, then averaged over seeds: share of missed deadlines minus that of the bound; energy
    above idle over the least that any schedule with as many misses needs, minus 1. The latter is empty for a policy that left
    a task unanswered in any run, since the bound is about schedules that answer every task.

    Args:
        cells: a row per run, with the columns of cells.csv.
        bounds: by load and seed, over the tasks that the cells count; runs without one are left out.

    Raises:
        HarnessError: a bound is about other tasks than the run.
    """
    rows = []
    for (scheduler, queue, load), runs in cells.groupby(["scheduler", "queue_discipline", "load"], sort=False):
        bounded = [(run, bounds[load, run.seed]) for run in runs.itertuples() if (load, run.seed) in bounds and run.tasks > 0]
        if not bounded:
            continue
        for run, bound in bounded:
            if run.tasks != bound.tasks:
                raise HarnessError(
                    f"{_name(scheduler, queue)}, load {load:g}, seed {run.seed}: the bound is about {bound.tasks} tasks, the run "
                    f"about {run.tasks}"
                )
        misses = [run.missed / run.tasks for run, _ in bounded]
        miss_bounds = [bound.misses / bound.tasks for _, bound in bounded]
        miss_gap = t_interval(np.subtract(misses, miss_bounds))
        figures = (float(np.mean(misses)), float(np.mean(miss_bounds)), *miss_gap, *_energy_gap(bounded))
        rows.append(dict(zip(GAP_COLUMNS, (scheduler, queue, load, *figures), strict=True)))
    return pd.DataFrame(rows, columns=GAP_COLUMNS)


def _energy_gap(bounded: Sequence[tuple[Any, Bound]]) -> tuple[float, float, float, float, float]:
    """Mean energy per task, of the runs and of the bound at their misses (J), and the excess with its interval."""
    if any(run.failed > 0 for run, _ in bounded):
        return (math.nan,) * 5
    energies = np.array([getattr(run, ENERGY) for run, _ in bounded], dtype=float)
    least = np.array([bound.energy_j(run.missed) / bound.tasks for run, bound in bounded])
    return float(energies.mean()), float(least.mean()), *t_interval(energies / least - 1)


def frontier(bounds: Mapping[tuple[float, int], Bound], points: int = 61) -> pd.DataFrame:
    """The line of mean misses and mean energy below which no policy can be, by load: frontier.csv.

    For every price λ and seed s, energy_s ≥ V_s(λ) − λ misses_s. Divided by the tasks and averaged over seeds this bounds the
    mean energy per task by the mean miss rate r, whatever each seed's own misses are: mean V_s(λ)/tasks_s − λ r; the line is
    the largest of these over λ. Where seeds have different prices, V is interpolated, which stays below a concave function.
    It runs from the mean bound on misses to four times that, to 1 % at least.
    """
    rows: list[tuple[object, float, float]] = []
    for load in dict.fromkeys(load for load, _ in bounds):
        of_load = [bound for (at, _), bound in bounds.items() if at == load and bound.tasks > 0]
        if not of_load:
            continue
        least = float(np.mean([bound.misses / bound.tasks for bound in of_load]))
        grid = np.linspace(least, max(4 * least, 0.01), points)
        prices, values = _mean_prices(of_load)
        energies = (values[:, None] - prices[:, None] * grid).max(axis=0)
        rows += [(load, float(rate), float(energy)) for rate, energy in zip(grid, energies, strict=True)]
    return pd.DataFrame(rows, columns=FRONTIER_COLUMNS)


def _mean_prices(bounds: Sequence[Bound]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prices that all bounds span, and the mean over the bounds of V per task at each."""
    tables = [np.array(sorted(bound.prices)) for bound in bounds]
    first, last = max(table[0, 0] for table in tables), min(table[-1, 0] for table in tables)
    prices = np.unique(np.concatenate([table[:, 0] for table in tables]))
    prices = prices[(prices >= first) & (prices <= last)]
    per_task = [np.interp(prices, *table.T) / bound.tasks for table, bound in zip(tables, bounds, strict=True)]
    return prices, np.mean(per_task, axis=0)


# The highest load.


class LoadLimit(NamedTuple):
    """The highest load at which one policy keeps up in one scenario.

    `kind` is found; below: not even at the lowest load; above: still at the highest load. `load` is None unless found.
    """

    load: float | None
    kind: Literal["found", "below", "above"]


def next_load(
    verdicts: Mapping[float, bool],
    low: float = LOWEST_LOAD,
    high: float = HIGHEST_LOAD,
    resolution: float = LOAD_RESOLUTION,
) -> float | LoadLimit:
    """The load to try next, or the answer: the highest load known to pass, within `resolution` of the lowest known to fail.

    Nothing beyond a failing load is believed, so that verdicts that are not monotone give the first crossing. While nothing
    fails, the load is doubled: a high load costs more to simulate than a low one.

    Args:
        verdicts: whether each load tried so far passes; loads outside `low` … `high` are ignored.
        low: lowest load to try.
        high: highest load to try.
        resolution: the bracket at which to stop.
    """
    within = {load: passes for load, passes in verdicts.items() if low <= load <= high}
    failing = min((load for load, passes in within.items() if not passes), default=math.inf)
    passing = max((load for load, passes in within.items() if passes and load < failing), default=None)
    if failing == low:
        return LoadLimit(None, "below")
    if passing is None:
        return low
    if passing == high:
        return LoadLimit(None, "above")
    if math.isinf(failing):
        return min(2 * passing, high)
    return LoadLimit(passing, "found") if failing - passing <= resolution else (passing + failing) / 2


def bisected_limit(
    meets: Callable[[float], bool],
    known: Mapping[float, bool],
    low: float = LOWEST_LOAD,
    high: float = HIGHEST_LOAD,
    resolution: float = LOAD_RESOLUTION,
) -> LoadLimit:
    """`next_load` asked and answered by `meets` until it has the answer; `known` verdicts are not asked for again."""
    verdicts = dict(known)
    while not isinstance(load := next_load(verdicts, low, high, resolution), LoadLimit):
        verdicts[load] = meets(load)
    return load


def load_limits(
    limits: Mapping[Policy, Sequence[LoadLimit]], low: float = LOWEST_LOAD, high: float = HIGHEST_LOAD
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
    below, above = (sum(limit.kind == kind for limit in limits) for kind in ("below", "above"))
    texts = []
    if below:
        share = f"{SHARE_OF_ACHIEVABLE:.0%}".replace("%", " %")
        texts.append(f"not reached: below {share} at load {low:g} already ({below} of {seeds} seeds)")
    if above:
        texts.append(f"{high:g} or more ({above} of {seeds} seeds)")
    if found:
        span = f"{min(found):.2f}" + (f" to {max(found):.2f}" if len(found) > 1 else "")
        texts.append(f"{span} ({len(found)} of {seeds} seeds)")
    return "; ".join(texts)


# Words.


def verdict(cells: pd.DataFrame, gap_table: pd.DataFrame | None = None, limit_table: pd.DataFrame | None = None) -> list[str]:
    """What the comparison shows, in sentences, the first things to be read.

    Two policies of one load and queue discipline are told apart where Holm's adjusted p-value of their paired difference is
    below 0.05; the family is all pairs, so that it does not matter that the best was picked by the same data.

    Args:
        cells: a row per run, with the columns of cells.csv.
        gap_table: what `gaps` gave, if bounds were computed.
        limit_table: what `load_limits` gave, if highest loads were searched.
    """
    seeds = cells["seed"].nunique()
    sentences = []
    if seeds == 1:
        sentences.append(
            "One seed gives no interval: nothing is said of differences between policies; the figures below are of that one run."
        )
    queues = cells["queue_discipline"].nunique()
    for load, of_load in cells.groupby("load", sort=False):
        for queue, group in of_load.groupby("queue_discipline", sort=False):
            where = f"Load {load:g}" + (f", {queue}" if queues > 1 else "")
            sentences += _compliance_sentences(where, group)
            sentences += _energy_sentences(where, group)
            if gap_table is not None:
                sentences += _gap_sentences(where, group, gap_table)
        if seeds > 1:
            sentences += _front_sentences(load, of_load, queues > 1)
    if limit_table is not None:
        sentences += _limit_sentences(limit_table)
    return sentences


def _compliance_sentences(where: str, group: pd.DataFrame) -> list[str]:
    """Who meets the most fixed deadlines, and who cannot be told from it."""
    by_seed = _by_seed(group, COMPLIANCE).dropna(axis="columns", how="all")
    if by_seed.empty:
        return [f"{where}: no task was dispatched in the window that is counted."]
    best = by_seed.mean().idxmax()
    share = _percent(t_interval(by_seed[best].dropna()))
    achievable = f"{pd.to_numeric(group['achievable_slo_rate']).mean() * 100:.1f} % are achievable"
    if len(by_seed.columns) == 1:
        return [f"{where}: {best} meets {share} of the fixed deadlines; {achievable}."]
    text = f"{where}: {best} meets the most fixed deadlines, {share}; {achievable}."
    return [text + _of_the_others(by_seed, best, by_seed.columns, ("meets", "meet", "fewer"), _points)]


def _energy_sentences(where: str, group: pd.DataFrame) -> list[str]:
    """Who needs the least energy of those that keep up with the load."""
    achieved = group.assign(achieved=group[COMPLIANCE].astype(float) / group["achievable_slo_rate"].astype(float))
    shares = {name: t_interval(column.dropna()) for name, column in _by_seed(achieved, "achieved").items()}
    shares = {name: share for name, share in shares.items() if not math.isnan(share.mean)}
    by_seed = _by_seed(group, ENERGY).dropna(axis="columns", how="all")
    if not shares or by_seed.empty:
        return []
    needed = f"{SHARE_OF_ACHIEVABLE * 100:.0f} % of the achievable compliance"
    able = [name for name, share in shares.items() if share.mean >= SHARE_OF_ACHIEVABLE and name in by_seed]
    if not able:
        nearest = max(shares, key=lambda name: shares[name].mean)
        text = f"{where}: no policy reaches {needed}; the nearest, {nearest}, reaches {_percent(shares[nearest])}."
    else:
        text = f"{where}: {_least_energy(by_seed, able, needed)}"
    doubtful = [name for name, share in shares.items() if share.low < SHARE_OF_ACHIEVABLE <= share.high]
    if doubtful:
        with_share = [f"{name} ({_percent(shares[name], inside=True)})" for name in doubtful]
        text += f" It cannot be told whether {needed} is reached by {_listed(with_share)}."
    return [text]


def _least_energy(by_seed: pd.DataFrame, able: Sequence[str], needed: str) -> str:
    best = by_seed[able].mean().idxmin()
    energy = _joules(t_interval(by_seed[best].dropna()))
    if len(able) == 1:
        return f"only {best} reaches {needed}, with {energy} above idle per task."
    text = f"of the policies whose mean reaches {needed} ({_listed(able)}), {best} uses the least energy above idle per task, "
    return f"{text}{energy}." + _of_the_others(by_seed, best, able, ("uses", "use", "more"), _joules)


def _of_the_others(
    by_seed: pd.DataFrame, best: str, among: Sequence[str], words: tuple[str, str, str], written: Callable[..., str]
) -> str:
    """A sentence on those of `among` that cannot be told from the best and one on those that differ; '' for one seed.

    Args:
        by_seed: values of all policies, which make the family of tests.
        best: the policy with the best mean.
        among: the policies to speak of.
        words: verb in the singular, in the plural, comparative of those behind.
        written: turns an interval into text.
    """
    if len(by_seed) < 2:
        return ""
    others = [name for name in among if name != best]
    apart = {name: _apart(by_seed, best, name) for name in others}
    p_holm = _holm_of_all_pairs(by_seed)
    behind = sorted((name for name in others if p_holm[frozenset((best, name))] < 1 - LEVEL), key=lambda name: apart[name].mean)
    alike = [name for name in others if name not in behind]
    singular, plural, comparative = words
    text = ""
    if alike:
        text += (
            f" It cannot be told from {_listed([f'{name} (apart by {written(apart[name], inside=True)})' for name in alike])}."
        )
    if len(behind) == 1:
        text += f" The other, {behind[0]}, {singular} {comparative}, by {written(apart[behind[0]])}."
    elif behind:
        text += f" The other {len(behind)} {plural} {comparative}, the nearest, {behind[0]}, by {written(apart[behind[0]])}."
    return text


def _apart(by_seed: pd.DataFrame, best: str, other: str) -> Interval:
    """How far `other` is behind `best`: the difference of the better mean from the worse, positive where it is behind."""
    difference = _difference(by_seed, best, other)
    sign = 1 if by_seed[best].mean() >= by_seed[other].mean() else -1
    return Interval(sign * difference.mean, *sorted((sign * difference.low, sign * difference.high)))


def _holm_of_all_pairs(by_seed: pd.DataFrame) -> dict[frozenset[str], float]:
    """Holm's adjusted p-value of every pair of policies."""
    pairs = list(combinations(by_seed.columns, 2))
    adjusted = holm([_difference(by_seed, one, other).p_value for one, other in pairs])
    return {frozenset(pair): p_holm for pair, p_holm in zip(pairs, adjusted, strict=True)}


def _gap_sentences(where: str, group: pd.DataFrame, gap_table: pd.DataFrame) -> list[str]:
    """How far the policy that meets the most deadlines is from the clairvoyant bound."""
    first = group.iloc[0]
    same = (gap_table["load"] == first["load"]) & (gap_table["queue_discipline"] == first["queue_discipline"])
    if not same.any():
        return []
    best = gap_table.loc[gap_table[same]["miss_rate"].idxmin()]
    gap, excess = (Interval(*best[list(_with_ends(name))]) for name in ("miss_gap", "energy_excess"))
    text = (
        f"{where}: no schedule can miss fewer than {best['miss_rate_bound'] * 100:.2f} % of the fixed deadlines (clairvoyant "
        f"bound); {best['scheduler']} misses {_points(gap)} more"
    )
    if not math.isnan(excess.mean):
        text += f", and its energy above idle is {_percent(excess)} over the bound for as many misses"
    return [f"{text}."]


def _front_sentences(load: float, of_load: pd.DataFrame, with_queue: bool) -> list[str]:
    """Who is on the Pareto front of the means."""
    table = pareto(of_load)
    front = table[table["on_front"]].sort_values("miss_rate")
    if front.empty:
        return []
    points = []
    for _, row in front.iterrows():
        misses, energy = (Interval(*row[list(_with_ends(name))]) for name in ("miss_rate", ENERGY))
        name = _name(row["scheduler"], row["queue_discipline"] if with_queue else None)
        points.append(f"{name} (misses {_percent(misses, inside=True)}; {_joules(energy, inside=True)})")
    return [f"Load {load:g}: Pareto front of misses and energy above idle per task, by the means: {_listed(points)}."]


def _limit_sentences(limit_table: pd.DataFrame) -> list[str]:
    """The highest load of each policy, the best first; policies without a figure grouped by the reason."""
    with_queue = limit_table["queue_discipline"].nunique() > 1
    found: list[tuple[float, str]] = []
    reasons: dict[str, list[str]] = {}
    for row in limit_table.itertuples():
        name = _name(row.scheduler, row.queue_discipline if with_queue else None)
        if row.found == row.seeds:
            found.append((row.mean, f"{name} {row.text}"))
        else:
            reasons.setdefault(row.text, []).append(name)
    best_first = [text for _, text in sorted(found, key=lambda limit: -limit[0])]
    of = f"at which {SHARE_OF_ACHIEVABLE * 100:.0f} % of the achievable deadlines are met"
    sentences = [f"Highest load (to within {LOAD_RESOLUTION:g}) {of}: {_listed(best_first)}."] if best_first else []
    return sentences + [f"Highest load {of} by {_listed(names)}: {reason}." for reason, names in reasons.items()]


def notes(
    *,
    seeds: int,
    duration_s: float,
    warm_up_s: float,
    cool_down_s: float,
    schedulers: Sequence[str],
    loads: Sequence[Mapping[str, float]] = (),
    capacity_tasks_per_s: float | None = None,
) -> list[str]:
    """What a reader must know to read the tables.

    Args:
        seeds: runs of each policy and load.
        duration_s: length of the load of each run, seconds.
        warm_up_s: left out at the start, seconds.
        cool_down_s: left out at the end, seconds.
        schedulers: as listed by the user.
        loads: for each, `load`, `dispatched_tasks_per_s` and `fraction_of_capacity`.
        capacity_tasks_per_s: what the cluster can serve by its profile.
    """
    reference, last_s = reference_of(schedulers), round(duration_s - cool_down_s, 2)
    said = [
        f"Figures are of tasks that arrived from {warm_up_s:g} s up to {last_s:g} s of {duration_s:g} s: warm-up and cool-down "
        f"are left out."
    ]
    if duration_s < 600:
        said.append(
            f"Runs are shorter than 600 s, and {warm_up_s:g} s of warm-up instead of 60 s are left out: the start counts more."
        )
    said.append("Deadlines are the fixed ones, the same for every policy, unless a column says otherwise.")
    if seeds > 1:
        said.append(
            f"Intervals are Student's t at {LEVEL * 100:.0f} % over {seeds} seeds; differences are paired by seed; p-values are "
            f"adjusted by Holm's procedure. The verdict tests all pairs of policies, comparison.csv those with {reference}."
        )
    if seeds == 1:
        said.append(f"One seed: no intervals and no tests. The field's practice is at least {FEWEST_SEEDS} seeds.")
    elif seeds < FEWEST_SEEDS:
        said.append(f"{seeds} seeds: the field's practice is at least {FEWEST_SEEDS}.")
    if reference != REFERENCE and len(schedulers) > 1:
        said.append(f"Differences are taken to {reference}, the first policy listed, since {REFERENCE} is not in this sweep.")
    if capacity_tasks_per_s is not None:
        said += [_overload(load, capacity_tasks_per_s) for load in loads if load["fraction_of_capacity"] > 1]
    return said


def _overload(load: Mapping[str, float], capacity_tasks_per_s: float) -> str:
    return (
        f"Load {load['load']:g} is above capacity: {load['dispatched_tasks_per_s']:.1f} tasks/s, "
        f"{load['fraction_of_capacity'] * 100:.0f} % of the {capacity_tasks_per_s:.1f} tasks/s that the cluster can serve. "
        f"Queues grow while the load lasts, so that the figures depend on the duration."
    )


def _name(scheduler: str, queue_discipline: str | None) -> str:
    return scheduler if queue_discipline is None else f"{scheduler} ({queue_discipline})"


def _listed(names: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _percent(share: Interval, inside: bool = False) -> str:
    return _written(share, 100, "%", 1, inside)


def _points(difference: Interval, inside: bool = False) -> str:
    """A difference of shares in percentage points."""
    return _written(difference, 100, "points", 2, inside)


def _joules(energy: Interval, inside: bool = False) -> str:
    return _written(energy, 1000, "mJ", 1, inside) if abs(energy.mean) < 1 else _written(energy, 1, "J", 2, inside)


def _written(interval: Interval, factor: float, unit: str, decimals: int, inside: bool) -> str:
    """'2.5 mJ (2.4 to 2.6)', or '2.5 mJ, 2.4 to 2.6' `inside` parentheses.

    So many decimals, or up to two more where half of the interval would show none.
    """
    mean, low, high = (factor * value for value in interval)
    half = (high - low) / 2
    if half > 0:
        decimals = min(max(decimals, -math.floor(math.log10(half))), decimals + 2)
    texts = [f"{value:.{decimals}f}".replace("-", "−") for value in (mean, low, high)]
    if math.isnan(half):
        return f"{texts[0]} {unit}"
    ends = f"{texts[1]} to {texts[2]}"
    return f"{texts[0]} {unit}, {ends}" if inside else f"{texts[0]} {unit} ({ends})"
