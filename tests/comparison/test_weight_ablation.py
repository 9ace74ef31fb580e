"""Settings with one criterion taken out: only that weight changes, and a policy without it does not look at it."""

import numpy as np
import pytest

from comparison.weight_ablation import ABLATED, CRITERIA, without
from scheduler import Node, Task, create_scheduler
from settings import TopsisWeights, load_settings
from utils import UsageError

SETTINGS = load_settings()
SETS = {"topsis": ["weights"], "power_aware_topsis": ["weights_calm", "weights_busy"]}


def test_criteria_are_the_weights_in_their_order():
    assert tuple(TopsisWeights.model_fields) == CRITERIA
    assert tuple(SETS) == ABLATED


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_that_weight_is_0_in_every_set_and_nothing_else_changes(name, criterion):
    changed = without(SETTINGS, name, criterion).model_dump()
    expected = SETTINGS.model_dump()
    for weights in SETS[name]:
        assert expected[name][weights][criterion] > 0
        expected[name][weights][criterion] = 0
    assert changed == expected


@pytest.mark.parametrize("name", SETS)
def test_policy_without_load_ignores_the_queues(name):
    policy = create_scheduler(name, without(SETTINGS, name, "load"), np.random.default_rng(0))
    task = Task(1, 2, "drone", "resnet50", "normal", 5.0, 0.2, 0.2, 0.2)
    nodes = [Node(f"node{number}", "coral", 4.0, 5.0, service_time_s=0.02 + number / 100) for number in range(3)]
    policy.schedule(task, nodes)
    scores = [node.closeness for node in nodes]
    nodes[0].queue_depth = 50
    policy.schedule(task, nodes)
    assert [node.closeness for node in nodes] == scores


def test_only_weight_cannot_be_taken_out():
    own = SETTINGS.power_aware_topsis.model_dump()
    own["weights_calm"] = {"slack": 0, "performance": 0, "power": 1, "load": 0}
    settings = SETTINGS.replace(power_aware_topsis=own)
    with pytest.raises(UsageError, match=r"^power_aware_topsis\.weights_calm: nothing is left without power, the only weight"):
        without(settings, "power_aware_topsis", "power")
    assert without(settings, "power_aware_topsis", "load").power_aware_topsis.weights_busy.load == 0
