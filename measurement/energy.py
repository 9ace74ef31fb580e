"""Energy of a node over a window, from samples of its power meter; and which samples the node cannot have shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

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
_JITTER = 2.0
"""By this factor a counter may grow faster between two samples than its node draws: it is not scraped when its meter is read."""
_LONGEST_STILL_S = 60.0
"""How long a counter may have stood still before the first sample that is known of it."""
_WRAPS_J = (2.0**16, 2.0**31, 2.0**32, 2.0**31 * 1e-3, 2.0**32 * 1e-3, 2.0**31 * 1e-6, 2.0**32 * 1e-6)
"""Where counters of 16 and 32 bits begin again: joules, millijoules, microjoules."""
_SHORTEST_MEAN_S = 5.0
"""Over a shorter time one late sample may double a counter's mean power, or halve it."""
_DISAGREEMENT = 0.2
_FEW = 8
"""Power samples that may well be equal."""


class PowerRange(NamedTuple):
    """Power that a node can draw, watts."""

    lowest_w: float
    highest_w: float

    def includes(self, power_w: float) -> bool:
        """Whether the node can draw so much."""
        return self.lowest_w <= power_w <= self.highest_w and math.isfinite(power_w)

    def most_j(self, since_s: float, until_s: float) -> float:
        """What the node's counter may have grown by between two instants."""
        return _JITTER * self.highest_w * max(until_s - since_s, 1.0)


ANY_POWER = PowerRange(-math.inf, math.inf)
Impossible = list[tuple[float, str]]
"""Time and words for each value that a node cannot have shown."""


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


def split_impossible(samples: Sequence[PowerSample], possible: PowerRange) -> tuple[list[PowerSample], Impossible]:
    """The samples without what the node cannot have shown, and what that was.

    A power outside of the range is left out. So is a value of the counter that the next one takes back: a dip, which is no
    restart, or a spike. A counter that moves by more than the node can draw, and stays there, goes on from where it stood; one
    that fell to what it can have counted since the sample before has restarted.

    Args:
        samples: of one node, in order of time.
        possible: power that the node can draw.
    """
    refused: Impossible = []
    kept: list[PowerSample] = []
    for sample in samples:
        if sample.power_w is not None and not possible.includes(sample.power_w):
            refused.append((sample.time_s, f"its power is {sample.power_w:.6g} W"))
            sample = sample._replace(power_w=None)
        if sample.energy_j is not None and not 0 <= sample.energy_j < math.inf:
            refused.append((sample.time_s, f"its counter is {sample.energy_j:.6g} J"))
            sample = sample._replace(energy_j=None)
        kept.append(sample)
    at = [index for index, sample in enumerate(kept) if sample.energy_j is not None]
    for index, energy_j in zip(at, _continued([kept[index] for index in at], possible, refused), strict=True):
        kept[index] = kept[index]._replace(energy_j=energy_j)
    return kept, sorted(refused)


def _continued(counter: Sequence[PowerSample], possible: PowerRange, refused: Impossible) -> list[float | None]:
    """Joules of each sample of a counter, its impossible steps taken out; None where the next sample takes one back."""
    if not counter:
        return []
    at, grew_s = counter[0], counter[0].time_s - _LONGEST_STILL_S
    continued_j = at.energy_j or 0.0
    joules: list[float | None] = [continued_j]
    for sample, following in zip_longest(counter[1:], counter[2:]):
        before_j, now_j = at.energy_j or 0.0, sample.energy_j or 0.0
        most_j, grown_j = possible.most_j(grew_s, sample.time_s), now_j - before_j
        step = f"its counter goes from {before_j:.6g} J to {now_j:.6g} J"
        is_restart = _is_restart(at, sample, possible)
        if 0 <= grown_j <= most_j:
            continued_j += grown_j
        else:
            if following and _takes_back(at, following, grew_s, possible, is_restart):
                if abs(grown_j) > most_j or now_j <= 0:
                    refused.append((sample.time_s, f"{step} and back"))
                joules.append(None)
                continue
            if not is_restart or any(abs(before_j - wrap_j) <= most_j < math.inf for wrap_j in _WRAPS_J):
                refused.append((sample.time_s, f"{step} in {sample.time_s - at.time_s:.3g} s"))
            continued_j = now_j if is_restart else continued_j
        if grown_j:
            grew_s = sample.time_s
        at = sample
        joules.append(continued_j)
    return joules


def _is_restart(before: PowerSample, sample: PowerSample, possible: PowerRange) -> bool:
    """Whether a counter that fell can have counted anew from 0; not one that says it has counted on for all the time."""
    before_j, now_j = before.energy_j or 0.0, sample.energy_j or 0.0
    went_on = sample.measured_s is not None and before.measured_s is not None and sample.measured_s > before.measured_s
    return not went_on and now_j < before_j and now_j <= possible.most_j(before.time_s, sample.time_s)


def _takes_back(before: PowerSample, after: PowerSample, grew_s: float, possible: PowerRange, may_be_restart: bool) -> bool:
    """Whether a counter went on as if the sample between two had not been.

    After a restart it may have come as high again, but then it seems to have grown by less than the node must have drawn.
    """
    grown_j = (after.energy_j or 0.0) - (before.energy_j or 0.0)
    least_j = possible.lowest_w * (after.time_s - before.time_s) if may_be_restart else 0.0
    return max(0.0, least_j) <= grown_j <= possible.most_j(grew_s, after.time_s)


