"""What holds in every run, whatever the settings: conservation, causality, determinism, and no peeking."""

from collections import Counter
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from mobility.mobility_manager import MobilityManager
from scheduler import SCHEDULERS, BaseScheduler, Node, create_scheduler
from settings import Settings
from task import DISPATCHED, Decision, Outcome, TaskResult
from task_generator import Trace, generate_trace
from tests.helpers import VirtualCluster, default_profile, default_settings, true_service_s
from utils import random_stream

PROFILE = default_profile()
LAW = settings(deadline=None, max_examples=40)


class Run(NamedTuple):
    trace: Trace
    results: list[TaskResult]
    decisions: list[Decision]


class World(NamedTuple):
    """Settings of a run and the trouble it meets."""

    settings: Settings
    outages: list[tuple[str, float, float]]
    failing: frozenset[tuple[str, int]]
    stopped_at_s: float | None


@st.composite
def worlds(draw, trouble=True):
    changes = {
        "seed": draw(st.integers(0, 2**32)),
        "duration_s": draw(st.floats(0.2, 4.0)),
        "scheduler": draw(st.sampled_from(sorted(SCHEDULERS))),
        "queue_discipline": draw(st.sampled_from(["fifo", "edf"])),
        "load": draw(st.sampled_from([0.3, 1.0, 4.0])),
        "deadline_adaptation": draw(st.booleans()),
        "exit_safety": draw(st.floats(0.05, 1.0)),
        "safety_margin": draw(st.floats(0.0, 1.0)),
        "devices": {
            "count": draw(st.integers(1, 120)),
            "placement": draw(st.sampled_from(["cell", "area"])),
            "cell_radius_m": draw(st.floats(20.0, 250.0)),
        },
        "requests": {
            "connections_per_node": draw(st.integers(1, 4)),
            "max_attempts": draw(st.integers(1, 4)),
            "drain_timeout_s": draw(st.sampled_from([0.0, 0.2, 60.0])),
        },
    }
    names = st.sampled_from(sorted(PROFILE.nodes))
    outages = draw(st.lists(st.tuples(names, st.floats(0.0, 5.0), st.floats(0.1, 3.0)), max_size=6)) if trouble else []
    failing = draw(st.frozensets(st.tuples(names, st.integers(0, 150)), max_size=60)) if trouble else frozenset()
    stopped_at_s = draw(st.none() | st.floats(0.0, 8.0)) if trouble else None
    return World(default_settings(**changes), outages, failing, stopped_at_s)


def trace_of(world: World) -> Trace:
    return generate_trace(world.settings, MobilityManager(world.settings.devices, world.settings.seed))


def run(world: World, trace: Trace | None = None, policy: BaseScheduler | None = None) -> Run:
    trace = trace_of(world) if trace is None else trace
    policy = policy or create_scheduler(world.settings.scheduler, world.settings, random_stream(world.settings.seed, "policy"))
    fails = lambda node, task: "HTTP 500" if (node, task.task_id) in world.failing else None  # noqa: E731
    recorded: list[TaskResult] = []
    with VirtualCluster(PROFILE, world.settings, policy, attempt_fails=fails) as cluster:
        for name, since_s, length_s in world.outages:
            cluster.at(since_s, partial(cluster.take_out, name))
            cluster.at(since_s + length_s, partial(cluster.bring_in, name))
        if world.stopped_at_s is not None:
            cluster.at(world.stopped_at_s, cluster.stop)
        run_experiment(trace, cluster, DeadlineAdapter(world.settings), recorded.append)
    return Run(trace, sorted([*cluster.results, *recorded], key=lambda r: r.task.task_id), cluster.decisions)


@LAW
@given(worlds())
def test_every_generated_task_ends_in_exactly_one_outcome(world):
    done = run(world)
    assert [r.task.task_id for r in done.results] == done.trace.task_id.tolist()
    outcomes = Counter(r.outcome for r in done.results)
    assert sum(outcomes.values()) == len(done.trace)
    assert outcomes[Outcome.SKIPPED] <= int((~done.trace.in_coverage).sum())
    if world.stopped_at_s is None:
        assert outcomes[Outcome.SKIPPED] == int((~done.trace.in_coverage).sum())
        assert outcomes[Outcome.UNFINISHED] == 0


@LAW
@given(worlds())
def test_nothing_happens_before_its_cause(world):
    for result in run(world).results:
        times = [result.task.arrival_time_s, result.dispatch_time_s, result.start_time_s, result.completion_time_s]
        reached = [time for time in times if time is not None]
        assert reached == sorted(reached)
        if result.completion_time_s is not None:
            assert None not in times


