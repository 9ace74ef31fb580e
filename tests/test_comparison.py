"""Statistics of a comparison: against scipy and by definition, tables by hand, bisection, and what the sentences may say."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import comparison
from comparison import LoadLimit, holm, next_load, paired_difference, pareto_front, t_interval
from utils import HarnessError

NAN = math.nan
SAMPLES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=12)


def cell(scheduler="topsis", seed=42, load=1.0, queue="fifo", compliance=0.9, energy=0.08, **figures):
    """A row of cells.csv of 1,000 tasks; what is not given has some value that no test looks at."""
    known = {
        "scheduler": scheduler,
        "queue_discipline": queue,
        "load": load,
        "seed": seed,
        "tasks": 1000,
        "slo_compliance_rate": compliance,
        "slo_hard": 0.8,
        "fixed_deadline_compliance_rate": compliance,
        "base_deadline_compliance_rate": compliance,
        "achievable_slo_rate": 0.95,
        "response_p50_s": 0.05,
        "response_p99_s": 0.3,
        "above_idle_per_task_j": energy,
        "above_idle_per_on_time_task_j": 0.1,
        "load_fairness": 0.7,
        "failed": 0,
        "missed": round(1000 * (1 - compliance)),
        "rank_reversal_rate": None,
        "scenario_sha256": f"{load:04.1f}{seed}" * 8,
    }
    return {**known, **figures}


def cells(figures, load=1.0, queue="fifo", achievable=0.95):
    """Cells of some policies: per policy its compliance and its energy, one entry per seed."""
    return pd.DataFrame(
        [
            cell(scheduler, 42 + number, load, queue, compliance, energy, achievable_slo_rate=achievable)
            for scheduler, (compliances, energies) in figures.items()
            for number, (compliance, energy) in enumerate(zip(compliances, energies, strict=True))
        ]
    )


def row(table, **keys):
    """The one row of `table` with these fields."""
    for key, value in keys.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


# Intervals


def test_t_interval_by_hand():
    # Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445.
    interval = t_interval([1, 2, 3, 4, 5])
    assert interval == pytest.approx((3, 3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)), abs=1e-6)


@given(SAMPLES, st.floats(0.5, 0.999))
def test_t_interval_is_that_of_scipy(values, level):
    interval = t_interval(values, level)
    if np.ptp(values) > 1e-9:
        expected = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert interval[1:] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_interval_of_equal_values_is_a_point():
    assert t_interval([0.1] * 7) == (0.1, 0.1, 0.1)


def test_one_value_has_a_mean_but_no_interval_and_none_has_nothing():
    assert t_interval([0.4]) == pytest.approx((0.4, NAN, NAN), nan_ok=True)
    assert t_interval([]) == pytest.approx((NAN, NAN, NAN), nan_ok=True)


def test_interval_covers_the_mean_as_often_as_it_says():
    # 4,000 samples of 10: the standard error of the coverage is 0.34 points.
    samples = np.random.default_rng(1).normal(5.0, 2.0, (4000, 10))
    covered = np.mean([interval.low <= 5.0 <= interval.high for interval in map(t_interval, samples)])
    assert covered == pytest.approx(0.95, abs=0.012)


# Paired differences


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=12))
def test_paired_difference_is_scipys_paired_t_test(pairs):
    ours, theirs = np.array(pairs).T
    if np.ptp(ours - theirs) < 1e-6:
        return
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    difference = paired_difference(ours, theirs)
    assert difference == pytest.approx((np.mean(ours - theirs), low, high, expected.pvalue), rel=1e-6, abs=1e-9)


def test_constant_difference_leaves_no_doubt():
    assert paired_difference([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]) == pytest.approx((0.1, 0.1, 0.1, 0.0))


def test_no_difference_at_all_has_p_value_1():
    assert paired_difference([0.9, 0.8], [0.9, 0.8]) == (0, 0, 0, 1)


def test_rounding_is_no_difference():
    ours = [0.1 + 0.2, 0.3, 0.3]
    assert ours[0] != 0.3
    assert paired_difference(ours, [0.3] * 3) == (0, 0, 0, 1)


def test_one_pair_has_a_difference_but_no_interval_and_no_p_value():
    assert paired_difference([0.5], [0.25]) == pytest.approx((0.25, NAN, NAN, NAN), nan_ok=True)


def test_pairing_shows_what_the_spread_between_seeds_hides():
    easy_and_hard_seeds = np.linspace(0.5, 0.9, 10)
    noise = np.random.default_rng(2).normal(0, 1e-3, 10)
    assert paired_difference(easy_and_hard_seeds + 0.01 + noise, easy_and_hard_seeds).p_value < 1e-6
    assert stats.ttest_ind(easy_and_hard_seeds + 0.01 + noise, easy_and_hard_seeds).pvalue > 0.5


# Holm


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4, 3, 2, 1: .04 .06 .06 .04, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_is_at_most_1():
    assert holm([0.9, 0.6]) == [1, 1]


def test_holm_passes_nan_through_and_does_not_count_it():
    assert holm([NAN, 0.01, NAN, 0.04]) == pytest.approx([NAN, 0.02, NAN, 0.04], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=10), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_sequential_procedure_rejects(p_values, level):
    rejected = set()
    for step, number in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[number] > level / (len(p_values) - step):
            break
        rejected.add(int(number))
    by_adjusted = {number for number, p_holm in enumerate(holm(p_values)) if p_holm <= level}
    # The two differ only where p times its factor rounds across the level.
    assert all(holm(p_values)[number] == pytest.approx(level) for number in rejected ^ by_adjusted)


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_never_lowers_a_p_value_nor_turns_two_around(p_values):
    adjusted = holm(p_values)
    assert all(p_value <= p_holm <= 1 for p_value, p_holm in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values)
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


# comparison.csv

THREE = {
    "earliest_completion": ([0.90, 0.92, 0.94], [0.09] * 3),
    "topsis": ([0.88, 0.91, 0.92], [0.07, 0.08, 0.09]),
    "random": ([0.5, 0.6, 0.7], [0.1] * 3),
}


def test_means_intervals_and_paired_differences():
    table = comparison.compared(cells(THREE), "earliest_completion")
    assert tuple(table.columns) == comparison.COMPARISON_COLUMNS
    topsis = row(table, scheduler="topsis", metric="slo_compliance_rate")
    assert (topsis["queue_discipline"], topsis["load"], topsis["seeds"]) == ("fifo", 1.0, 3)
    assert tuple(topsis[["mean", "low", "high"]]) == pytest.approx(t_interval([0.88, 0.91, 0.92]))
    expected = paired_difference([0.88, 0.91, 0.92], [0.90, 0.92, 0.94])
    assert tuple(topsis[["difference", "difference_low", "difference_high", "p_value"]]) == pytest.approx(expected)


def test_reference_has_no_difference_to_itself():
    table = comparison.compared(cells(THREE), "earliest_completion")
    reference = row(table, scheduler="earliest_completion", metric="slo_compliance_rate")
    assert reference[["difference", "difference_low", "difference_high", "p_value", "p_holm"]].isna().all()


def test_holms_family_is_the_other_policies_of_one_load_queue_and_metric():
    both = pd.concat([cells(THREE), cells(THREE, queue="edf"), cells(THREE, load=2.0)])
    table = comparison.compared(both, "earliest_completion")
    for load, queue in ((1.0, "fifo"), (1.0, "edf"), (2.0, "fifo")):
        of_family = table[(table["load"] == load) & (table["queue_discipline"] == queue)]
        for metric in ("slo_compliance_rate", "above_idle_per_task_j"):
            family = of_family[of_family["metric"] == metric]
            assert family["p_value"].notna().sum() == 2
            assert family["p_holm"].tolist() == pytest.approx(holm(family["p_value"].tolist()), nan_ok=True)


def test_pairs_are_by_seed_whatever_the_order_of_the_rows():
    in_order = comparison.compared(cells(THREE), "earliest_completion")
    shuffled = cells(THREE).sample(frac=1, random_state=4)
    first = ["earliest_completion", "topsis", "random"]
    shuffled = shuffled.sort_values("scheduler", key=lambda names: names.map(first.index), kind="stable")
    pd.testing.assert_frame_equal(comparison.compared(shuffled, "earliest_completion"), in_order)


def test_seed_that_a_policy_lacks_is_left_out_of_its_mean_and_its_difference():
    lacking = cells(THREE).iloc[:-1]
    random = row(comparison.compared(lacking, "earliest_completion"), scheduler="random", metric="slo_compliance_rate")
    assert random["seeds"] == 2
    assert random["mean"] == pytest.approx(0.55)
    assert random["difference"] == pytest.approx(-0.36)


def test_metric_without_any_value_has_no_row_and_missing_values_are_not_counted():
    table = cells(THREE)
    table.loc[table["scheduler"] == "topsis", "rank_reversal_rate"] = [0.01, None, 0.03]
    compared = comparison.compared(table, "earliest_completion")
    reversal = row(compared, metric="rank_reversal_rate")
    assert (reversal["scheduler"], reversal["seeds"]) == ("topsis", 2)
    assert reversal["mean"] == pytest.approx(0.02)
    assert math.isnan(reversal["difference"])


def test_every_slo_class_of_the_settings_is_compared():
    table = cells(THREE).rename(columns={"slo_hard": "slo_urgent"})
    metrics = list(dict.fromkeys(comparison.compared(table, "earliest_completion")["metric"]))
    assert metrics == [
        "slo_compliance_rate",
        "slo_urgent",
        "base_deadline_compliance_rate",
        "response_p50_s",
        "response_p99_s",
        "above_idle_per_task_j",
        "above_idle_per_on_time_task_j",
        "load_fairness",
    ]


def test_one_seed_gives_means_and_differences_without_intervals():
    table = comparison.compared(cells(THREE)[lambda rows: rows["seed"] == 42], "earliest_completion")
    topsis = row(table, scheduler="topsis", metric="slo_compliance_rate")
    assert topsis["difference"] == pytest.approx(-0.02)
    assert topsis[["low", "high", "difference_low", "difference_high", "p_value", "p_holm"]].isna().all()


def test_reference_that_is_absent_leaves_the_differences_empty():
    table = comparison.compared(cells({"topsis": THREE["topsis"]}), "earliest_completion")
    assert table["difference"].isna().all()


def test_runs_of_different_scenarios_are_refused_by_name():
    table = cells(THREE)
    table.loc[(table["scheduler"] == "topsis") & (table["seed"] == 43), "scenario_sha256"] = "f" * 64
    with pytest.raises(HarnessError) as caught:
        comparison.compared(table, "earliest_completion")
    assert str(caught.value) == (
        "load 1, seed 43: topsis (fifo) met scenario ffffffffffff, earliest_completion (fifo) 01.04301.043: "
        "only runs of the same scenario can be compared"
    )


def test_reference_is_earliest_completion_or_else_the_first_listed():
    assert comparison.reference_of(["topsis", "earliest_completion"]) == "earliest_completion"
    assert comparison.reference_of(["topsis", "random"]) == "topsis"


# Pareto front

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


def dominates(one, other):
    return one[0] <= other[0] and one[1] <= other[1] and one != other


@given(POINTS)
def test_front_is_not_dominated_and_dominates_all_else(points):
    front = [point for point, on_front in zip(points, pareto_front(points), strict=True) if on_front]
    for point, on_front in zip(points, pareto_front(points), strict=True):
        assert on_front != any(dominates(other, point) for other in front)
    assert bool(front) == bool(points)


def test_equal_points_are_on_the_front_together_and_one_without_figures_is_not():
    assert pareto_front([(1, 2), (1, 2), (2, 2), (NAN, 0)]) == [True, True, False, False]


def test_pareto_is_of_means_per_load_over_all_queue_disciplines():
    frugal, prompt = ([0.90, 0.92], [0.05, 0.07]), ([0.95, 0.97], [0.09, 0.09])
    table = comparison.pareto(
        pd.concat([cells({"frugal": frugal, "prompt": prompt}), cells({"prompt": ([0.95, 0.98], [0.08, 0.09])}, queue="edf")])
    )
    assert tuple(table.columns) == comparison.PARETO_COLUMNS
    assert table[["scheduler", "queue_discipline", "on_front"]].values.tolist() == [
        ["frugal", "fifo", True],
        ["prompt", "fifo", False],
        ["prompt", "edf", True],
    ]
    first = table.iloc[0]
    assert tuple(first[["miss_rate", "miss_rate_low", "miss_rate_high"]]) == pytest.approx(t_interval([0.10, 0.08]))
    assert tuple(first.iloc[6:9]) == pytest.approx(t_interval([0.05, 0.07]))


def test_loads_have_fronts_of_their_own():
    table = comparison.pareto(pd.concat([cells({"a": ([0.9] * 2, [0.05] * 2)}), cells({"a": ([0.8] * 2, [0.06] * 2)}, load=2.0)]))
    assert table["on_front"].tolist() == [True, True]


# Ablation


def test_ablation_is_without_minus_full_paired_by_seed():
    full = cells(THREE)
    without = [
        cells({"topsis": ([0.80, 0.84, 0.85], [0.07, 0.08, 0.09])}).assign(without="slack"),
        cells({"topsis": ([0.881, 0.909, 0.922], [0.10, 0.11, 0.13])}).assign(without="power"),
    ]
    table = comparison.ablation(full, pd.concat(without))
    assert tuple(table.columns) == comparison.ABLATION_COLUMNS
    slack = row(table, without="slack", metric="slo_compliance_rate")
    assert (slack["scheduler"], slack["queue_discipline"], slack["load"], slack["seeds"]) == ("topsis", "fifo", 1.0, 3)
    assert slack["mean"] == pytest.approx(0.83)
    expected = paired_difference([0.80, 0.84, 0.85], [0.88, 0.91, 0.92])
    assert tuple(slack[["difference", "difference_low", "difference_high"]]) == pytest.approx(expected[:3])
    power = paired_difference([0.881, 0.909, 0.922], [0.88, 0.91, 0.92])
    of_compliance = table[table["metric"] == "slo_compliance_rate"]
    assert of_compliance["p_holm"].tolist() == pytest.approx(holm([expected.p_value, power.p_value]))


def test_without_ablation_the_table_is_empty():
    assert tuple(comparison.ablation(cells(THREE), pd.DataFrame()).columns) == comparison.ABLATION_COLUMNS


def test_ablation_on_another_scenario_is_refused():
    other = cells({"topsis": THREE["topsis"]}).assign(without="slack", scenario_sha256="f" * 64)
    with pytest.raises(HarnessError, match="only runs of the same scenario"):
        comparison.ablation(cells(THREE), other)


# Gaps and frontier


@dataclass
class PricedBound:
    """A clairvoyant bound as bounds.py makes them."""

    tasks: int
    misses: int
    prices: list[tuple[float, float]]

    def energy_j(self, misses):
        return max(value - price * misses for price, value in self.prices)


BOUNDS = {(1.0, 42): PricedBound(1000, 30, [(0, 50.0), (0.5, 90.0)]), (1.0, 43): PricedBound(1000, 50, [(0, 60.0), (0.5, 110.0)])}


def test_gaps_by_hand():
    table = comparison.gaps(cells({"topsis": ([0.96, 0.92], [0.084, 0.105])}), BOUNDS)
    assert tuple(table.columns) == comparison.GAP_COLUMNS
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
    runs.loc[1, "failed"] = 1
    (gap,) = comparison.gaps(runs, BOUNDS).to_dict("records")
    assert gap["miss_gap"] == pytest.approx(0.02)
    for name in comparison.GAP_COLUMNS[8:]:
        assert math.isnan(gap[name])


def test_runs_without_a_bound_have_no_gap():
    assert comparison.gaps(cells({"topsis": ([0.96], [0.08])}, load=2.0), BOUNDS).empty
    assert tuple(comparison.gaps(cells(THREE), {}).columns) == comparison.GAP_COLUMNS


def test_bound_about_other_tasks_is_refused():
    bounds = {(1.0, 42): PricedBound(999, 30, [(0, 50.0)])}
    with pytest.raises(
        HarnessError, match=r"^topsis \(fifo\), load 1, seed 42: the bound is about 999 tasks, the run about 1000$"
    ):
        comparison.gaps(cells({"topsis": ([0.96], [0.08])}), bounds)


def test_frontier_by_hand():
    table = comparison.frontier(BOUNDS)
    assert tuple(table.columns) == comparison.FRONTIER_COLUMNS
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
    line = comparison.frontier(bounds)
    rate = np.mean(misses) / 1000
    if rate <= line["miss_rate"].iloc[-1]:
        above = line[line["miss_rate"] >= rate - 1e-12].iloc[0]
        assert np.mean(energies) >= above["above_idle_per_task_j"] - 1e-12


def test_frontier_without_misses_still_has_a_length():
    table = comparison.frontier({(1.0, 42): PricedBound(1000, 0, [(0, 50.0)])})
    assert table["miss_rate"].iloc[[0, -1]].tolist() == [0.0, 0.01]


# Highest load


@given(st.floats(0.1, 7), st.lists(st.floats(0.1, 8), max_size=4))
def test_bisection_brackets_a_monotone_limit(limit, loads_known):
    asked = []

    def meets(load):
        asked.append(load)
        return load <= limit

    known = {load: load <= limit for load in loads_known}
    found = comparison.bisected_limit(meets, known)
    assert len(asked) == len(set(asked) - set(known)) <= 12
    assert all(0.25 <= load <= 6.0 for load in asked)
    if limit < 0.25:
        assert found == (None, "below")
    elif limit >= 6.0:
        assert found == (None, "above")
    else:
        assert found.kind == "found"
        assert found.load is not None
        assert found.load <= limit <= found.load + 0.05
        assert found.load in asked or known[found.load]


@given(st.dictionaries(st.floats(0.25, 6), st.booleans(), max_size=6), st.integers(0, 2**32))
def test_verdicts_that_are_not_monotone_give_the_first_crossing_that_was_seen(known, seed):
    verdicts = dict(known)
    rng = np.random.default_rng(seed)

    def meets(load):
        verdicts[load] = bool(rng.integers(2))
        return verdicts[load]

    found = comparison.bisected_limit(meets, known)
    first_failing = min((load for load, passes in verdicts.items() if not passes), default=math.inf)
    if found.kind == "found":
        assert found.load is not None
        assert verdicts[found.load]
        assert found.load < first_failing <= found.load + 0.05
    elif found.kind == "below":
        assert verdicts[0.25] is False
    else:
        assert verdicts[6.0]
        assert math.isinf(first_failing)


def test_known_verdicts_narrow_the_bracket():
    assert next_load({1.0: True, 2.0: False}) == 1.5
    assert next_load({1.0: True, 1.04: False}) == LoadLimit(1.0, "found")


def test_load_is_doubled_while_nothing_fails_but_never_beyond_the_highest():
    assert [next_load({}), next_load({0.25: True}), next_load({1.5: True}), next_load({4.0: True})] == [0.25, 0.5, 3.0, 6.0]


def test_verdicts_beyond_the_loads_to_be_tried_prove_nothing():
    assert next_load({0.1: False, 8.0: True}) == 0.25


BELOW, ABOVE = LoadLimit(None, "below"), LoadLimit(None, "above")


def limits(*loads):
    """Limits of some seeds: a load, or BELOW or ABOVE."""
    return [load if isinstance(load, LoadLimit) else LoadLimit(load, "found") for load in loads]


@pytest.mark.parametrize(
    ("of_policy", "text"),
    [
        (limits(1.30, 1.32, 1.34), "1.32 (1.27 to 1.37)"),
        (limits(1.5, 1.5), "1.50 (1.50 to 1.50)"),
        (limits(1.5), "1.50 (one seed, no interval)"),
        (limits(BELOW, BELOW), "not reached: below 98 % at load 0.25 already (2 of 2 seeds)"),
        (limits(ABOVE, ABOVE), "6 or more (2 of 2 seeds)"),
        (
            limits(BELOW, 0.3, 0.5, BELOW),
            "not reached: below 98 % at load 0.25 already (2 of 4 seeds); 0.30 to 0.50 (2 of 4 seeds)",
        ),
        (limits(ABOVE, 5.5), "6 or more (1 of 2 seeds); 5.50 (1 of 2 seeds)"),
    ],
)
def test_text_of_a_highest_load(of_policy, text):
    (limit,) = comparison.load_limits({("topsis", "edf"): of_policy}).to_dict("records")
    assert tuple(limit) == comparison.LOAD_LIMIT_COLUMNS
    assert (limit["scheduler"], limit["queue_discipline"], limit["seeds"]) == ("topsis", "edf", len(of_policy))
    assert limit["text"] == text


def test_mean_of_highest_loads_needs_one_in_every_seed():
    table = comparison.load_limits({("a", "fifo"): limits(1.3, 1.5), ("b", "fifo"): limits(1.3, ABOVE)})
    assert table["found"].tolist() == [2, 1]
    assert tuple(table.iloc[0][["mean", "low", "high"]]) == pytest.approx(t_interval([1.3, 1.5]))
    assert table.iloc[1][["mean", "low", "high"]].isna().all()


# Verdict

JITTER = np.array([0.0, 0.002, -0.001, 0.001, -0.002])


def figures(compliance, energy, own=(1, -1, 1, -1, 0)):
    """Compliance and energy of five seeds, with something of the policy's own beside what the seeds share."""
    return compliance + JITTER + 1e-4 * np.array(own), energy + JITTER / 100 + 1e-5 * np.array(own)


