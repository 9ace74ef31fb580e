"""Run one experiment: generate every task beforehand, dispatch each at its arrival, write down what happened.

    python3 main_pregenerated.py --duration 60 --seed 7

The loop and what a run is are in `experiment.py`; this command reads options, builds the parts, shows progress and reports.
"""

import os
import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from cluster.base import model_mismatches
from cluster.discovery import NAMESPACE, discover_workers
from cluster.emulated import EmulatedNodes
from cluster.simulated import SimulatedCluster, ignored_settings
from experiment import Run, WallClock, choose_cluster, measured_in_virtual_time
from inference_request import WORKERS, HttpCluster, require_profiled, require_worker_urls
from measurement.energy import PowerRange
from measurement.live_metrics import HarnessMetrics, annotate_in_grafana, listed_target, targets_file, targets_folder
from measurement.power_sources import OWN_METRICS, POWER_METRIC, NodeMetricsSource, PrometheusSource, require_url
from measurement.repeats import Repeats, repeats_table
from metric_collector import RunFolder
from performance_profile import PerformanceProfile, load_profile
from prometheus_collector import PrometheusCollector
from report import write_run_report
from scenario import Scenario, build_scenario, save_scenario
from scheduler import create_scheduler
from settings import PowerMetrics, Settings, load_settings, require_known_models
from terminal.options import EXIT_INTERRUPTED, OptionParser, StopSignal, count, interruptible, namespace, seconds, seed, stoppable
from terminal.run_summary import Progress, print_repeats, print_summary
from utils import HarnessError, UsageError, random_stream, write_json_atomically, write_text_atomically

PROGRAM = "main_pregenerated.py"
DEFAULT_PROMETHEUS_URL = "http://127.0.0.1:30090"
_AWAIT_POWER_S = 20.0
_SHORTEST_LOOK_BACK_S = 15.0
"""Prometheus stores a scrape under the time at which it began once it has ended, which may be some polls later."""


@dataclass(frozen=True)
class _Command:
    """What the runs of one command share."""

    options: argparse.Namespace
    console: Console
    stop: StopSignal
    kind: str
    profile: PerformanceProfile
    workers: Mapping[str, str]
    say: Callable[[str], None]


