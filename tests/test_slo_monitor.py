"""Verdicts, running counts by class, and the log of violations."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_monitor import VIOLATION_COLUMNS, SloMonitor, verdict
from task import Device, Outcome, Task, TaskResult

DEVICE = Device(9, "drone", 250.0, 250.0, 5.0, 0.0, True)


def task(slo_class="soft", adapted_s=0.25):
    return Task(4, 9, "drone", "vgg16", slo_class, 10.0, 0.5, adapted_s, adapted_s)


def ended(outcome, slo_class="soft", completed_s=None, node="hailo1"):
    return TaskResult(task(slo_class), DEVICE, 0.0, outcome, node, completion_time_s=completed_s)


@pytest.mark.parametrize(
    ("response_s", "expected"),
    [
        (0.0, Outcome.ON_TIME),
        (0.25, Outcome.ON_TIME),
        (math.nextafter(0.25, 1), Outcome.LATE),
        (0.4, Outcome.LATE),  # within the base deadline of 0.5 s, but not the adapted one
    ],
)
def test_answer_is_on_time_up_to_the_adapted_deadline(response_s, expected):
    assert verdict(task(adapted_s=0.25), response_s) is expected


def test_before_any_task_has_ended_there_is_no_rate():
    monitor = SloMonitor()
    assert monitor.compliance_rate() is None
    assert monitor.violations() == 0


def test_rate_is_on_time_over_on_time_late_and_failed():
    # design.md, section 4, "Results": 3/(3 + 2 + 1); skipped and unfinished stand beside it.
    monitor = SloMonitor()
    for outcome, n in {"on_time": 3, "late": 2, "failed": 1, "skipped": 40, "unfinished": 5}.items():
        for _ in range(n):
            monitor.observe(ended(Outcome(outcome)))
    assert monitor.compliance_rate() == 0.5
    assert monitor.violations() == 3
    assert [monitor.count(outcome) for outcome in Outcome] == [3, 2, 1, 40, 5]


def test_tasks_that_were_only_skipped_give_no_rate():
    monitor = SloMonitor()
    monitor.observe(ended(Outcome.SKIPPED))
    monitor.observe(ended(Outcome.UNFINISHED))
    assert monitor.compliance_rate() is None


def test_classes_are_counted_apart():
    monitor = SloMonitor()
    for slo_class, outcome in [
        ("hard", Outcome.LATE),
        ("hard", Outcome.ON_TIME),
        ("hard", Outcome.FAILED),
        ("soft", Outcome.ON_TIME),
    ]:
        monitor.observe(ended(outcome, slo_class))
    assert monitor.compliance_rate("hard") == pytest.approx(1 / 3)
    assert monitor.compliance_rate("soft") == 1
    assert monitor.compliance_rate("normal") is None
    assert monitor.compliance_rate() == 0.5
    assert (monitor.violations("hard"), monitor.violations("soft")) == (2, 0)


@given(st.lists(st.tuples(st.sampled_from(["hard", "normal", "soft"]), st.sampled_from(list(Outcome)))))
def test_counts_of_classes_and_outcomes_add_up_to_the_tasks(endings):
    rows: list[object] = []
    monitor = SloMonitor(rows.append)
    for slo_class, outcome in endings:
        monitor.observe(ended(outcome, slo_class))
    assert sum(monitor.count(outcome) for outcome in Outcome) == len(endings)
    for outcome in Outcome:
        assert monitor.count(outcome) == sum(monitor.count(outcome, name) for name in ("hard", "normal", "soft"))
    assert len(rows) == monitor.violations() == monitor.count(Outcome.LATE) + monitor.count(Outcome.FAILED)


def test_only_late_and_failed_tasks_are_logged():
    rows: list[object] = []
    monitor = SloMonitor(rows.append)
    for outcome in (Outcome.ON_TIME, Outcome.SKIPPED, Outcome.UNFINISHED):
        monitor.observe(ended(outcome))
    assert rows == []


def test_columns_of_the_log_are_the_designs():
    # design.md, section 5, "Result files", slo_violations_<id>.csv, then what was added later.
    assert ",".join(VIOLATION_COLUMNS) == (
        "task_id,device_id,slo_class,model_name,assigned_node,adapted_deadline_s,response_time_s,excess_s,outcome,"
        "arrival_time_s,completion_time_s"
    )


def logged(result):
    rows: list[Sequence[object]] = []
    SloMonitor(rows.append).observe(result)
    (row,) = rows
    return dict(zip(VIOLATION_COLUMNS, row, strict=True))


def test_late_task_is_logged_with_its_excess():
    # Arrived at 10.0 s, answered at 10.4 s, adapted deadline 0.25 s: 0.15 s too late.
    assert logged(ended(Outcome.LATE, completed_s=10.4)) == {
        "task_id": 4,
        "device_id": 9,
        "slo_class": "soft",
        "model_name": "vgg16",
        "assigned_node": "hailo1",
        "adapted_deadline_s": 0.25,
        "response_time_s": pytest.approx(0.4),
        "excess_s": pytest.approx(0.15),
        "outcome": "late",
        "arrival_time_s": 10.0,
        "completion_time_s": 10.4,
    }


def test_task_without_an_answer_is_logged_without_times():
    row = logged(ended(Outcome.FAILED, node=None))
    assert (row["assigned_node"], row["response_time_s"], row["excess_s"], row["outcome"]) == (None, None, None, "failed")
    assert (row["arrival_time_s"], row["completion_time_s"]) == (10.0, None)


def test_display_may_count_while_tasks_end():
    monitor = SloMonitor()

    class Meanwhile(str):
        """Whenever it is compared, a task of a class that is new ends: what another thread may do at any moment."""

        def __eq__(self, other):
            monitor.observe(ended(Outcome.ON_TIME, f"another than {other}"))
            return super().__eq__(other)

        __hash__ = str.__hash__

    monitor.observe(ended(Outcome.ON_TIME, "soft"))
    monitor.observe(ended(Outcome.ON_TIME, "hard"))
    assert monitor.count(Outcome.ON_TIME, Meanwhile("soft")) == 1
    assert monitor.count(Outcome.ON_TIME) > 2
