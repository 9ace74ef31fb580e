"""The arithmetic of an emulated accelerator, without threads and without a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulated_inference_server.power import PowerMeter
from emulated_inference_server.timeline import HISTORY_S, Timeline
from inference_server import QueueFull

REQUESTS = st.lists(st.tuples(st.floats(0, 3), st.floats(0.001, 2), st.floats(0, 0.5)), min_size=1, max_size=40)


def reserved(requests, capacity=1000):
    """A timeline and, for each request (pause before it, service, hold), its receipt and slot."""
    timeline, now_s, slots = Timeline(0.0, capacity), 0.0, []
    for pause_s, service_s, hold_s in requests:
        now_s += pause_s
        slots.append((now_s, timeline.reserve(now_s, service_s, hold_s)))
    return timeline, slots


@given(REQUESTS)
def test_each_starts_when_it_is_there_and_the_one_before_is_done(requests):
    free_s = 0.0
    _, slots = reserved(requests)
    for (received_s, slot), (_, service_s, hold_s) in zip(slots, requests, strict=True):
        assert slot.start_s == max(received_s + hold_s, free_s)
        free_s = slot.start_s + service_s
        assert slot.answer_s == free_s + hold_s


@given(REQUESTS, st.floats(0, 1))
def test_busy_time_is_the_sum_of_the_past_parts_of_all_services(requests, share):
    timeline, slots = reserved(requests)
    earliest_s = max(0.0, slots[-1][0] - HISTORY_S)
    until_s = earliest_s + share * (slots[-1][1].end_s - earliest_s)
    expected_s = sum(max(0.0, min(slot.end_s, until_s) - slot.start_s) for _, slot in slots)
    assert timeline.busy_s(until_s) == pytest.approx(expected_s, abs=1e-9)


@given(REQUESTS)
def test_busy_time_never_falls(requests):
    timeline, now_s, before_s = Timeline(0.0, 1000), 0.0, 0.0
    for pause_s, service_s, hold_s in requests:
        now_s += pause_s
        timeline.reserve(now_s, service_s, hold_s)
        assert timeline.busy_s(now_s) >= before_s
        before_s = timeline.busy_s(now_s)


def test_long_use_keeps_no_more_than_the_history():
    timeline = Timeline(0.0, 10)
    for second in range(1000):
        timeline.reserve(float(second), 0.5, 0.0)
    assert timeline.busy_s(1000.0) == pytest.approx(500.0)
    assert len(timeline._slots) <= HISTORY_S + 2


def test_queue_is_full_when_as_many_wait_as_may():
    timeline, _ = reserved([(0.0, 1.0, 0.0)] * 3, capacity=2)
    assert timeline.waiting(0.0) == 2
    with pytest.raises(QueueFull, match="2 requests"):
        timeline.reserve(0.5, 1.0, 0.0)
    assert timeline.reserve(1.0, 1.0, 0.0).start_s == 3.0


def test_request_still_on_its_way_meets_the_queue_it_will_find():
    timeline, _ = reserved([(0.0, 1.0, 0.0)] * 2, capacity=1)
    with pytest.raises(QueueFull):
        timeline.reserve(0.5, 1.0, 0.25)
    assert timeline.reserve(0.5, 1.0, 0.5).start_s == 2.0


def test_those_behind_a_withdrawn_request_move_up():
    timeline, slots = reserved([(0.0, 1.0, 0.0)] * 4)
    first, second, third, fourth = (slot for _, slot in slots)
    assert timeline.withdraw(second, 0.5)
    assert (third.start_s, fourth.start_s) == (1.0, 2.0)
    assert timeline.busy_s(10.0) == 3.0
    assert not timeline.withdraw(first, 0.5)
    assert timeline.busy_s(10.0) == 3.0
    assert timeline.reserve(0.5, 1.0, 0.0).start_s == 3.0


def test_nobody_moves_up_into_the_past():
    timeline = Timeline(0.0, 10)
    travelling = timeline.reserve(0.0, 1.0, 0.8)
    behind = timeline.reserve(0.1, 1.0, 0.2)
    assert timeline.withdraw(travelling, 0.5)
    assert behind.start_s == 0.5


def test_power_is_the_mean_over_the_last_whole_second():
    meter, timeline = PowerMeter(idle_w=4.0, busy_w=6.0, started_s=100.0), Timeline(100.0, 10)
    assert meter.power_w(100.0, timeline) == 4.0
    timeline.reserve(100.25, 1.5, 0.0)  # busy from 100.25 to 101.75
    assert meter.power_w(100.5, timeline) == 5.0  # no second is over: half of the time since the start
    assert meter.power_w(101.0, timeline) == meter.power_w(101.9, timeline) == 5.5
    assert meter.power_w(102.0, timeline) == 5.5
    assert meter.power_w(103.0, timeline) == 4.0


def test_all_meters_measure_the_same_seconds():
    meter, timeline = PowerMeter(idle_w=4.0, busy_w=6.0, started_s=100.25, second_s=99.5), Timeline(100.25, 10)
    timeline.reserve(100.25, 1.0, 0.0)
    assert meter.power_w(101.0, timeline) == 6.0  # no whole second is over: since the start
    assert meter.power_w(101.5, timeline) == meter.power_w(102.25, timeline) == 4.0 + 2.0 * 0.75
    assert meter.power_w(102.5, timeline) == 4.0


def test_energy_is_idle_power_all_the_time_and_the_rest_while_busy():
    meter, timeline = PowerMeter(idle_w=4.0, busy_w=6.0, started_s=100.0), Timeline(100.0, 10)
    timeline.reserve(100.25, 1.5, 0.0)
    assert meter.energy_j(100.0, timeline) == 0.0
    assert meter.energy_j(101.25, timeline) == 4.0 * 1.25 + 2.0 * 1.0  # the rest of the service lies in the future
    assert meter.energy_j(110.0, timeline) == 4.0 * 10.0 + 2.0 * 1.5


def test_host_draws_overhead_power_for_each_request_that_it_receives_or_answers():
    meter, timeline = PowerMeter(4.0, 6.0, started_s=100.0, overhead_w=1.0), Timeline(100.0, 10)
    timeline.reserve(100.25, 1.0, hold_s=0.25, transfer_s=0.25)  # received until 100.5, served until 101.5, answered until 101.75
    timeline.reserve(100.25, 1.0, hold_s=0.25, transfer_s=0.25)  # received until 100.5, served until 102.5, answered until 102.75
    assert meter.energy_j(100.5, timeline) == 4.0 * 0.5 + 2 * 0.25
    assert meter.energy_j(101.5, timeline) == 4.0 * 1.5 + 2.0 * 1.0 + 2 * 0.25
    assert meter.power_w(102.0, timeline) == 4.0 + 2.0 * 1.0 + 1.0 * 0.25
    assert meter.energy_j(110.0, timeline) == 4.0 * 10.0 + 2.0 * 2.0 + 4 * 0.25


@given(REQUESTS, st.sets(st.integers(0, 39)))
def test_overhead_of_each_request_counts_once_and_never_falls(requests, withdrawn):
    timeline, now_s, before_s, expected_s = Timeline(0.0, 1000), 0.0, 0.0, 0.0
    for number, (pause_s, service_s, hold_s) in enumerate(requests):
        now_s += pause_s
        slot = timeline.reserve(now_s, service_s, hold_s, transfer_s=hold_s)
        assert timeline.transfer_s(now_s) >= before_s - 1e-9
        before_s = timeline.transfer_s(now_s)
        gone = number in withdrawn and timeline.withdraw(slot, now_s + hold_s / 2)
        expected_s += hold_s / 2 if gone else 2 * hold_s
    assert timeline.transfer_s(1e9) == pytest.approx(expected_s)