def run(options: argparse.Namespace, console: Console, stop: StopSignal) -> int:
    """One experiment, or several equal ones, from options to files; the exit status.

    Raises:
        HarnessError: a run could not be done.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with interruptible(stop):
        settings = _settings_of(options)
        profile = load_profile(settings.performance_profile)
        require_known_models(settings, profile.latency)
        create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))  # refused now rather than later
        if options.prometheus_url:
            options.prometheus_url = require_url("--prometheus-url", options.prometheus_url)
        where = {"namespace": options.namespace} if options.namespace else {}
        workers = discover_workers(list(profile.nodes), say, lambda: stop.received, **where) if options.discover else WORKERS
        kind, notice = choose_cluster(options.cluster, workers)
        if kind == "workers":
            require_worker_urls(workers)
            require_profiled(workers, profile)
        if kind == "emulated" and settings.power.host_metrics and not options.prometheus_url:
            raise UsageError("power.host_metrics: emulated nodes have none of their own; give --prometheus-url")
        if options.repeat > 1 and kind == "simulated" and options.trace:
            raise UsageError("--repeat: a replay in virtual time gives the same numbers each time; leave --repeat or --trace out")
        settings, scenario = build_scenario(settings, options.trace, options.duration, profile.overhead_varies)
        if scenario.replay and scenario.replay.seed is not None and options.seed is None:
            settings = settings.replace(seed=scenario.replay.seed)  # a random policy draws what it drew in the run before
        last_settings = settings.replace(seed=settings.seed + options.repeat - 1) if kind == "simulated" else settings
        if options.save_trace:
            save_scenario(scenario, settings, options.save_trace)
    for line in (notice, *scenario.warnings):
        if line:
            say(line)
    command = _Command(options, console, stop, kind, profile, workers, say)
    summaries: dict[Path, dict[str, Any]] = {}
    for seed_ in range(settings.seed, last_settings.seed + 1) if kind == "simulated" else [settings.seed] * options.repeat:
        if seed_ != settings.seed:
            with interruptible(stop):
                settings, scenario = build_scenario(settings.replace(seed=seed_), None, None, profile.overhead_varies)
        folder, summary = _one_run(command, settings, scenario)
        summaries[folder.summary] = summary
        if summary["interrupted"]:
            return EXIT_INTERRUPTED
    if len(summaries) > 1:
        _finish_repeats(summaries, options.output, console)
    return 0


def _one_run(command: _Command, settings: Settings, scenario: Scenario) -> tuple[RunFolder, dict[str, Any]]:
    """One run with its files, its summary on the terminal and its report; its folder and summary."""
    folder = RunFolder(command.options.output, datetime.now().astimezone())
    with ExitStack() as stack:
        stack.callback(folder.remove_if_empty)
        measure = _measure_in_virtual_time if command.kind == "simulated" else _measure_on_wall_clock
        summary = measure(command, settings, scenario, folder, stack)
    print_summary(command.console, summary, folder.path)
    if not command.options.no_report:
        with interruptible(command.stop, by_earlier=False):
            command.say(f"report: {write_run_report(folder.path)}")
    if command.kind != "simulated" and (problem := annotate_in_grafana(summary, os.environ)):
        command.say(problem)
    return folder, summary


def _measure_in_virtual_time(
    command: _Command, settings: Settings, scenario: Scenario, folder: RunFolder, stack: ExitStack
) -> dict[str, Any]:
    """The summary of one run on the simulated cluster."""
    profile, names = command.profile, list(command.profile.nodes)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    simulated = partial(SimulatedCluster, profile, names, settings, scheduler)
    one = Run(settings, scenario, command.kind, profile, names, simulated, folder, flush_interval_s=None)
    one.warnings += ignored_settings(settings)
    command.stop.tell(one.cluster.stop)
    return one.measure(measured_in_virtual_time)


def _measure_on_wall_clock(
    command: _Command, settings: Settings, scenario: Scenario, folder: RunFolder, stack: ExitStack
) -> dict[str, Any]:
    """The summary of one run on workers or emulated nodes; `stack` ends what it starts."""
    options, profile, stop = command.options, command.profile, command.stop
    emulated = command.kind == "emulated"
    targets = targets_folder()
    names = list(profile.nodes if emulated else command.workers)
    metrics = HarnessMetrics(settings, folder.experiment_id, command.kind, names)
    if options.metrics_port:
        stack.enter_context(metrics.served(options.metrics_port))
        if targets:
            stack.enter_context(listed_target(targets_file(targets, "harness"), f"127.0.0.1:{options.metrics_port}"))
    nodes_file = targets_file(targets, "emulated") if targets else None
    nodes = EmulatedNodes(profile, lambda: stop.received, nodes_file) if emulated else None
    workers = stack.enter_context(nodes).workers if nodes else command.workers
    power = stack.enter_context(_power_poller(options.prometheus_url, nodes, names, settings, profile, lambda: stop.received))
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    real = partial(HttpCluster, workers, profile, settings, scheduler, power.latest)
    one = Run(settings, scenario, command.kind, profile, names, real, folder)
    stop.tell(one.cluster.stop)
    power.on_death(one.cluster.stop)
    if options.metrics_port:
        one.show_in(metrics)
    if nodes_file and options.prometheus_url:
        _await_power(power, names, settings, lambda: stop.received)
    say_power_metrics(power.metrics(settings.power.max_age_s), command.say, OWN_METRICS if nodes else settings.power.metrics)
    progress = nullcontext() if options.quiet else Progress(command.console, one.cluster, one.monitor, power, settings)
    clock = WallClock(settings, power, nodes, progress, command.say, metrics.idle_power)

    def measured(cluster: HttpCluster, load: Callable[[], None]) -> dict[str, Any]:
        one.warnings += (mismatches := model_mismatches(cluster.nodes, settings.models))
        for line in mismatches:
            command.say(line)
        return clock.measured(cluster, load)

    return one.measure(measured)


def _finish_repeats(summaries: Mapping[Path, dict[str, Any]], output: Path, console: Console) -> None:
    """Put what several runs gave into one table, on the terminal, in a file, and in the summary of each.

    Raises:
        HarnessError: a file cannot be written.
    """
    table = repeats_table(list(summaries.values()))
    experiment_ids = [summary["experiment_id"] for summary in summaries.values()]
    path = output / f"repeats_{experiment_ids[0]}.csv"
    spread = {row.metric: _without_nan(row) for row in table}
    text = StringIO()
    csv.DictWriter(text, Repeats._fields, lineterminator="\n").writeheader()
    csv.writer(text, lineterminator="\n").writerows(_without_nan(row).values() for row in table)
    try:
        write_text_atomically(path, text.getvalue())
        for number, (file, summary) in enumerate(summaries.items(), start=1):
            write_json_atomically(
                file, {**summary, "repeat": {"number": number, "experiment_ids": experiment_ids, "metrics": spread}}
            )
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error.strerror}") from error
    print_repeats(console, table, path)


def _without_nan(row: Repeats) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row._asdict().items()}


def _power_poller(
    prometheus_url: str | None,
    nodes: EmulatedNodes | None,
    names: Sequence[str],
    settings: Settings,
    profile: PerformanceProfile,
    stopping: Callable[[], bool],
) -> PrometheusCollector:
    """A poller of a Prometheus server, or of the emulated nodes' own /metrics."""
    own, interval_s = settings.power, settings.power.poll_interval_s
    connections = settings.requests.connections_per_node
    ranges = {name: PowerRange(*profile.power_range_w(name, own.plausible_factor, connections)) for name in names}
    poller = partial(
        PrometheusCollector, nodes=names, interval_s=interval_s, delay_s=own.power_delay_s, power_ranges=ranges, stopping=stopping
    )
    if nodes and not prometheus_url:
        of_nodes = NodeMetricsSource(nodes.metrics_urls)
        return poller(of_nodes, read_busy=of_nodes.busy_s)
    source = PrometheusSource(
        prometheus_url or DEFAULT_PROMETHEUS_URL,
        names,
        window_s=max(10 * interval_s, _SHORTEST_LOOK_BACK_S),
        instances={node: urlsplit(url).netloc for node, url in nodes.metrics_urls.items()} if nodes else None,
        metrics=OWN_METRICS if nodes else own.metrics,
    )
    return poller(source, read_host=source.host_metrics if own.host_metrics else None, read_busy=source.busy_s)


