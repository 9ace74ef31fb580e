"""The sentences of a comparison: what it shows, and what must be known to read its tables.

What cannot be told apart is said to be so; nothing is claimed from one seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from comparison.load_limits import LOAD_RESOLUTION, SHARE_OF_ACHIEVABLE
from comparison.tables import (
    COMPLIANCE,
    ENERGY,
    FAMILY,
    REFERENCE,
    pair_differences,
    pareto,
    policy_name,
    reference_of,
    values_by_seed,
    with_ends,
)
from measurement.intervals import LEVEL, Interval, Tested, t_interval

FEWEST_SEEDS = 10
"""What the field takes for enough."""


def verdict(cells: pd.DataFrame, gap_table: pd.DataFrame | None = None, limit_table: pd.DataFrame | None = None) -> list[str]:
    """What the comparison shows, in sentences, the first things to be read.

    Two policies of one load and queue discipline are told apart where Holm's adjusted p-value of their paired difference is
    below 0.05. The family is that of every table of the comparison; since it holds all pairs, it does not matter that the best
    was picked by the same data.

    Args:
        cells: a row per run, with the columns of cells.csv.
        gap_table: what `gaps.gaps` gave, if bounds were computed.
        limit_table: what `tables.load_limits` gave, if highest loads were searched.
    """
    seeds = cells["seed"].nunique()
    sentences = []
    if seeds > 1 and cells["scheduler"].nunique() > 1 and len(cells.groupby(["load", "queue_discipline"])) > 1:
        sentences += _in_short(cells)
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


def _in_short(cells: pd.DataFrame) -> list[str]:
    """Which policy is ahead where, by the means."""
    most: dict[str, list[str]] = {}
    least: dict[str, list[str]] = {}
    queues = cells["queue_discipline"].nunique()
    groups = cells.groupby(["load", "queue_discipline"], sort=False)
    for (load, queue), group in groups:
        where = f"load {load:g}" + (f", {queue}" if queues > 1 else "")
        compliance = values_by_seed(group, COMPLIANCE).dropna(axis="columns")
        if compliance.empty:
            continue
        most.setdefault(compliance.mean().idxmax(), []).append(where)
        able = _able(_shares_of_achievable(group), energy := values_by_seed(group, ENERGY).dropna(axis="columns"))
        least.setdefault(energy[able].mean().idxmin() if able else "no policy", []).append(where)
    if not most:
        return []
    needed = f"{SHARE_OF_ACHIEVABLE * 100:.0f} % of the achievable compliance"
    ahead = f"In short, of these policies, by the means: most fixed deadlines are met by {_placed(most, len(groups))}."
    cheapest = f"Of those that reach {needed}, the least energy above idle per task is used by {_placed(least, len(groups))}."
    return [f"{ahead} {cheapest} What cannot be told apart stands below."]


def _placed(places: Mapping[str, Sequence[str]], groups: int) -> str:
    """'a at load 1 and load 2; b at load 3', or 'a everywhere'."""
    return "; ".join(
        f"{name} everywhere" if len(where) == groups else f"{name} at {_listed(where)}" for name, where in places.items()
    )


def _shares_of_achievable(group: pd.DataFrame) -> dict[str, Interval]:
    """Compliance as a share of the achievable one, by policy; those that lack it in some seed are left out."""
    achieved = group.assign(achieved=group[COMPLIANCE].astype(float) / group["achievable_slo_rate"].astype(float))
    shares = {name: t_interval(column) for name, column in values_by_seed(achieved, "achieved").items()}
    return {name: share for name, share in shares.items() if not math.isnan(share.mean)}


def _able(shares: Mapping[str, Interval], energy_by_seed: pd.DataFrame) -> list[str]:
    """The policies that keep up with the load."""
    return [name for name, share in shares.items() if share.mean >= SHARE_OF_ACHIEVABLE and name in energy_by_seed]


def _compliance_sentences(where: str, group: pd.DataFrame) -> list[str]:
    """Who meets the most fixed deadlines, and who cannot be told from it."""
    by_seed = values_by_seed(group, COMPLIANCE).dropna(axis="columns")
    if by_seed.empty:
        of_some = " of some seed" if group[COMPLIANCE].notna().any() else ""
        return [f"{where}: no task was dispatched in the window that is counted{of_some}."]
    best = by_seed.mean().idxmax()
    share = _percent(t_interval(by_seed[best]))
    achievable = f"{pd.to_numeric(group['achievable_slo_rate']).mean() * 100:.1f} % are achievable"
    if len(by_seed.columns) == 1:
        return [f"{where}: {best} meets {share} of the fixed deadlines; {achievable}."]
    text = f"{where}: {best} meets the most fixed deadlines, {share}; {achievable}."
    return [text + _of_the_others(by_seed, best, by_seed.columns, ("meets", "meet", "fewer"), _points)]


def _energy_sentences(where: str, group: pd.DataFrame) -> list[str]:
    """Who needs the least energy of those that keep up with the load."""
    shares = _shares_of_achievable(group)
    by_seed = values_by_seed(group, ENERGY).dropna(axis="columns")
    if not shares or by_seed.empty:
        return []
    needed = f"{SHARE_OF_ACHIEVABLE * 100:.0f} % of the achievable compliance"
    able = _able(shares, by_seed)
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
    energy = _joules(t_interval(by_seed[best]))
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
    differences = pair_differences(by_seed)
    apart = {name: _apart(differences[best, name]) for name in others}
    behind = sorted((name for name in others if differences[best, name].p_holm < 1 - LEVEL), key=lambda name: apart[name].mean)
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


def _apart(difference: Tested) -> Interval:
    """How far another policy is behind the best: its difference from the best, taken as positive."""
    sign = 1 if difference.mean >= 0 else -1
    return Interval(sign * difference.mean, *sorted((sign * difference.low, sign * difference.high)))


def _gap_sentences(where: str, group: pd.DataFrame, gap_table: pd.DataFrame) -> list[str]:
    """How far the policy that meets the most deadlines is from the clairvoyant bound."""
    first = group.iloc[0]
    same = (gap_table["load"] == first["load"]) & (gap_table["queue_discipline"] == first["queue_discipline"])
    if not same.any():
        return []
    best = gap_table.loc[gap_table[same]["miss_rate"].idxmin()]
    gap, excess = (Interval(*best[list(with_ends(name))]) for name in ("miss_gap", "energy_excess"))
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
        misses, energy = (Interval(*row[list(with_ends(name))]) for name in ("miss_rate", ENERGY))
        name = policy_name(row["scheduler"], row["queue_discipline"] if with_queue else None)
        points.append(f"{name} (misses {_percent(misses, inside=True)}; {_joules(energy, inside=True)})")
    return [f"Load {load:g}: Pareto front of misses and energy above idle per task, by the means: {_listed(points)}."]


def _limit_sentences(limit_table: pd.DataFrame) -> list[str]:
    """The highest load of each policy, the best first; policies without a figure grouped by the reason."""
    with_queue = limit_table["queue_discipline"].nunique() > 1
    found: list[tuple[float, str]] = []
    reasons: dict[str, list[str]] = {}
    for row in limit_table.itertuples():
        name = policy_name(row.scheduler, row.queue_discipline if with_queue else None)
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
    loads: Sequence[Mapping[str, float | None]] = (),
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
            f"Intervals are Student's t at {LEVEL * 100:.0f} % over {seeds} seeds; differences are paired by seed. One family of "
            f"tests holds everywhere: {FAMILY}. Holm's procedure adjusts its p-values, and the interval of a difference is as "
            f"wide as its test: it holds 0 exactly where p is {1 - LEVEL:.2g} or more."
        )
    if seeds == 1:
        said.append(f"One seed: no intervals and no tests. The field's practice is at least {FEWEST_SEEDS} seeds.")
    elif seeds < FEWEST_SEEDS:
        said.append(f"{seeds} seeds: the field's practice is at least {FEWEST_SEEDS}.")
    if reference != REFERENCE and len(schedulers) > 1:
        said.append(f"Differences are taken to {reference}, the first policy listed, since {REFERENCE} is not in this sweep.")
    if capacity_tasks_per_s is not None:
        said += [_overload(load, capacity_tasks_per_s) for load in loads if (load["fraction_of_capacity"] or 0) > 1]
    return said


def _overload(load: Mapping[str, Any], capacity_tasks_per_s: float) -> str:
    return (
        f"Load {load['load']:g} is above capacity: {load['dispatched_tasks_per_s']:.1f} tasks/s, "
        f"{load['fraction_of_capacity'] * 100:.0f} % of the {capacity_tasks_per_s:.1f} tasks/s that the cluster can serve. "
        f"Queues grow while the load lasts, so that the figures depend on the duration."
    )


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

    So many decimals, or up to two more where half of the interval would show none, or an end that is not 0 would look like it.
    """
    mean, low, high = (factor * value for value in interval)
    half = (high - low) / 2
    if half > 0:
        smallest = min(half, abs(low), abs(high)) if low * high > 0 else half
        decimals = min(max(decimals, -math.floor(math.log10(smallest))), decimals + 2)
    texts = [f"{value:.{decimals}f}".replace("-", "−") for value in (mean, low, high)]
    if math.isnan(half):
        return f"{texts[0]} {unit}"
    ends = f"{texts[1]} to {texts[2]}"
    return f"{texts[0]} {unit}, {ends}" if inside else f"{texts[0]} {unit} ({ends})"
