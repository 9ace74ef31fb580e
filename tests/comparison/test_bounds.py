"""Bounds: below the exact optimum of small instances and below every policy, and as high as can be where that is known."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.simulated import SimulatedCluster
from comparison import bounds
from comparison.bounds import BLOCK_S, ClairvoyantBound, capacity_tasks_per_s, clairvoyant_bound, fixed_deadlines_s
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from mobility.mobility_manager import MobilityManager
from scheduler import SCHEDULERS, create_scheduler
from task import DISPATCHED, TaskResult
from task_generator import generate_trace
from tests.helpers import default_profile, default_settings, small_profile, true_overhead_s
from utils import random_stream

TWO_NODES = {"fast": {"small": 60.0, "large": 120.0}, "slow": {"small": 110.0, "large": 300.0}}


def bound(arrival_s, deadline_s, models, profile, noise=None):
    z = np.zeros(len(arrival_s)) if noise is None else noise
    return clairvoyant_bound(np.array(arrival_s), np.array(deadline_s), models, z, profile, list(profile.nodes))


# Exact optimum by looking at every schedule.


def fits(jobs):
    """Whether one accelerator can run all (release, due, service), each without interruption, in some order."""
    for order in itertools.permutations(jobs):
        free_s = -math.inf
        for release_s, due_s, service_s in order:
            free_s = max(free_s, release_s) + service_s
            if free_s > due_s:
                break
        else:
            return True
    return False


def schedules(arrival_s, deadline_s, models, noise, overhead_noise, profile, horizon_s):
    """Misses and energy of every schedule that answers all tasks; late answers only have to fit into the horizon."""
    nodes = list(profile.nodes)
    service_s = [
        [profile.service_time_s(node)[model] * math.exp(profile.sigma(node) * z - profile.sigma(node) ** 2 / 2) for node in nodes]
        for model, z in zip(models, noise, strict=True)
    ]
    watts = [profile.nodes[node].busy_w - profile.nodes[node].idle_w for node in nodes]
    half_s = [[true_overhead_s(profile, node, z) / 2 for node in nodes] for z in overhead_noise]

    def job(j, n):
        return arrival_s[j] + half_s[j][n], arrival_s[j] + deadline_s[j] - half_s[j][n], service_s[j][n]

    outcomes = set()
    for chosen in itertools.product(itertools.product(range(len(nodes)), [True, False]), repeat=len(models)):
        time_s = [sum(service_s[j][n] for j, (at, _) in enumerate(chosen) if at == n) for n in range(len(nodes))]
        jobs = [[job(j, n) for j, (at, on_time) in enumerate(chosen) if at == n and on_time] for n in range(len(nodes))]
        if max(time_s) <= horizon_s and all(fits(of_node) for of_node in jobs):
            overheads_j = sum(profile.nodes[nodes[at]].overhead_w * 2 * half_s[j][at] for j, (at, _) in enumerate(chosen))
            outcomes.add((sum(not on_time for _, on_time in chosen), sum(np.multiply(watts, time_s)) + overheads_j))
    return outcomes


def small_instance(seed):
    """Up to five crowded tasks in a block or around the border of two, on two nodes that differ in speed and power."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    arrival_s = np.sort(BLOCK_S + rng.choice([-0.05, 1.0]) + 0.1 * rng.random(n))
    deadline_s = rng.uniform(0.05, 0.4, n)
    models = [str(model) for model in rng.choice(["small", "large"], n)]
    profile = small_profile(TWO_NODES, overhead_ms=float(rng.choice([0.0, 20.0])), cv=float(rng.choice([0.0, 0.1])))
    nodes = {**profile.nodes, "slow": profile.nodes["slow"].model_copy(update={"busy_w": 2.0 + float(rng.choice([0.5, 3.0]))})}
    noise = rng.standard_normal(n)
    for name in nodes:
        overhead = {"overhead_w": float(rng.choice([0.0, 4.0])), "overhead_cv": float(rng.choice([0.0, 0.5]))}
        nodes[name] = nodes[name].model_copy(update=overhead)
    return arrival_s, deadline_s, models, noise, rng.standard_normal(n), profile.model_copy(update={"nodes": nodes})


def require_below_optimum(seed, until_s=math.inf):
    arrival_s, deadline_s, models, noise, overhead_noise, profile = small_instance(seed)
    found = clairvoyant_bound(arrival_s, deadline_s, models, noise, profile, list(profile.nodes), until_s, overhead_noise)
    outcomes = schedules(arrival_s, deadline_s, models, noise, overhead_noise, profile, until_s - arrival_s[0])
    least_j = [min((j + price_j * m for m, j in outcomes), default=math.inf) for price_j, _ in found.prices]
    fewest = min((misses for misses, _ in outcomes), default=math.inf)
    assert found.misses_per_task_minimum <= found.misses <= fewest
    assert all(value_j <= best_j for (_, value_j), best_j in zip(found.prices, least_j, strict=True))
    assert all(found.energy_j(misses) <= energy_j for misses, energy_j in outcomes)
    return found, fewest, least_j