def implausible_mean(energy: NodeEnergy, window_s: float, idle_w: float, possible: PowerRange) -> str | None:
    """Words for a mean power that the node cannot have drawn; None where it can, or where too little is known."""
    if energy.total_j is None or energy.above_idle_j is None:
        return None
    counted_s = (energy.total_j - energy.above_idle_j) / idle_w if idle_w > 0 else window_s
    if counted_s < _SHORTEST_MEAN_S or possible.includes(mean_w := energy.total_j / counted_s):
        return None
    return f"its mean power is {mean_w:.6g} W"


def disagreement(samples: Sequence[PowerSample], start_s: float, end_s: float, interval_s: float) -> str | None:
    """Words for a counter and power samples that both cover a window and differ by more than a fifth; None otherwise."""
    counter = [sample._replace(power_w=None) for sample in samples]
    gauge = [sample._replace(energy_j=None) for sample in samples]
    counted, integrated = (node_energy(of, start_s, end_s, 0.0, interval_s) for of in (counter, gauge))
    if counted.total_j is None or integrated.total_j is None or max(counted.uncovered, integrated.uncovered) > _DISAGREEMENT:
        return None
    largest_step_j = float(np.diff([sample.energy_j for sample in samples if sample.energy_j is not None]).max())
    if abs(counted.total_j - integrated.total_j) <= _DISAGREEMENT * max(counted.total_j, integrated.total_j) + largest_step_j:
        return None
    return f"its joule counter makes {counted.total_j:.4g} J, its power samples {integrated.total_j:.4g} J"


@dataclass(frozen=True)
class PowerHistory:
    """Samples of all nodes, and the energy that they make.

    Attributes:
        samples: of each node, in order of time.
        power_ranges: what a node can draw, by node; absent nodes can draw anything.
        interval_s: time between polls, seconds.
        clock_steps: when a clock was set that samples are placed by, and words for that.
    """

    samples: Mapping[str, Sequence[PowerSample]]
    power_ranges: Mapping[str, PowerRange]
    interval_s: float
    clock_steps: Sequence[tuple[float, str]] = ()

    def energy(self, start_s: float, end_s: float, idle_w: Mapping[str, float]) -> dict[str, NodeEnergy]:
        """Energy of each node over a window, without what it cannot have shown; `idle_w` by node, watts."""
        return {
            node: node_energy(possible, start_s, end_s, idle_w[node], self.interval_s)
            for node, (possible, _) in self._split.items()
        }

    def impossible(self, start_s: float, end_s: float, idle_w: Mapping[str, float]) -> dict[str, str]:
        """Why the energy over a window cannot be that of the node, by node; times count from the start of the window."""
        energy, last_s = self.energy(start_s, end_s, idle_w), end_s + 2 * self.interval_s
        steps = [f"{what} at {at_s - start_s:.1f} s" for at_s, what in self.clock_steps if start_s <= at_s <= last_s]
        found = {}
        for node, (_, refused) in self._split.items():
            lowest_w, highest_w = possible = self.power_ranges.get(node, ANY_POWER)
            inside = [f"{what} at {at_s - start_s:.1f} s" for at_s, what in refused if start_s <= at_s <= last_s]
            if len(inside) > 1:
                inside[0] += f" ({len(inside)} such samples)"
            if mean := implausible_mean(energy[node], end_s - start_s, idle_w[node], possible):
                inside.append(mean)
            if steps:
                found[node] = f"{steps[0]}: samples around that cannot be placed"
            elif inside:
                found[node] = (
                    f"{inside[0]}; expected {lowest_w:.3g} to {highest_w:.3g} W by the profile and power.plausible_factor: "
                    "check its meter and what exports it"
                )
        return found

    def doubts(self, start_s: float, end_s: float, are_real: bool) -> list[str]:
        """What a reader of the energy of a window should know, a sentence each.

        Args:
            start_s: start of the window, seconds.
            end_s: its end, seconds.
            are_real: whether the meters are: those of emulated nodes show the same power as long as no task comes.
        """
        said = []
        for node, (possible, _) in self._split.items():
            if what := disagreement(possible, start_s, end_s, self.interval_s):
                said.append(f"{node}: {what}: one of the two is wrong")
            shown_w = [s.power_w for s in possible if s.power_w is not None and start_s <= s.time_s <= end_s]
            if are_real and len(shown_w) >= _FEW and len(set(shown_w)) == 1:
                said.append(f"{node}: its power is {shown_w[0]:g} W in all {len(shown_w)} samples: its meter may have frozen")
        return said

    @cached_property
    def _split(self) -> dict[str, tuple[list[PowerSample], Impossible]]:
        return {node: split_impossible(samples, self.power_ranges.get(node, ANY_POWER)) for node, samples in self.samples.items()}


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
    if not (_growth(measured_s) <= _JITTER * np.maximum(np.diff(times_s), 1.0)).all():  # not said, or no time that can be
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
    in_broken_s = np.minimum(_growth(energy_j[turns]) / max(mean_w, _LEAST_W), steps_s)
    counted_s = np.cumsum(np.where(broken, in_broken_s, steps_s))
    at_each: Floats = np.interp(times_s, times_s[turns], np.concatenate([[0.0], counted_s]))
    return at_each


def counter_increase(times_s: Floats, values: Floats, start_s: float, end_s: float) -> float:
    """Increase of a counter between two instants, linear between samples; a counter that fell has restarted from 0."""
    grown = np.concatenate([[0.0], np.cumsum(_growth(values))])
    return float(np.interp(end_s, times_s, grown) - np.interp(start_s, times_s, grown))


def _growth(values: Floats) -> Floats:
    """Growth of a counter from each sample to the next; one that fell has restarted from 0."""
    steps = np.diff(values)
    return np.where(steps < 0, np.maximum(values[1:], 0.0), steps)


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
