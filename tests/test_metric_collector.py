"""The figures of the summary by hand, its keys, its verdict on the run, and the rows of the result files."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from measurement.summary import (
    RunFacts,
    energy_invalid_reasons,
    energy_summary,
    invalid_reasons,
    jain_index,
    none_up_s,
    percentiles,
)
from metric_collector import (
    DEVICE_COLUMNS,
    RESULT_COLUMNS,
    MetricCollector,
    Row,
    decision_columns,
)
from mobility.mobility_manager import MobilityManager
from task import Decision, Device, NodeEnergy, Outcome, TaskResult
from tests.helpers import DEVICE, default_settings, make_task, small_profile

PROFILE = small_profile({"coral1": {"resnet50": 100.0, "vgg16": 300.0}, "hailo1": {"resnet50": 50.0}}, overhead_ms=20.0, cv=0.2)
NODES = ("coral1", "hailo1")
ENERGY = {"coral1": NodeEnergy(50.0, 10.0, 0.0), "hailo1": NodeEnergy(60.0, 5.0, 0.0)}


class StillMobility:
    """Devices that never move; those below `inside` are in the cell."""

    inside = 100

    def device(self, device_id, time_s):
        return Device(device_id, "fixed", 1.0, 2.0, 0.0, 0.0, device_id < self.inside)

    def still_covered(self, device, arrival_s, time_s):
        return self.device(device.device_id, time_s).in_coverage

    def covered(self, task_id, device_id, time_s):
        return device_id < self.inside

    def in_cell_share(self, start_s, end_s):
        return 0.75


def settings_of(**changes):
    classes = {"hard": {"share": 0.5}, "normal": {"share": 0.0}, "soft": {"share": 0.5}}
    return default_settings(**{"duration_s": 120.0, "slo_classes": classes, "seed": 11, **changes})


def collector(settings=None, mobility=None, **writers):
    return MetricCollector(settings or settings_of(), PROFILE, NODES, mobility or StillMobility(), **writers)


def facts(settings=None, **changes):
    given = {
        "experiment_id": "20260101_000000",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:02:00+00:00",
        "interrupted": False,
        "cluster": "emulated",
        "scheduler": "topsis",
        "settings": settings or settings_of(),
        "scenario_sha256": "ab" * 32,
        "window_s": 100.0,
        "energy": ENERGY,
        "idle_w": dict.fromkeys(NODES, 4.0),
    }
    return RunFacts(**{**given, **changes})


def answered(
    task_id=0, response_s=0.5, arrival_s=0.0, node="coral1", inference_s=0.1, device=DEVICE, noise=0.0, lag_s=0.001, **task
):
    sent = make_task(task_id, arrival_s, **task)
    outcome = Outcome.ON_TIME if response_s <= sent.adapted_deadline_s else Outcome.LATE
    sent_s = arrival_s + lag_s
    return TaskResult(sent, device, noise, outcome, node, 1, sent_s, sent_s, arrival_s + response_s, 0.0, inference_s)


def given_up(task_id=0, arrival_s=0.0):
    """A task that was open at the drain timeout, its deadline passed."""
    return failed(task_id, arrival_s)._replace(outcome=Outcome.LATE, assigned_node="coral1", attempts=1, error="drain_timeout")


def failed(task_id=0, arrival_s=0.0, noise=0.0, **task):
    return TaskResult(make_task(task_id, arrival_s, **task), DEVICE, noise, Outcome.FAILED, "coral1", 2, arrival_s, error="x")


def not_placed(outcome, task_id=0, arrival_s=0.0, **task):
    return TaskResult(make_task(task_id, arrival_s, **task), DEVICE, 0.0, outcome)


def summary_of(*results, settings=None, mobility=None, **changes):
    metrics = collector(settings, mobility)
    for result in results:
        metrics.record(result)
    return metrics.summarise(facts(settings, **changes))


# Pure kernels.


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=300))
def test_percentiles_are_inverted_cdf(values):
    found = percentiles(np.array(values))
    assert found is not None
    ordered = sorted(values)
    for name, percent in {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p999": 999}.items():
        # the smallest value that at least that share of the values does not exceed; in whole numbers, free of rounding
        rank = -(-percent * len(ordered) // 1000)
        assert found[name] == ordered[rank - 1]
    assert found["max"] == ordered[-1]
    assert found["mean"] == pytest.approx(sum(values) / len(values))


def test_percentiles_by_hand():
    values = list(range(1, 101))
    random.Random(1).shuffle(values)
    found = percentiles(np.array(values, dtype=float))
    assert found == {"mean": 50.5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 100, "max": 100}


def test_percentiles_leave_out_what_is_missing():
    assert percentiles(np.array([np.nan, 3.0, np.nan])) == percentiles(np.array([3.0]))
    assert percentiles(np.array([np.nan])) is None
    assert percentiles(np.array([])) is None


def test_jain_index_by_hand():
    assert jain_index([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([1.0, 2.0, 3.0]) == pytest.approx(36 / (3 * 14))
    assert jain_index([0.0, 0.0]) is None


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20), st.floats(0.01, 100.0))
def test_jain_index_lies_between_one_nth_and_one_and_knows_no_scale(shares, scale):
    index = jain_index(shares)
    if index is None or max(shares) < 1e-100:  # squares vanish
        assert max(shares) < 1e-100
        return
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9
    assert jain_index([share * scale for share in shares]) == pytest.approx(index)


def test_energy_adds_up_and_is_shared_out_over_the_tasks():
    assert energy_summary(ENERGY, dispatched=10, on_time=5) == {
        "total": 110.0,
        "above_idle": 15.0,
        "above_idle_per_task": 1.5,
        "above_idle_per_on_time_task": 3.0,
        "by_node": {"coral1": 50.0, "hailo1": 60.0},
    }


def test_energy_with_a_missing_meter_is_null_where_it_needs_that_node():
    energy = {**ENERGY, "hailo1": NodeEnergy(None, None, 1.0)}
    assert energy_summary(energy, 10, 5) == {
        "total": None,
        "above_idle": None,
        "above_idle_per_task": None,
        "above_idle_per_on_time_task": None,
        "by_node": {"coral1": 50.0, "hailo1": None},
    }


def test_energy_per_task_is_null_without_tasks():
    energy = energy_summary(ENERGY, 0, 0)
    assert energy["above_idle_per_task"] is None and energy["above_idle_per_on_time_task"] is None


# More than is achievable: hailo1, the better node, takes 20 ms and, at noise 0, 49 ms.


@pytest.mark.parametrize(
    ("cluster", "deadline_s", "response_s", "is_possible"),
    [
        ("emulated", 0.063, 0.050, False),
        ("emulated", 0.063, 0.064, True),  # late
        ("emulated", 0.066, 0.050, True),  # within what a calibration may be off by
        ("simulated", 0.020, 0.010, False),
        ("workers", 0.021, 0.010, False),  # 0.8 times the inference at 3 sigmas below its mean is 21.7 ms
        ("workers", 0.023, 0.010, True),
    ],
)
def test_deadline_that_no_node_can_meet_and_a_task_met_makes_the_run_invalid(cluster, deadline_s, response_s, is_possible):
    tasks = [answered(1, response_s, deadline_s=deadline_s), answered(2, 0.2, deadline_s=0.3), answered(3, 0.9, deadline_s=0.01)]
    summary = summary_of(*tasks, cluster=cluster)
    assert summary["valid"] is is_possible
    if not is_possible:
        assert summary["invalid_reasons"][0].startswith("1 of 3 dispatched tasks met a deadline that no idle node can meet")
    met = response_s <= deadline_s
    assert any("33.33% could by the profile" in line for line in summary["warnings"]) is met


def test_tasks_that_met_what_is_achievable_are_no_cause_for_a_warning():
    summary = summary_of(answered(1, 0.08, deadline_s=0.1), answered(2, 0.5, deadline_s=0.1), cluster="workers")
    assert summary["valid"] and summary["warnings"] == []


@pytest.mark.parametrize("beaten", [1, 3])
def test_more_than_is_achievable_is_a_warning_by_chance_and_makes_the_run_invalid_beyond(beaten):
    # On workers 80 ms are expected to be too short for this task, and 60 ms are not impossible.
    lucky = [answered(number, 0.058, deadline_s=0.060) for number in range(beaten)]
    summary = summary_of(*lucky, *(answered(number, 0.08, deadline_s=0.1) for number in range(beaten, 1000)), cluster="workers")
    assert summary["fixed_deadline_compliance_rate"] > summary["achievable_slo_rate"]
    said = summary["invalid_reasons"] if beaten > 1 else summary["warnings"]
    assert summary["valid"] is (beaten == 1) and any("could by the profile: nodes are quicker" in line for line in said)


# Validity.

GOOD_LAG = {"p99": 0.001, "max": 0.04}


def test_quiet_run_is_valid():
    assert invalid_reasons(facts(), GOOD_LAG) == []
    assert invalid_reasons(facts(), None) == []
    assert energy_invalid_reasons(ENERGY) == []


@pytest.mark.parametrize(
    "changes, lag, says",
    [
        ({"interrupted": True}, GOOD_LAG, "the run was interrupted"),
        ({}, {"p99": 0.0051, "max": 0.01}, "dispatch lag p99 5.10 ms exceeds 5 ms"),
        ({}, {"p99": 0.001, "max": 0.0501}, "dispatch lag max 50.1 ms exceeds 50 ms"),
        ({"wake_late_p99_s": 0.01}, GOOD_LAG, "emulated accelerators woke 10.0 ms late at p99, more than 5 ms"),
        ({"unreachable_at_start": {"hailo1": "timed out"}}, GOOD_LAG, "hailo1 could not be reached at start: timed out"),
        ({"down_periods": [("coral1", 10.0, 15.1)]}, GOOD_LAG, "coral1 was down for 5.1 s from 10.0 s on"),
        (
            {"down_periods": [("coral1", 30.0, 32.5), ("hailo1", 10.0, 12.0), ("coral1", 12.0, 14.6)]},
            GOOD_LAG,
            "coral1 was down for 5.1 s in 2 outages from 12.0 s on",
        ),
        ({"down_periods": [("coral1", 10.0, 13.0), ("hailo1", 11.9, 14.0)]}, GOOD_LAG, "no node was up for 1.1 s"),
    ],
)
def test_each_reason_makes_the_run_invalid_and_says_so(changes, lag, says):
    (reason,) = invalid_reasons(facts(**changes), lag)
    assert reason.startswith(says)


@pytest.mark.parametrize(
    "changes, lag",
    [
        ({}, {"p99": 0.005, "max": 0.05}),
        ({"wake_late_p99_s": 0.005}, GOOD_LAG),
        ({"down_periods": [("coral1", 10.0, 13.0), ("coral1", 20.0, 22.0)]}, GOOD_LAG),
        ({"down_periods": [("coral1", 10.0, 13.0), ("hailo1", 12.0, 14.0)]}, GOOD_LAG),
    ],
)
def test_limits_themselves_are_still_valid(changes, lag):
    assert invalid_reasons(facts(**changes), lag) == []


def test_time_without_any_node_is_that_in_which_all_are_out_at_once():
    periods = [("a", 0.0, 4.0), ("b", 1.0, 2.0), ("b", 3.0, 6.0), ("c", 0.5, 3.5), ("a", 5.0, 7.0)]
    assert none_up_s(periods, ["a", "b", "c"]) == pytest.approx(1.0 + 0.5)
    assert none_up_s(periods, ["a", "b"]) == pytest.approx(1.0 + 1.0 + 1.0)
    assert none_up_s(periods, ["a", "b", "c", "d"]) == 0.0


@pytest.mark.parametrize("cluster", ["workers", "emulated", "simulated"])
def test_more_than_one_percent_of_failed_tasks_makes_any_run_invalid(cluster):
    def reasons(failures):
        tasks = [answered(i) for i in range(200 - failures)] + [failed(200 + i) for i in range(failures)]
        return summary_of(*tasks, not_placed(Outcome.SKIPPED, 999), cluster=cluster)["invalid_reasons"]

    assert reasons(2) == []
    (reason,) = reasons(3)
    assert reason.startswith("3 of 200 dispatched tasks (1.5%) failed or got no answer, more than 1%")


@pytest.mark.parametrize("cluster, valid", [("workers", False), ("emulated", False), ("simulated", True)])
def test_answers_that_never_came_count_as_lost_on_the_wall_clock(cluster, valid):
    tasks = [answered(i) for i in range(95)] + [given_up(100 + i) for i in range(5)]
    assert summary_of(*tasks, cluster=cluster)["valid"] is valid


@pytest.mark.parametrize("cluster", ["workers", "emulated", "simulated"])
@pytest.mark.parametrize("results", [[], [not_placed(Outcome.SKIPPED)]])
def test_run_without_any_task_is_not_valid(cluster, results):
    assert summary_of(*results, cluster=cluster)["invalid_reasons"] == ["no task was dispatched: nothing was measured"]


def test_summary_holds_every_outage_by_node():
    periods = [("coral1", 3.0, 3.5), ("hailo1", 1.0, 2.0), ("coral1", 0.0, 1.0)]
    outages = json.loads(json.dumps(summary_of(answered(), down_periods=periods)["outages"]))
    assert outages == {
        "coral1": {"count": 2, "down_s": 1.5, "periods": [[0.0, 1.0], [3.0, 3.5]]},
        "hailo1": {"count": 1, "down_s": 1.0, "periods": [[1.0, 2.0]]},
    }
    assert summary_of(answered())["outages"] == {}


def test_energy_is_invalid_without_data_or_with_gaps():
    energy = {"coral1": NodeEnergy(None, None, 1.0), "coral2": NodeEnergy(5.0, 1.0, 0.051), "hailo1": NodeEnergy(5.0, 1.0, 0.05)}
    without_data, with_gaps = energy_invalid_reasons(energy)
    assert without_data == "coral1 has no power data"
    assert with_gaps.startswith("coral2: 5% of the window")


def test_nodes_of_which_the_same_is_said_share_a_line_and_what_follows_from_it_is_not_said_again():
    energy = {name: NodeEnergy(5.0, 1.0, 0.5) for name in ("coral1", "coral2", "jetson1", "hailo1")}
    set_back = {"coral1": "the clock was set back", "jetson1": "the clock was set back"}
    impossible, with_gaps = energy_invalid_reasons(energy, set_back)
    assert impossible == "coral1, jetson1: the clock was set back"
    assert with_gaps.startswith("coral2, hailo1: 50% of the window was not measured")


def test_summary_carries_the_verdict():
    assert summary_of(answered())["valid"] is True
    late = summary_of(answered(lag_s=0.06))
    assert late["valid"] is False and len(late["invalid_reasons"]) == 2
    blind = summary_of(answered(), energy={"coral1": NodeEnergy(None, None, 1.0)})
    assert (blind["valid"], blind["energy_valid"], len(blind["energy_invalid_reasons"])) == (True, False, 1)


# The summary.


def test_busy_time_is_that_of_the_servers_counter_where_there_is_one():
    tasks = [answered(0, node="coral1", inference_s=2.0), answered(1, node="hailo1", inference_s=3.0)]
    summary = summary_of(
        *tasks,
        window_s=10.0,
        counted_busy_s={"coral1": 4.0},
        untold_busy_s={"coral1": 1.0, "hailo1": 0.5},
        abandoned={"coral1": 5, "hailo1": 2},
    )
    assert summary["utilisation"] == {"coral1": pytest.approx(0.4), "hailo1": pytest.approx(0.35)}
    assert summary["load_fairness"] == pytest.approx(jain_index([0.4, 0.35]))
    assert summary["utilisation_estimated"] == ["hailo1"]
    (warning,) = summary["warnings"]
    assert warning.startswith("busy time of hailo1 is an estimate: 2 requests")


def test_counter_never_takes_away_what_answers_tell_and_probes_are_no_estimate():
    summary = summary_of(
        answered(node="coral1", inference_s=2.0),
        window_s=10.0,
        counted_busy_s={"coral1": 1.9},
        untold_busy_s={"hailo1": 0.5},
        abandoned={"coral1": 0, "hailo1": 0},
    )
    assert summary["utilisation"] == {"coral1": pytest.approx(0.2), "hailo1": pytest.approx(0.05)}
    assert summary["utilisation_estimated"] == [] == summary["warnings"]


@pytest.mark.parametrize("counted_s", [12.0, 5000.0, 1e308])
def test_counter_of_more_busy_time_than_there_was_is_not_believed_and_said(counted_s):
    tasks = [answered(0, node="coral1", inference_s=2.0), answered(1, node="hailo1", inference_s=3.0)]
    counted = {"coral1": counted_s, "hailo1": 10.9}
    facts = {
        "window_s": 10.0,
        "counted_busy_s": counted,
        "untold_busy_s": {"coral1": 1.0},
        "abandoned": {"coral1": 5, "hailo1": 2},
    }
    summary = summary_of(*tasks, **facts)
    assert summary["utilisation"] == {"coral1": pytest.approx(0.3), "hailo1": pytest.approx(1.09)}
    assert summary["utilisation_estimated"] == ["coral1"]
    assert [line.partition(":")[0] for line in summary["warnings"]] == [
        "busy time of coral1",
        "busy time of coral1 is an estimate",
    ]
    assert f"a counter of its server makes {counted_s:.4g} s of 10 s" in summary["warnings"][0]


KEYS_OF_THE_DESIGN = """experiment_id, started_at, finished_at, interrupted, valid, invalid_reasons, energy_valid, cluster,
scheduler, seed, settings, scenario_sha256, git_commit, tasks, slo_compliance_rate, slo_compliance_rate_by_class,
slo_violations_by_class, fixed_deadline_compliance_rate, base_deadline_compliance_rate, achievable_slo_rate, delivered_rate,
response_time_s, waiting_time_s, inference_time_s, throughput_tasks_per_s, window_s, energy_j, load_fairness, utilisation,
coverage_skip_rate, dispatch_lag_s, decision_duration_s, by_minute, versions"""
FURTHER_KEYS = {
    "energy_invalid_reasons",
    "achievable_slo_rate_is_estimate",
    "emulated_wake_late_p99_s",
    "emulated_round_trip_s",
    "host_metrics",
    "idle_w",
    "outages",
    "utilisation_estimated",
    "warnings",
    "unanswered",
    "adapted_deadline_compliance_rate",
    "adapted_deadline_compliance_rate_by_class",
    "fixed_deadline_compliance_rate_by_class",
    "trace",
    "policy_seed",
    "performance_profile_sha256",
    "delivered_rate_is_estimate",
    "in_cell_share_is_estimate",
}


def test_summary_has_the_keys_of_the_design_and_a_few_more():
    assert set(summary_of(answered())) == set(KEYS_OF_THE_DESIGN.replace("\n", " ").split(", ")) | FURTHER_KEYS


@pytest.mark.parametrize(
    "results", [[], [not_placed(Outcome.SKIPPED)], [failed()], [not_placed(Outcome.UNFINISHED)], [answered()], [given_up()]]
)
def test_summary_of_any_run_is_json_without_nan(results):
    text = json.dumps(summary_of(*results), allow_nan=False)
    assert json.loads(text)["tasks"]["generated"] == len(results)


def test_outcomes_add_up_and_skipped_and_unfinished_stand_beside_the_compliance():
    results = [answered(i, 0.5) for i in range(3)] + [answered(3, 1.5), failed(4)]
    results += [not_placed(Outcome.SKIPPED, i) for i in (5, 6, 7)] + [not_placed(Outcome.UNFINISHED, 8)]
    summary = summary_of(*results)
    assert summary["tasks"] == {"generated": 9, "on_time": 3, "late": 1, "failed": 1, "skipped": 3, "unfinished": 1}
    assert summary["slo_compliance_rate"] == pytest.approx(3 / 5)
    assert summary["coverage_skip_rate"] == pytest.approx(3 / 9)
    assert summary["throughput_tasks_per_s"] == pytest.approx(4 / 100)
    assert summary["unanswered"] == 1
    # drawn 15 J, and what the failed task would have taken on coral1: 100 ms at 3 W above idle, by the profile's mean
    assert summary["energy_j"]["above_idle_per_task"] == pytest.approx(15.3 / 5)
    assert summary["energy_j"]["above_idle_per_on_time_task"] == pytest.approx(15.3 / 3)
    assert (summary["energy_j"]["above_idle"], summary["energy_j"]["total"]) == (15.0, 110.0)
    assert summary["waiting_time_s"]["p50"] == pytest.approx(0.001)


def test_compliance_and_violations_by_class():
    summary = summary_of(answered(0, slo="hard"), answered(1, 2.0, slo="hard"), failed(2, slo="hard"), answered(3, slo="soft"))
    assert summary["slo_compliance_rate_by_class"] == {"hard": pytest.approx(1 / 3), "normal": None, "soft": 1.0}
    assert summary["slo_violations_by_class"] == {"hard": 2, "normal": 0, "soft": 0}


def test_names_that_a_class_a_model_and_an_outcome_share_do_not_mix():
    hard, soft = (default_settings().slo_classes[name] for name in ("hard", "soft"))
    settings = settings_of(models=["vgg16"]).model_copy(update={"slo_classes": {"hard": hard, "vgg16": soft, "late": soft}})
    classes = ["hard", "vgg16", "vgg16", "late"]
    results = [answered(i, 0.5 if i == 0 else 2.0, slo=name, model="vgg16") for i, name in enumerate(classes)]
    summary = summary_of(*results, settings=settings)
    assert summary["slo_compliance_rate_by_class"] == {"hard": 1.0, "vgg16": 0.0, "late": 0.0}
    assert summary["slo_violations_by_class"] == {"hard": 0, "vgg16": 2, "late": 1}
    assert summary["tasks"] == {"generated": 4, "on_time": 1, "late": 3, "failed": 0, "skipped": 0, "unfinished": 0}


def test_fixed_and_base_deadline_are_judged_beside_the_adapted_one():
    deadlines = make_task()._replace(base_deadline_s=1.0, fixed_deadline_s=0.6, adapted_deadline_s=1.2)
    results = [answered(i, response_s)._replace(task=deadlines) for i, response_s in enumerate([0.5, 0.8, 1.1])]
    summary = summary_of(*[r._replace(outcome=Outcome.ON_TIME) for r in results], failed(3))
    assert summary["slo_compliance_rate"] == summary["adapted_deadline_compliance_rate"] == pytest.approx(3 / 4)
    assert summary["base_deadline_compliance_rate"] == pytest.approx(2 / 4)
    assert summary["fixed_deadline_compliance_rate"] == pytest.approx(1 / 4)
    assert summary["adapted_deadline_compliance_rate_by_class"]["soft"] == pytest.approx(3 / 4)
    assert summary["fixed_deadline_compliance_rate_by_class"] == {"hard": None, "normal": None, "soft": pytest.approx(1 / 4)}


def test_delivered_is_whether_the_device_was_in_the_cell_when_its_answer_came():
    class Leaving(StillMobility):
        def device(self, device_id, time_s):
            return super().device(device_id, time_s)._replace(in_coverage=time_s < 0.6)

        def covered(self, task_id, device_id, time_s):
            return time_s < 0.6

    rows: list[Row] = []
    metrics = collector(mobility=Leaving(), write_result=rows.append)
    for result in [answered(0, 0.5), answered(1, 0.7), failed(2), not_placed(Outcome.SKIPPED, 3)]:
        metrics.record(result)
    assert [row[RESULT_COLUMNS.index("delivered")] for row in rows] == [True, False, False, None]
    assert metrics.summarise(facts())["delivered_rate"] == pytest.approx(1 / 3)


def test_utilisation_and_fairness_are_inference_seconds_over_the_window():
    summary = summary_of(
        *[answered(i, node="coral1", inference_s=2.0) for i in range(10)], answered(10, node="hailo1", inference_s=10.0)
    )
    assert summary["utilisation"] == {"coral1": pytest.approx(0.2), "hailo1": pytest.approx(0.1)}
    assert summary["load_fairness"] == pytest.approx(0.3**2 / (2 * (0.2**2 + 0.1**2)))


def test_unused_cluster_has_no_fairness():
    assert summary_of(failed())["load_fairness"] is None


# Numbers that are none


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_energy_that_is_not_finite_is_null_with_a_reason_and_the_rest_is_written(value):
    summary = summary_of(answered(), energy={**ENERGY, "coral1": NodeEnergy(value, value, 0.0)})
    assert summary["energy_j"]["by_node"] == {"coral1": None, "hailo1": 60.0}
    assert summary["energy_j"]["total"] is summary["energy_j"]["above_idle_per_task"] is None
    assert (summary["energy_valid"], summary["valid"], summary["slo_compliance_rate"]) == (False, True, 1.0)
    reasons = summary["energy_invalid_reasons"]
    assert f"energy_j.by_node.coral1 is null: it came to {value}, which is no number" in reasons and len(reasons) == 5
    json.dumps(summary, allow_nan=False)


def test_finite_energies_whose_sum_is_not_cost_the_sum_alone():
    summary = summary_of(answered(), energy=dict.fromkeys(NODES, NodeEnergy(1e308, 1.0, 0.0)))
    assert summary["energy_j"]["by_node"] == dict.fromkeys(NODES, 1e308)
    assert summary["energy_j"]["total"] is None and summary["energy_j"]["above_idle"] == 2.0
    assert summary["energy_invalid_reasons"] == ["energy_j.total is null: it came to inf, which is no number"]


def test_number_that_is_none_at_any_depth_is_null_and_a_warning():
    hosts = {"coral1": {"cpu_busy_fraction": math.nan}, "hailo1": {"cpu_busy_fraction": 0.5}}
    summary = summary_of(answered(inference_s=1e308), answered(1, inference_s=1e308), host_metrics=hosts, window_s=1e-3)
    assert summary["host_metrics"] == {"coral1": {"cpu_busy_fraction": None}, "hailo1": {"cpu_busy_fraction": 0.5}}
    assert "host_metrics.coral1.cpu_busy_fraction is null: it came to nan, which is no number" in summary["warnings"]
    assert "utilisation.coral1 is null: it came to inf, which is no number" in summary["warnings"]
    assert summary["energy_valid"] is True
    json.dumps(summary, allow_nan=False)


# Tasks without an answer


def test_times_of_unanswered_tasks_count_as_infinite_and_stand_as_null():
    times = summary_of(*[answered(i, 0.1 * (i + 1)) for i in range(9)], given_up(9))["response_time_s"]
    assert times == {"mean": None, "p50": 0.5, "p90": 0.9, "p95": None, "p99": None, "p999": None, "max": None}
    nothing = summary_of(failed())
    assert set(nothing["response_time_s"].values()) == {None}
    assert nothing["inference_time_s"] is None and nothing["unanswered"] == 1


def test_response_times_of_answered_tasks_alone_are_what_they_were():
    times = summary_of(*[answered(i, 0.1 * (i + 1)) for i in range(10)])["response_time_s"]
    assert times == percentiles(np.array([0.1 * (i + 1) for i in range(10)]))


@pytest.mark.parametrize("ended", [failed, given_up])
def test_reader_is_warned_of_unanswered_tasks_and_only_of_those(ended):
    (warning,) = summary_of(answered(), ended(1))["warnings"]
    assert warning.startswith("1 of 2 dispatched tasks have no answer")
    assert summary_of(answered(), not_placed(Outcome.SKIPPED, 1), not_placed(Outcome.UNFINISHED, 2))["warnings"] == []


def test_unanswered_tasks_take_what_they_would_have_taken_on_the_node_they_were_given_to():
    # Busy minus idle power is 3 W; resnet50 takes 100 ms on coral1 and 50 ms on hailo1, vgg16 300 ms on coral1 only.
    on_hailo = failed(1, noise=3.0)._replace(assigned_node="hailo1")
    nowhere = [failed(2)._replace(assigned_node=None, attempts=0), failed(3, model="vgg16")._replace(assigned_node=None)]
    nobodys = failed(4, model="mobilenet")._replace(assigned_node=None)  # no node serves it
    energy = summary_of(answered(), on_hailo, *nowhere, nobodys)["energy_j"]
    assert energy["above_idle_per_task"] == pytest.approx((15 + 3 * (0.05 + 0.075 + 0.3)) / 5)
    assert (energy["above_idle"], energy["by_node"]) == (15.0, {"coral1": 50.0, "hailo1": 60.0})


def test_virtual_time_takes_the_own_noise_and_counts_what_was_drawn_only_once():
    drawn = {"coral1": NodeEnergy(50.0, 0.4, 0.0), "hailo1": NodeEnergy(60.0, 0.0, 0.0)}  # 0.1 J of it by the unanswered task
    late = given_up(1)._replace(service_noise=2.0)
    energy = summary_of(answered(inference_s=0.1), late, cluster="simulated", energy=drawn)["energy_j"]
    own_s = [0.1 * math.exp(SIGMA * noise - SIGMA**2 / 2) for noise in (0.0, 2.0)]
    assert energy["above_idle_per_task"] == pytest.approx(3 * sum(own_s) / 2)
    assert energy["above_idle"] == 0.4


def test_energy_that_was_not_measured_stays_unknown_with_unanswered_tasks():
    blind = {"coral1": NodeEnergy(None, None, 1.0), "hailo1": NodeEnergy(60.0, 5.0, 0.0)}
    assert summary_of(answered(), failed(1), energy=blind)["energy_j"]["above_idle_per_task"] is None


# Service times by hand, cv 0.2: σ² = ln 1.04. hailo1 answers resnet50 in 50 ms × exp(σz − σ²/2) + 20 ms overhead.
SIGMA = math.sqrt(math.log(1.04))


@pytest.mark.parametrize("noise", [-2.0, 0.0, 1.5])
def test_achievable_rate_takes_the_best_idle_node_the_own_noise_and_no_margin(noise):
    best_s = 0.020 + 0.050 * math.exp(SIGMA * noise - SIGMA**2 / 2)
    just = [answered(0, noise=noise, deadline_s=best_s * 1.0001), answered(1, noise=noise, deadline_s=best_s * 0.9999)]
    assert summary_of(*just)["achievable_slo_rate"] == 0.5


def test_achievable_rate_looks_only_at_nodes_that_serve_the_model():
    only_coral_s = 0.020 + 0.300 * math.exp(-(SIGMA**2) / 2)
    tasks = [answered(0, model="vgg16", deadline_s=only_coral_s * 1.0001), answered(1, model="vgg16", deadline_s=0.1)]
    assert summary_of(*tasks)["achievable_slo_rate"] == 0.5
    assert summary_of(answered(model="mobilenet", deadline_s=100.0))["achievable_slo_rate"] == 0.0  # no node serves it


def test_achievable_rate_counts_failed_tasks_and_neither_skipped_nor_unfinished_ones():
    results = [failed(0), not_placed(Outcome.SKIPPED, 1), not_placed(Outcome.UNFINISHED, 2), answered(3, 0.001, deadline_s=0.001)]
    assert summary_of(*results)["achievable_slo_rate"] == 0.5


def test_achievable_rate_of_real_workers_is_an_estimate_with_the_means():
    slow = answered(noise=5.0, deadline_s=0.0701)
    emulated, workers = summary_of(slow), summary_of(slow, cluster="workers")
    assert (emulated["achievable_slo_rate"], emulated["achievable_slo_rate_is_estimate"]) == (0.0, False)
    assert (workers["achievable_slo_rate"], workers["achievable_slo_rate_is_estimate"]) == (1.0, True)


def test_by_minute_counts_tasks_by_their_arrival():
    results = [
        answered(0, arrival_s=10.0, lag_s=0.002),
        answered(1, 2.0, arrival_s=59.9, lag_s=0.003),
        answered(2, arrival_s=119.0),
    ]
    results.append(not_placed(Outcome.SKIPPED, 3, arrival_s=70.0))
    assert summary_of(*results)["by_minute"] == [
        {
            "minute": 0,
            "dispatched": 2,
            "slo_compliance_rate": 0.5,
            "in_cell_share": 0.75,
            "dispatch_lag_p99_s": pytest.approx(0.003),
        },
        {
            "minute": 1,
            "dispatched": 1,
            "slo_compliance_rate": 1.0,
            "in_cell_share": 0.75,
            "dispatch_lag_p99_s": pytest.approx(0.001),
        },
    ]


def test_by_minute_keeps_a_minute_without_tasks():
    minutes = summary_of(answered(0, arrival_s=10.0), answered(1, arrival_s=130.0), settings=settings_of(duration_s=180.0))[
        "by_minute"
    ]
    assert [(m["minute"], m["dispatched"], m["slo_compliance_rate"], m["dispatch_lag_p99_s"]) for m in minutes] == [
        (0, 1, 1.0, pytest.approx(0.001)),
        (1, 0, None, None),
        (2, 1, 1.0, pytest.approx(0.001)),
    ]


def test_decision_durations_are_summed_up_and_null_in_virtual_time():
    decisions = [Decision(i, 1, 0.0, "coral1", {"coral1": (0, None, 0.1, None)}, i * 1e-5) for i in (1, 2, 3)]
    measured, virtual = collector(), collector()
    for decision in decisions:
        measured.decided(decision)
        virtual.decided(decision._replace(duration_s=None))
    assert measured.summarise(facts())["decision_duration_s"]["p50"] == 2e-5
    assert virtual.summarise(facts())["decision_duration_s"] is None


# Rows.


def row_of(result):
    rows: list[Row] = []
    collector(write_result=rows.append).record(result)
    return dict(zip(RESULT_COLUMNS, rows[0], strict=True))


def test_row_of_an_answered_task_says_all_of_it():
    device = Device(7, "vehicle", 10.0, 20.0, 3.0, 4.0, True)
    row = row_of(answered(5, 1.5, arrival_s=2.0, device=device, lag_s=0.25, deadline_s=1.0))
    assert row == {
        "task_id": 5,
        "device_id": 0,
        "device_type": "fixed",
        "device_speed_mps": 5.0,
        "device_x_m": 10.0,
        "device_y_m": 20.0,
        "model_name": "resnet50",
        "slo_class": "soft",
        "arrival_time_s": 2.0,
        "base_deadline_s": 1.0,
        "adapted_deadline_s": 1.0,
        "assigned_node": "coral1",
        "attempts": 1,
        "dispatch_time_s": 2.25,
        "start_time_s": 2.25,
        "completion_time_s": 3.5,
        "dispatch_lag_s": 0.25,
        "waiting_time_s": 0.25,
        "server_queue_time_s": 0.0,
        "inference_time_s": 0.1,
        "response_time_s": 1.5,
        "outcome": "late",
        "met_fixed_deadline": False,
        "met_base_deadline": False,
        "delivered": True,
        "error": None,
        "device_heading_deg": pytest.approx(53.13010235415598),  # of a 3-4-5 triangle
    }


@pytest.mark.parametrize("outcome", [Outcome.SKIPPED, Outcome.UNFINISHED])
def test_row_of_a_task_that_was_never_placed_is_empty_where_it_never_got(outcome):
    row = row_of(not_placed(outcome))
    empty = {name for name, value in row.items() if value is None}
    reached = set(RESULT_COLUMNS[: RESULT_COLUMNS.index("adapted_deadline_s")])
    assert not empty & reached
    assert empty == set(RESULT_COLUMNS) - reached - {"attempts", "outcome"}


def test_row_of_a_failed_task_has_its_error_and_no_completion():
    row = row_of(failed())
    assert (row["error"], row["completion_time_s"], row["response_time_s"]) == ("x", None, None)
    assert (row["met_fixed_deadline"], row["met_base_deadline"], row["delivered"]) == (False, False, False)


def test_row_of_a_decision_holds_every_node_and_is_empty_for_one_that_was_not_offered():
    rows: list[Row] = []
    metrics = collector(write_decision=rows.append)
    metrics.decided(Decision(3, 2, 1.5, "hailo1", {"hailo1": (4, 5.5, 0.2, 0.9)}, 1e-5))
    row = dict(zip(decision_columns(NODES), rows[0], strict=True))
    assert row["task_id"] == 3 and row["attempt"] == 2 and row["decision_time_s"] == 1.5
    assert row["selected_node"] == "hailo1" and row["decision_duration_s"] == 1e-5
    figures = ("queue_depth", "power_w", "predicted_completion_s", "closeness")
    assert [row[f"{figure}_hailo1"] for figure in figures] == [4, 5.5, 0.2, 0.9]
    assert [row[f"{figure}_coral1"] for figure in figures] == [None] * 4


def test_device_rows_count_the_tasks_of_each_device():
    metrics = collector(mobility=StillMobility())
    for task_id, outcome in enumerate([Outcome.SKIPPED, Outcome.SKIPPED, Outcome.UNFINISHED]):
        metrics.record(not_placed(outcome, task_id))
    first, second = (dict(zip(DEVICE_COLUMNS, row, strict=True)) for row in metrics.device_rows([0, 200], 60.0))
    assert (first["tasks_generated"], first["tasks_skipped"], first["in_coverage"]) == (3, 2, True)
    assert (second["tasks_generated"], second["tasks_skipped"], second["in_coverage"]) == (0, 0, False)
    assert (first["device_type"], first["speed_mps"], first["final_x_m"], first["final_y_m"]) == ("fixed", 0.0, 1.0, 2.0)
    assert first["final_heading_deg"] is None  # it never moves


@pytest.mark.parametrize(
    ("velocity", "heading_deg"),
    [((2, 0), 0), ((3, 3), 45), ((0, 1), 90), ((-4, 0), 180), ((0, -1), 270), ((1, -1), 315), ((1, -1e-20), 0), ((0, 0), None)],
)
def test_heading_is_the_angle_from_the_x_axis_and_nothing_at_rest(velocity, heading_deg):
    found = Device(7, "vehicle", 10.0, 20.0, float(velocity[0]), float(velocity[1]), True).heading_deg
    assert found == (heading_deg if heading_deg is None else pytest.approx(heading_deg)) and (found is None or 0 <= found < 360)


def test_in_cell_share_of_the_summary_is_that_of_the_devices():
    settings = settings_of(duration_s=60.0)
    mobility = MobilityManager(settings.devices, settings.seed)
    (minute,) = summary_of(answered(), settings=settings, mobility=mobility)["by_minute"]
    positions = [[mobility.device(d, float(t)).in_coverage for d in range(mobility.device_count)] for t in range(60)]
    assert minute["in_cell_share"] == pytest.approx(np.mean(positions))


def test_task_that_never_got_an_answer_is_late_but_not_completed():
    summary = summary_of(answered(), given_up(1))
    assert summary["tasks"]["late"] == 1 and summary["throughput_tasks_per_s"] == 1 / 100.0
    assert summary["utilisation"]["coral1"] == pytest.approx(0.1 / 100.0)
    assert summary["delivered_rate"] == 0.5


def test_summary_says_what_idle_power_was_taken():
    assert summary_of(answered())["idle_w"] == dict.fromkeys(NODES, 4.0)
