"""Baselines: what each of them looks at, and who wins a tie."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scheduler import SCHEDULERS, Node, Task
from settings import load_settings

SETTINGS = load_settings()
TASK = Task(1, 2, "drone", "resnet50", "normal", 5.0, 0.2, 0.2, 0.2)


def policy(name, seed=0):
    return SCHEDULERS[name](SETTINGS, np.random.default_rng(seed))


def node(name="coral1", **figures):
    known = {"accelerator": "coral", "idle_w": 4.0, "busy_w": 5.0, "service_time_s": 0.025, "predicted_completion_s": 0.05}
    return Node(name, **{**known, **figures})


def three(**figures):
    """Nodes a, b and c; each figure is given as the values of the three."""
    return [node(name, **{key: values[i] for key, values in figures.items()}) for i, name in enumerate("abc")]


@pytest.mark.parametrize(
    ("name", "nodes", "expected"),
    [
        ("shortest_queue", three(queue_depth=(2, 1, 3)), "b"),
        ("shortest_queue", three(queue_depth=(1, 1, 1), service_time_s=(0.3, 0.2, 0.1)), "c"),  # tie: faster
        ("shortest_queue", three(queue_depth=(2, 1, 1), service_time_s=(0.1, 0.3, 0.2)), "c"),
        ("shortest_queue", three(), "a"),
        ("fastest_node", three(service_time_s=(0.3, 0.1, 0.2), queue_depth=(0, 99, 0), predicted_completion_s=(0, 9, 0)), "b"),
        ("fastest_node", three(service_time_s=(0.3, 0.1, 0.1)), "b"),
        ("lowest_power", three(power_w=(5.1, 5.0, 4.9), queue_depth=(0, 0, 99)), "c"),
        ("lowest_power", three(power_w=(5.1, None, 5.2), busy_w=(9, 5, 9)), "b"),  # no sample: the profile's busy power
        ("lowest_power", three(power_w=(5.1, None, 5.2), busy_w=(9, 6, 9)), "a"),
        ("lowest_power", three(power_w=(5.0, 5.0, 5.0), predicted_completion_s=(0.3, 0.2, 0.1)), "c"),
        ("earliest_completion", three(predicted_completion_s=(0.3, 0.1, 0.2), queue_depth=(0, 9, 0)), "b"),
        ("earliest_completion", three(predicted_completion_s=(0.3, 0.1, 0.1)), "b"),
    ],
)
def test_rule_and_ties(name, nodes, expected):
    assert policy(name).schedule(TASK, nodes).name == expected


def test_minimum_energy_takes_the_least_energy_above_idle():
    # (busy - idle) x service time: 1 W x 100 ms = 0.10 J, 0.5 W x 150 ms = 0.075 J, 4 W x 20 ms = 0.08 J.
    nodes = three(idle_w=(4, 4.5, 2), busy_w=(5, 5, 6), service_time_s=(0.1, 0.15, 0.02))
    assert [n.energy_above_idle_j for n in nodes] == pytest.approx([0.10, 0.075, 0.08])
    assert policy("minimum_energy").schedule(TASK, nodes).name == "b"


def test_minimum_energy_looks_only_at_nodes_predicted_to_meet_the_deadline_margin_included():
    nodes = three(idle_w=(4, 4.5, 2), busy_w=(5, 5, 6), service_time_s=(0.1, 0.15, 0.02))
    nodes[1].predicted_completion_s, nodes[1].completion_with_margin_s = 0.19, 0.209
    assert policy("minimum_energy").schedule(TASK, nodes).name == "c"
    nodes[1].completion_with_margin_s = 0.2  # just in time
    assert policy("minimum_energy").schedule(TASK, nodes).name == "b"


def test_minimum_energy_looks_at_the_adapted_deadline():
    nodes = three(service_time_s=(0.1, 0.2, 0.3), completion_with_margin_s=(0.25, 0.1, 0.1))
    assert policy("minimum_energy").schedule(TASK, nodes).name == "b"
    assert policy("minimum_energy").schedule(TASK._replace(adapted_deadline_s=0.25), nodes).name == "a"


def test_minimum_energy_falls_back_to_the_earliest_completion():
    nodes = three(
        service_time_s=(0.1, 0.2, 0.3), predicted_completion_s=(0.9, 0.8, 0.7), completion_with_margin_s=(0.99, 0.88, 0.77)
    )
    assert policy("minimum_energy").schedule(TASK, nodes).name == "c"


def test_minimum_energy_prefers_the_earlier_of_two_equally_frugal_nodes():
    assert policy("minimum_energy").schedule(TASK, three(predicted_completion_s=(0.3, 0.1, 0.2))).name == "b"


def test_round_robin_gives_the_nodes_in_turn_and_starts_with_the_first():
    nodes = [node(f"n{number}") for number in range(6)]
    robin = policy("round_robin")
    assert [robin.schedule(TASK, nodes).name for _ in range(13)] == [f"n{number % 6}" for number in range(13)]


def test_round_robin_goes_on_when_a_node_is_missing():
    nodes = three()
    robin = policy("round_robin")
    served = [robin.schedule(TASK, nodes[:2] if turn % 2 else nodes).name for turn in range(600)]
    assert set(served) == {"a", "b", "c"}


def test_random_is_uniform_over_the_nodes():
    nodes = [node(f"n{number}") for number in range(6)]
    chance = policy("random", seed=1)
    counts = np.bincount([nodes.index(chance.schedule(TASK, nodes)) for _ in range(6000)], minlength=6)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_random_draws_from_its_own_stream_only():
    nodes = [node(f"n{number}") for number in range(6)]
    one, same, other = policy("random", 1), policy("random", 1), policy("random", 2)
    choices = [[p.schedule(TASK, nodes).name for _ in range(100)] for p in (one, same, other)]
    assert choices[0] == choices[1] != choices[2]


NODES = st.lists(
    st.builds(
        node,
        st.sampled_from(["coral1", "hailo1"]),
        service_time_s=st.floats(0.001, 1),
        queue_depth=st.integers(0, 20),
        predicted_completion_s=st.floats(0.001, 5),
        completion_with_margin_s=st.floats(0.001, 5),
        busy_fraction=st.floats(0, 1),
        power_w=st.none() | st.floats(0.5, 20),
        idle_w=st.floats(1, 5),
        busy_w=st.floats(5, 10),
    ),
    min_size=1,
    max_size=6,
)
LEAST = {
    "shortest_queue": lambda n: n.queue_depth,
    "fastest_node": lambda n: n.service_time_s,
    "lowest_power": lambda n: n.busy_w if n.power_w is None else n.power_w,
    "earliest_completion": lambda n: n.predicted_completion_s,
}


@pytest.mark.parametrize("name", LEAST)
@settings(max_examples=50)
@given(nodes=NODES)
def test_nobody_has_less_than_the_chosen_node(name, nodes):
    chosen = policy(name).schedule(TASK, nodes)
    assert LEAST[name](chosen) == min(map(LEAST[name], nodes))


@given(nodes=NODES)
def test_minimum_energy_never_misses_a_deadline_that_a_node_was_predicted_to_meet(nodes):
    chosen = policy("minimum_energy").schedule(TASK, nodes)
    if any(n.completion_with_margin_s <= TASK.adapted_deadline_s for n in nodes):
        assert chosen.completion_with_margin_s <= TASK.adapted_deadline_s
    else:
        assert chosen.predicted_completion_s == min(n.predicted_completion_s for n in nodes)


@pytest.mark.parametrize("name", SCHEDULERS)
@settings(max_examples=30)
@given(nodes=NODES)
def test_every_policy_names_one_of_the_offered_nodes_and_changes_nothing_but_its_score(name, nodes):
    before = [asdict(n) | {"closeness": 0} for n in nodes]
    chosen = policy(name).schedule(TASK, nodes)
    assert any(chosen is n for n in nodes)
    assert [asdict(n) | {"closeness": 0} for n in nodes] == before