def _await_power(power: PrometheusCollector, names: Sequence[str], settings: Settings, stopping: Callable[[], bool]) -> None:
    """Wait for power data of every node: Prometheus takes up the emulated nodes some seconds after they are listed."""
    max_age_s = settings.power.max_age_s
    power.poll_until(lambda: stopping() or all(power.is_up(name, max_age_s) for name in names), within_s=_AWAIT_POWER_S)


def say_power_metrics(
    found: Mapping[str, Sequence[str]], say: Callable[[str], None], expected: PowerMetrics = OWN_METRICS
) -> None:
    """Say which nodes have no power data and which have no counter; nothing where every node has its counter.

    Args:
        found: which of the two metrics each node has shown.
        say: prints a line.
        expected: names of metrics and nodes in Prometheus.
    """
    if without := [node for node, metrics in found.items() if not metrics]:
        values = [expected.nodes.get(node, node) for node in without]
        named = "the node's name" if values == without else ", ".join(values)
        metrics = " or ".join([*expected.energy_j, *expected.power_w])
        say(f'no power data of {", ".join(without)}: expected {metrics} with {named} in the label "{expected.label}"')
    if gauge_only := [node for node, metrics in found.items() if tuple(metrics) == (POWER_METRIC,)]:
        energy = " or ".join(expected.energy_j) or "energy counter"
        say(f"no {energy} of {', '.join(gauge_only)}: energy is the integral of {' or '.join(expected.power_w)}")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, found {text!r}")
    return int(text)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = OptionParser(PROGRAM, "Run one experiment and write its files.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings that differ from config/experiment.yaml")
    parser.add_argument("--duration", type=seconds, metavar="S", help="length of the load in seconds (600, or the trace's)")
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of everything random (42)")
    parser.add_argument("--scheduler", metavar="NAME", help="policy, or package.module:Class (power_aware_topsis)")
    parser.add_argument(
        "--cluster",
        choices=("auto", "workers", "emulated", "simulated"),
        default="auto",
        help="the pods in WORKERS, local emulated nodes, nodes in virtual time; auto: emulated while WORKERS holds placeholders",
    )
    parser.add_argument(
        "--discover",
        action="store_true",
        help="take the workers from the ready pods of the cluster, or of `kubectl get pods -o json` on standard input",
    )
    parser.add_argument("--namespace", type=namespace, metavar="NAME", help=f"where --discover looks for the pods ({NAMESPACE})")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay this load instead of drawing one")
    parser.add_argument("--save-trace", type=Path, metavar="FILE", help="write the load to a file that --trace reads")
    parser.add_argument("--prometheus-url", metavar="URL", help=f"where power is read (workers: {DEFAULT_PROMETHEUS_URL})")
    parser.add_argument("--metrics-port", type=_port, metavar="N", help="serve the harness's own metrics while it runs (off)")
    parser.add_argument(
        "--output", type=Path, default=Path("results"), metavar="DIR", help="parent of the run's folder (results)"
    )
    parser.add_argument(
        "--repeat",
        type=count,
        default=1,
        metavar="N",
        help="do the run N times: the same load each time, or, on the simulated cluster, with the seeds that follow (1)",
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    options = parser.parse_args(arguments)
    if options.namespace and not options.discover:
        parser.error("--namespace: says where --discover looks; give --discover, too, or leave it out")
    if options.discover and options.cluster in ("emulated", "simulated"):
        parser.error(f"--discover: finds workers, and --cluster {options.cluster} has none; leave one of the two out")
    if options.cluster == "simulated":
        if options.metrics_port:
            parser.error("--metrics-port: a run in virtual time is over before a Prometheus sees it; leave it out")
        if options.prometheus_url:
            parser.error("--prometheus-url: power in virtual time is that of the profile; leave it out")
    return options


def _settings_of(options: argparse.Namespace) -> Settings:
    settings = load_settings(options.config)
    given = {"duration_s": options.duration, "seed": options.seed, "scheduler": options.scheduler}
    return settings.replace(**{key: value for key, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return stoppable(PROGRAM, lambda stop: run(parse_options(arguments), Console(), stop))


if __name__ == "__main__":
    sys.exit(main())
