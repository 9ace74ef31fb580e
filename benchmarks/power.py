"""Power by Prometheus: how well its energy agrees with the nodes' own counters, and what reading it costs the dispatch.

The nodes are the emulated ones, whose counters are exact; the Prometheus is a real one.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import urllib3

from benchmarks.dispatch import lag_p99_ms, run_harness
from benchmarks.figures import Figure, median_figure
from cluster.base import Cluster
from cluster.emulated import EmulatedNodes
from experiment import Run, WallClock
from inference_request import HttpCluster
from measurement.energy import node_energy
from measurement.power_sources import ENERGY_METRIC, POWER_METRIC, NodeMetricsSource, PrometheusSource
from metric_collector import RunFolder
from performance_profile import load_profile
from prometheus_collector import PrometheusCollector
from scenario import build_scenario
from scheduler import create_scheduler
from settings import load_settings
from task import NodeEnergy
from utils import PROJECT_ROOT, random_stream

AGREEMENT_SECONDS = 120.0
SLOW_S = 2.0
POLLS = 50
NOISE_MS = (0.3, 1.0)
SCRAPE_EVERY_S = 1.0
_PATIENCE_S = 60.0

ByNode = Mapping[str, NodeEnergy]


@dataclass(frozen=True)
class Agreement:
    """Energy of one run, read in four ways, by node.

    Attributes:
        summary: of the run; its energy is by Prometheus.
        exact: by the nodes' own counters, read from them at both ends of the interval.
        counted: by the counters' samples in Prometheus.
        integrated: by the power samples in Prometheus.
        increase_j: PromQL's increase() of the counters over the same interval, joules.
    """

    summary: Mapping[str, Any]
    exact: ByNode
    counted: ByNode
    integrated: ByNode
    increase_j: Mapping[str, float]


def above_idle_j(energy: ByNode) -> float:
    """Energy above idle of all nodes together, joules.

    Raises:
        ValueError: a node has none.
    """
    return sum(_known(node.above_idle_j) for node in energy.values())


def total_j(energy: ByNode) -> float:
    """Energy of all nodes together, joules.

    Raises:
        ValueError: a node has none.
    """
    return sum(_known(node.total_j) for node in energy.values())


def _known(value_j: float | None) -> float:
    if value_j is None:
        raise ValueError("a node has no power data")
    return value_j


def measure_agreement(prometheus_url: str, targets_file: Path, seconds: float, load: float = 1.0) -> Agreement:
    """Run the default experiment on emulated nodes and read its energy by Prometheus and from the nodes themselves.

    Args:
        prometheus_url: of a Prometheus that scrapes the targets in the file every second.
        targets_file: where it looks for the nodes.
        seconds: length of the load.
        load: multiple of the default load.

    Raises:
        HarnessError: the run could not be done.
        TimeoutError: Prometheus does not show all nodes.
    """
    settings = load_settings().replace(duration_s=seconds, load=load)
    profile = load_profile(settings.performance_profile)
    settings, scenario = build_scenario(settings, None, None)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    names = list(profile.nodes)
    power = PrometheusCollector(PrometheusSource(prometheus_url, names, window_s=10.0), names, settings.power.poll_interval_s)
    ends_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, EmulatedNodes(profile, targets_file=targets_file) as nodes, power:
        exact = PrometheusCollector(NodeMetricsSource(nodes.metrics_urls), names, seconds)  # polled by hand, at both ends
        if not power.poll_until(lambda: all(power.is_up(name, settings.power.max_age_s) for name in names), _PATIENCE_S):
            raise TimeoutError(f"{prometheus_url} has no power data of all nodes after {_PATIENCE_S:g} s")
        cluster_of = partial(HttpCluster, nodes.workers, profile, settings, scheduler, power.latest)
        run = Run(settings, scenario, "emulated", profile, names, cluster_of, RunFolder(Path(folder), datetime.now()))

        def measured(cluster: Cluster, load: Callable[[], None]) -> dict[str, Any]:
            def between_readings() -> None:
                exact.poll()
                load()
                ends_s.extend([cluster.clock() - cluster.now_s(), cluster.clock()])
                exact.poll()

            return WallClock(settings, power, nodes, nullcontext(), print).measured(cluster, between_readings)

        summary = run.measure(measured)
    start_s, end_s = ends_s
    idle_w, interval_s = summary["idle_w"], settings.power.poll_interval_s
    look_back_s = time.monotonic() - start_s + 10.0
    samples = PrometheusSource(prometheus_url, names, window_s=look_back_s).read()
    gauges = {name: [sample._replace(energy_j=None) for sample in samples[name]] for name in names}
    return Agreement(
        summary,
        exact.energy(start_s, end_s, idle_w),
        {name: node_energy(samples[name], start_s, end_s, idle_w[name], interval_s) for name in names},
        {name: node_energy(gauges[name], start_s, end_s, idle_w[name], interval_s) for name in names},
        _promql_increase_j(prometheus_url, start_s, end_s),
    )


def _promql_increase_j(prometheus_url: str, start_s: float, end_s: float) -> dict[str, float]:
    at_unix_s = time.time() - (time.monotonic() - end_s)
    query = f"increase({ENERGY_METRIC}[{round((end_s - start_s) * 1e3)}ms])"
    fields = {"query": query, "time": f"{at_unix_s:.3f}"}
    answer = urllib3.request("GET", f"{prometheus_url}/api/v1/query", fields=fields, timeout=10.0).json()
    return {series["metric"]["node"]: float(series["value"][1]) for series in answer["data"]["result"]}


def power(seconds: float, repeats: int) -> list[Figure]:
    """Agreement over 120 s, requests per poll, and dispatch lag beside a slow Prometheus and beside a scraped metrics page."""
    with _local_prometheus() as (url, targets_file):
        agreement = measure_agreement(url, targets_file, AGREEMENT_SECONDS)
    return [*agreement_figures(agreement, AGREEMENT_SECONDS), requests_per_poll(), *_lag_figures(seconds, repeats)]


def agreement_figures(agreement: Agreement, seconds: float) -> list[Figure]:
    """How far the energy read by Prometheus is from the nodes' exact counters."""
    exact_j, counted_j, integrated_j = (
        above_idle_j(energy) for energy in (agreement.exact, agreement.counted, agreement.integrated)
    )
    exact_total_j, counted_total_j = total_j(agreement.exact), total_j(agreement.counted)
    at = f"emulated run of {seconds:g} s"
    return [
        Figure(f"energy above idle by Prometheus, {at}", counted_j, "J", None, ("exact counters", exact_j)),
        Figure("… its difference", _off(counted_j, exact_j), "%", 5.0),
        Figure("… by integration of the power samples", integrated_j, "J", None, ("exact counters", exact_j)),
        Figure("total energy by counter, difference", _off(counted_total_j, exact_total_j), "%", 1.0),
        Figure("… by integration, from that by counter", _off(total_j(agreement.integrated), counted_total_j), "%", 1.0),
        Figure("… by PromQL's increase(), from the exact", _off(sum(agreement.increase_j.values()), exact_total_j), "%", None),
    ]


