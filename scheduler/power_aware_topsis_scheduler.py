"""TOPSIS with measured power, and weights that follow how busy the cluster is."""

from collections.abc import Sequence

import numpy as np

from scheduler.base_scheduler import Node, Task
from scheduler.topsis_scheduler import Row, TopsisScheduler, criteria
from settings import Settings


class PowerAwareTopsisScheduler(TopsisScheduler):
    """Saves power while the cluster is calm and deadlines when it is busy.

    The weights go linearly from `weights_calm` to `weights_busy` with the mean busy fraction of the offered nodes; they stay at
    `weights_calm` while these nodes together draw more than `power_budget_w`. Power is the latest measured one, or the
    profile's busy power where no sample is young enough.
    """

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        super().__init__(settings, rng)
        own = settings.power_aware_topsis
        self._calm = _normalised(own.weights_calm.as_tuple())
        self._busy = _normalised(own.weights_busy.as_tuple())
        self._budget_w = own.power_budget_w

    def weights(self, nodes: Sequence[Node]) -> tuple[float, ...]:
        """Weights of slack, performance, power and load for a decision among `nodes`; they add up to 1."""
        if self._budget_w is not None and sum([node.current_power_w for node in nodes]) > self._budget_w:
            return self._calm
        busy = sum([node.busy_fraction for node in nodes]) / len(nodes)
        return tuple([calm + (full - calm) * busy for calm, full in zip(self._calm, self._busy, strict=True)])

    def matrix(self, task: Task, nodes: Sequence[Node]) -> list[Row]:
        """Decision matrix of `task` with the latest measured power, one row per node."""
        return [criteria(task, node, node.current_power_w) for node in nodes]


def _normalised(weights: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights)
