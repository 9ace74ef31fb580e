"""Policies to compare with: each looks at one thing."""

from collections.abc import Sequence

import numpy as np

from scheduler.base_scheduler import BaseScheduler, Node, Task, earliest_completion
from settings import Settings


class RandomScheduler(BaseScheduler):
    """Any node, with equal probability."""

    looks_at_nodes = False

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """A node drawn from the stream "policy"."""
        return nodes[int(self.rng.random() * len(nodes))]


class RoundRobinScheduler(BaseScheduler):
    """The nodes in turn."""

    looks_at_nodes = False

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        super().__init__(settings, rng)
        self._turn = -1

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The next of the offered nodes."""
        self._turn += 1
        return nodes[self._turn % len(nodes)]


class ShortestQueueScheduler(BaseScheduler):
    """The node with the fewest tasks."""

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The least queue depth; ties: the faster for this model."""
        return min(nodes, key=lambda node: (node.queue_depth, node.service_time_s))


class FastestNodeScheduler(BaseScheduler):
    """The node that is fastest for the model, however long its queue."""

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The least profile mean."""
        return min(nodes, key=lambda node: node.service_time_s)


class LowestPowerScheduler(BaseScheduler):
    """The node that draws least power at the moment."""

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The least measured power; ties: the smaller predicted completion."""
        return min(nodes, key=lambda node: (node.current_power_w, node.predicted_completion_s))


class EarliestCompletionScheduler(BaseScheduler):
    """The node expected to answer first."""

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The least predicted completion."""
        return earliest_completion(nodes)


class MinimumEnergyScheduler(BaseScheduler):
    """The cheapest node in energy that is still expected to answer in time."""

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The least energy above idle among the nodes predicted to meet the deadline; if none is, the earliest completion."""
        in_time = [node for node in nodes if node.predicted_to_meet(task.adapted_deadline_s)]
        if not in_time:
            return earliest_completion(nodes)
        return min(in_time, key=lambda node: (node.energy_above_idle_j, node.predicted_completion_s))
