"""Rank reversal: agreement with deciding again, a probe that changes nothing, what is counted, and how often it happens."""

import numpy as np
import pytest

from comparison.rank_reversal import RankReversalProbe, winner_without_worst
from scheduler import SCHEDULERS, Node, Task
from scheduler.topsis_scheduler import TopsisScheduler, best_by_closeness, closeness
from settings import load_settings
from utils import random_stream

SETTINGS = load_settings()
TASK = Task(1, 2, "drone", "resnet50", "normal", 5.0, 0.2, 0.2, 0.2)

# Found by search, equal weights: closeness .631 .607 .246, and .467 .533 of the first two alone.
REVERSED = [(0.5, 0.3, 0.6, 0.5), (0.4, 0.7, 0.3, 0.6), (0.7, 0.4, 0.1, 0.1)]


def random_nodes(rng, count=6):
    return [
        Node(
            f"node{number}",
            "coral",
            idle_w=4.0,
            busy_w=rng.uniform(5, 8),
            service_time_s=rng.uniform(0.01, 0.3),
            predicted_completion_s=rng.uniform(0.01, 0.5),
            queue_depth=int(rng.integers(0, 9)),
            busy_fraction=rng.uniform(0, 1),
            power_w=rng.uniform(4, 8),
        )
        for number in range(count)
    ]


def policy(name="topsis"):
    return SCHEDULERS[name](SETTINGS, random_stream(1, "policy"))


class Fixed(TopsisScheduler):
    """TOPSIS whose matrix is given, with equal weights."""

    def __init__(self, rows):
        super().__init__(SETTINGS, random_stream(1, "policy"))
        self.rows = rows

    def weights(self, nodes):
        return (0.25, 0.25, 0.25, 0.25)

    def matrix(self, task, nodes):
        return self.rows[: len(nodes)]


def reversal_rate(draw, matrices=4000):
    """Share of random matrices of six rows and four columns, equal weights, whose winner changes without their worst row."""
    reversals = 0
    for _ in range(matrices):
        matrix = draw((6, 4)).tolist()
        nodes = [Node(f"node{number}", "coral", 4.0, 5.0) for number in range(6)]
        chosen = best_by_closeness(nodes, matrix, [1.0] * 4)
        reversals += winner_without_worst(nodes, chosen, matrix, [1.0] * 4) is not chosen
    return reversals / matrices


def test_share_of_random_matrices_of_six_nodes_is_the_known_one():
    # 6.5 %, uniform entries; the standard error of 4,000 matrices is 0.4 points.
    assert reversal_rate(np.random.default_rng(7).random) == pytest.approx(0.065, abs=0.012)


@pytest.mark.parametrize("name", ["topsis", "power_aware_topsis"])
def test_agrees_with_deciding_again_without_the_worst_node(name):
    rng = np.random.default_rng(8)
    reversals = 0
    for _ in range(300):
        inner, nodes = policy(name), random_nodes(rng)
        chosen = inner.schedule(TASK, nodes)
        matrix, weights = inner.matrix(TASK, nodes), inner.weights(nodes)
        worst = int(np.argmin([node.closeness for node in nodes]))
        left = nodes[:worst] + nodes[worst + 1 :]
        expected = left[int(np.argmax(closeness(matrix[:worst] + matrix[worst + 1 :], weights)))]
        assert winner_without_worst(nodes, chosen, matrix, weights) is expected
        reversals += expected is not chosen
    assert reversals > 0


@pytest.mark.parametrize("name", ["topsis", "power_aware_topsis"])
def test_probe_changes_neither_choices_nor_scores(name):
    rng = np.random.default_rng(9)
    plain, watched = policy(name), RankReversalProbe(policy(name), every=1)
    for _ in range(100):
        nodes = random_nodes(rng)
        expected = plain.schedule(TASK, nodes)
        scores = [node.closeness for node in nodes]
        assert watched.schedule(TASK, nodes) is expected
        assert [node.closeness for node in nodes] == scores


def test_reversal_is_counted():
    probe = RankReversalProbe(Fixed(REVERSED), every=1)
    nodes = random_nodes(np.random.default_rng(10), 3)
    first = probe.schedule(TASK, nodes)
    assert first is not best_by_closeness(nodes[:2], REVERSED[:2], (1.0,) * 4)
    assert (probe.decisions, probe.reversals, probe.rate) == (1, 1, 1.0)


def test_rate_is_the_share_of_examined_decisions():
    inner = Fixed(REVERSED)
    probe = RankReversalProbe(inner, every=1)
    nodes = random_nodes(np.random.default_rng(11), 3)
    probe.schedule(TASK, nodes)
    inner.rows = [(3.0, 3.0, 3.0, 3.0), (2.0, 2.0, 2.0, 2.0), (1.0, 1.0, 1.0, 1.0)]
    for _ in range(3):
        probe.schedule(TASK, nodes)
    assert (probe.decisions, probe.reversals, probe.rate) == (4, 1, 0.25)


def test_every_tenth_decision_is_examined():
    probe = RankReversalProbe(policy())
    nodes = random_nodes(np.random.default_rng(12))
    for _ in range(39):
        probe.schedule(TASK, nodes)
    assert probe.decisions == 3


def test_decisions_among_fewer_than_three_nodes_are_neither_examined_nor_counted():
    probe = RankReversalProbe(policy(), every=2)
    nodes = random_nodes(np.random.default_rng(13), 3)
    for offered in (nodes, nodes[:2], nodes[:1], nodes[:2]):
        probe.schedule(TASK, offered)
    assert probe.decisions == 0
    probe.schedule(TASK, nodes)
    assert probe.decisions == 1


def test_without_an_examined_decision_there_is_no_rate():
    assert RankReversalProbe(policy()).rate is None


def test_nodes_that_cannot_be_told_apart_are_no_reversal():
    probe = RankReversalProbe(Fixed([(1.0, 1.0, 1.0, 1.0)] * 4), every=1)
    nodes = [Node(f"node{number}", "coral", 4.0, 5.0) for number in range(4)]
    assert probe.schedule(TASK, nodes) is nodes[0]
    assert probe.rate == 0.0