def _off(value: float, reference: float) -> float:
    return abs(value / reference - 1) * 100


class StandIn:
    """Answers queries as a Prometheus with two metrics of each node does, late where asked; counts what it is asked.

    Args:
        nodes: their names.
        answers_after_s: how long every answer takes.
    """

    def __init__(self, nodes: Sequence[str], answers_after_s: float = 0.0) -> None:
        self.asked = 0
        self._nodes = nodes
        self._answers_after_s = answers_after_s
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="stand-in", daemon=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "StandIn":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:  # noqa: N802 - the name that the base class calls
                stand_in.asked += 1
                stand_in._closing.wait(stand_in._answers_after_s)
                body = stand_in._page()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler

    def _page(self) -> bytes:
        now_s = int(time.time())
        seconds = range(now_s - 10, now_s + 1)
        result = [
            {"metric": {"__name__": metric, "node": node}, "values": [[at, str(value(at))] for at in seconds]}
            for node in self._nodes
            for metric, value in ((POWER_METRIC, lambda at: 5.0), (ENERGY_METRIC, lambda at: 5.0 * at))
        ]
        return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()


def requests_per_poll() -> Figure:
    """HTTP requests that one poll of all nodes takes."""
    names = list(load_profile(load_settings().performance_profile).nodes)
    with StandIn(names) as server:
        collector = PrometheusCollector(PrometheusSource(server.url, names, window_s=10.0), names, 1.0)
        for _ in range(POLLS):
            collector.poll()
    if collector.failed_polls or len(collector.latest) != len(names):
        raise RuntimeError(f"{collector.failed_polls} of {POLLS} polls failed")
    return Figure(f"HTTP requests per power poll of {len(names)} nodes", server.asked / POLLS, "requests", 1.0)


