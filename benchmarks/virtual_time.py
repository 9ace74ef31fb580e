"""How fast virtual time runs: tasks per second beside a bare simpy model, whole runs, large clusters, a sweep."""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from benchmarks.figures import Figure, median_figure
from cluster.simulated import SimulatedCluster
from deadline_adapter import DeadlineAdapter
from experiment import measured_in_virtual_time, run_experiment
from measurement.summary import RunFacts
from metric_collector import MetricCollector
from performance_profile import PerformanceProfile, load_profile
from scenario import Scenario, build_scenario
from scheduler import create_scheduler
from settings import Settings, load_settings
from utils import PROJECT_ROOT, random_stream

_SWEEP = ["--load", "0.5,1.0,1.5", "--seeds", "10", "--quiet"]
_LARGE_SCRIPT = """
import resource, sys, time
from benchmarks.virtual_time import cluster_of, experiment
start = time.perf_counter()
settings, scenario, profile = cluster_of(1000, 100_000, 60.0, load=1.0)
tasks, _ = experiment(settings.replace(scheduler="round_robin"), scenario, profile)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, tasks)
"""


def virtual_time(repeats: int) -> list[Figure]:
    """Tasks per second from a trace in memory through the summary, mobility and adaptation on, result files off."""
    settings, scenario, profile = cluster_of(6, 100, 600.0, load=1.0)
    n = len(scenario.trace)
    runs: dict[str, Callable[[], object]] = {
        "simpy": lambda: _bare_simpy(scenario, profile),
        "round_robin": lambda: experiment(settings.replace(scheduler="round_robin"), scenario, profile),
        "power_aware_topsis": lambda: experiment(settings.replace(scheduler="power_aware_topsis"), scenario, profile),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(repeats, 5)):
        for name, run in runs.items():
            rates[name].append(n / _seconds_of(run))
    bare = ("bare simpy, six queues", statistics.median(rates["simpy"]))
    return [
        _at_least(f"virtual time, {name}, one core", rates[name], "tasks/s", target)._replace(beside=bare)
        for name, target in (("round_robin", 100_000.0), ("power_aware_topsis", 40_000.0))
    ]


def growing_cluster(repeats: int) -> list[Figure]:
    """Tasks per second as the nodes grow, with as many devices and tasks per node as in the default experiment."""
    figures = []
    for nodes, duration_s in ((6, 600.0), (60, 60.0), (600, 6.0)):
        settings, scenario, profile = cluster_of(nodes, 100 * nodes // 6, duration_s, load=1.0)
        for policy in ("round_robin", "power_aware_topsis"):
            chosen = settings.replace(scheduler=policy)
            rates = [len(scenario.trace) / experiment(chosen, scenario, profile)[1] for _ in range(repeats)]
            figures.append(_at_least(f"virtual time, {policy}, {nodes} nodes", rates, "tasks/s", None))
    return figures


def large_cluster(repeats: int) -> list[Figure]:
    """1,000 nodes and 100,000 devices for 60 s, trace and mobility included, in processes of their own."""
    command = [sys.executable, "-c", _LARGE_SCRIPT]
    outputs = [subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True) for _ in range(repeats)]
    seconds, megabytes, tasks = zip(*([float(word) for word in output.stdout.split()] for output in outputs), strict=True)
    at = f"1,000 nodes, 100,000 devices × 60 s ({tasks[0]:,.0f} tasks), round_robin"
    return [median_figure(at, seconds, "s"), median_figure(f"memory of {at}", megabytes, "MB", 4000.0)]


def whole_run(repeats: int) -> list[Figure]:
    """The default run of 600 s with all its files, as a user starts it."""
    figures = []
    for options, target in (["--no-report"], 3.0), ([], 6.0):
        name = " ".join(["main_pregenerated.py --cluster simulated", *options])
        command = ["main_pregenerated.py", "--cluster", "simulated", "--quiet", *options]
        figures.append(median_figure(name, [_process_seconds(command) for _ in range(repeats)], "s", target))
    return figures


