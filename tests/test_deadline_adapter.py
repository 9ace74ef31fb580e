"""Deadlines: never beyond the exit, stretched only where the design allows it, compared on one that no cluster can move."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadline_adapter import DeadlineAdapter
from mobility.mobility_manager import time_to_exit_s
from settings import load_settings
from task import Device, Task

CENTRE_M, RADIUS_M = 250.0, 250.0
EXIT_SAFETY = 0.8  # design.md, section 4, "Deadline adaptation"
FACTOR = {"hard": 1.0, "normal": 1.0, "soft": 1.2}


SETTINGS = load_settings()
ON, OFF = DeadlineAdapter(SETTINGS), DeadlineAdapter(SETTINGS.replace(deadline_adaptation=False))


def adapter(**changes):
    return DeadlineAdapter(SETTINGS.replace(**changes))


def task(base_s=0.4, slo_class="soft"):
    return Task(1, 2, "vehicle", "resnet50", slo_class, 5.0, base_s, base_s, base_s)


def leaving_in(seconds, speed_mps=10.0):
    """A device that goes straight out of the cell and leaves it after so many seconds."""
    return Device(2, "vehicle", CENTRE_M + RADIUS_M - seconds * speed_mps, CENTRE_M, speed_mps, 0.0, True)


def nodes_that_answer_after(*seconds):
    """A cluster of nodes whose completion, margin included, is predicted so."""
    return lambda asked_for, deadline_s: any(answer_s <= deadline_s for answer_s in seconds)


def unasked(asked_for, deadline_s):
    pytest.fail("the cluster was asked though its answer does not matter")


FULL = (9.0, 9.0)
FREE = (9.0, 0.1)


@pytest.mark.parametrize("slo_class", ["hard", "normal", "soft"])
def test_budget_below_the_base_deadline_shrinks_it(slo_class):
    # 0.8 x 0.25 s to the exit = 0.2 s
    adapted = ON.adapt(task(0.4, slo_class), leaving_in(0.25), unasked)
    assert adapted.adapted_deadline_s == pytest.approx(0.2)
    assert adapted.fixed_deadline_s == adapted.adapted_deadline_s
    assert adapted.base_deadline_s == 0.4


@pytest.mark.parametrize(("exit_s", "expected_s"), [(0.499, 0.3992), (0.501, 0.4)])
def test_budget_counts_from_the_base_deadline_on(exit_s, expected_s):
    adapted = ON.adapt(task(0.4), leaving_in(exit_s), nodes_that_answer_after(*FREE))
    assert adapted.adapted_deadline_s == adapted.fixed_deadline_s == pytest.approx(expected_s)


def test_device_on_its_way_out_of_the_cell_leaves_a_deadline_of_nothing():
    assert ON.adapt(task(), leaving_in(0.0), unasked).adapted_deadline_s == 0
    outside = Device(2, "vehicle", 0.0, 0.0, 10.0, 10.0, False)
    assert ON.adapt(task(), outside, unasked).adapted_deadline_s == 0


def test_share_of_the_time_to_exit_is_the_settings():
    assert adapter(exit_safety=0.5).adapt(task(), leaving_in(0.25), unasked).adapted_deadline_s == pytest.approx(0.125)
    assert adapter(exit_safety=1.0).adapt(task(), leaving_in(0.25), unasked).adapted_deadline_s == pytest.approx(0.25)


def test_soft_task_may_take_longer_when_no_node_is_predicted_to_meet_its_deadline():
    adapted = ON.adapt(task(0.4), leaving_in(20.0), nodes_that_answer_after(*FULL))
    assert adapted.adapted_deadline_s == pytest.approx(0.48)  # 0.4 x 1.2
    assert adapted.fixed_deadline_s == 0.4


def test_extension_ends_at_the_budget():
    # 0.8 x 0.55 s = 0.44 s, between 0.4 and 0.48
    adapted = ON.adapt(task(0.4), leaving_in(0.55), nodes_that_answer_after(*FULL))
    assert adapted.adapted_deadline_s == pytest.approx(0.44)
    assert adapted.fixed_deadline_s == 0.4


@pytest.mark.parametrize("answers_s", [FREE, (0.4, 9.0)])
def test_soft_task_is_not_extended_when_a_node_is_predicted_to_meet_its_deadline(answers_s):
    assert ON.adapt(task(0.4), leaving_in(20.0), nodes_that_answer_after(*answers_s)) == task(0.4)


def test_no_node_at_all_is_no_node_predicted_to_meet_it():
    assert ON.adapt(task(0.4), leaving_in(20.0), nodes_that_answer_after()).adapted_deadline_s == pytest.approx(0.48)


@pytest.mark.parametrize("slo_class", ["hard", "normal"])
def test_classes_without_an_extension_are_never_extended_and_the_cluster_is_not_asked(slo_class):
    assert ON.adapt(task(0.1, slo_class), leaving_in(20.0), unasked) == task(0.1, slo_class)


def test_cluster_is_asked_once_and_for_this_task():
    asked_for = []

    def can_meet(asked, deadline_s):
        asked_for.append((asked, deadline_s))
        return False

    ON.adapt(task(0.4), leaving_in(20.0), can_meet)
    assert asked_for == [(task(0.4), 0.4)]


def test_device_at_rest_never_leaves():
    resting = Device(2, "fixed", 300.0, 300.0, 0.0, 0.0, True)
    assert ON.adapt(task(0.4), resting, nodes_that_answer_after(*FREE)) == task(0.4)
    assert ON.adapt(task(0.4), resting, nodes_that_answer_after(*FULL)).adapted_deadline_s == pytest.approx(0.48)


@pytest.mark.parametrize("device", [leaving_in(0.25), leaving_in(20.0)])
def test_switched_off_the_base_deadline_holds_and_policies_are_still_compared_on_the_fixed_one(device):
    adapted = OFF.adapt(task(0.4), device, unasked)
    assert adapted.adapted_deadline_s == 0.4
    assert adapted.fixed_deadline_s == ON.adapt(task(0.4), device, nodes_that_answer_after(*FREE)).fixed_deadline_s


DEVICES = st.builds(leaving_in, st.floats(0, 4)) | st.builds(
    lambda r, at, speed, heading: Device(
        2,
        "vehicle",
        CENTRE_M + r * RADIUS_M * math.cos(at),
        CENTRE_M + r * RADIUS_M * math.sin(at),
        speed * math.cos(heading),
        speed * math.sin(heading),
        True,
    ),
    st.floats(0, 1) | st.floats(0.99, 1),
    st.floats(0, 2 * math.pi),
    st.just(0.0) | st.floats(0.1, 400),
    st.floats(0, 2 * math.pi),
)
TASKS = st.builds(task, st.floats(0.01, 2), st.sampled_from(sorted(FACTOR)))
CLUSTERS = st.lists(st.floats(0.01, 5), max_size=6)


@given(TASKS, DEVICES, CLUSTERS)
def test_adapted_deadline_is_never_beyond_the_exit_and_never_beyond_the_extension(asked, device, answers_s):
    adapted = ON.adapt(asked, device, nodes_that_answer_after(*answers_s))
    exit_s = time_to_exit_s(device.x_m - CENTRE_M, device.y_m - CENTRE_M, device.vx_mps, device.vy_mps, RADIUS_M)
    base_s, budget_s = asked.base_deadline_s, EXIT_SAFETY * exit_s
    assert 0 <= adapted.adapted_deadline_s <= budget_s
    assert adapted.adapted_deadline_s <= base_s * FACTOR[asked.slo_class]
    assert adapted.fixed_deadline_s == min(base_s, budget_s)
    assert adapted.adapted_deadline_s >= adapted.fixed_deadline_s
    if adapted.adapted_deadline_s > adapted.fixed_deadline_s:
        assert FACTOR[asked.slo_class] > 1
        assert not any(answer_s <= base_s for answer_s in answers_s)
    unchanged = {"adapted_deadline_s", "fixed_deadline_s"}
    assert all(getattr(adapted, name) == getattr(asked, name) for name in Task._fields if name not in unchanged)


@given(TASKS, DEVICES, CLUSTERS, CLUSTERS)
def test_fixed_deadline_is_the_same_whatever_the_cluster_and_the_switch(asked, device, one_s, other_s):
    fixed = {
        adapter.adapt(asked, device, nodes_that_answer_after(*answers_s)).fixed_deadline_s
        for adapter in (ON, OFF)
        for answers_s in (one_s, other_s)
    }
    assert len(fixed) == 1