FOUR = {
    "earliest_completion": figures(0.945, 0.090),
    "minimum_energy": figures(0.9449, 0.070, (-1, 2, 0, 1, -2)),
    "topsis": figures(0.94, 0.080, (0, 1, -1, 1, 0)),
    "random": figures(0.6, 0.1),
}


def test_verdict_of_a_clear_case():
    # Intervals by scipy.stats.t.interval of the figures and of their paired differences.
    sentences = comparison.verdict(cells(FOUR))
    assert sentences == [
        "Load 1: earliest_completion meets the most fixed deadlines, 94.5 % (94.3 to 94.7); 95.0 % are achievable. It cannot be "
        "told from minimum_energy (apart by 0.01 points, −0.02 to 0.04). The other 2 meet fewer, the nearest, topsis, by "
        "0.50 points (0.48 to 0.52).",
        "Load 1: of the policies whose mean reaches 98 % of the achievable compliance (earliest_completion, minimum_energy and "
        "topsis), minimum_energy uses the least energy above idle per task, 70.00 mJ (69.96 to 70.04). The other 2 use more, the "
        "nearest, topsis, by 10.00 mJ (9.99 to 10.02).",
        "Load 1: Pareto front of misses and energy above idle per task, by the means: earliest_completion (misses 5.5 %, 5.3 to "
        "5.7; 90.00 mJ, 89.98 to 90.02) and minimum_energy (misses 5.5 %, 5.3 to 5.7; 70.00 mJ, 69.96 to 70.04).",
    ]