def whole_sweep(repeats: int) -> list[Figure]:
    """Nine policies, three loads, ten seeds, 600 s each: the cells alone, and with all that the report holds."""
    alone = ["--no-bounds", "--no-limits", "--no-ablation", "--no-report"]
    figures = []
    for what, options, target in (("cells alone", alone, 180.0), ("all", [], None)):
        times = [_process_seconds(["compare_schedulers.py", *_SWEEP, *options]) for _ in range(repeats)]
        name = f"9 policies × 3 loads × 10 seeds × 600 s on {os.cpu_count()} cores, {what}"
        figures.append(median_figure(name, times, "s", target))
    return figures


def cluster_of(nodes: int, devices: int, duration_s: float, load: float) -> tuple[Settings, Scenario, PerformanceProfile]:
    """A cluster that repeats the six reference nodes, and the world around it."""
    settings = load_settings()
    population = settings.devices.model_copy(update={"count": devices})
    settings, scenario = build_scenario(settings.replace(devices=population, duration_s=duration_s, load=load), None, None)
    profile = load_profile(settings.performance_profile)
    return settings, scenario, _repeated(profile, nodes)


def experiment(settings: Settings, scenario: Scenario, profile: PerformanceProfile) -> tuple[int, float]:
    """One run in memory through its summary: tasks in it, and how long it took in seconds."""
    names = list(profile.nodes)
    started = time.perf_counter()
    collector = MetricCollector(settings, profile, names, scenario.mobility)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    with SimulatedCluster(profile, names, settings, scheduler, collector.record) as cluster:
        added = measured_in_virtual_time(
            cluster, lambda: run_experiment(scenario.trace, cluster, DeadlineAdapter(settings), collector.record)
        )
    stamps: dict[str, Any] = {"experiment_id": "", "started_at": "", "finished_at": "", "scenario_sha256": ""}
    facts = RunFacts(**stamps, interrupted=False, cluster="simulated", scheduler=settings.scheduler, settings=settings, **added)
    summary = collector.summarise(facts)
    return int(summary["tasks"]["generated"]), time.perf_counter() - started


def _repeated(profile: PerformanceProfile, nodes: int) -> PerformanceProfile:
    """The profile with its nodes repeated until there are `nodes`."""
    content = profile.model_dump(mode="json")
    named = itertools.islice(itertools.cycle(profile.nodes), nodes)
    original = {name if number < len(profile.nodes) else f"{name}-{number}": name for number, name in enumerate(named)}
    content["nodes"] = {name: content["nodes"][of] for name, of in original.items()}
    for figures in content["latency"].values():
        means = figures["mean_ms"]
        figures["mean_ms"] = {name: means[of] for name, of in original.items() if of in means}
    return PerformanceProfile.model_validate(content)


def _bare_simpy(scenario: Scenario, profile: PerformanceProfile) -> None:
    """The same arrivals at six queues in turn, mean service times, and nothing else."""
    environment = simpy.Environment()
    queues = [simpy.Resource(environment, 1) for _ in profile.nodes]
    services_s = [profile.service_time_s(name) for name in profile.nodes]
    models = scenario.trace.model_name.slice(0, len(scenario.trace))

    def served(number: int, model: str) -> Generator[simpy.Event, Any, None]:
        with queues[number].request() as turn:
            yield turn
            yield environment.timeout(services_s[number][model])

    def arriving() -> Generator[simpy.Event, Any, None]:
        for number, (time_s, model) in enumerate(zip(scenario.trace.arrival_time_s.tolist(), models, strict=True)):
            yield environment.timeout(time_s - environment.now)
            environment.process(served(number % len(queues), model))

    environment.process(arriving())
    environment.run()


def _at_least(name: str, rates: Sequence[float], unit: str, target: float | None) -> Figure:
    return median_figure(name, rates, unit, target)._replace(at_least=True)


def _seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _process_seconds(command: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command, "--output", folder], cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started
