"""Intervals and tests over seeds: Student's t, differences paired by seed, Holm's procedure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence level of the intervals; 1 − LEVEL is the level of the tests."""

Values = Sequence[float] | NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and its confidence interval; the ends are NaN where one value or none gives no interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of paired differences, its confidence interval and the p-value of the hypothesis that it is 0."""

    mean: float
    low: float
    high: float
    p_value: float


class Tested(NamedTuple):
    """A difference within a family of tests: as `Difference`, with the interval of its own test and Holm's adjusted p-value."""

    mean: float
    low: float
    high: float
    p_value: float
    p_holm: float


def t_interval(values: Values, level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of independent `values`; equal values give a point."""
    sample = np.asarray(values, dtype=float)
    count = len(sample)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sample.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(sample) == 0:
        return Interval(float(sample[0]), float(sample[0]), float(sample[0]))
    from scipy.special import stdtrit  # loaded where it is needed: most commands are quicker, and smaller, without it

    half = float(stdtrit(count - 1, (1 + level) / 2) * sample.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def paired_difference(values: Values, reference: Values, level: float = LEVEL) -> Difference:
    """`values` minus `reference`, pair by pair, with the two-sided paired t-test.

    A difference that is the same in every pair has p-value 0, or 1 where it is 0. What is smaller than the rounding of sums
    in another order (1e-12 of the values) counts as no difference and as no spread. One pair or none has no interval and no
    p-value (NaN).
    """
    ours, theirs = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    differences = ours - theirs
    count = len(differences)
    if count < 2:
        return Difference(*t_interval(differences, level), math.nan)
    rounding = 1e-12 * float(max(np.abs(ours).max(), np.abs(theirs).max()))
    if np.ptp(differences) <= rounding:
        constant = float(differences.mean())
        constant = constant if abs(constant) > rounding else 0.0
        return Difference(constant, constant, constant, float(constant == 0))
    from scipy.special import stdtr

    interval = t_interval(differences, level)
    statistic = interval.mean / (differences.std(ddof=1) / math.sqrt(count))
    return Difference(*interval, float(2 * stdtr(count - 1, -abs(statistic))))


def holm_differences(family: Sequence[tuple[Values, Values]], level: float = LEVEL) -> list[Tested]:
    """The paired differences of one family of tests, adjusted by Holm's procedure, with intervals that agree with their p-values.

    Holm's procedure tests each difference at its own level, (1 − level) p / p_holm. The interval is that of this level, so that
    it holds 0 exactly where p_holm is 1 − level or more. It is never narrower than one that stands alone.

    Args:
        family: values and what they are compared with, for each test.
        level: confidence level; 1 − level bounds the chance of any false claim in the family.
    """
    alone = [paired_difference(values, reference, level) for values, reference in family]
    p_holm = holm([difference.p_value for difference in alone])
    rows = []
    for (values, reference), difference, adjusted in zip(family, alone, p_holm, strict=True):
        factor = adjusted / difference.p_value if difference.p_value > 0 else len(family)
        own = paired_difference(values, reference, level if math.isnan(factor) else 1 - (1 - level) / factor)
        rows.append(Tested(*own, adjusted))
    return rows


def holm(p_values: Values) -> list[float]:
    """Holm's adjusted p-values of a family of tests, in the given order; NaN stays NaN and is not counted.

    Of m sorted p-values the i-th becomes the largest of min(1, (m − k + 1) p_k) over k ≤ i. Rejecting what is below a level
    keeps the chance of any false rejection below that level, however the tests depend on each other. Source: Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    given = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(given), math.nan)
    order = np.argsort(given)[: int((~np.isnan(given)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * given[order]))
    return [float(p_value) for p_value in adjusted]
