"""Energy of a node from samples: counter and gauge, what is left out, and what is called measured."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from measurement.energy import PowerHistory, PowerRange, counter_increase, node_energy, power_integral, uncovered_share
from task import PowerSample

FINITE = st.floats(0.0, 1e4)


def times(*values):
    return np.array(values, dtype=float)


def test_counter_grows_linearly_between_samples():
    at, joules = times(0, 10, 20), times(100, 150, 300)
    assert counter_increase(at, joules, 0, 20) == pytest.approx(200)
    assert counter_increase(at, joules, 5, 15) == pytest.approx(25 + 75)


def test_counter_that_fell_has_restarted_from_zero():
    at, joules = times(0, 10, 20, 30), times(100, 150, 20, 50)
    assert counter_increase(at, joules, 0, 30) == pytest.approx(50 + 20 + 30)


def test_integral_is_trapezoidal_and_holds_the_outermost_samples_to_the_edges():
    at, watts = times(2, 4), times(3, 5)
    # 3 W from 0 to 2, then 4 W on average from 2 to 4, then 5 W from 4 to 10
    assert power_integral(at, watts, 0, 10) == pytest.approx(6 + 8 + 30)
    assert power_integral(at, watts, 2.5, 3.5) == pytest.approx(4.0)
    assert power_integral(times(1), times(7), 0, 3) == pytest.approx(21)


def test_uncovered_is_what_lies_further_than_the_reach_from_every_sample():
    assert uncovered_share(times(0, 1, 2), 0, 2, 2) == 0
    assert uncovered_share(times(0, 10), 0, 10, 2) == pytest.approx(0.6)
    assert uncovered_share(times(9), 0, 10, 2) == pytest.approx(0.7)
    assert uncovered_share(times(), 0, 10, 2) == 1
    assert uncovered_share(times(-5, 30), 0, 10, 2) == 1


@given(st.lists(st.tuples(st.floats(0.01, 5.0), FINITE), min_size=2, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_energy_of_two_halves_is_the_energy_of_the_whole(gaps_and_values, first, second):
    at = np.cumsum([gap for gap, _ in gaps_and_values])
    values = np.array([value for _, value in gaps_and_values])
    start, middle, end = sorted([at[0], at[0] + first * (at[-1] - at[0]), at[0] + second * (at[-1] - at[0])])
    for kernel in (counter_increase, power_integral):
        halves = kernel(at, values, start, middle) + kernel(at, values, middle, end)
        assert halves == pytest.approx(kernel(at, values, start, end), abs=1e-6)


@given(st.lists(st.tuples(st.floats(0.01, 5.0), FINITE), min_size=1, max_size=20), st.floats(0.1, 50.0))
def test_energy_lies_between_the_least_and_the_largest_power(gaps_and_values, length):
    at = np.cumsum([gap for gap, _ in gaps_and_values])
    watts = np.array([value for _, value in gaps_and_values])
    energy = power_integral(at, watts, 0.0, length)
    assert watts.min() * length - 1e-6 <= energy <= watts.max() * length + 1e-6


@given(st.lists(st.tuples(st.floats(0.01, 5.0), FINITE), min_size=2, max_size=20))
def test_counter_with_resets_never_decreases(gaps_and_values):
    at = np.cumsum([gap for gap, _ in gaps_and_values])
    joules = np.array([value for _, value in gaps_and_values])
    increases = [counter_increase(at, joules, at[0], until) for until in at]
    assert all(later >= earlier - 1e-9 for earlier, later in zip(increases, increases[1:], strict=False))


@given(st.lists(st.floats(-20.0, 120.0), max_size=30), st.floats(0.1, 20.0))
def test_uncovered_share_agrees_with_counting_instants(sample_times, reach):
    at = np.sort(np.array(sample_times, dtype=float))
    instants = np.linspace(0, 100, 2001)
    far = np.ones(len(instants), dtype=bool)
    for sample in at:
        far &= np.abs(instants - sample) > reach
    assert uncovered_share(at, 0.0, 100.0, reach) == pytest.approx(far.mean(), abs=0.001 * (2 * len(at) + 2))


@given(st.integers(0, 2**32))
def test_counter_and_integral_agree_within_one_percent_on_the_same_signal(seed):
    draw = np.random.default_rng(seed)
    at = np.arange(0.0, 121.0) + draw.uniform(-0.05, 0.05, 121)
    turning = draw.uniform(0.05, 0.3)
    watts = 5.0 + np.sin(turning * at)
    joules = 5.0 * at + (1 - np.cos(turning * at)) / turning  # the integral of the above
    counter = [PowerSample(t, None, j) for t, j in zip(at.tolist(), joules.tolist(), strict=True)]
    gauge = [PowerSample(t, w) for t, w in zip(at.tolist(), watts.tolist(), strict=True)]
    counted, integrated = (node_energy(samples, 10.3, 110.7, 4.0, 1.0) for samples in (counter, gauge))
    assert counted.total_j == pytest.approx(integrated.total_j, rel=0.01)
    assert counted.total_j is not None
    assert counted.above_idle_j == pytest.approx(counted.total_j - 4.0 * 100.4)
    assert [counted.uncovered, integrated.uncovered] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_node_energy_prefers_the_counter():
    samples = [PowerSample(float(t), 99.0, 5.0 * t) for t in range(11)]
    assert node_energy(samples, 0, 10, 2.0, 1.0) == (50.0, 30.0, 0.0)


def test_node_energy_without_a_counter_integrates_and_subtracts_idle_over_the_window():
    samples = [PowerSample(float(t), 5.0) for t in range(1, 10)]
    assert node_energy(samples, 0, 10, 2.0, 1.0) == (50.0, 30.0, 0.0)


def test_counter_is_not_stretched_beyond_its_samples_and_idle_is_subtracted_over_the_same_interval():
    samples = [PowerSample(float(t), None, 5.0 * t) for t in range(1, 10)]
    energy = node_energy(samples, 0, 10, 2.0, 1.0)
    assert (energy.total_j, energy.above_idle_j) == (40.0, 40.0 - 2.0 * 8)
    assert energy.uncovered == pytest.approx(0.2)  # what is not in the figures


@pytest.mark.parametrize("samples", [[], [PowerSample(5.0, None)], [PowerSample(5.0, None, 3.0)], [PowerSample(-50.0, 5.0)]])
def test_node_without_usable_samples_has_no_energy(samples):
    assert node_energy(samples, 0, 10, 2.0, 1.0) == (None, None, 1.0)


def test_samples_that_are_far_away_from_a_long_window_leave_it_uncovered():
    samples = [PowerSample(float(t), None, 5.0 * t) for t in (0, 1, 2, 3)]
    assert node_energy(samples, 0, 50, 2.0, 1.0).uncovered == pytest.approx(0.94)
    assert node_energy([PowerSample(s.time_s, 5.0) for s in samples], 0, 50, 2.0, 1.0).uncovered == pytest.approx(0.9)


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.0, 20.0)), min_size=1, max_size=30),
    st.floats(-5.0, 60.0),
    st.floats(0.1, 30.0),
    st.floats(0.0, 5.0),
    st.booleans(),
)
@example([(8.5, 1.0), (0.5, 1.0)], 10.0, 10.0, 2.0, True)  # both samples just before the window
def test_energy_above_idle_never_exceeds_the_total(gaps_and_watts, start, length, idle_w, counted):
    at = np.cumsum([gap for gap, _ in gaps_and_watts]).tolist()
    joules = np.cumsum([gap * watts for gap, watts in gaps_and_watts]).tolist()
    watts = [watts for _, watts in gaps_and_watts]
    samples = [PowerSample(t, w, j if counted else None) for t, w, j in zip(at, watts, joules, strict=True)]
    energy = node_energy(samples, start, start + length, idle_w, 1.0)
    if energy.total_j is None or energy.above_idle_j is None:
        assert energy.total_j is energy.above_idle_j is None
    else:
        assert energy.above_idle_j <= energy.total_j + 1e-9
        assert energy.total_j >= 0
    assert 0.0 <= energy.uncovered <= 1.0 + 1e-9


def test_counter_outside_the_window_does_not_hide_the_power_samples_inside():
    samples = [PowerSample(float(t), None, 9.0 * t) for t in range(-60, -50)] + [PowerSample(float(t), 5.0) for t in range(11)]
    assert node_energy(samples, 0, 10, 2.0, 1.0) == (50.0, 30.0, 0.0)


def test_no_idle_power_is_taken_off_while_a_meter_was_away_and_its_counter_stood_still():
    before = [PowerSample(float(t), None, 5.0 * t) for t in range(101)]
    after = [PowerSample(float(t), None, 5.0 * (t - 10)) for t in range(110, 201)]
    total_j, above_j, uncovered = node_energy([*before, *after], 0.0, 200.0, 3.0, 1.0)
    assert total_j == pytest.approx(5.0 * 190)
    assert above_j == pytest.approx(2.0 * 190)  # 5 W measured, 3 W idle, for the 190 s that the counter counted
    assert uncovered == pytest.approx(10 / 200)


def gap_of(agent_lets_go_after_s, gap_s, seconds=120, exports_measured=False):
    """Samples of a 5 W node whose counter freezes for some scrapes, goes away and comes back where it stood."""
    samples = []
    for t in range(seconds + 1):
        silent_s = min(max(t - 40, 0), gap_s)
        if 40 + agent_lets_go_after_s < t < 40 + gap_s:
            continue
        measured_s = float(t - silent_s)
        samples.append(PowerSample(float(t), 5.0, 5.0 * measured_s, measured_s if exports_measured else None))
    return samples


@pytest.mark.parametrize("exports_measured", [False, True])
@pytest.mark.parametrize(("frozen_s", "gap_s"), [(5, 6), (5, 8), (5, 13), (0, 7), (0, 9), (5, 5)])
def test_energy_above_idle_leaves_out_exactly_what_a_silent_meter_did_not_count(frozen_s, gap_s, exports_measured):
    samples = gap_of(frozen_s, gap_s, exports_measured=exports_measured)
    total_j, above_j, uncovered = node_energy(samples, 0.0, 120.0, 4.5, 1.0)
    assert total_j == pytest.approx(5.0 * (120 - gap_s))
    assert above_j == pytest.approx(0.5 * (120 - gap_s))
    assert uncovered == pytest.approx(gap_s / 120)


def test_a_restarted_agent_says_itself_how_long_it_measured():
    before = [PowerSample(float(t), 5.0, 5.0 * t, float(t)) for t in range(61)]
    after = [PowerSample(float(t), 5.0, 5.0 * (t - 61.5), t - 61.5) for t in range(62, 121)]
    total_j, above_j, _ = node_energy([*before, *after], 0.0, 120.0, 4.5, 1.0)
    assert total_j == pytest.approx(5.0 * 118.5)
    assert above_j == pytest.approx(0.5 * 118.5)


def test_only_the_part_inside_the_window_of_a_still_counter_is_left_out():
    samples = [PowerSample(float(t), None, 5.0 * t) for t in range(11)]
    samples += [PowerSample(float(t), None, 5.0 * (t - 20)) for t in range(30, 61)]
    total_j, above_j, _ = node_energy(samples, 11.0, 60.0, 3.0, 1.0)
    assert total_j == pytest.approx(5.0 * 30)
    assert above_j == pytest.approx(2.0 * 30)


def test_the_gauge_is_integrated_where_the_counter_came_late():
    samples = [PowerSample(float(t), 5.0, 5.0 * t if t >= 59 else None) for t in range(61)]
    assert list(node_energy(samples, 0.0, 60.0, 3.0, 1.0)) == pytest.approx([300.0, 120.0, 0.0])


def test_idle_power_is_taken_off_where_only_the_scrapes_failed_and_the_counter_went_on():
    samples = [PowerSample(float(t), None, 3.0 * t) for t in range(201) if not 100 < t < 110]
    total_j, above_j, _ = node_energy(samples, 0.0, 200.0, 3.0, 1.0)
    assert total_j == pytest.approx(600.0)
    assert above_j == pytest.approx(0.0)


def test_a_counter_of_large_steps_that_stands_still_for_longer_than_these_is_known_by_it():
    samples = [PowerSample(float(t), None, 10.0 * (3.0 * min(t, max(60, t - 20)) // 10.0)) for t in range(131)]
    total_j, above_j, uncovered = node_energy(samples, 0.0, 120.0, 3.0, 1.0)
    assert total_j == pytest.approx(300.0, abs=10.0)
    assert above_j == pytest.approx(0.0, abs=20.0)
    assert uncovered > 0.1


def test_a_counter_that_never_moved_has_measured_nothing():
    samples = [PowerSample(float(t), None, 7.0) for t in range(31)]
    total_j, above_j, uncovered = node_energy(samples, 0.0, 30.0, 3.0, 1.0)
    assert (total_j, above_j) == (0.0, 0.0)
    assert uncovered == pytest.approx(1.0)


@pytest.mark.parametrize("at", [(8.5, 9.5), (11.5, 12.5)])
def test_a_counter_on_one_side_of_the_window_tells_nothing_of_it(at):
    samples = [PowerSample(t, None, 5.0 * t) for t in at]
    assert node_energy(samples, 10.0, 11.0, 3.0, 1.0) == (None, None, 1.0)
    with_gauge = [sample._replace(power_w=5.0) for sample in samples]
    assert list(node_energy(with_gauge, 10.0, 11.0, 3.0, 1.0)) == pytest.approx([5.0, 2.0, 0.0])


@pytest.mark.parametrize(("step_j", "uncovered"), [(10.0, 0.0), (36.0, 7 / 12)])
def test_a_counter_that_counts_in_large_steps_does_not_stand_still(step_j, uncovered):
    samples = [PowerSample(float(t), None, step_j * (3.0 * t // step_j)) for t in range(131)]
    energy = node_energy(samples, 0.0, 120.0, 3.0, 1.0)
    assert energy.total_j is not None
    assert energy.total_j == pytest.approx(360.0, abs=step_j)
    assert energy.above_idle_j == pytest.approx(energy.total_j - 360.0)
    assert energy.uncovered == pytest.approx(uncovered, abs=0.01)  # 11 s without a step, of which 4 s are near one


@pytest.mark.parametrize("joules_at", [lambda t: 36.0 * (5.0 * t // 36.0), lambda t: 50.0 * (t // 10), lambda t: 7.0])
def test_the_gauge_is_integrated_beside_a_counter_that_is_coarse_seldom_updated_or_never(joules_at):
    samples = [PowerSample(float(t), 5.0, joules_at(t)) for t in range(121)]
    assert list(node_energy(samples, 0.0, 120.0, 4.5, 1.0)) == pytest.approx([600.0, 60.0, 0.0])


def test_counter_of_a_node_that_takes_nothing_when_idle_may_stand_still():
    samples = [PowerSample(float(t), 0.0, 3.0 if t > 50 else 0.0) for t in range(121)]
    assert list(node_energy(samples, 0.0, 120.0, 0.0, 1.0)) == pytest.approx([3.0, 3.0, 0.0])


@pytest.mark.parametrize("away_s", [1.2, 1.9, 6.0])
def test_a_restart_takes_no_more_idle_power_off_than_was_measured(away_s):
    before = [PowerSample(float(t), None, 5.0 * t) for t in range(61)]
    back_s = 60.4 + away_s
    after = [PowerSample(float(t), None, 5.0 * (t - back_s)) for t in range(math.ceil(back_s), 121)]
    total_j, above_j, uncovered = node_energy([*before, *after], 0.0, 120.0, 4.8, 1.0)
    missed_s = back_s - 60.0
    assert total_j == pytest.approx(5.0 * (120.0 - missed_s))
    assert above_j == pytest.approx(0.2 * (120.0 - missed_s))
    assert uncovered == pytest.approx(missed_s / 120.0)


def test_scrapes_lost_at_the_edge_of_the_window_do_not_lose_its_energy():
    samples = [PowerSample(float(t), None, 5.0 * t) for t in range(131) if not (6 < t < 14 or 66 < t < 74)]
    energy = node_energy(samples, 10.0, 70.0, 4.5, 1.0)
    assert list(energy) == pytest.approx([300.0, 30.0, 4 / 60])  # from 10 s to 12 s and from 68 s to 70 s no sample is near


def test_what_a_counter_did_not_tell_at_the_end_is_not_called_measured():
    samples = [PowerSample(float(t), None, 5.0 * t) for t in range(69)]
    assert list(node_energy(samples, 10.0, 70.0, 4.5, 1.0)) == pytest.approx([290.0, 29.0, 2 / 60])


@pytest.mark.parametrize("scraped_every_s", [3, 5, 15])
def test_a_fine_counter_that_is_seldom_read_is_preferred_to_its_gauge(scraped_every_s):
    samples = [PowerSample(float(t), 99.0, 5.0 * t) for t in range(0, 121, scraped_every_s)]
    assert node_energy(samples, 0.0, 120.0, 4.5, 1.0).total_j == pytest.approx(600.0)


def test_seconds_are_found_where_some_samples_of_a_counter_do_not_say_them():
    samples = [PowerSample(float(t), None, 5.0 * t, float(t) if t > 30 else None) for t in range(61)]
    assert list(node_energy(samples, 0.0, 60.0, 4.5, 1.0)) == pytest.approx([300.0, 30.0, 0.0], abs=1e-9)


def test_a_counter_that_jumps_after_a_restart_has_counted_no_longer_than_the_step_took():
    samples = [PowerSample(float(t), None, 1000.0 + 5.0 * t) for t in range(31)]
    samples += [PowerSample(float(t), None, 100.0 + 5.0 * (t - 31)) for t in range(31, 61)]
    total_j, above_j, uncovered = node_energy(samples, 0.0, 60.0, 4.5, 1.0)
    assert [total_j, above_j, uncovered] == pytest.approx([395.0, 395.0 - 4.5 * 60, 0.0], abs=1e-9)


def test_a_counter_of_which_nothing_but_restarts_is_seen_is_measured_by_idle_power():
    samples = [PowerSample(0.0, None, 50.0), PowerSample(1.0, None, 4.5), PowerSample(3.0, None, 2.25)]
    assert list(node_energy(samples, 0.0, 3.0, 4.5, 1.0)) == pytest.approx([6.75, 0.0, 0.5])


@pytest.mark.parametrize(("watts", "is_away"), [(0.55, False), (0.45, True)])
def test_a_counter_that_grew_by_less_than_half_of_idle_power_was_away(watts, is_away):
    before = [PowerSample(float(t), None, 1.0 * t) for t in range(51)]
    after = [PowerSample(float(t), None, 50.0 + 10 * watts + t - 60) for t in range(60, 101)]
    energy = node_energy([*before, *after], 0.0, 100.0, 1.0, 1.0)
    assert energy.above_idle_j == pytest.approx(0.0 if is_away else 10 * watts - 10, abs=1e-9)


def test_samples_on_both_far_sides_of_the_window_tell_nothing_of_it():
    samples = [PowerSample(t, watts, 5.0 * t) for t in (0.0, 100.0) for watts in (None, 5.0)]
    assert node_energy(samples, 40.0, 60.0, 4.5, 1.0) == (None, None, 1.0)


@pytest.mark.parametrize(("lost_s", "total_j"), [(5, 600.0), (8, 1200.0)])
def test_the_gauge_is_preferred_only_where_it_covers_clearly_more(lost_s, total_j):
    samples = [PowerSample(float(t), 10.0, None if 50 < t < 50 + lost_s else 5.0 * t) for t in range(121)]
    assert node_energy(samples, 0.0, 120.0, 4.5, 1.0).total_j == pytest.approx(total_j)


def test_a_fine_counter_that_stood_still_keeps_nothing_back():
    samples = [PowerSample(float(t), None, 10.0 * (t if t <= 60 else max(60, t - 8))) for t in range(0, 121, 2)]
    assert list(node_energy(samples, 0.0, 120.0, 4.0, 1.0)) == pytest.approx([1120.0, 6.0 * 112, 8 / 120])


def test_growth_too_small_for_any_power_breaks_nothing():
    samples = [PowerSample(t, None, joules) for t, joules in ((0.0, 0.0), (1.0, 1e-310), (4.0, 0.9))]
    assert node_energy(samples, 0.0, 4.0, 5.0, 1.0).total_j == pytest.approx(0.9)


def test_a_counter_in_steps_that_leave_nothing_far_is_preferred_to_its_gauge():
    samples = [PowerSample(float(t), 99.0, 10.0 * (3.0 * t // 10.0)) for t in range(121)]
    assert node_energy(samples, 0.0, 120.0, 3.0, 1.0).total_j == pytest.approx(360.0)


# Samples that cannot be.

CORAL = PowerRange(2.28, 10.7)


def history(samples, power_range=CORAL, clock_steps=()):
    return PowerHistory({"coral1": samples}, {"coral1": power_range}, 1.0, clock_steps)


def judged(samples, start_s=0.0, end_s=20.0, idle_w=4.56):
    """Joules over a window, and what is said against them."""
    of_node = history(samples)
    idle = {"coral1": idle_w}
    return of_node.energy(start_s, end_s, idle)["coral1"].total_j, of_node.impossible(start_s, end_s, idle).get("coral1")


def counter(first_j, **changed):
    """A 5 W counter from 10 s before to 5 s after a window of 20 s, with some samples changed: `at_6=…`."""
    joules = {f"at_{t}": first_j + 5.0 * (t + 10) for t in range(-10, 26)} | changed
    return [PowerSample(float(t), None, joules[f"at_{t}"]) for t in range(-10, 26)]


@pytest.mark.parametrize("first_j", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("below_j", [1e-6, 1e-3, 4.0])
@pytest.mark.parametrize("at_s", [1, 6, 19, 20])
def test_a_dip_that_the_next_sample_takes_back_is_no_restart(first_j, below_j, at_s):
    before_j = first_j + 5.0 * (at_s - 1 + 10)
    total_j, against = judged(counter(first_j, **{f"at_{at_s}": before_j - below_j}))
    assert total_j == pytest.approx(100.0)
    assert against is None


@pytest.mark.parametrize("value_j", [0.0, -7.0, 1.8446744073709552e19, 1e308, 1e3, math.inf])
def test_a_single_value_that_cannot_be_is_left_out_and_said_with_its_time(value_j):
    total_j, against = judged(counter(1e6, at_6=value_j))
    assert total_j == pytest.approx(100.0)
    assert against is not None and " at 6.0 s; expected 2.28 to 10.7 W" in against


@pytest.mark.parametrize("jump_j", [100.0, 1e6, -100.0, -1e5])
def test_a_counter_that_jumps_and_stays_there_goes_on_from_where_it_stood_and_is_said(jump_j):
    moved = {f"at_{t}": 1e6 + 5.0 * (t + 10) + jump_j for t in range(6, 26)}
    total_j, against = judged(counter(1e6, **moved))
    assert total_j == pytest.approx(95.0)  # nothing is known of the second in which it jumped
    assert against is not None and " in 1 s at 6.0 s; expected" in against


@pytest.mark.parametrize("wrap_j", [2**16, 2**31, 2**32, 2**31 * 1e-3, 2**32 * 1e-3, 2**32 * 1e-6])
def test_a_counter_that_wraps_is_said(wrap_j):
    first_j = wrap_j - 82.0
    wrapped = {f"at_{t}": (first_j + 5.0 * (t + 10)) % wrap_j for t in range(7, 26)}
    total_j, against = judged(counter(first_j, **wrapped))
    assert total_j == pytest.approx(100.0, abs=5.0)
    assert against is not None and " at 7.0 s; expected" in against


@pytest.mark.parametrize("since_j", [0.0, 1.0, 5.0])
def test_a_restart_is_none_of_these(since_j):
    restarted = {f"at_{t}": since_j + 5.0 * (t - 6) for t in range(6, 26)}
    total_j, against = judged(counter(1e6, **restarted))
    assert total_j == pytest.approx(95.0 + since_j)
    assert against is None


def test_a_counter_that_went_on_by_its_own_seconds_has_not_restarted():
    samples = [s._replace(measured_s=s.time_s + 10.0) for s in counter(1e6, **{f"at_{t}": 5.0 * (t - 6) for t in range(6, 26)})]
    _, against = judged(samples)
    assert against is not None and " at 6.0 s; expected" in against


@pytest.mark.parametrize("seconds", [1e308, -1e308, 1e5])
def test_seconds_that_cannot_be_are_not_taken_off(seconds):
    samples = [s._replace(measured_s=seconds if s.time_s == 6.0 else s.time_s + 10.0) for s in counter(0.0)]
    energy = history(samples).energy(0.0, 20.0, {"coral1": 4.56})["coral1"]
    assert list(energy) == pytest.approx([100.0, 100.0 - 20 * 4.56, 0.0])


@pytest.mark.parametrize("value_w", [0.0, -1.0, 2.2, 10.8, 5000.0, 1e308, math.inf])
def test_a_power_sample_beyond_what_the_node_draws_is_left_out_and_said(value_w):
    samples = [PowerSample(float(t), value_w if t == 6 else 5.0) for t in range(-2, 23)]
    total_j, against = judged(samples)
    assert total_j == pytest.approx(100.0)
    assert against is not None and against.startswith(f"its power is {value_w:.6g} W at 6.0 s; expected 2.28 to 10.7 W by the")


@pytest.mark.parametrize("value_w", [4.56 * 0.8, 4.29, 5.35 * 1.2, 7.6])
def test_a_real_meter_that_differs_from_the_profile_is_believed(value_w):
    gauge = [PowerSample(float(t), value_w) for t in range(-2, 23)]
    counted = [PowerSample(float(t), None, 1000.0 + value_w * t) for t in range(-2, 23)]
    for samples in (gauge, counted):
        assert judged(samples) == (pytest.approx(20.0 * value_w), None)


@pytest.mark.parametrize(("watts", "says"), [(5.0 / 3600, "its mean power is 0.00138889 W"), (15.0, "its mean power is 15 W")])
def test_a_counter_in_another_unit_is_said(watts, says):
    _, against = judged([PowerSample(float(t), None, 1000.0 + watts * t) for t in range(-2, 23)])
    assert against is not None and against.startswith(says)


def test_a_meter_that_reads_nothing_or_milliwatts_is_not_believed():
    for watts in (0.0, 5000.0):
        samples = [PowerSample(float(t), watts, watts * (t + 30)) for t in range(-2, 23)]
        _, against = judged(samples)
        assert against is not None and "such samples)" in against


@pytest.mark.parametrize("scraped_every_s", [1, 5, 15])
def test_a_counter_that_its_meter_fills_late_is_believed(scraped_every_s):
    """Two readings of the meter between two scrapes, then none."""
    late = [PowerSample(float(t), None, 5.0 * (t - t % (2 * scraped_every_s))) for t in range(-60, 120, scraped_every_s)]
    assert judged(late, 0.0, 60.0)[1] is None


@pytest.mark.parametrize("step_j", [10.0, 36.0, 360.0])
def test_a_counter_in_large_steps_is_no_jump(step_j):
    samples = [PowerSample(float(t), 5.0, step_j * (5.0 * t // step_j)) for t in range(200)]
    assert judged(samples, 60.0, 180.0) == (pytest.approx(600.0, abs=step_j), None)


def test_what_lies_outside_the_window_does_not_count_against_it():
    samples = [PowerSample(float(t), 0.0 if t in (-5, 30) else 5.0) for t in range(-10, 35)]
    assert judged(samples) == (pytest.approx(100.0), None)


def test_a_clock_that_was_set_counts_against_every_node_of_the_window():
    of_node = history(counter(0.0), clock_steps=[(6.0, "the clock of this machine was set back by 3600.0 s")])
    idle = {"coral1": 4.56}
    assert of_node.impossible(0.0, 20.0, idle) == {
        "coral1": "the clock of this machine was set back by 3600.0 s at 6.0 s: samples around that cannot be placed"
    }
    with_jump = history(counter(0.0, at_7=1e6), clock_steps=of_node.clock_steps)
    assert with_jump.impossible(0.0, 20.0, idle) == of_node.impossible(0.0, 20.0, idle)
    assert of_node.impossible(7.0, 20.0, idle) == of_node.impossible(-10.0, 3.0, idle) == {}


def test_counter_and_power_samples_that_make_two_energies_are_said():
    def doubts(watts, joules_at):
        samples = [PowerSample(float(t), watts, joules_at(t)) for t in range(61)]
        return history(samples, PowerRange(0, 99)).doubts(0.0, 60.0, are_real=False)

    assert doubts(5.0, lambda t: 5.5 * t) == doubts(5.0, lambda t: 36.0 * (5.0 * t // 36.0)) == []
    assert doubts(5.0, lambda t: 7.0 * t) == [
        "coral1: its joule counter makes 420 J, its power samples 300 J: one of the two is wrong"
    ]
    assert doubts(5.0, lambda t: 7.0) == ["coral1: its joule counter makes 0 J, its power samples 300 J: one of the two is wrong"]


def test_a_real_meter_that_never_changes_is_said():
    frozen, alive = ([PowerSample(float(t), 5.0 + at * (t % 2)) for t in range(61)] for at in (0.0, 0.01))
    assert history(frozen).doubts(0.0, 60.0, are_real=True) == [
        "coral1: its power is 5 W in all 61 samples: its meter may have frozen"
    ]
    assert history(frozen).doubts(0.0, 60.0, are_real=False) == history(frozen).doubts(0.0, 3.0, are_real=True) == []
    assert history(alive).doubts(0.0, 60.0, are_real=True) == []


@given(
    st.lists(st.one_of(FINITE, st.floats(allow_nan=False), st.none()), min_size=2, max_size=30),
    st.lists(st.one_of(FINITE, st.floats(allow_nan=False), st.none()), min_size=30, max_size=30),
)
def test_whatever_a_meter_shows_its_energy_is_what_the_node_can_draw(joules, watts):
    samples = [PowerSample(float(t), watts[t], j) for t, j in enumerate(joules)]
    energy = history(samples).energy(0.0, float(len(joules)), {"coral1": 4.56})["coral1"]
    assert energy.total_j is None or 0.0 <= energy.total_j <= 2 * 10.7 * (len(joules) + 60.0)