@LAW
@given(worlds())
def test_outcome_response_and_error_say_the_same(world):
    for r in run(world).results:
        if r.completion_time_s is None or r.response_time_s is None:
            assert r.completion_time_s is r.response_time_s is None and r.outcome is not Outcome.ON_TIME
        else:
            assert r.response_time_s == r.completion_time_s - r.task.arrival_time_s
            met = r.response_time_s <= r.task.adapted_deadline_s
            assert r.outcome is (Outcome.ON_TIME if met else Outcome.LATE) and r.error is None
        assert (r.error is None) == (r.completion_time_s is not None or r.dispatch_time_s is None and r.outcome not in DISPATCHED)


@LAW
@given(worlds())
def test_every_attempt_has_its_own_decision_and_a_new_node(world):
    done = run(world)
    attempts = Counter(decision.task_id for decision in done.decisions)
    chosen = Counter((decision.task_id, decision.selected_node) for decision in done.decisions)
    assert set(chosen.values()) <= {1}
    assert all(r.attempts == attempts[r.task.task_id] <= world.settings.requests.max_attempts for r in done.results)
    assert all(d.selected_node in d.nodes for d in done.decisions)
    last = {decision.task_id: decision.selected_node for decision in done.decisions}
    assert all(r.assigned_node == last.get(r.task.task_id) for r in done.results)


@LAW
@given(worlds())
def test_answered_tasks_were_served_for_their_own_service_time(world):
    for r in run(world).results:
        if r.inference_time_s is not None:
            assert r.assigned_node is not None
            expected_s = true_service_s(PROFILE, r.assigned_node, r.task.model_name, r.service_noise)
            assert r.inference_time_s == expected_s and r.response_time_s is not None
            assert r.response_time_s >= expected_s + PROFILE.overhead_s(r.assigned_node) - 1e-9


@LAW
@given(worlds())
def test_same_seed_gives_the_same_rows(world):
    first, second = run(world), run(world)
    assert first.results == second.results
    assert first.decisions == second.decisions


@LAW
@given(worlds(), st.floats(-5.0, 5.0), st.integers(0, 10_000))
def test_decisions_do_not_depend_on_the_noise_of_tasks_that_are_not_answered(world, other_noise, which):
    trace = trace_of(world)
    assume(len(trace) > 0)
    index = which % len(trace)
    noise = trace.service_noise.copy()
    noise[index] = other_noise
    one, other = run(world, trace), run(world, replace(trace, service_noise=noise))
    differing = [
        min(a.completion_time_s or np.inf, b.completion_time_s or np.inf)
        for a, b in zip(one.results, other.results, strict=True)
        if a.completion_time_s != b.completion_time_s
    ]
    known_s = min(differing, default=np.inf)
    before = [[d for d in done.decisions if d.decision_time_s < known_s] for done in (one, other)]
    assert before[0] == before[1]


class Spy(BaseScheduler):
    """Keeps all that it is handed: every figure of the task and of the nodes."""

    seen: set[object]

    def schedule(self, task, nodes):
        self.seen.update(task)
        self.seen.update(getattr(node, field.name) for node in nodes for field in fields(Node))
        return min(nodes, key=lambda node: node.predicted_completion_s)


@LAW
@given(worlds(trouble=False))
def test_scheduler_is_handed_neither_service_noise_nor_true_service_time(world):
    spy = Spy(world.settings, np.random.default_rng(0))
    spy.seen = set()
    done = run(world, policy=spy)
    assert not spy.seen & set(done.trace.service_noise.tolist())
    true = {
        true_service_s(PROFILE, node, r.task.model_name, r.service_noise)
        for r in done.results
        for node in PROFILE.nodes
        if r.outcome is not Outcome.SKIPPED
    }
    assert not spy.seen & true
    assert spy.seen or not any(r.outcome in DISPATCHED for r in done.results)


@pytest.mark.parametrize("policy", sorted(SCHEDULERS))
def test_policies_meet_the_same_world(policy):
    changes = {"duration_s": 5.0, "seed": 3}
    world = World(default_settings(scheduler=policy, **changes), [], frozenset(), None)
    reference = World(default_settings(scheduler="random", **changes), [], frozenset(), None)
    mine, theirs = run(world), run(reference)
    assert [r.service_noise for r in mine.results] == [r.service_noise for r in theirs.results]
    assert [r.task.fixed_deadline_s for r in mine.results] == [r.task.fixed_deadline_s for r in theirs.results]