def test_policies_that_differ_in_nothing_cannot_be_told_apart():
    same = figures(0.9, 0.08)
    (first, *_) = comparison.verdict(cells({"a": same, "b": same, "c": same}))
    assert "It cannot be told from b (apart by 0.00 points, 0.00 to 0.00) and c (apart by 0.00 points, 0.00 to 0.00)." in first
    assert "meet fewer" not in first


def test_difference_within_the_noise_is_no_claim():
    rng = np.random.default_rng(6)
    noise = {name: (0.9 + rng.normal(0, 0.01, 10), 0.08 + rng.normal(0, 0.01, 10)) for name in "abcdef"}
    for sentence in comparison.verdict(cells(noise))[:2]:
        assert " meet fewer" not in sentence
        assert " use more" not in sentence


def test_picking_the_best_of_equals_seldom_leads_to_a_claim():
    rng = np.random.default_rng(7)
    claims = 0
    for _ in range(60):
        equals = {name: (0.9 + rng.normal(0, 0.01, 10), [0.08] * 10) for name in "abcdef"}
        claims += any("fewer" in sentence for sentence in comparison.verdict(cells(equals)))
    assert claims <= 8  # 5 % of 60 are 3; more than 8 have a chance below 0.01


def test_policy_near_98_percent_of_the_achievable_is_named_as_doubtful():
    near = 0.98 * 0.95
    doubtful = {"a": figures(0.945, 0.09), "b": (near + JITTER, [0.07] * 5)}
    sentence = comparison.verdict(cells(doubtful))[1]
    assert "whose mean reaches 98 % of the achievable compliance (a and b)" in sentence
    assert sentence.endswith(
        "It cannot be told whether 98 % of the achievable compliance is reached by b (98.0 %, 97.8 to 98.2)."
    )


