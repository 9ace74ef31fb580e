"""TOPSIS with measured power: weights between calm and busy, the power budget, and samples that cannot be believed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import Node, Task
from scheduler.power_aware_topsis_scheduler import PowerAwareTopsisScheduler
from scheduler.topsis_scheduler import closeness, criteria
from settings import load_settings

CALM = (0.25, 0.15, 0.45, 0.15)  # slack, performance, power, load: config/experiment.yaml
BUSY = (0.40, 0.15, 0.10, 0.35)
TASK = Task(1, 2, "drone", "resnet50", "normal", 5.0, 0.2, 0.2, 0.2)


def policy(**changes):
    settings = load_settings()
    own = settings.power_aware_topsis.model_dump() | changes
    return PowerAwareTopsisScheduler(settings.replace(power_aware_topsis=own), np.random.default_rng(0))


def node(name="coral1", **figures):
    known = {"accelerator": "coral", "idle_w": 4.0, "busy_w": 5.0, "service_time_s": 0.025, "predicted_completion_s": 0.05}
    return Node(name, **{**known, **figures})


DEFAULT = policy()


@pytest.mark.parametrize(
    ("busy_fractions", "expected"),
    [
        ([0, 0], CALM),
        ([1, 1], BUSY),
        ([1, 0], (0.325, 0.15, 0.275, 0.25)),  # half way
        ([0.2, 0.3], (0.2875, 0.15, 0.3625, 0.20)),  # a quarter of the way
    ],
)
def test_weights_move_from_calm_to_busy_with_the_mean_busy_fraction(busy_fractions, expected):
    nodes = [node(busy_fraction=fraction) for fraction in busy_fractions]
    assert policy().weights(nodes) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_weights_always_add_up_to_1_and_lie_between_calm_and_busy(busy_fractions):
    weights = DEFAULT.weights([node(busy_fraction=fraction) for fraction in busy_fractions])
    assert sum(weights) == pytest.approx(1)
    for weight, calm, busy in zip(weights, CALM, BUSY, strict=True):
        assert min(calm, busy) - 1e-12 <= weight <= max(calm, busy) + 1e-12


def test_only_the_ratios_of_the_configured_weights_matter():
    tenfold = dict(zip(("slack", "performance", "power", "load"), (2.5, 1.5, 4.5, 1.5), strict=True))
    half_busy = [node(busy_fraction=0.5)]
    assert policy(weights_calm=tenfold).weights(half_busy) == pytest.approx(policy().weights(half_busy))


def test_calm_cluster_saves_power_and_a_busy_one_its_deadlines():
    frugal = node("frugal", busy_w=2.5, idle_w=2.0, predicted_completion_s=0.15, queue_depth=2)
    quick = node("quick", busy_w=5.0, predicted_completion_s=0.05, queue_depth=0)
    assert policy().schedule(TASK, [frugal, quick]) is frugal
    frugal.busy_fraction = quick.busy_fraction = 1.0
    assert policy().schedule(TASK, [frugal, quick]) is quick


def test_over_the_power_budget_the_weights_are_calm_however_busy():
    nodes = [node("coral1", power_w=5.0, busy_fraction=1.0), node("coral2", power_w=6.0, busy_fraction=1.0)]
    assert policy(power_budget_w=10.9).weights(nodes) == pytest.approx(CALM)
    assert policy(power_budget_w=11.1).weights(nodes) == pytest.approx(BUSY)
    assert policy(power_budget_w=11.0).weights(nodes) == pytest.approx(BUSY)  # at the budget is not over it
    assert policy(power_budget_w=None).weights(nodes) == pytest.approx(BUSY)


def test_node_without_a_believable_sample_counts_with_its_busy_power_in_the_budget():
    nodes = [node(power_w=None, power_age_s=60.0, busy_w=5.0, busy_fraction=1.0)]
    assert policy(power_budget_w=4.9).weights(nodes) == pytest.approx(CALM)
    assert policy(power_budget_w=5.1).weights(nodes) == pytest.approx(BUSY)


def test_measured_power_decides():
    nodes = [node("coral1", power_w=4.6), node("coral2", power_w=5.3)]
    assert policy().schedule(TASK, nodes).name == "coral1"
    nodes[0].power_w, nodes[1].power_w = 5.3, 4.6
    assert policy().schedule(TASK, nodes).name == "coral2"


def test_stale_power_gives_way_to_the_profile():
    fresh, stale = node("coral1", power_w=5.0), node("coral2", power_w=None, power_age_s=60.0, busy_w=4.9)
    assert stale.current_power_w == 4.9
    assert policy().schedule(TASK, [fresh, stale]) is stale
    stale.busy_w = 5.1
    assert policy().schedule(TASK, [fresh, stale]) is fresh


def test_scores_are_those_of_topsis_with_these_weights_and_the_measured_power():
    nodes = [
        node("coral1", power_w=4.7, busy_fraction=0.4, queue_depth=3),
        node("jetson1", power_w=None, busy_w=6.47, service_time_s=0.06, busy_fraction=0.1, predicted_completion_s=0.08),
        node("hailo2", power_w=5.0, service_time_s=0.0242, queue_depth=1),
    ]
    chosen = policy()
    best = chosen.schedule(TASK, nodes)
    powers = [4.7, 6.47, 5.0]
    expected = closeness([criteria(TASK, n, power_w) for n, power_w in zip(nodes, powers, strict=True)], chosen.weights(nodes))
    assert [n.closeness for n in nodes] == expected
    assert best is nodes[int(np.argmax(expected))]


@pytest.mark.parametrize("measured_w", [0.0, -0.1])
def test_meter_that_shows_what_no_node_can_draw_is_not_believed(measured_w):
    broken = node("coral1", power_w=measured_w, power_age_s=0.1)
    nodes = [broken, node("coral2", power_w=4.8)]
    assert broken.current_power_w == broken.busy_w
    assert policy().schedule(TASK, nodes).name == "coral2"
