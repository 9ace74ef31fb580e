"""The search for the highest load at which a policy keeps up: which load to try next, and when the answer is known."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

SHARE_OF_ACHIEVABLE = 0.98
"""Compliance that counts as keeping up with the load, as a share of the achievable compliance of the same run."""

LOWEST_LOAD, HIGHEST_LOAD, LOAD_RESOLUTION = 0.25, 6.0, 0.05


class LoadLimit(NamedTuple):
    """The highest load at which one policy keeps up in one scenario.

    `kind` is found; below: not even at the lowest load; above: still at the highest load; unknown: no task was dispatched at a
    load that was tried. `load` is None unless found.
    """

    load: float | None
    kind: Literal["found", "below", "above", "unknown"]


def next_load(
    verdicts: Mapping[float, bool],
    low: float = LOWEST_LOAD,
    high: float = HIGHEST_LOAD,
    resolution: float = LOAD_RESOLUTION,
) -> float | LoadLimit:
    """The load to try next, or the answer: the highest load known to pass, within `resolution` of the lowest known to fail.

    Nothing beyond a failing load is believed, so that verdicts that are not monotone give the first crossing. While nothing
    fails, the load is doubled: a high load costs more to simulate than a low one.

    Args:
        verdicts: whether each load tried so far passes; loads outside `low` … `high` are ignored.
        low: lowest load to try.
        high: highest load to try.
        resolution: the bracket at which to stop.
    """
    within = {load: passes for load, passes in verdicts.items() if low <= load <= high}
    failing = min((load for load, passes in within.items() if not passes), default=math.inf)
    passing = max((load for load, passes in within.items() if passes and load < failing), default=None)
    if failing == low:
        return LoadLimit(None, "below")
    if passing is None:
        return low
    if passing == high:
        return LoadLimit(None, "above")
    if math.isinf(failing):
        return min(2 * passing, high)
    return LoadLimit(passing, "found") if failing - passing <= resolution else (passing + failing) / 2
