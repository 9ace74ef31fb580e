"""How far policies are from what no schedule can beat: gaps to the clairvoyant bound, and the line below which nobody can be."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comparison.tables import ENERGY, KEYS, policy_name, with_ends
from measurement.intervals import t_interval
from utils import HarnessError

GAP_COLUMNS = (
    *(*KEYS, "miss_rate", "miss_rate_bound", *with_ends("miss_gap")),
    *(ENERGY, "energy_bound_at_its_misses_j", *with_ends("energy_excess")),
)
FRONTIER_COLUMNS = ("load", "miss_rate", ENERGY)


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
    for (scheduler, queue, load), runs in cells.groupby(list(KEYS), sort=False):
        bounded = [(run, bounds[load, run.seed]) for run in runs.itertuples() if (load, run.seed) in bounds and run.tasks > 0]
        if not bounded:
            continue
        for run, bound in bounded:
            if run.tasks != bound.tasks:
                raise HarnessError(
                    f"{policy_name(scheduler, queue)}, load {load:g}, seed {run.seed}: "
                    f"the bound is about {bound.tasks} tasks, the run about {run.tasks}"
                )
        misses = [run.missed / run.tasks for run, _ in bounded]
        miss_bounds = [bound.misses / bound.tasks for _, bound in bounded]
        miss_gap = t_interval(np.subtract(misses, miss_bounds))
        figures = (float(np.mean(misses)), float(np.mean(miss_bounds)), *miss_gap, *_energy_gap(bounded))
        rows.append(dict(zip(GAP_COLUMNS, (scheduler, queue, load, *figures), strict=True)))
    return pd.DataFrame(rows, columns=GAP_COLUMNS)


def _energy_gap(bounded: Sequence[tuple[Any, Bound]]) -> tuple[float, float, float, float, float]:
    """Mean energy per task, of the runs and of the bound at their misses (J), and the excess with its interval."""
    if any(run.unanswered > 0 for run, _ in bounded):
        return (math.nan,) * 5
    energies = np.array([getattr(run, ENERGY) for run, _ in bounded], dtype=float)
    least = np.array([bound.energy_j(run.missed) / bound.tasks for run, bound in bounded])
    if not least.all():  # nodes that draw no more when they are busy
        return (math.nan,) * 5
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
