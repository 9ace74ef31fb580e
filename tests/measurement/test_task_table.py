"""Columns of the tasks of a run: what is kept, what is derived, and which tasks are chosen."""

import numpy as np
import pytest

from measurement.task_table import TaskLog
from task import Outcome, TaskResult
from tests.helpers import DEVICE, make_task


@pytest.fixture
def tasks():
    """Answered in time, answered late but within its base deadline, failed, skipped, unfinished."""
    log = TaskLog(("hard", "soft"), ("resnet50", "vgg16"), ("coral1", "hailo1"))
    first = make_task(7, 10.0, 0.5, "resnet50", "hard")
    second = make_task(3, 11.0, 0.4, "vgg16", "soft")._replace(fixed_deadline_s=0.1, adapted_deadline_s=0.1)
    log.record(TaskResult(first, DEVICE, 0.25, Outcome.ON_TIME, "hailo1", 1, 10.01, 10.02, 10.5, 0.0, 0.3))
    log.record(TaskResult(second, DEVICE, -1.0, Outcome.LATE, "coral1", 1, 11.0, 11.1, 11.3, 0.05, 0.1))
    log.record(TaskResult(make_task(4, 12.0), DEVICE, 0.0, Outcome.FAILED, "coral1", 2, 12.0, None, None, None, None, "broken"))
    log.record(TaskResult(make_task(5, 13.0), DEVICE, 0.0, Outcome.SKIPPED))
    log.record(TaskResult(make_task(6, 14.0), DEVICE, 0.0, Outcome.UNFINISHED))
    return log.figures()


def ids(tasks):
    return tasks["task_id"].tolist()


def test_tasks_stand_in_the_order_in_which_they_ended(tasks):
    assert ids(tasks) == [7, 3, 4, 5, 6]
    assert len(tasks) == 5


def test_times_count_from_the_arrival_and_are_absent_where_a_task_never_got_that_far(tasks):
    absent = [np.nan] * 3
    np.testing.assert_allclose(tasks["response_time_s"], [0.5, 0.3, *absent])
    np.testing.assert_allclose(tasks["waiting_time_s"], [0.02, 0.1, *absent])
    np.testing.assert_allclose(tasks["dispatch_lag_s"], [0.01, 0.0, 0.0, np.nan, np.nan])
    np.testing.assert_allclose(tasks["inference_time_s"], [0.3, 0.1, *absent])


def test_dispatched_task_without_an_answer_met_no_deadline_and_others_have_no_verdict(tasks):
    np.testing.assert_array_equal(tasks["met_fixed_deadline"], [1, 0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(tasks["met_base_deadline"], [1, 1, 0, np.nan, np.nan])


def test_tasks_are_chosen_by_what_they_are_and_how_they_ended(tasks):
    assert ids(tasks.of(Outcome.LATE, Outcome.SKIPPED)) == [3, 5]
    assert ids(tasks.in_class("hard")) == [7]
    assert ids(tasks.of_model("vgg16")) == [3]
    assert ids(tasks.on_node("coral1")) == [3, 4]
    assert ids(tasks.on_node("coral1").of(Outcome.FAILED)) == [4]


def test_window_of_arrivals_holds_its_first_instant_and_not_its_last(tasks):
    assert ids(tasks.arriving(11.0, 13.0)) == [3, 4]


def test_ids_that_no_float_holds_stay_as_they_are():
    log = TaskLog(("soft",), ("resnet50",), ("coral1",))
    ids_given = [2**53, 2**53 + 1, 2**62, 2**62 + 1, -(2**63), 2**63 - 1]
    for number in ids_given:
        log.record(TaskResult(make_task(number)._replace(device_id=number + (number < 0)), DEVICE, 0.0, Outcome.SKIPPED))
    assert log.figures()["task_id"].tolist() == ids_given
    assert log.figures()["device_id"].tolist() == [number + (number < 0) for number in ids_given]


def test_unanswered_tasks_are_those_that_were_dispatched_and_have_no_answer(tasks):
    assert ids(tasks.unanswered) == [4]
    assert ids(tasks.on_node(None)) == [5, 6]


def test_no_task_gives_empty_columns():
    tasks = TaskLog(("hard",), ("resnet50",), ("coral1",)).figures()
    assert len(tasks) == 0 and tasks.arriving(0, 1)["response_time_s"].shape == (0,)


def test_minutes_hold_every_task_once_and_none_is_left_out(tasks):
    log = TaskLog(("soft",), ("resnet50",), ("coral1",))
    arrivals_s = [125.0, 0.0, 59.999, 240.0, 60.0, 61.0]
    for task_id, arrival_s in enumerate(arrivals_s):
        log.record(TaskResult(make_task(task_id, arrival_s), DEVICE, 0.0, Outcome.SKIPPED))
    figures = log.figures()
    assert [ids(minute) for minute in figures.by_minute()] == [[1, 2], [4, 5], [0], [], [3]]
    assert [ids(minute) for minute in figures.by_minute()] == [ids(figures.arriving(60.0 * n, 60.0 * n + 60)) for n in range(5)]
    assert list(TaskLog((), (), ()).figures().by_minute()) == []
