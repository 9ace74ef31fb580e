"""What queueing theory demands of the simulated node, and what a scheduler must not know: how long a task will really take."""

import gc
import math
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from cluster.node_queue import Request
from cluster.simulated import SimulatedCluster
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from mobility.mobility_manager import MobilityManager
from scheduler import SCHEDULERS, BaseScheduler, Node, create_scheduler
from settings import Settings
from task import Decision, TaskResult
from task_generator import Trace, generate_trace
from tests.helpers import DEVICE, FirstOffered, default_profile, default_settings, make_task, rng, small_profile, true_service_s
from utils import random_stream

MEAN_S = 0.1
TASKS = 15_000
LOADS = [(0.5, 0.02), (0.9, 0.05)]
"""Loads of a node, and how far from theory its figures may be."""
PROFILE = default_profile()

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def pollaczek_khinchine(load: float, cv: float) -> float:
    """M/G/1: load (1 + cv²) / (2 (1 − load)). Kleinrock, "Queueing Systems", volume 1, 1975, section 5.6."""
    return load * (1 + cv**2) / (2 * (1 - load))


def erlang_c(load: float, servers: int) -> float:
    """M/M/c: C / (c (1 − load)), C the probability of having to wait. Kleinrock, as above, section 3.5."""
    offered = load * servers
    all_busy = offered**servers / math.factorial(servers) / (1 - load)
    waits = all_busy / (sum(offered**k / math.factorial(k) for k in range(servers)) + all_busy)
    return waits / (servers * (1 - load))


class Queue(NamedTuple):
    """A queue with Poisson arrivals: how its service times are drawn, its servers, its mean waiting time at a load."""

    draw: Draw
    servers: int
    waiting: Callable[[float], float]


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.exponential(MEAN_S, shape)


def constant(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, MEAN_S)


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    sigma = math.sqrt(math.log1p(LOGNORMAL_CV**2))
    return MEAN_S * np.exp(sigma * rng.standard_normal(shape) - sigma**2 / 2)


LOGNORMAL_CV = 0.7
QUEUES = {
    "M/M/1": Queue(exponential, 1, lambda load: pollaczek_khinchine(load, 1.0)),
    "M/D/1": Queue(constant, 1, lambda load: pollaczek_khinchine(load, 0.0)),
    "M/M/2": Queue(exponential, 2, lambda load: erlang_c(load, 2)),
    "M/M/3": Queue(exponential, 3, lambda load: erlang_c(load, 3)),
}


def recursion(arrivals: np.ndarray, services: np.ndarray, servers: int) -> np.ndarray:
    """Waiting times, first come first served: each customer takes the server that is free first.

    Kiefer and Wolfowitz, "On the theory of queues with many servers", 1955; for one server it is Lindley's. One row per customer,
    one column per independent replica.
    """
    free_s = np.full((servers, arrivals.shape[1]), -np.inf)
    waits = np.empty_like(arrivals)
    for arrival_s, service_s, waited_s in zip(arrivals, services, waits, strict=True):
        free_s.sort(axis=0)
        start_s = np.maximum(arrival_s, free_s[0])
        np.subtract(start_s, arrival_s, out=waited_s)
        free_s[0] = start_s + service_s
    return waits


