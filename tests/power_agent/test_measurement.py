"""Energy and mean power of samples, against figures worked out by hand."""

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_agent.measurement import LONGEST_GAP_S, EnergyIntegral, Measurement, Reading


def after(*samples):
    integral = EnergyIntegral()
    return [integral.add(time_s, power_w) for time_s, power_w in samples]


def test_the_first_sample_has_no_energy_and_no_mean():
    (snapshot,) = after((10.3, 7.0))
    assert (snapshot.time_s, snapshot.energy_j, snapshot.mean_power_w) == (10.3, 0.0, None)


def test_energy_is_the_area_under_straight_lines():
    snapshots = after((0.0, 2.0), (1.0, 4.0), (3.0, 0.0))
    assert [snapshot.energy_j for snapshot in snapshots] == [0.0, 3.0, 7.0]


def test_no_energy_is_added_over_a_gap():
    snapshots = after((0.0, 3.0), (2.0, 3.0), (2.0 + LONGEST_GAP_S + 0.01, 3.0), (9.01, 3.0))
    assert [snapshot.energy_j for snapshot in snapshots] == pytest.approx([0.0, 6.0, 6.0, 12.0])
    assert [snapshot.measured_s for snapshot in snapshots] == pytest.approx([0.0, 2.0, 2.0, 4.0])


def test_the_longest_gap_is_still_joined():
    assert after((0.0, 3.0), (LONGEST_GAP_S, 3.0))[-1].energy_j == 15.0


def test_an_agent_that_starts_again_counts_from_zero():
    after((0.0, 3.0), (2.0, 3.0))
    assert after((100.0, 3.0))[0].energy_j == 0.0


def test_mean_is_over_the_last_whole_second_between_samples():
    snapshots = after((0.5, 1.0), (1.5, 1.0), (2.0, 3.0), (2.5, 5.0), (2.9, 5.0), (3.5, 5.0))
    means = [snapshot.mean_power_w for snapshot in snapshots]
    assert means[:2] == [None, None]  # no second lies wholly between samples before t = 2
    assert means[2:5] == pytest.approx([1.5] * 3)  # second [1, 2): 1 W for half of it, then up to 3 W
    assert means[5] == pytest.approx(4.5)  # second [2, 3): 3 W to 5 W in half of it, then 5 W


def test_samples_a_little_slower_than_a_second_give_each_second_its_mean():
    snapshots = after((0.0, 2.0), (1.5, 5.0), (3.0, 8.0))
    assert [snapshot.mean_power_w for snapshot in snapshots] == pytest.approx([None, 3.0, 7.0])


def test_mean_is_unknown_after_a_gap_until_a_second_is_whole_again():
    snapshots = after((0.0, 2.0), (1.0, 2.0), (20.5, 6.0), (21.5, 6.0), (22.0, 6.0))
    assert [snapshot.mean_power_w for snapshot in snapshots] == [None, 2.0, None, None, 6.0]


steps = st.lists(st.tuples(st.floats(0.001, 6.0), st.floats(0.0, 50.0)), min_size=1, max_size=30)


@given(steps)
def test_energy_never_falls_and_lies_between_least_and_most_power(steps):
    time_s, times, powers = 0.0, [], []
    for step_s, power_w in steps:
        time_s += step_s
        times.append(time_s)
        powers.append(power_w)
    snapshots = after(*zip(times, powers, strict=True))
    for earlier, later in zip(snapshots, snapshots[1:], strict=False):
        step_s = later.time_s - earlier.time_s
        joined_s = step_s if step_s <= LONGEST_GAP_S else 0.0
        slack_j = 1e-9 * (1 + later.energy_j)
        assert min(powers) * joined_s - slack_j <= later.energy_j - earlier.energy_j <= max(powers) * joined_s + slack_j
        if later.mean_power_w is not None:
            assert min(powers) - 1e-6 <= later.mean_power_w <= max(powers) + 1e-6


@given(st.lists(st.floats(0.05, 1.5), min_size=5, max_size=40), st.floats(0.1, 20.0), st.floats(-0.1, 0.1))
def test_means_of_consecutive_seconds_add_up_to_the_energy(steps_s, start_w, slope_w_per_s):
    integral, time_s, means = EnergyIntegral(), 0.0, {}
    integral.add(0.0, start_w)
    for step_s in steps_s:
        seconds_before = math.floor(time_s)
        time_s += step_s
        snapshot = integral.add(time_s, start_w + slope_w_per_s * time_s)
        if math.floor(time_s) > seconds_before:
            means[math.floor(time_s)] = snapshot.mean_power_w
    for second, mean_w in means.items():
        assert mean_w == pytest.approx(start_w + slope_w_per_s * (second - 0.5), abs=1e-6)
    expected_j = start_w * time_s + slope_w_per_s * time_s**2 / 2
    assert snapshot.energy_j == pytest.approx(expected_j, abs=1e-6)


def test_a_trouble_is_counted_each_time_and_logged_once_until_the_sensor_is_back(caplog):
    caplog.set_level(logging.INFO)
    measurement = Measurement("coral1", "coral", ("checksum",))
    for time_s in (0.0, 1.0, 2.0, 20.0):
        measurement.failed("checksum", "a frame\nends wrong")
        measurement.failed("checksum", "a frame ends wrong")
        measurement.add(time_s, Reading(5.0, 0.5))
    assert measurement.errors == {"checksum": 8}
    reads, wrong = "coral1: reads 5.00 V, 0.50 A", "coral1: checksum: a frame ends wrong"
    assert caplog.messages == [wrong, reads, wrong, reads]


def test_a_sensor_that_is_lost_has_no_fresh_figure_until_it_reads_again():
    measurement = Measurement("coral1", "coral", ())
    assert not measurement.is_fresh(0.0)
    measurement.add(0.0, Reading(5.0, 0.5))
    assert measurement.is_fresh(LONGEST_GAP_S)
    assert not measurement.is_fresh(LONGEST_GAP_S + 0.01)
    measurement.lost()
    assert not measurement.is_fresh(0.1)
    measurement.add(2.0, Reading(5.0, 0.5))
    assert measurement.is_fresh(2.1)
    assert measurement.snapshot and measurement.snapshot.energy_j == 5.0  # a loss this short is no gap
