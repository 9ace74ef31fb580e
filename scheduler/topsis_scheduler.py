"""TOPSIS: rank nodes by closeness to an ideal one.

Source of the method: Hwang and Yoon, "Multiple Attribute Decision Making", Springer 1981, chapter 3. Every criterion enters as a
benefit; columns are normalised by their Euclidean norm.
"""

import math
from collections.abc import Sequence

import numpy as np

from scheduler.base_scheduler import BaseScheduler, Node, Task, earliest_completion
from settings import Settings

SHORTEST_DEADLINE_S = 1e-3
"""Divisor of the slack for a device that is about to leave, whose adapted deadline tends to 0."""

Row = tuple[float, float, float, float]


def closeness(decision_matrix: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Closeness of each alternative to the ideal one.

    Args:
        decision_matrix: one row per alternative, one column per criterion; larger is better. A cost enters negated or inverted.
        weights: one per criterion, non-negative, not all zero; only their ratios matter.

    Returns:
        One number per alternative, from 0 (the anti-ideal) to 1 (the ideal). A column of zeros contributes nothing;
        alternatives that cannot be told apart get 0.5.

    Raises:
        ValueError: shapes disagree, a weight is negative, all weights are zero, or a value is not finite.
    """
    total = sum(weights)
    if not total > 0 or min(weights) < 0:
        raise ValueError(f"weights must be non-negative and not all zero, got {list(weights)}")
    columns = []
    for column, weight in zip(zip(*decision_matrix, strict=True), weights, strict=True):
        norm = math.hypot(*column)
        if not norm < math.inf:
            raise ValueError("the decision matrix holds a value that is not finite")
        scale = weight / total / norm if norm > 0 else 0.0
        columns.append([value * scale for value in column])
    ideal = [max(column) for column in columns]
    anti_ideal = [min(column) for column in columns]
    scores = []
    for row in zip(*columns, strict=True):
        to_ideal = math.dist(row, ideal)
        to_anti_ideal = math.dist(row, anti_ideal)
        span = to_ideal + to_anti_ideal
        scores.append(to_anti_ideal / span if span > 0 else 0.5)
    return scores


def best_by_closeness(nodes: Sequence[Node], matrix: Sequence[Row], weights: Sequence[float]) -> Node:
    """The node closest to the ideal; ties: the smaller predicted completion, then the order of the nodes.

    Each node's score is left in `Node.closeness`.
    """
    scores = closeness(matrix, weights)
    for node, score in zip(nodes, scores, strict=True):
        node.closeness = score
    highest = max(scores)
    if scores.count(highest) == 1:
        return nodes[scores.index(highest)]
    return earliest_completion([node for node, score in zip(nodes, scores, strict=True) if score == highest])


def criteria(task: Task, node: Node, power_w: float) -> Row:
    """Row of the decision matrix: slack, performance, power efficiency, load fairness.

    Slack is the share of the adapted deadline that is left at the predicted completion; performance the inferences per second;
    power efficiency the inferences per joule at `power_w`; load fairness 1 / (tasks there + 1).
    """
    deadline_s = task.adapted_deadline_s
    slack = (deadline_s - node.predicted_completion_s) / (deadline_s if deadline_s > SHORTEST_DEADLINE_S else SHORTEST_DEADLINE_S)
    performance = 1.0 / node.service_time_s
    return slack, performance, performance / power_w, 1.0 / (node.queue_depth + 1)


class TopsisScheduler(BaseScheduler):
    """TOPSIS with fixed weights and the profile's busy power; a policy with other weights or another matrix derives from it."""

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        super().__init__(settings, rng)
        self._weights = settings.topsis.weights.as_tuple()

    def weights(self, nodes: Sequence[Node]) -> tuple[float, ...]:
        """Weights of slack, performance, power and load for a decision among `nodes`; only their ratios matter."""
        return self._weights

    def matrix(self, task: Task, nodes: Sequence[Node]) -> list[Row]:
        """Decision matrix of `task`, one row per node."""
        return [criteria(task, node, node.busy_w) for node in nodes]

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The node closest to the ideal one."""
        return best_by_closeness(nodes, self.matrix(task, nodes), self.weights(nodes))