def drawn(draw: Draw, load: float, servers: int, seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Poisson arrivals at a load, and service times."""
    generator = np.random.default_rng(seed)
    arrivals = np.cumsum(generator.exponential(MEAN_S / (load * servers), shape), axis=0)
    return arrivals, draw(generator, shape)


def long_run_mean(draw: Draw, load: float, servers: int) -> tuple[float, float]:
    """Mean waiting time and its standard error, by the recursion over 5 million customers in 500 independent replicas."""
    customers, warm_up, replicas = 12_000, 2_000, 500
    means = recursion(*drawn(draw, load, servers, 1, (customers, replicas)), servers)[warm_up:].mean(axis=0)
    return float(means.mean()), float(means.std() / math.sqrt(replicas))


def simulate(
    arrivals: np.ndarray,
    services: np.ndarray | None,
    servers: int,
    connections: int = 64,
    noises: np.ndarray | None = None,
    cv: float = 0.0,
    watch: Callable[[SimulatedCluster], None] = lambda cluster: None,
) -> list[TaskResult]:
    """One node without overhead in virtual time; its tasks by number.

    Args:
        arrivals: seconds.
        services: service time of each task, seconds; None: the profile's, by `noises` and `cv`.
        servers: of its accelerator.
        connections: requests that may be in flight at once.
        noises: service noise of each task.
        cv: the profile's coefficient of variation.
        watch: called after each arrival and after each answer.
    """
    settings = default_settings(requests={"connections_per_node": connections, "drain_timeout_s": 1e4})
    results: list[TaskResult] = []

    def ended(result: TaskResult) -> None:
        results.append(result)
        watch(cluster)

    cluster = SimulatedCluster(
        small_profile({"coral1": {"resnet50": MEAN_S * 1e3}}, cv=cv),
        ["coral1"],
        settings,
        FirstOffered(settings, rng()),
        ended,
        service_time=None if services is None else lambda node, task, noise: services[task.task_id],
        servers=servers,
    )
    with cluster:
        for number, arrival_s in enumerate(arrivals.tolist()):
            cluster.advance_to(arrival_s)
            cluster.place(make_task(number, arrival_s), DEVICE, 0.0 if noises is None else noises[number])
            watch(cluster)
        cluster.drain()
    return sorted(results, key=lambda result: result.task.task_id)


def responses_s(results: list[TaskResult]) -> np.ndarray:
    return np.array([result.response_time_s for result in results])


def services_s(results: list[TaskResult]) -> np.ndarray:
    return np.array([result.inference_time_s for result in results])


def require_mean_waiting(waits: np.ndarray, same: np.ndarray, long_run: tuple[float, float], expected: float, tolerance: float):
    """The simulator's mean waiting time is what theory says; the recursion is the control variate.

    What the simulator's few thousand customers happen to meet is taken out, and what any number of them would meet on average is
    put in. Without it, 2 million customers would be needed at load 0.9 for a standard error of 1.5 %.

    Args:
        waits: waiting times in the simulator, seconds.
        same: those of the same customers by the recursion.
        long_run: `long_run_mean()`.
        expected: mean waiting time by theory, seconds.
        tolerance: share of `expected` that the mean may be off.
    """
    np.testing.assert_allclose(waits, same, atol=1e-6)
    mean_s, standard_error_s = long_run
    assert standard_error_s < tolerance / 4 * expected
    assert waits.mean() - same.mean() + mean_s == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("load", "tolerance"), LOADS)
@pytest.mark.parametrize("name", QUEUES)
def test_mean_waiting_time_is_what_theory_says(name, load, tolerance):
    queue = QUEUES[name]
    arrivals, services = drawn(queue.draw, load, queue.servers, 7, (TASKS, 1))
    waits = responses_s(simulate(arrivals[:, 0], services[:, 0], queue.servers)) - services[:, 0]
    same = recursion(arrivals, services, queue.servers)[:, 0]
    long_run = long_run_mean(queue.draw, load, queue.servers)
    require_mean_waiting(waits, same, long_run, queue.waiting(load) * MEAN_S, tolerance)


@pytest.mark.parametrize(("load", "tolerance"), LOADS)
def test_mean_waiting_time_with_the_profiles_own_service_times_is_what_theory_says(load, tolerance):
    arrivals, _ = drawn(constant, load, 1, 7, (TASKS, 1))
    noises = np.random.default_rng(8).standard_normal(TASKS)
    results = simulate(arrivals[:, 0], None, 1, noises=noises, cv=LOGNORMAL_CV)
    services = services_s(results)
    assert services.mean() == pytest.approx(MEAN_S, rel=0.02) and services.std() == pytest.approx(LOGNORMAL_CV * MEAN_S, rel=0.05)
    waits, same = responses_s(results) - services, recursion(arrivals, services[:, np.newaxis], 1)[:, 0]
    expected_s = pollaczek_khinchine(load, LOGNORMAL_CV) * MEAN_S
    require_mean_waiting(waits, same, long_run_mean(lognormal, load, 1), expected_s, tolerance)


@pytest.mark.parametrize("servers", [1, 3])
def test_connections_beyond_the_servers_do_not_bind(servers):
    """So that 64 connections stand for any number: without overhead it is all one where a request waits."""
    arrivals, services = drawn(exponential, 0.9, servers, 9, (2_000, 1))
    many = simulate(arrivals[:, 0], services[:, 0], servers)
    few = simulate(arrivals[:, 0], services[:, 0], servers, connections=servers)
    np.testing.assert_allclose(responses_s(few), responses_s(many), atol=1e-9)
    assert max(result.server_queue_time_s or 0.0 for result in many) > MEAN_S
    assert max(result.server_queue_time_s or 0.0 for result in few) == pytest.approx(0.0, abs=1e-9)


class Steps:
    """A number that changes by steps, and its integral over time."""

    def __init__(self) -> None:
        self.integral = 0.0
        self._since_s, self._value = 0.0, 0

    def set(self, value: int, now_s: float) -> None:
        self.integral += self._value * (now_s - self._since_s)
        self._since_s, self._value = now_s, value


@pytest.mark.parametrize(("load", "tolerance"), LOADS)
def test_number_in_the_system_is_arrival_rate_times_sojourn(load, tolerance):
    """Little, "A proof for the queueing formula L = λW", 1961; the rate is that of the process, not what happened to arrive."""
    arrivals, services = drawn(exponential, load, 1, 10, (TASKS, 1))
    depth, ends = Steps(), []

    def watch(cluster: SimulatedCluster) -> None:
        depth.set(cluster.nodes[0].queue_depth, cluster.now_s())
        ends.append(cluster.now_s())

    results = simulate(arrivals[:, 0], services[:, 0], 1, watch=watch)
    assert depth.integral / ends[-1] == pytest.approx(load / MEAN_S * responses_s(results).mean(), rel=tolerance)


def busy_world(discipline: str = "fifo", scheduler: str = "round_robin") -> tuple[Settings, Trace]:
    settings = default_settings(duration_s=10.0, load=2.5, scheduler=scheduler, queue_discipline=discipline, seed=4)
    return settings, generate_trace(settings, MobilityManager(settings.devices, settings.seed))


class Played(NamedTuple):
    results: list[TaskResult]
    decisions: list[Decision]
    cluster: SimulatedCluster


def play(settings: Settings, trace: Trace, policy: BaseScheduler | None = None) -> Played:
    """A run on the six nodes; the results of the tasks that reached the cluster, in order of their ends."""
    policy = policy or create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    results: list[TaskResult] = []
    decisions: list[Decision] = []
    cluster = SimulatedCluster(PROFILE, list(PROFILE.nodes), settings, policy, results.append, decisions.append)
    with cluster:
        run_experiment(trace, cluster, DeadlineAdapter(settings), lambda skipped: None)
    return Played(results, decisions, cluster)


@pytest.mark.parametrize("discipline", ["fifo", "edf"])
def test_depths_that_a_scheduler_sees_add_up_to_the_sojourns(discipline):
    settings, trace = busy_world(discipline)
    results, decisions, _ = play(settings, trace)
    for node in PROFILE.nodes:
        mine = [result for result in results if result.assigned_node == node]
        changes = [(result.dispatch_time_s or 0.0, 1) for result in mine]
        changes += [(result.completion_time_s or 0.0, -1) for result in mine]
        changes.sort()
        times = [time_s for time_s, _ in changes]
        inside = np.cumsum([step for _, step in changes])
        integral = float(np.sum(inside[:-1] * np.diff(times)))
        assert integral == pytest.approx(sum(result.response_time_s or 0.0 for result in mine))
        for decision in decisions:
            index = int(np.searchsorted(times, decision.decision_time_s))
            assert decision.nodes[node][0] == (inside[index - 1] if index else 0)


class Service(NamedTuple):
    """When a request was sent, ready at the accelerator, served there, and answered, seconds."""

    dispatched_s: float
    sent_s: float
    ready_s: float
    start_s: float
    end_s: float
    answered_s: float


def services_at(node: str, results: list[TaskResult]) -> list[Service]:
    half_s = PROFILE.overhead_s(node) / 2
    services = []
    for result in results:
        if result.assigned_node == node:
            sent_s, completion_s = result.start_time_s or 0.0, result.completion_time_s or 0.0
            ready_s = sent_s + half_s
            start_s = ready_s + (result.server_queue_time_s or 0.0)
            end_s = start_s + (result.inference_time_s or 0.0)
            services.append(Service(result.dispatch_time_s or 0.0, sent_s, ready_s, start_s, end_s, completion_s))
    return sorted(services, key=lambda service: service.start_s)


@pytest.mark.parametrize("discipline", ["fifo", "edf"])
def test_no_accelerator_is_idle_while_a_request_is_ready_and_none_serves_two(discipline):
    settings, trace = busy_world(discipline)
    results, _, cluster = play(settings, trace)
    queued = 0
    for node, figures in PROFILE.nodes.items():
        services = services_at(node, results)
        free_s = -math.inf
        for service in services:
            assert service.start_s == pytest.approx(max(service.ready_s, free_s), abs=1e-9)
            assert service.answered_s == pytest.approx(service.end_s + PROFILE.overhead_s(node) / 2, abs=1e-9)
            queued += service.start_s > service.ready_s + 1e-9
            free_s = service.end_s
        assert [service.ready_s for service in services] == sorted(service.ready_s for service in services)
        served_s = sum(service.end_s - service.start_s for service in services)
        assert cluster.energy()[node].above_idle_j == pytest.approx((figures.busy_w - figures.idle_w) * served_s)
    assert queued > 100


@pytest.mark.parametrize("discipline", ["fifo", "edf"])
def test_no_request_waits_while_a_connection_is_free(discipline):
    settings, trace = busy_world(discipline)
    results, _, _ = play(settings, trace)
    waited = 0
    for node in PROFILE.nodes:
        services = services_at(node, results)
        events = sorted({time_s for service in services for time_s in (service.dispatched_s, service.sent_s, service.answered_s)})
        for service in services:
            between = [time_s for time_s in events if service.dispatched_s <= time_s < service.sent_s]
            waited += bool(between)
            for time_s in between:
                in_flight = sum(other.sent_s <= time_s < other.answered_s for other in services)
                assert in_flight == settings.requests.connections_per_node
    assert waited > 100


def reached(root: object) -> Iterator[tuple[str, object]]:
    """Every plain value that can be reached from `root`, with the way to it; classes and modules are not entered."""
    stack: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    while stack:
        way, thing = stack.pop()
        if thing is None or isinstance(thing, str | bytes | int | float | complex | Enum | np.generic):
            yield way, thing
        elif id(thing) not in seen and not isinstance(thing, type | types.ModuleType):
            seen.add(id(thing))
            stack.extend((f"{way}.{name}", part) for name, part in _parts(thing))


def _parts(thing: object) -> Iterator[tuple[str, object]]:
    """What `thing` holds, by name."""
    if isinstance(thing, Mapping):
        yield from ((part, value) for key, value in thing.items() for part, value in ((f"key {key}", key), (f"{key}", value)))
    elif isinstance(thing, set | frozenset):
        yield from enumerated(sorted(thing, key=repr))
    elif isinstance(thing, tuple | list | deque):
        yield from enumerated(thing)
    elif isinstance(thing, np.ndarray):
        yield from enumerated(thing.tolist())
    elif isinstance(thing, types.FunctionType):
        cells = (cell.cell_contents for cell in thing.__closure__ or ())
        yield from enumerated([*cells, thing.__defaults__, thing.__kwdefaults__])
    elif type(thing).__module__ == "builtins":
        yield from enumerated(gc.get_referents(thing))
    else:
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        own = {name: getattr(thing, name) for name in slots if hasattr(thing, name)} | getattr(thing, "__dict__", {})
        yield from own.items() if own else enumerated(gc.get_referents(thing))


def enumerated(things) -> Iterator[tuple[str, object]]:
    return ((str(number), thing) for number, thing in enumerate(things))


SECRET = 0.123456789


def generator_that_holds(secret):
    yield
    yield secret


@pytest.mark.parametrize(
    "hide",
    [
        lambda secret: {"request": [(secret,)]},
        lambda secret: deque([frozenset([secret])]),
        lambda secret: lambda: secret,
        lambda secret: partial(print, secret),
        lambda secret: Request(make_task(), DEVICE, secret),
        lambda secret: Request(make_task(), DEVICE, secret).ended,
        lambda secret: iter([secret, 1.0]),
        lambda secret: generator_that_holds(secret),
        lambda secret: np.array([secret]),
        lambda secret: Node("n", "a", 1.0, 2.0, closeness=secret),
    ],
    ids=["dict", "set", "closure", "partial", "slots", "method", "iterator", "generator", "array", "node"],
)
def test_a_secret_that_can_be_reached_is_found(hide):
    assert SECRET in [value for _, value in reached([hide(SECRET)])]


class Spy(BaseScheduler):
    """Looks through all that it is handed."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, rng())
        self.handed: list[list[tuple[str, object]]] = []

    def schedule(self, task, nodes):
        self.handed.append(list(reached((task, nodes))))
        return min(nodes, key=lambda node: node.predicted_completion_s)


def burst(noises: np.ndarray) -> tuple[Spy, list[TaskResult]]:
    """Tasks that all arrive before the first can have been answered."""
    settings = default_settings()
    spy, results = Spy(settings), list[TaskResult]()
    models = list(PROFILE.latency)
    with SimulatedCluster(PROFILE, list(PROFILE.nodes), settings, spy, results.append) as cluster:
        for number, noise in enumerate(noises.tolist()):
            cluster.advance_to(number * 1e-4)
            cluster.place(make_task(number, number * 1e-4, model=models[number % len(models)]), DEVICE, noise)
        assert not results
        cluster.drain()
    return spy, results


def test_before_any_answer_a_scheduler_sees_the_same_whatever_the_noise():
    (spy, results), (other_spy, other_results) = (burst(np.random.default_rng(seed).normal(0, 3, 100)) for seed in (1, 2))
    assert len(spy.handed) == 100 and spy.handed[0] != spy.handed[99]
    assert spy.handed == other_spy.handed
    assert services_s(results).sum() != pytest.approx(services_s(other_results).sum(), rel=1e-3)


def test_nothing_that_a_scheduler_is_handed_equals_a_noise_or_a_true_service_time():
    settings, trace = busy_world()
    spy = Spy(settings)
    results, _, _ = play(settings, trace, spy)
    seen = {value for handed in spy.handed for _, value in handed}
    noises = {result.service_noise for result in results}
    true_s = {true_service_s(PROFILE, node, r.task.model_name, r.service_noise) for r in results for node in PROFILE.nodes}
    assert len(seen) > len(results) and not seen & (noises | true_s)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_noise_of_a_task_changes_no_decision_before_its_answer(scheduler):
    settings, trace = busy_world(scheduler=scheduler)
    first = play(settings, trace)
    for task_id in trace.task_id[trace.in_coverage][[20, 200]].tolist():
        noise = trace.service_noise.copy()
        noise[task_id] = 9.0 if noise[task_id] < 0 else -9.0
        changed = play(settings, Trace(**{**vars(trace), "service_noise": noise}))
        answers_s = [
            r.completion_time_s or 0.0 for played in (first, changed) for r in played.results if r.task.task_id == task_id
        ]
        assert len(answers_s) == 2 and answers_s[0] != answers_s[1] and min(answers_s) > 0
        before, before_changed = (
            [decision for decision in played.decisions if decision.decision_time_s < min(answers_s)]
            for played in (first, changed)
        )
        assert before == before_changed and any(decision.task_id == task_id for decision in before)