def test_where_nobody_keeps_up_the_nearest_is_named_and_no_energy_praised():
    sentence = comparison.verdict(cells({"a": figures(0.7, 0.09), "b": figures(0.6, 0.05)}))[1]
    assert sentence == (
        "Load 1: no policy reaches 98 % of the achievable compliance; the nearest, a, reaches 73.7 % (73.5 to 73.9)."
    )


def test_only_policy_that_keeps_up_is_said_to_be_the_only_one():
    sentence = comparison.verdict(cells({"a": figures(0.945, 0.09), "b": figures(0.6, 0.05)}))[1]
    assert (
        sentence
        == "Load 1: only a reaches 98 % of the achievable compliance, with 90.00 mJ (89.98 to 90.02) above idle per task."
    )


def test_one_other_policy_is_called_the_other():
    first, second, _ = comparison.verdict(cells({"a": figures(0.945, 0.09), "b": figures(0.94, 0.08, (0, 1, 0, -1, 0))}))
    assert first.endswith("The other, b, meets fewer, by 0.50 points (0.48 to 0.52).")
    assert second.endswith("The other, a, uses more, by 10.00 mJ (9.98 to 10.02).")


def test_one_seed_makes_no_claim_on_differences():
    table = cells({name: (compliance[:1], energy[:1]) for name, (compliance, energy) in FOUR.items()})
    sentences = comparison.verdict(table)
    assert sentences == [
        "One seed gives no interval: nothing is said of differences between policies; the figures below are of that one run.",
        "Load 1: earliest_completion meets the most fixed deadlines, 94.5 %; 95.0 % are achievable.",
        "Load 1: of the policies whose mean reaches 98 % of the achievable compliance (earliest_completion, minimum_energy and "
        "topsis), minimum_energy uses the least energy above idle per task, 70.0 mJ.",
    ]