def _lag_figures(seconds: float, repeats: int) -> list[Figure]:
    """Dispatch lag p99 with Prometheus late, and with the metrics page scraped, each beside the same run without."""
    names = list(load_profile(load_settings().performance_profile).nodes)
    plain, slow, scraped = [], [], []
    for seed in range(repeats):
        options = ["--cluster", "emulated", "--duration", str(seconds), "--seed", str(seed), "--quiet", "--no-report"]
        plain.append(lag_p99_ms(run_harness(options)[0]))
        with StandIn(names, SLOW_S) as server:
            slow.append(lag_p99_ms(run_harness([*options, "--prometheus-url", server.url])[0]))
        port = _free_port()
        with _scraping(f"http://127.0.0.1:{port}/metrics"):
            scraped.append(lag_p99_ms(run_harness([*options, "--metrics-port", str(port)])[0]))
    at = f"emulated, {seconds:g} s"
    return [
        *_lag_beside(f"dispatch lag p99, a Prometheus that answers after {SLOW_S:g} s, {at}", slow, plain),
        *_lag_beside(f"dispatch lag p99, own metrics scraped every {SCRAPE_EVERY_S:g} s, {at}", scraped, plain),
    ]


def _lag_beside(name: str, lags_ms: Sequence[float], plain_ms: Sequence[float]) -> list[Figure]:
    """The lag beside that of runs without, and what it adds: at most what these differ among themselves, within `NOISE_MS`."""
    added_ms = [lag_ms - without_ms for lag_ms, without_ms in zip(lags_ms, plain_ms, strict=True)]
    least_ms, most_ms = NOISE_MS
    noise_ms = min(max(max(plain_ms) - min(plain_ms), least_ms), most_ms)
    lag = median_figure(name, lags_ms, "ms")._replace(beside=("without", statistics.median(plain_ms)))
    return [lag, median_figure("… what it adds in pairs of runs of one seed", added_ms, "ms", noise_ms)]


@contextmanager
def _scraping(url: str) -> Iterator[None]:
    """Read a metrics page again and again, as soon as it is there, while the block runs."""
    ending, http = threading.Event(), urllib3.PoolManager(timeout=5.0, retries=False)
    answers = []

    def scrape() -> None:
        while not ending.wait(SCRAPE_EVERY_S):
            try:
                answers.append(http.request("GET", url).status)
            except urllib3.exceptions.HTTPError:
                continue  # the harness is not there yet, or no more

    thread = threading.Thread(target=scrape, name="scraper")
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    if set(answers) != {200}:
        raise RuntimeError(f"{url} answered {sorted(set(answers)) or 'nothing'}")


@contextmanager
def _local_prometheus() -> Iterator[tuple[str, Path]]:
    """The Prometheus of `make monitor` on a free port; its address and the target file of the emulated nodes."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "monitor"
        command = [sys.executable, "-m", "monitoring.local.stack", "--port", str(port), "--folder", str(folder)]
        with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL) as stack:
            try:
                _wait_until_ready(f"{url}/-/ready", stack)
                yield url, folder / "targets" / "emulated.json"
            finally:
                stack.terminate()


def _wait_until_ready(url: str, stack: "subprocess.Popen[bytes]") -> None:
    give_up_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up_s:
        if stack.poll() is not None:
            raise RuntimeError(f"the local Prometheus ended with status {stack.returncode}")
        try:
            if urllib3.request("GET", url, retries=False, timeout=2.0).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
