"""Energy of a node over a window, from samples of its power meter."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from task import NodeEnergy, PowerSample

Floats = NDArray[np.float64]

_NOTHING = NodeEnergy(None, None, 1.0)
_AS_GOOD = 0.01
"""Share of a window that a counter may leave out more than the gauge beside it, and is still preferred."""
_OFTEN = 0.5
"""Share of its samples at which a fine counter grows."""
_LEAST_W = 1e-6


def node_energy(samples: Sequence[PowerSample], start_s: float, end_s: float, idle_w: float, interval_s: float) -> NodeEnergy:
    """Energy of one node over a window.

    The increase of its joule counter, linear between samples, where it has a fine one that covers no less than its power samples;
    else the trapezoidal integral of these, the outermost held to the window's edges. Above idle: minus idle power times the time
    that was integrated, which the counter's target says itself (`measured_s`) or the steps of the counter tell.

    Uncovered is what lies further than two polls from a sample, and all that a counter has not counted, as before its first
    sample, after its last one, or while its meter was away: that energy is not estimated, but missing in the figures.

    The increase is taken from the counter's own samples and not from PromQL's `increase()`. That one sees only the samples within
    its range, and stretches their growth to its edges at their mean rate, as if the load had gone on there as in the middle. Here
    the samples just outside the window are known too, so that the counter is interpolated at its edges. A counter that fell
    counts as restarted from 0, as it does there.

    Args:
        samples: in order of time, which may reach beyond the window.
        start_s: start of the window, seconds.
        end_s: its end, seconds.
        idle_w: power of the idle node, watts.
        interval_s: time between polls, seconds.
    """
    if end_s <= start_s:
        return _NOTHING
    reach_s = 2 * interval_s
    counter = _around([s for s in samples if s.energy_j is not None], start_s, end_s)
    gauge = _around([s for s in samples if s.power_w is not None], start_s, end_s)
    far_of_counter, far_of_gauge = (uncovered_share(of[0], start_s, end_s, reach_s) for of in (counter, gauge))
    has_counter = len(counter[0]) > 1 and far_of_counter < 1
    counter_is_as_good = has_counter and far_of_counter <= far_of_gauge + _AS_GOOD and _is_fine(counter, idle_w, reach_s)
    if far_of_gauge < 1 and not counter_is_as_good:
        total_j = power_integral(gauge[0], gauge[1], start_s, end_s)
        return NodeEnergy(total_j, total_j - idle_w * (end_s - start_s), far_of_gauge)
    return _by_counter(counter, start_s, end_s, idle_w, reach_s) if has_counter else _NOTHING


def _around(samples: Sequence[PowerSample], start_s: float, end_s: float) -> Floats:
    """Samples in a window, with the last one at or before its start and the first one at or after its end.

    Returns:
        four rows: time in seconds, power, energy and measured time, NaN where there is none.
    """
    rows = np.array(samples, dtype=float).reshape(-1, 4).T
    first, last = int(rows[0].searchsorted(start_s, "right")) - 1, int(rows[0].searchsorted(end_s))
    return rows[:, max(0, first) : last + 1]


def _by_counter(counter: Floats, start_s: float, end_s: float, idle_w: float, reach_s: float) -> NodeEnergy:
    times_s, _, energy_j, measured_s = counter
    known_s = times_s
    if np.isnan(measured_s).any():
        measured_s = _measured_s(times_s, energy_j, idle_w, reach_s)
        known_s = times_s[_turns(energy_j)] if idle_w else times_s
    first_s, last_s = np.clip([start_s, end_s], times_s[0], times_s[-1]).tolist()
    total_j, counted_s = (counter_increase(times_s, values, first_s, last_s) for values in (energy_j, measured_s))
    uncovered = max(uncovered_share(known_s, start_s, end_s, reach_s), 1 - counted_s / (end_s - start_s))
    return NodeEnergy(total_j, total_j - idle_w * counted_s, uncovered)


def _turns(values: Floats) -> NDArray[np.bool_]:
    """Where runs of the same value begin and end."""
    changes = np.diff(values) != 0
    turns: NDArray[np.bool_] = np.append(True, changes) | np.append(changes, True)
    return turns


def _is_fine(counter: Floats, idle_w: float, reach_s: float) -> bool:
    """Whether a counter grows at most of its samples, or at least often enough that no time is far from its growth.

    Of one that counts in large steps, or is updated seldom, nothing is known in between; nor of one that stands still.
    """
    times_s, _, energy_j, _ = counter
    grew = np.diff(energy_j) != 0
    if not idle_w or grew.mean() >= _OFTEN:
        return True
    between_s = np.diff(times_s[1:][grew])
    return len(between_s) > 0 and float(np.median(between_s)) <= 2 * reach_s


def _measured_s(times_s: Floats, energy_j: Floats, idle_w: float, reach_s: float) -> Floats:
    """Seconds that a counter has counted over, at each sample, where its target does not say.

    All of them, but for the steps at which it fell and those longer than `reach_s` in which it grew by less than half of what the
    idle node takes, its meter being away. What it grew by in these took as long as it would have at its mean power otherwise. A
    run of samples with the same value is one step. One that grows seldom may keep back its smallest growth at each.
    """
    turns = _turns(energy_j)
    steps_s, grown_j = np.diff(times_s[turns]), np.diff(energy_j[turns])
    fell = grown_j < 0
    is_coarse = (np.diff(energy_j) != 0).mean() < _OFTEN
    kept_back_j = grown_j[grown_j > 0].min() if is_coarse and (grown_j > 0).any() else 0.0
    broken = fell | ((steps_s > reach_s) & (grown_j + kept_back_j < 0.5 * idle_w * steps_s))
    whole_s = float(steps_s[~broken].sum())
    mean_w = float(grown_j[~broken].sum()) / whole_s if whole_s else idle_w
    since_j = np.where(fell, energy_j[turns][1:], grown_j)
    in_broken_s = np.minimum(since_j / max(mean_w, _LEAST_W), steps_s)
    counted_s = np.cumsum(np.where(broken, in_broken_s, steps_s))
    at_each: Floats = np.interp(times_s, times_s[turns], np.concatenate([[0.0], counted_s]))
    return at_each


def counter_increase(times_s: Floats, values: Floats, start_s: float, end_s: float) -> float:
    """Increase of a counter between two instants, linear between samples; a counter that fell has restarted from 0."""
    steps = np.diff(values, prepend=values[0])
    grown = np.cumsum(np.where(steps < 0, values, steps))
    return float(np.interp(end_s, times_s, grown) - np.interp(start_s, times_s, grown))


def power_integral(times_s: Floats, power_w: Floats, start_s: float, end_s: float) -> float:
    """Trapezoidal integral of power samples over a window, the outermost samples held to its edges; joules."""
    inside = times_s[(times_s > start_s) & (times_s < end_s)]
    at_s = np.concatenate([[start_s], inside, [end_s]])
    return float(np.trapezoid(np.interp(at_s, times_s, power_w), at_s))


def uncovered_share(times_s: Floats, start_s: float, end_s: float, reach_s: float) -> float:
    """Share of a window that lies further than `reach_s` from every sample."""
    lows = np.concatenate([[-np.inf], times_s + reach_s])
    highs = np.concatenate([times_s - reach_s, [np.inf]])
    gaps = np.minimum(highs, end_s) - np.maximum(lows, start_s)
    return float(np.maximum(gaps, 0).sum() / (end_s - start_s))
