"""How long one decision takes, beside pymcdm's TOPSIS on the same matrix."""

import timeit
from collections.abc import Callable

import numpy as np
from pymcdm.methods import TOPSIS
from pymcdm.normalizations import vector_normalization

from benchmarks.figures import Figure, median_figure
from scheduler import SCHEDULERS, Node, Task, create_scheduler
from scheduler.topsis_scheduler import criteria
from settings import load_settings

_CALLS = 1000


def decision(repeats: int) -> list[Figure]:
    """`schedule()` of every policy with six nodes; for `power_aware_topsis` the target, and pymcdm beside it."""
    settings = load_settings()
    rng = np.random.default_rng(0)
    nodes = [_node(f"node{number}", rng) for number in range(6)]
    task = Task(0, 0, "vehicle", "resnet50", "soft", 10.0, 0.4, 0.4, 0.4)
    matrix = np.array([criteria(task, node, node.current_power_w) for node in nodes])
    weights, types = np.array(settings.topsis.weights.as_tuple()), np.ones(4)
    method = TOPSIS(vector_normalization)
    figures = []
    for name in SCHEDULERS:
        policy = create_scheduler(name, settings, rng)
        own = name == "power_aware_topsis"
        times_us = _times_us(lambda policy=policy: policy.schedule(task, nodes), repeats)  # type: ignore[misc]
        figure = median_figure(f"one decision, {name}, 6 nodes", times_us, "µs", 25.0 if own else None)
        if own:
            figure = figure._replace(
                beside=("pymcdm", float(np.median(_times_us(lambda: method(matrix, weights, types), repeats))))
            )
        figures.append(figure)
    return figures


def _times_us(call: Callable[[], object], repeats: int) -> list[float]:
    return [seconds / _CALLS * 1e6 for seconds in timeit.repeat(call, number=_CALLS, repeat=repeats)]


def _node(name: str, rng: np.random.Generator) -> Node:
    service_s, busy, power = rng.uniform(0.01, 0.1), rng.uniform(0, 1), rng.uniform(3, 6)
    return Node(
        name, "coral", 4.5, 5.3, frozenset(), service_s, int(rng.integers(5)), 2 * service_s, 2.2 * service_s, busy, power, 0.5
    )
