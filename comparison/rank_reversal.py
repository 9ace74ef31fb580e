"""How often TOPSIS changes its mind when an alternative that would never be taken is left out: rank reversal.

Normalisation and ideal depend on all alternatives, so deleting the worst one can change the best. Source: García-Cascales and
Lamata, "On rank reversal and TOPSIS method", Mathematical and Computer Modelling 56 (2012), 123-132.
"""

from collections.abc import Sequence

from scheduler.base_scheduler import BaseScheduler, Node, Task
from scheduler.topsis_scheduler import Row, TopsisScheduler, closeness

FEWEST_NODES = 3
"""With two nodes the deletion leaves no choice."""


def winner_without_worst(nodes: Sequence[Node], chosen: Node, matrix: Sequence[Row], weights: Sequence[float]) -> Node:
    """The node that the same weights would choose had the node of the lowest closeness not been offered.

    Args:
        nodes: at least two.
        chosen: the node that was chosen; it is never the one deleted.
        matrix: decision matrix, one row per node.
        weights: one per criterion.
    """
    scores = closeness(matrix, weights)
    others = [number for number, node in enumerate(nodes) if node is not chosen]
    worst = min(others, key=lambda number: (scores[number], -nodes[number].predicted_completion_s))
    left = [number for number in range(len(nodes)) if number != worst]
    scores = closeness([matrix[number] for number in left], weights)
    return max(zip(scores, [nodes[number] for number in left], strict=True), key=_score_then_completion)[1]


def _score_then_completion(scored: tuple[float, Node]) -> tuple[float, float]:
    return scored[0], -scored[1].predicted_completion_s


class RankReversalProbe(BaseScheduler):
    """A TOPSIS policy that is watched: choices and scores are the policy's own, if it draws nothing at random.

    Args:
        inner: the policy.
        every: of the decisions among at least 3 nodes, each `every`-th is examined.

    Attributes:
        decisions: how many were examined.
        reversals: in how many of them deleting the worst node changes the winner.
    """

    def __init__(self, inner: TopsisScheduler, every: int = 10) -> None:
        super().__init__(inner.settings, inner.rng)
        self.decisions = 0
        self.reversals = 0
        self._inner = inner
        self._every = every
        self._until_next = every

    @property
    def rate(self) -> float | None:
        """Share of the examined decisions with a reversal; None when none was examined."""
        return self.reversals / self.decisions if self.decisions else None

    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """The node that the watched policy chooses."""
        chosen = self._inner.schedule(task, nodes)
        if len(nodes) >= FEWEST_NODES:
            self._until_next -= 1
            if self._until_next == 0:
                self._until_next = self._every
                self._examine(task, nodes, chosen)
        return chosen

    def _examine(self, task: Task, nodes: Sequence[Node], chosen: Node) -> None:
        matrix, weights = self._inner.matrix(task, nodes), self._inner.weights(nodes)
        self.decisions += 1
        self.reversals += winner_without_worst(nodes, chosen, matrix, weights) is not chosen