def test_bounds_are_below_the_optimum_of_small_instances_and_often_reach_it():
    results = [require_below_optimum(seed) for seed in range(40)]
    assert np.mean([found.misses == misses for found, misses, _ in results]) > 0.8
    assert any(found.misses_per_task_minimum < found.misses for found, _, _ in results)
    close = [found.prices[k][1] > 0.98 * least_j[k] for found, _, least_j in results for k in range(1, len(least_j))]
    assert np.mean(close) > 0.5


def test_bounds_with_a_last_moment_for_answers_are_below_the_optimum_of_small_instances():
    results = [require_below_optimum(seed, until_s=BLOCK_S + 0.4) for seed in range(40)]
    endless = [require_below_optimum(seed)[0] for seed in range(10)]
    assert any(found.prices[0][1] > without.prices[0][1] for (found, _, _), without in zip(results[:10], endless, strict=True))


def test_bounds_hold_whatever_the_solver_says(monkeypatch):
    rng = np.random.default_rng(7)

    def nonsense(cost, A_ub, **_):  # noqa: N803 - scipy's name
        return SimpleNamespace(x=rng.random(len(cost)), ineqlin=SimpleNamespace(marginals=rng.normal(-0.5, 1.0, A_ub.shape[0])))

    monkeypatch.setattr(bounds, "linprog", nonsense)
    for seed in range(20):
        require_below_optimum(seed)


def test_bounds_hold_however_small_the_blocks(monkeypatch):
    monkeypatch.setattr(bounds, "_LARGEST_BLOCK", 2)
    for seed in range(20):
        require_below_optimum(seed)


def test_without_a_solution_the_bounds_are_the_per_task_minima(monkeypatch):
    monkeypatch.setattr(bounds, "linprog", lambda *_, **__: SimpleNamespace(x=None))
    profile = small_profile({"n": {"m": 100.0}})
    found = bound([0.0, 0.0, 0.0], [0.11, 0.11, 0.05], ["m"] * 3, profile)
    assert (found.misses_per_task_minimum, found.misses) == (1, 1)
    assert found.energy_j(1) == pytest.approx(found.energy_per_task_minimum_j) == pytest.approx(0.9)  # 3 × 0.1 s × 3 W


# Instances whose optimum is plain.


def test_of_tasks_that_must_run_at_one_instant_one_is_on_time_on_each_node():
    one = small_profile({"a": {"m": 100.0}})
    two = small_profile({"a": {"m": 100.0}, "b": {"m": 100.0}})
    arrival_s, deadline_s = [0.0, 0.01, 0.02], [0.12, 0.12, 0.12]
    assert bound(arrival_s, deadline_s, ["m"] * 3, one).misses == 2
    assert bound(arrival_s, deadline_s, ["m"] * 3, two).misses == 1
    assert bound(arrival_s, deadline_s, ["m"] * 3, two).misses_per_task_minimum == 0


def test_tasks_that_fit_one_after_the_other_are_not_missed():
    profile = small_profile({"a": {"m": 100.0}}, overhead_ms=20.0)
    assert bound([0.0, 0.0], [0.22, 0.22], ["m"] * 2, profile).misses == 0
    assert bound([0.0, 0.0], [0.219, 0.219], ["m"] * 2, profile).misses == 1


def test_more_work_than_fits_into_a_long_interval_is_missed():
    # 30 tasks of 0.1 s arrive in the first second and are due in the second: at most 20 of them can be on time.
    profile = small_profile({"a": {"m": 100.0}})
    arrival_s = np.linspace(0.0, 1.0, 30)
    found = bound(arrival_s, 2.0 - arrival_s, ["m"] * 30, profile)
    assert (found.misses_per_task_minimum, found.misses) == (0, 10)


def test_on_time_tasks_that_meet_on_the_cheap_node_pay_for_the_other_one():
    # 3 W above idle: 0.3 J on the cheap node, 0.45 J on the other. Both on time: one on each; one may be late: both cheap.
    profile = small_profile({"cheap": {"m": 100.0}, "dear": {"m": 150.0}})
    found = bound([0.0, 0.0], [0.16, 0.16], ["m"] * 2, profile)
    assert found.energy_j(0) == pytest.approx(0.75)
    assert found.energy_j(1) == pytest.approx(0.6)
    assert found.energy_j(2) == pytest.approx(0.6)
    assert found.energy_per_task_minimum_j == pytest.approx(0.6)


