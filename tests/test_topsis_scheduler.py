"""TOPSIS: agreement with an independent implementation, alternatives that cannot be told apart, criteria by hand, ties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pymcdm.methods import TOPSIS
from pymcdm.normalizations import vector_normalization

from scheduler import Node, Task
from scheduler.topsis_scheduler import TopsisScheduler, best_by_closeness, closeness, criteria
from settings import load_settings

WEIGHTS = [0.4, 0.2, 0.2, 0.2]
MATRICES = arrays(float, st.tuples(st.integers(1, 8), st.just(4)), elements=st.floats(-1e6, 1e6, allow_subnormal=False))
TELLING = arrays(float, st.tuples(st.integers(2, 8), st.just(4)), elements=st.integers(-1000, 1000).map(lambda n: n / 8))
WEIGHT_LISTS = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=4, max_size=4).filter(
    lambda weights: sum(weights) > 1e-3
)


def task(deadline_s=0.2):
    return Task(1, 2, "drone", "resnet50", "normal", 5.0, deadline_s, deadline_s, deadline_s)


def node(name="coral1", **figures):
    known = {"accelerator": "coral", "idle_w": 4.0, "busy_w": 5.0, "service_time_s": 0.025, "predicted_completion_s": 0.05}
    return Node(name, **{**known, **figures})


def pymcdm_closeness(matrix, weights):
    """TOPSIS of pymcdm, every criterion a benefit; its validation only warns of alternatives that dominate others."""
    return TOPSIS(vector_normalization)(matrix, weights, np.ones(matrix.shape[1]), validation=False)


# Closeness


def test_agrees_with_an_independent_implementation_on_1000_random_matrices():
    rng = np.random.default_rng(1000)
    for _ in range(1000):
        matrix = rng.uniform(-1, 1, (rng.integers(2, 13), 4)) * rng.uniform(0.01, 100, 4)
        weights = rng.dirichlet(np.ones(4))
        expected = pymcdm_closeness(matrix, weights)
        np.testing.assert_allclose(closeness(matrix.tolist(), weights.tolist()), expected, rtol=0, atol=1e-8)


def test_agrees_with_three_libraries_on_the_vector_of_the_six_nodes():
    # facts/peers.md, "TOPSIS test vector" (pymcdm, pyDecision and scikit-criteria agree); joules and queue are costs.
    benefit_benefit_cost_cost = [
        [0.62, 110, 0.021, 3],
        [0.58, 105, 0.022, 2],
        [0.35, 38, 0.155, 1],
        [0.30, 36, 0.160, 4],
        [0.71, 140, 0.030, 5],
        [0.69, 135, 0.031, 0],
    ]
    matrix = [[slack, speed, -joules, -queue] for slack, speed, joules, queue in benefit_benefit_cost_cost]
    expected = [0.79972916, 0.79518231, 0.20362978, 0.05348747, 0.76540951, 0.93881226]
    np.testing.assert_allclose(closeness(matrix, [0.4, 0.2, 0.3, 0.1]), expected, rtol=0, atol=1e-8)


def test_published_ranking():
    # Opricovic and Tzeng, European Journal of Operational Research 156 (2004), the mountain climber, vector normalisation.
    risk_and_altitude = [[-1.0, 3000.0], [-2.0, 3750.0], [-5.0, 4500.0]]
    np.testing.assert_allclose(closeness(risk_and_altitude, [0.5, 0.5]), [0.762, 0.722, 0.238], atol=5e-4)


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.0] * 4] * 6,
        [[1.0] * 4] * 6,
        [[0.3, -7.1, 1e-9, 1e9]] * 5,
        [[1.0, 2.0, 3.0, 4.0]],
        [[0.0] * 4],
        [[-0.0, 0.0, 0.0, 0.0], [0.0, -0.0, 0.0, 0.0]],
    ],
    ids=["zeros", "ones", "identical rows", "one row", "one row of zeros", "negative zeros"],
)
def test_alternatives_that_cannot_be_told_apart_share_the_middle(matrix):
    assert closeness(matrix, WEIGHTS) == [0.5] * len(matrix)


def test_column_of_zeros_contributes_nothing():
    rng = np.random.default_rng(3)
    matrix = rng.uniform(0.1, 1, (6, 4))
    matrix[:, 2] = 0.0
    without = closeness(np.delete(matrix, 2, axis=1).tolist(), [0.4, 0.2, 0.2])
    np.testing.assert_allclose(closeness(matrix.tolist(), WEIGHTS), without, rtol=1e-12)


def test_weight_of_zero_takes_a_criterion_out():
    rng = np.random.default_rng(4)
    matrix = rng.uniform(0.1, 1, (6, 4))
    without = closeness(matrix[:, 1:].tolist(), [0.2, 0.3, 0.5])
    np.testing.assert_allclose(closeness(matrix.tolist(), [0.0, 0.2, 0.3, 0.5]), without, rtol=1e-12)


@given(MATRICES, WEIGHT_LISTS)
def test_closeness_is_a_number_between_0_and_1(matrix, weights):
    scores = closeness(matrix.tolist(), weights)
    assert len(scores) == len(matrix)
    assert all(0 <= score <= 1 for score in scores)


@given(TELLING)
def test_alternative_that_is_best_in_everything_is_the_ideal_and_the_worst_is_not(matrix):
    best, worst = matrix.max(axis=0) + 1, matrix.min(axis=0) - 1
    scores = closeness([best.tolist(), *matrix.tolist(), worst.tolist()], WEIGHTS)
    assert scores[0] == 1
    assert scores[-1] == 0


@given(TELLING, st.randoms(use_true_random=False))
def test_order_of_the_alternatives_does_not_matter(matrix, random):
    order = list(range(len(matrix)))
    random.shuffle(order)
    expected = np.array(closeness(matrix.tolist(), WEIGHTS))[order]
    np.testing.assert_allclose(closeness(matrix[order].tolist(), WEIGHTS), expected, atol=1e-12)


@given(TELLING, arrays(float, 4, elements=st.floats(1e-3, 1e3)), st.floats(1e-3, 1e3))
def test_neither_the_unit_of_a_criterion_nor_of_the_weights_matters(matrix, unit, factor):
    expected = closeness(matrix.tolist(), WEIGHTS)
    scaled = closeness((matrix * unit).tolist(), [weight * factor for weight in WEIGHTS])
    np.testing.assert_allclose(scaled, expected, atol=1e-9)


@pytest.mark.parametrize("weights", [[1.0], [1.0] * 5, [0.0] * 4, [-1.0, 1.0, 1.0, 1.0], [math.nan, 1.0, 1.0, 1.0]], ids=repr)
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights|argument"):
        closeness([[1.0] * 4] * 6, weights)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        closeness([[1.0] * 4, [1.0, value, 1.0, 1.0]], WEIGHTS)


@given(arrays(float, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1)))
def test_matrix_must_have_a_column_for_each_weight(matrix):
    if matrix.shape[1] != 4:
        with pytest.raises(ValueError, match="argument"):
            closeness(matrix.tolist(), WEIGHTS)


# Criteria: expected numbers by hand, design.md, section 4, "TOPSIS".


def test_criteria_by_hand():
    # Slack (200 - 50)/200 ms; 1/25 ms = 40 per second; 40/s at 5 W = 8 per joule; 1/(3 + 1).
    assert criteria(task(0.2), node(queue_depth=3), 5.0) == pytest.approx((0.75, 40.0, 8.0, 0.25))


def test_slack_is_negative_after_the_deadline_and_0_at_it():
    assert criteria(task(0.2), node(predicted_completion_s=0.3), 5.0)[0] == pytest.approx(-0.5)
    assert criteria(task(0.2), node(predicted_completion_s=0.2), 5.0)[0] == 0


def test_slack_is_of_the_adapted_deadline():
    adapted = task(0.2)._replace(adapted_deadline_s=0.1)
    assert criteria(adapted, node(), 5.0)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(("deadline_s", "slack"), [(0.001, -49.0), (0.0005, -49.5), (0.0, -50.0)])
def test_slack_stays_finite_for_a_device_about_to_leave(deadline_s, slack):
    # (deadline - 50 ms)/max(deadline, 1 ms)
    assert criteria(task(deadline_s), node(), 5.0)[0] == pytest.approx(slack)


def test_empty_queue_is_the_fairest():
    assert criteria(task(), node(queue_depth=0), 5.0)[3] == 1


# Choice


def test_equal_closeness_goes_to_the_smaller_predicted_completion():
    nodes = [node("coral1", predicted_completion_s=0.3), node("coral2", predicted_completion_s=0.1), node("hailo1")]
    nodes[2].predicted_completion_s = 0.2
    assert best_by_closeness(nodes, [(1.0, 1.0, 1.0, 1.0)] * 3, WEIGHTS).name == "coral2"


def test_equal_completion_too_goes_to_the_first():
    nodes = [node("jetson1"), node("coral1"), node("hailo1")]
    assert best_by_closeness(nodes, [(1.0, 1.0, 1.0, 1.0)] * 3, WEIGHTS) is nodes[0]


def test_tie_does_not_win_against_a_better_node():
    nodes = [node("coral1", predicted_completion_s=0.1), node("coral2", predicted_completion_s=0.3)]
    assert best_by_closeness(nodes, [(1.0, 1.0, 1.0, 1.0), (1.0, 1.1, 1.0, 1.0)], WEIGHTS) is nodes[1]


def test_only_node_is_chosen_and_its_score_says_there_was_no_choice():
    only = node()
    assert best_by_closeness([only], [(1.0, 2.0, 3.0, 4.0)], WEIGHTS) is only
    assert only.closeness == 0.5


@pytest.fixture
def policy():
    return TopsisScheduler(load_settings(), np.random.default_rng(0))


def test_chosen_node_has_the_greatest_closeness_and_every_score_is_left_for_the_decisions_file(policy):
    rng = np.random.default_rng(5)
    for _ in range(200):
        nodes = [
            node(
                f"n{number}",
                service_time_s=rng.uniform(0.01, 0.3),
                predicted_completion_s=rng.uniform(0.01, 1),
                queue_depth=int(rng.integers(0, 9)),
                busy_w=rng.uniform(5, 8),
            )
            for number in range(6)
        ]
        chosen = policy.schedule(task(), nodes)
        expected = pymcdm_closeness(np.array([criteria(task(), n, n.busy_w) for n in nodes]), np.array(WEIGHTS))
        np.testing.assert_allclose([n.closeness for n in nodes], expected, atol=1e-8)
        assert chosen is nodes[int(np.argmax(expected))]


def test_power_is_the_profiles_whatever_was_measured(policy):
    nodes = [node("coral1"), node("hailo1", busy_w=6.0)]
    policy.schedule(task(), nodes)
    before = [n.closeness for n in nodes]
    nodes[0].power_w, nodes[1].power_w = 90.0, 0.1
    policy.schedule(task(), nodes)
    assert [n.closeness for n in nodes] == before


def test_weights_are_those_of_the_settings():
    content = load_settings().topsis.model_dump()
    content["weights"] = {"slack": 0, "performance": 0, "power": 1, "load": 0}
    policy = TopsisScheduler(load_settings().replace(topsis=content), np.random.default_rng(0))
    frugal = node("frugal", busy_w=3.0, idle_w=2.0, predicted_completion_s=0.9, queue_depth=9)
    assert policy.schedule(task(), [node("fast"), frugal]) is frugal


def test_start_of_a_run_with_equal_nodes_and_empty_queues_is_no_special_case(policy):
    nodes = [node(f"n{number}") for number in range(6)]
    assert policy.schedule(task(), nodes) is nodes[0]
    assert [n.closeness for n in nodes] == [0.5] * 6
