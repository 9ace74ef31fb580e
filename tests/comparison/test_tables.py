"""Tables of a comparison by hand: means and differences, the Pareto front, the ablation, highest loads."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparison import tables
from comparison.tables import pareto_front
from measurement.intervals import holm, holm_differences, paired_difference, t_interval
from utils import HarnessError

from .figures import ABOVE, BELOW, THREE, cells, limits, row


def test_means_intervals_and_paired_differences():
    table = tables.compared(cells(THREE), "earliest_completion")
    assert tuple(table.columns) == tables.COMPARISON_COLUMNS
    topsis = row(table, scheduler="topsis", metric="slo_compliance_rate")
    assert (topsis["queue_discipline"], topsis["load"], topsis["seeds"]) == ("fifo", 1.0, 3)
    assert tuple(topsis[["mean", "low", "high"]]) == pytest.approx(t_interval([0.88, 0.91, 0.92]))
    earliest, topsis_, random = (np.array(THREE[name][0]) for name in ("earliest_completion", "topsis", "random"))
    expected, *_ = holm_differences([(topsis_, earliest), (random, earliest), (topsis_, random)])
    assert tuple(topsis[["difference", "difference_low", "difference_high", "p_value", "p_holm"]]) == pytest.approx(expected)


def test_reference_has_no_difference_to_itself():
    table = tables.compared(cells(THREE), "earliest_completion")
    reference = row(table, scheduler="earliest_completion", metric="slo_compliance_rate")
    assert reference[["difference", "difference_low", "difference_high", "p_value", "p_holm"]].isna().all()


def test_holms_family_is_all_pairs_of_policies_of_one_load_queue_and_metric():
    both = pd.concat([cells(THREE), cells(THREE, queue="edf"), cells(THREE, load=2.0)])
    table = tables.compared(both, "earliest_completion")
    for load, queue in ((1.0, "fifo"), (1.0, "edf"), (2.0, "fifo")):
        of_family = table[(table["load"] == load) & (table["queue_discipline"] == queue)]
        for metric, column in (("fixed_deadline_compliance_rate", 0), ("above_idle_per_task_j", 1)):
            values = {name: figures[column] for name, figures in THREE.items()}
            p_values = {(a, b): paired_difference(values[a], values[b]).p_value for a, b in combinations(values, 2)}
            adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
            for name in ("topsis", "random"):
                found = row(of_family, metric=metric, scheduler=name)
                assert found["p_value"] == pytest.approx(p_values["earliest_completion", name])
                assert found["p_holm"] == pytest.approx(adjusted["earliest_completion", name])


def test_pairs_are_by_seed_whatever_the_order_of_the_rows():
    in_order = tables.compared(cells(THREE), "earliest_completion")
    shuffled = cells(THREE).sample(frac=1, random_state=4)
    first = ["earliest_completion", "topsis", "random"]
    shuffled = shuffled.sort_values("scheduler", key=lambda names: names.map(first.index), kind="stable")
    pd.testing.assert_frame_equal(tables.compared(shuffled, "earliest_completion"), in_order)


def test_metric_that_one_run_lacks_has_neither_mean_nor_difference():
    table = cells(THREE)
    table.loc[table["scheduler"] == "random", "response_p99_s"] = [0.2, np.nan, 0.4]
    compared = tables.compared(table, "earliest_completion")
    random = row(compared, scheduler="random", metric="response_p99_s")
    assert random["seeds"] == 2 and math.isnan(random["mean"]) and math.isnan(random["difference"])
    assert row(compared, scheduler="topsis", metric="response_p99_s")["difference"] == 0


def test_reference_that_lacks_a_figure_is_compared_with_none():
    table = cells(THREE)
    table.loc[table["scheduler"] == "earliest_completion", "response_p99_s"] = [0.2, np.nan, 0.4]
    topsis = row(tables.compared(table, "earliest_completion"), scheduler="topsis", metric="response_p99_s")
    assert topsis["mean"] == pytest.approx(0.3) and math.isnan(topsis["difference"])


def test_metric_without_any_value_has_no_row():
    table = cells(THREE)
    table.loc[table["scheduler"] == "topsis", "rank_reversal_rate"] = [0.01, 0.02, 0.03]
    compared = tables.compared(table, "earliest_completion")
    reversal = row(compared, metric="rank_reversal_rate")
    assert (reversal["scheduler"], reversal["seeds"]) == ("topsis", 3)
    assert reversal["mean"] == pytest.approx(0.02)
    assert math.isnan(reversal["difference"])


def test_every_slo_class_of_the_settings_is_compared():
    table = cells(THREE).rename(columns={"slo_hard": "slo_urgent", "fixed_hard": "fixed_urgent"})
    metrics = list(dict.fromkeys(tables.compared(table, "earliest_completion")["metric"]))
    assert metrics == [
        "slo_compliance_rate",
        "slo_urgent",
        "base_deadline_compliance_rate",
        "response_p50_s",
        "response_p99_s",
        "above_idle_per_task_j",
        "above_idle_per_on_time_task_j",
        "load_fairness",
        "adapted_deadline_compliance_rate",
        "fixed_deadline_compliance_rate",
        "fixed_urgent",
    ]


def test_one_seed_gives_means_and_differences_without_intervals():
    table = tables.compared(cells(THREE)[lambda rows: rows["seed"] == 42], "earliest_completion")
    topsis = row(table, scheduler="topsis", metric="slo_compliance_rate")
    assert topsis["difference"] == pytest.approx(-0.02)
    assert topsis[["low", "high", "difference_low", "difference_high", "p_value", "p_holm"]].isna().all()


def test_reference_that_is_absent_leaves_the_differences_empty():
    table = tables.compared(cells({"topsis": THREE["topsis"]}), "earliest_completion")
    assert table["difference"].isna().all()


def test_runs_of_different_scenarios_are_refused_by_name():
    table = cells(THREE)
    table.loc[(table["scheduler"] == "topsis") & (table["seed"] == 43), "scenario_sha256"] = "f" * 64
    with pytest.raises(HarnessError) as caught:
        tables.compared(table, "earliest_completion")
    assert str(caught.value) == (
        "load 1, seed 43: topsis (fifo) met scenario ffffffffffff, earliest_completion (fifo) 01.04301.043: "
        "only runs of the same scenario can be compared"
    )


def test_reference_is_earliest_completion_or_else_the_first_listed():
    assert tables.reference_of(["topsis", "earliest_completion"]) == "earliest_completion"
    assert tables.reference_of(["topsis", "random"]) == "topsis"


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
    assert pareto_front([(1, 2), (1, 2), (2, 2), (math.nan, 0)]) == [True, True, False, False]


def test_pareto_is_of_means_per_load_over_all_queue_disciplines():
    frugal, prompt = ([0.90, 0.92], [0.05, 0.07]), ([0.95, 0.97], [0.09, 0.09])
    table = tables.pareto(
        pd.concat([cells({"frugal": frugal, "prompt": prompt}), cells({"prompt": ([0.95, 0.98], [0.08, 0.09])}, queue="edf")])
    )
    assert tuple(table.columns) == tables.PARETO_COLUMNS
    assert table[["scheduler", "queue_discipline", "on_front"]].values.tolist() == [
        ["frugal", "fifo", True],
        ["prompt", "fifo", False],
        ["prompt", "edf", True],
    ]
    first = table.iloc[0]
    assert tuple(first[["miss_rate", "miss_rate_low", "miss_rate_high"]]) == pytest.approx(t_interval([0.10, 0.08]))
    assert tuple(first.iloc[6:9]) == pytest.approx(t_interval([0.05, 0.07]))


def test_policy_that_lacks_a_figure_in_some_seed_has_no_point():
    table = cells(THREE)
    table.loc[(table["scheduler"] == "topsis") & (table["seed"] == 43), "fixed_deadline_compliance_rate"] = np.nan
    points = tables.pareto(table).set_index("scheduler")
    assert math.isnan(points.loc["topsis", "miss_rate"]) and not points.loc["topsis", "on_front"]
    assert points.loc["random", "miss_rate"] == pytest.approx(0.4)


def test_loads_have_fronts_of_their_own():
    table = tables.pareto(pd.concat([cells({"a": ([0.9] * 2, [0.05] * 2)}), cells({"a": ([0.8] * 2, [0.06] * 2)}, load=2.0)]))
    assert table["on_front"].tolist() == [True, True]


# Ablation


def test_ablation_is_without_minus_full_paired_by_seed():
    full = cells(THREE)
    without = [
        cells({"topsis": ([0.80, 0.84, 0.85], [0.07, 0.08, 0.09])}).assign(without="slack"),
        cells({"topsis": ([0.881, 0.909, 0.922], [0.10, 0.11, 0.13])}).assign(without="power"),
    ]
    table = tables.ablation(full, pd.concat(without))
    assert tuple(table.columns) == tables.ABLATION_COLUMNS
    slack = row(table, without="slack", metric="fixed_deadline_compliance_rate")
    assert (slack["scheduler"], slack["queue_discipline"], slack["load"], slack["seeds"]) == ("topsis", "fifo", 1.0, 3)
    assert slack["mean"] == pytest.approx(0.83)
    topsis = [0.88, 0.91, 0.92]
    expected, power = holm_differences([([0.80, 0.84, 0.85], topsis), ([0.881, 0.909, 0.922], topsis)])
    assert tuple(slack[["difference", "difference_low", "difference_high"]]) == pytest.approx(expected[:3])
    of_compliance = table[table["metric"] == "fixed_deadline_compliance_rate"]
    assert of_compliance["p_holm"].tolist() == pytest.approx([expected.p_holm, power.p_holm])


def test_without_ablation_the_table_is_empty():
    assert tuple(tables.ablation(cells(THREE), pd.DataFrame()).columns) == tables.ABLATION_COLUMNS


def test_ablation_on_another_scenario_is_refused():
    other = cells({"topsis": THREE["topsis"]}).assign(without="slack", scenario_sha256="f" * 64)
    with pytest.raises(HarnessError, match="only runs of the same scenario"):
        tables.ablation(cells(THREE), other)


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
    (limit,) = tables.load_limits({("topsis", "edf"): of_policy}).to_dict("records")
    assert tuple(limit) == tables.LOAD_LIMIT_COLUMNS
    assert (limit["scheduler"], limit["queue_discipline"], limit["seeds"]) == ("topsis", "edf", len(of_policy))
    assert limit["text"] == text


def test_mean_of_highest_loads_needs_one_in_every_seed():
    table = tables.load_limits({("a", "fifo"): limits(1.3, 1.5), ("b", "fifo"): limits(1.3, ABOVE)})
    assert table["found"].tolist() == [2, 1]
    assert tuple(table.iloc[0][["mean", "low", "high"]]) == pytest.approx(t_interval([1.3, 1.5]))
    assert table.iloc[1][["mean", "low", "high"]].isna().all()