def test_late_answers_pay_for_the_other_node_when_time_is_short():
    # Nobody is on time. In 0.75 s the cheap node takes 7.5 tasks of 0.1 s and 0.3 J, the other the rest at 0.45 J.
    profile = small_profile({"cheap": {"m": 100.0}, "dear": {"m": 150.0}})
    arrivals = np.zeros(10), np.full(10, 0.01), ["m"] * 10, np.zeros(10), profile, ["cheap", "dear"]
    assert clairvoyant_bound(*arrivals, until_s=0.75).energy_j(10) == pytest.approx(7.5 * 0.3 + 2.5 * 0.45)
    assert clairvoyant_bound(*arrivals, until_s=1.0).energy_j(10) == pytest.approx(3.0)
    assert clairvoyant_bound(*arrivals).energy_j(10) == pytest.approx(3.0)


def test_fewer_misses_than_possible_are_answered_as_the_fewest_possible():
    found = ClairvoyantBound(4, 1, 2, 1.0, ((0.0, 1.0), (0.5, 3.0)))
    assert [found.energy_j(misses) for misses in (0, 2, 3, 4)] == [2.0, 2.0, 1.5, 1.0]


def test_task_that_no_node_serves_is_missed_and_takes_no_energy():
    profile = small_profile({"a": {"m": 100.0}, "b": {"m": 100.0, "rare": 50.0}})
    found = clairvoyant_bound(np.zeros(2), np.ones(2), ["m", "rare"], np.zeros(2), profile, ["a"])
    assert (found.tasks, found.misses_per_task_minimum, found.misses) == (2, 1, 1)
    assert found.energy_j(1) == pytest.approx(0.3)  # 0.1 s × 3 W


def test_no_tasks_need_nothing():
    found = bound([], [], [], small_profile({"a": {"m": 100.0}}))
    assert (found.tasks, found.misses, found.energy_j(0)) == (0, 0, 0.0)


def test_nodes_that_draw_no_more_when_busy_need_no_energy():
    found = bound([0.0, 0.0], [0.11, 0.11], ["m"] * 2, small_profile({"a": {"m": 100.0}}, idle_w=2.0, busy_w=2.0))
    assert found.misses == 1
    assert found.energy_j(1) == pytest.approx(0.0, abs=1e-6)


# The default load.


def world(duration_s=30.0, load=2.0):
    settings = default_settings(duration_s=duration_s, load=load, seed=42)
    trace = generate_trace(settings, MobilityManager(settings.devices, settings.seed))
    return settings, trace


def bound_of(trace, settings, order=None):
    chosen = np.flatnonzero(trace.in_coverage) if order is None else order
    models = [trace.model_name.names[code] for code in trace.model_name.codes[chosen]]
    profile = default_profile()
    return clairvoyant_bound(
        trace.arrival_time_s[chosen],
        fixed_deadlines_s(trace, settings)[chosen],
        models,
        trace.service_noise[chosen],
        profile,
        list(profile.nodes),
        trace.duration_s + settings.requests.drain_timeout_s,
    )


def reached(settings, trace, scheduler, discipline):
    """Misses of the fixed deadline and energy above idle that a policy comes to in virtual time; it answers every task."""
    settings = settings.replace(scheduler=scheduler, queue_discipline=discipline)
    profile, results = default_profile(), list[TaskResult]()
    policy = create_scheduler(scheduler, settings, random_stream(settings.seed, "policy"))
    cluster = SimulatedCluster(profile, list(profile.nodes), settings, policy, results.append)
    with cluster:
        run_experiment(trace, cluster, DeadlineAdapter(settings), results.append)
    dispatched = [result for result in results if result.outcome in DISPATCHED]
    assert all(result.completion_time_s is not None for result in dispatched)
    misses = sum(not result.met(result.task.fixed_deadline_s) for result in dispatched)
    return len(dispatched), misses, sum(energy.above_idle_j or 0.0 for energy in cluster.energy().values())


@pytest.fixture(scope="module")
def crowded():
    settings, trace = world()
    return settings, trace, bound_of(trace, settings)


@pytest.mark.parametrize("discipline", ["fifo", "edf"])
@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_no_policy_beats_the_bounds(crowded, scheduler, discipline):
    settings, trace, found = crowded
    tasks, misses, energy_j = reached(settings, trace, scheduler, discipline)
    assert found.tasks == tasks
    assert found.misses <= misses
    assert found.energy_j(misses) <= energy_j