def test_one_policy_is_compared_with_none():
    sentences = comparison.verdict(cells({"topsis": FOUR["topsis"]}))
    assert sentences[0] == "Load 1: topsis meets 94.0 % (93.8 to 94.2) of the fixed deadlines; 95.0 % are achievable."
    assert "only topsis reaches" in sentences[1]


def test_every_load_and_queue_discipline_has_its_sentences():
    table = pd.concat([cells(FOUR, load, queue) for load in (0.5, 2.0) for queue in ("fifo", "edf")])
    starts = [sentence.split(":")[0] for sentence in comparison.verdict(table)]
    assert starts == [
        *("Load 0.5, fifo", "Load 0.5, fifo", "Load 0.5, edf", "Load 0.5, edf", "Load 0.5"),
        *("Load 2, fifo", "Load 2, fifo", "Load 2, edf", "Load 2, edf", "Load 2"),
    ]


def test_front_over_two_queue_disciplines_names_them():
    table = pd.concat([cells(FOUR), cells({"topsis": figures(0.95, 0.06)}, queue="edf")])
    assert comparison.verdict(table)[-1].startswith(
        "Load 1: Pareto front of misses and energy above idle per task, by the means: topsis (edf) (misses 5.0 %"
    )


def test_load_without_tasks_is_said():
    nothing = cells(FOUR).assign(fixed_deadline_compliance_rate=None, achievable_slo_rate=None, above_idle_per_task_j=None)
    assert comparison.verdict(nothing) == ["Load 1: no task was dispatched in the window that is counted."]


