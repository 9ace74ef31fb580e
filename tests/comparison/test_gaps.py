"""Gaps to the clairvoyant bound and the frontier: by hand, and that no mean of runs lies below."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparison.gaps import FRONTIER_COLUMNS, GAP_COLUMNS, frontier, gaps
from measurement.intervals import t_interval
from utils import HarnessError

from .figures import BOUNDS, THREE, PricedBound, cells


def test_gaps_by_hand():
    table = gaps(cells({"topsis": ([0.96, 0.92], [0.084, 0.105])}), BOUNDS)
    assert tuple(table.columns) == GAP_COLUMNS
    (gap,) = table.to_dict("records")
    # 40 and 80 misses: at least 90 - 20 = 70 J and 110 - 40 = 70 J; the runs need 84 J and 105 J: 20 % and 50 % more.
    assert gap["miss_rate"] == pytest.approx(0.06)
    assert gap["miss_rate_bound"] == pytest.approx(0.04)
    assert [gap[f"miss_gap{end}"] for end in ("", "_low", "_high")] == pytest.approx(t_interval([0.01, 0.03]))
    assert gap["above_idle_per_task_j"] == pytest.approx(0.0945)
    assert gap["energy_bound_at_its_misses_j"] == pytest.approx(0.07)
    assert [gap[f"energy_excess{end}"] for end in ("", "_low", "_high")] == pytest.approx(t_interval([0.2, 0.5]))


def test_policy_that_left_a_task_unanswered_has_no_energy_gap():
    runs = cells({"topsis": ([0.96, 0.92], [0.084, 0.105])})
    runs.loc[1, "unanswered"] = 1
    (gap,) = gaps(runs, BOUNDS).to_dict("records")
    assert gap["miss_gap"] == pytest.approx(0.02)
    for name in GAP_COLUMNS[8:]:
        assert math.isnan(gap[name])


def test_nodes_that_draw_no_more_when_busy_have_no_energy_gap():
    runs = cells({"topsis": ([0.96, 0.92], [0.0, 0.0])})
    free = {key: PricedBound(bound.tasks, bound.misses, [(0, 0.0)]) for key, bound in BOUNDS.items()}
    (gap,) = gaps(runs, free).to_dict("records")
    assert gap["miss_gap"] == pytest.approx(0.02) and math.isnan(gap["energy_excess"])


def test_runs_without_a_bound_have_no_gap():
    assert gaps(cells({"topsis": ([0.96], [0.08])}, load=2.0), BOUNDS).empty
    assert tuple(gaps(cells(THREE), {}).columns) == GAP_COLUMNS


def test_bound_about_other_tasks_is_refused():
    bounds = {(1.0, 42): PricedBound(999, 30, [(0, 50.0)])}
    with pytest.raises(
        HarnessError, match=r"^topsis \(fifo\), load 1, seed 42: the bound is about 999 tasks, the run about 1000$"
    ):
        gaps(cells({"topsis": ([0.96], [0.08])}), bounds)


def test_frontier_by_hand():
    table = frontier(BOUNDS)
    assert tuple(table.columns) == FRONTIER_COLUMNS
    assert table["miss_rate"].iloc[[0, -1]].tolist() == pytest.approx([0.04, 0.16])
    # Means over the seeds: V(0)/n = 0.055, V(0.5)/n = 0.1; at 4 % misses 0.1 - 0.5 * 0.04, at many 0.055.
    assert table["above_idle_per_task_j"].iloc[[0, -1]].tolist() == pytest.approx([0.08, 0.055])
    assert np.all(np.diff(table["above_idle_per_task_j"]) <= 0)


@given(st.lists(st.integers(0, 200), min_size=2, max_size=2), st.booleans())
def test_no_mean_of_runs_that_keep_their_bounds_lies_below_the_frontier(extra_misses, other_prices):
    bounds = dict(BOUNDS)
    if other_prices:  # an inner price whose value lies above the line between its neighbours
        bounds[1.0, 43] = PricedBound(1000, 50, [(0, 60.0), (0.25, 90.0), (1.0, 120.0)])
    misses = [bound.misses + extra for bound, extra in zip(bounds.values(), extra_misses, strict=True)]
    energies = [bound.energy_j(missed) / 1000 for bound, missed in zip(bounds.values(), misses, strict=True)]
    line = frontier(bounds)
    rate = np.mean(misses) / 1000
    if rate <= line["miss_rate"].iloc[-1]:
        above = line[line["miss_rate"] >= rate - 1e-12].iloc[0]
        assert np.mean(energies) >= above["above_idle_per_task_j"] - 1e-12


def test_frontier_without_misses_still_has_a_length():
    table = frontier({(1.0, 42): PricedBound(1000, 0, [(0, 50.0)])})
    assert table["miss_rate"].iloc[[0, -1]].tolist() == [0.0, 0.01]
