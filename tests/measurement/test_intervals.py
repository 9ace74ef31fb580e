"""Intervals and tests over seeds: against scipy, by hand, and by definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from measurement.intervals import holm, holm_differences, paired_difference, t_interval

NAN = math.nan
SAMPLES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=12)


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


FAMILIES = st.integers(2, 6).flatmap(
    lambda seeds: st.lists(
        st.tuples(st.floats(-3, 3), st.lists(st.floats(-1, 1, width=16), min_size=seeds, max_size=seeds)), min_size=1, max_size=12
    )
)


@given(FAMILIES)
def test_interval_of_a_test_holds_0_exactly_where_its_adjusted_p_is_not_below_the_level(family):
    pairs = [(np.array(noise) + shift, np.zeros(len(noise))) for shift, noise in family]
    found = holm_differences(pairs)
    assert [each.p_holm for each in found] == holm([paired_difference(*pair).p_value for pair in pairs])
    for each, pair in zip(found, pairs, strict=True):
        alone = paired_difference(*pair)
        assert (each.mean, each.p_value) == (alone.mean, alone.p_value)
        assert each.low <= alone.low + 1e-9 and each.high >= alone.high - 1e-9  # never narrower than one that stands alone
        if abs(each.p_holm - 0.05) > 1e-9:
            assert (each.low <= 0 <= each.high) == (each.p_holm > 0.05)


def test_family_of_three_tests_by_hand():
    # Differences of mean 1 and standard deviation 1, 0.5, 0.1 over four seeds: t = 2, 4, 20 with 3 degrees of freedom;
    # p 0.1393, 0.0280, 0.00027 (scipy.stats.t.sf); Holm's factors 1, 2, 3 give the levels 0.05, 0.025 and 0.05 / 3.
    spread = np.array([-1.0, -1.0, 1.0, 1.0]) / np.sqrt(4 / 3)
    family = [(1 + deviation * spread, np.zeros(4)) for deviation in (1.0, 0.5, 0.1)]
    for each, deviation, level in zip(holm_differences(family), (1.0, 0.5, 0.1), (0.05, 0.025, 0.05 / 3), strict=True):
        half = stats.t.ppf(1 - level / 2, 3) * deviation / 2
        assert each[:3] == pytest.approx((1, 1 - half, 1 + half))
        assert each.p_value == pytest.approx(2 * stats.t.sf(2 / deviation, 3))
        assert each.p_holm == pytest.approx(each.p_value * 0.05 / level)


def test_family_without_tests_and_tests_without_spread():
    assert holm_differences([]) == []
    same, apart = ([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 1.0])
    assert holm_differences([same, apart]) == [(0.0, 0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0, 0.0)]
    (single,) = holm_differences([([1.0], [0.5])])
    assert single.mean == 0.5 and all(map(math.isnan, single[1:]))