def test_gap_of_the_policy_that_meets_most():
    table = cells({"a": ([0.96, 0.92], [0.084, 0.105]), "b": ([0.5, 0.5], [0.2, 0.2])})
    sentences = comparison.verdict(table, comparison.gaps(table, BOUNDS))
    assert sentences[2] == (
        "Load 1: no schedule can miss fewer than 4.00 % of the fixed deadlines (clairvoyant bound); a misses 2.00 points (−10.71 "
        "to 14.71) more, and its energy above idle is 35.0 % (−155.6 to 225.6) over the bound for as many misses."
    )


def test_gap_of_a_policy_with_failed_tasks_says_nothing_of_energy():
    table = cells({"a": ([0.96, 0.92], [0.084, 0.105])}).assign(failed=1)
    assert comparison.verdict(table, comparison.gaps(table, BOUNDS))[2].endswith("a misses 2.00 points (−10.71 to 14.71) more.")


def test_highest_loads_stand_last_the_best_first_and_the_rest_by_reason():
    table = comparison.load_limits(
        {
            ("a", "fifo"): limits(1.2, 1.2),
            ("b", "fifo"): limits(1.5, 1.5),
            ("c", "fifo"): limits(BELOW, BELOW),
            ("d", "fifo"): limits(BELOW, BELOW),
        }
    )
    assert comparison.verdict(cells(FOUR), None, table)[-2:] == [
        "Highest load (to within 0.05) at which 98 % of the achievable deadlines are met: b 1.50 (1.50 to 1.50) and a 1.20 "
        "(1.20 to 1.20).",
        "Highest load at which 98 % of the achievable deadlines are met by c and d: not reached: below 98 % at load 0.25 already "
        "(2 of 2 seeds).",
    ]