def test_bounds_of_a_crowded_cluster_are_tighter_than_the_per_task_minima():
    settings, trace = world(load=4.0)
    found = bound_of(trace, settings)
    assert found.misses > found.misses_per_task_minimum
    assert found.energy_j(found.misses) > 2 * found.energy_per_task_minimum_j
    assert found.energy_j(1.5 * found.misses) > 1.5 * found.energy_per_task_minimum_j


def test_energy_bound_falls_as_more_misses_are_allowed_down_to_the_per_task_minimum(crowded):
    *_, found = crowded
    energies_j = [found.energy_j(misses) for misses in np.linspace(found.misses, found.tasks, 50)]
    assert all(earlier >= later for earlier, later in itertools.pairwise(energies_j))
    assert energies_j[-1] >= found.energy_per_task_minimum_j * (1 - 1e-6)
    prices_j = [price_j for price_j, _ in found.prices]
    assert prices_j[0] == 0 and all(earlier < later for earlier, later in itertools.pairwise(prices_j))


def test_order_of_the_tasks_does_not_matter(crowded):
    settings, trace, found = crowded
    shuffled = bound_of(trace, settings, np.random.default_rng(1).permutation(np.flatnonzero(trace.in_coverage)))
    assert (shuffled.misses, shuffled.tasks) == (found.misses, found.tasks)
    assert shuffled.prices == pytest.approx(np.array(found.prices), rel=1e-9)


# Fixed deadlines.


def test_fixed_deadlines_are_those_of_the_deadline_adapter():
    settings, trace = world()
    position, velocity = trace.position_m.copy(), trace.velocity_mps.copy()
    centre_m, radius_m = settings.devices.area_side_m / 2, settings.devices.cell_radius_m
    velocity[:, :5] = 0.0  # at rest
    position[:, 5:10] = 1.0  # outside
    position[:, 10:40] = np.array([[centre_m + radius_m - 0.5], [centre_m]])  # half a metre from the border
    velocity[:, 10:40] = np.array([[1.0], [0.0]]) * np.linspace(-15.0, 15.0, 30)
    trace = replace(trace, position_m=position, velocity_mps=velocity)
    adapter = DeadlineAdapter(settings.replace(deadline_adaptation=False))
    expected = [adapter.adapt(a.task, a.device, lambda *_: True).fixed_deadline_s for a in trace.arrivals()]
    fixed_s = fixed_deadlines_s(trace, settings)
    np.testing.assert_array_equal(fixed_s, expected)
    assert 0 < (fixed_s < trace.base_deadline_s).sum() < len(trace)


# Capacity.


@pytest.mark.parametrize(
    ("mean_ms", "overhead_ms", "connections", "expected"),
    [
        ({"a": {"m": 100.0}}, 50.0, 2, 10.0),  # the accelerator binds: 1 / 0.1
        ({"a": {"m": 100.0}}, 50.0, 1, 1 / 0.15),  # the connection binds: 1 / (0.1 + 0.05)
        ({"a": {"m": 100.0}, "b": {"m": 50.0}}, 0.0, 2, 30.0),
        ({"a": {"m": 100.0, "k": 400.0}, "b": {"m": 400.0, "k": 100.0}}, 0.0, 2, 20.0),  # each node its own model
        ({"a": {"m": 100.0, "k": 300.0}}, 0.0, 2, 5.0),  # (0.1 + 0.3) / 2 per task
        ({"a": {"m": 100.0}, "b": {"k": 300.0}}, 0.0, 2, 2 / 0.3),  # equal shares: the slower model binds
        ({"a": {"m": 100.0, "k": 200.0}, "b": {"m": 100.0}}, 0.0, 2, 10.0),  # k on a, m on b: 5 tasks/s of each
        ({"a": {"m": 100.0, "k": 50.0}, "b": {"m": 100.0}}, 0.0, 2, 80 / 3),  # b: 10 m/s; a: 10/3 m/s and 40/3 k/s
    ],
)
def test_capacity_is_what_a_hand_computes(mean_ms, overhead_ms, connections, expected):
    profile = small_profile(mean_ms, overhead_ms=overhead_ms)
    assert capacity_tasks_per_s(profile, list(profile.nodes), list(profile.latency), connections) == pytest.approx(expected)


def test_capacity_is_nothing_where_no_node_serves_a_model():
    profile = small_profile({"a": {"m": 100.0}, "b": {"k": 100.0}})
    assert capacity_tasks_per_s(profile, ["a"], ["m", "k"], 2) == 0.0
    assert capacity_tasks_per_s(profile, ["a"], ["k"], 2) == 0.0