def test_narrow_intervals_are_written_with_more_digits_but_not_without_end():
    sentence = comparison.verdict(cells({"a": ([0.9, 0.900001], [2.5, 2.7]), "b": ([0.5, 0.5], [1.0, 1.1])}))[0]
    assert sentence.startswith("Load 1: a meets the most fixed deadlines, 90.000 % (89.999 to 90.001); 95.0 %")


# Notes


def noted(**changes):
    known = {
        "seeds": 10,
        "duration_s": 600.0,
        "warm_up_s": 60.0,
        "cool_down_s": 10.0,
        "schedulers": ["topsis", "earliest_completion"],
    }
    return comparison.notes(**{**known, **changes})


def test_notes_of_a_usual_sweep():
    assert noted() == [
        "Figures are of tasks that arrived from 60 s up to 590 s of 600 s: warm-up and cool-down are left out.",
        "Deadlines are the fixed ones, the same for every policy, unless a column says otherwise.",
        "Intervals are Student's t at 95 % over 10 seeds; differences are paired by seed; p-values are adjusted by Holm's "
        "procedure. The verdict tests all pairs of policies, comparison.csv those with earliest_completion.",
    ]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"seeds": 9}, "9 seeds: the field's practice is at least 10."),
        ({"seeds": 1}, "One seed: no intervals and no tests. The field's practice is at least 10 seeds."),
        (
            {"duration_s": 20.0, "warm_up_s": 2.0, "cool_down_s": 1 / 3},
            "Runs are shorter than 600 s, and 2 s of warm-up instead of 60 s are left out: the start counts more.",
        ),
        (
            {"schedulers": ["topsis", "random"]},
            "Differences are taken to topsis, the first policy listed, since earliest_completion is not in this sweep.",
        ),
        (
            {
                "loads": [{"load": 2.0, "dispatched_tasks_per_s": 62.04, "fraction_of_capacity": 1.128}],
                "capacity_tasks_per_s": 55.0,
            },
            "Load 2 is above capacity: 62.0 tasks/s, 113 % of the 55.0 tasks/s that the cluster can serve. Queues grow while the "
            "load lasts, so that the figures depend on the duration.",
        ),
    ],
)
def test_what_a_reader_must_know_is_said_only_where_it_holds(changes, note):
    assert note in noted(**changes)
    assert note not in noted()


def test_load_below_capacity_and_a_lone_policy_need_no_note():
    below = [{"load": 1.0, "dispatched_tasks_per_s": 31.0, "fraction_of_capacity": 0.56}]
    assert noted(loads=below, capacity_tasks_per_s=55.0) == noted()
    assert not [note for note in noted(schedulers=["topsis"]) if "first policy listed" in note]
