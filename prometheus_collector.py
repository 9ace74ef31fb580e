"""Node state and power: a background poller, the latest sample of each node in memory, and energy over a window.

A decision reads `PrometheusCollector.latest`; it never waits for a poll. Samples come from a Prometheus server, or, where there
is none, from the nodes' own `/metrics`. Times are on the master's monotonic clock.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, Self

import numpy as np
import urllib3
from numpy.typing import NDArray
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_client.parser import text_string_to_metric_families
from requests.exceptions import RequestException

from task import NodeEnergy, PowerSample
from utils import UsageError

logger = logging.getLogger(__name__)

POWER_METRIC = "node_power_watts"
ENERGY_METRIC = "node_energy_joules_total"
HOST_QUERIES = {
    "cpu_busy_fraction": '1 - avg by (node) (rate(node_cpu_seconds_total{mode="idle"}[30s]))',
    "memory_used_fraction": "1 - max by (node) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
    "network_bytes_per_s": (
        'sum by (node) (rate(node_network_receive_bytes_total{device!="lo"}[30s])'
        ' + rate(node_network_transmit_bytes_total{device!="lo"}[30s]))'
    ),
}
"""PromQL of the optional figures of a node, from node-exporter."""

HostFigures = dict[str, dict[str, float]]
"""Value of each of HOST_QUERIES, by node."""

Floats = NDArray[np.float64]


class Source(Protocol):
    """Where samples come from."""

    def read(self) -> dict[str, list[PowerSample]]:
        """New samples by node, oldest first; a node that cannot be read is absent.

        Raises:
            OSError: nothing can be read at all.
        """


class NodeMetricsSource:
    """Reads each node's own `/metrics`, for clusters without a Prometheus server.

    Args:
        urls: address of `/metrics` by node.
        timeout_s: longest wait for one node, seconds.
    """

    def __init__(self, urls: Mapping[str, str], timeout_s: float = 1.0) -> None:
        self._urls = dict(urls)
        self._http = urllib3.PoolManager(timeout=timeout_s, retries=False)

    def read(self) -> dict[str, list[PowerSample]]:
        """One sample of each node that answers, stamped with the middle of its round trip."""
        samples = {}
        for node, url in self._urls.items():
            asked_s = time.monotonic()
            try:
                response = self._http.request("GET", url)
            except urllib3.exceptions.HTTPError as error:
                logger.debug("no metrics from %s: %s", node, error)
                continue
            if response.status == 200:
                at_s = (asked_s + time.monotonic()) / 2
                try:
                    read = samples_of(response.data.decode(), (POWER_METRIC, ENERGY_METRIC))
                except ValueError as error:
                    logger.debug("no metrics from %s: %s", node, error)
                    continue
                samples[node] = [_sample(at_s, {name: value for name, labels, value in read if labels.get("node") == node})]
        return samples


class PrometheusSource:
    """Reads a Prometheus server: the raw samples of all nodes, with their own timestamps, by one query.

    The server's clock is taken for the master's, on which it runs; a sample from the future counts as of now.

    Args:
        url: address of the server.
        nodes: names to look for in the label `node`.
        window_s: how far back a query looks, seconds: a few polls, so that none is lost between two.
        timeout_s: longest wait for an answer, seconds.
    """

    def __init__(self, url: str, nodes: Iterable[str], window_s: float, timeout_s: float = 5.0) -> None:
        self.url = url
        no_retry = urllib3.Retry(total=0)  # the next poll is the retry
        self._prometheus = PrometheusConnect(url=url, retry=no_retry, timeout=timeout_s)
        self._nodes = frozenset(nodes)
        self._query = f'{{__name__=~"{POWER_METRIC}|{ENERGY_METRIC}"}}[{max(1, round(window_s * 1e3))}ms]'

    def read(self) -> dict[str, list[PowerSample]]:
        """All samples of the query's window; the collector drops those it knows.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        wall_to_monotonic_s = time.monotonic() - time.time()
        now_s = time.monotonic()
        by_node: dict[str, dict[float, dict[str, float]]] = {}
        for labels, values in self._ask(self._query, "values"):
            times = by_node.setdefault(labels["node"], {})
            for unix_s, value in values:
                at_s = min(unix_s + wall_to_monotonic_s, now_s)
                times.setdefault(round(at_s, 3), {})[labels["__name__"]] = value
        return {node: [_sample(at_s, values) for at_s, values in sorted(times.items())] for node, times in by_node.items()}

    def host_metrics(self) -> HostFigures:
        """Latest CPU, memory and network figures by node; a node without node-exporter is absent.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        by_node: HostFigures = {}
        for name, query in HOST_QUERIES.items():
            for labels, values in self._ask(query, "value"):
                if math.isfinite(values[0][1]):
                    by_node.setdefault(labels["node"], {})[name] = values[0][1]
        return by_node

    def _ask(self, query: str, kind: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels and (Unix seconds, value) pairs of each series that belongs to a node; `kind` is "value" or "values"."""
        try:
            answer = self._prometheus.custom_query(query)
            series = [(one["metric"], one["values"] if kind == "values" else [one[kind]]) for one in answer]
            own = [(labels, pairs) for labels, pairs in series if labels.get("node") in self._nodes]
            return [(labels, [(float(unix_s), float(value)) for unix_s, value in pairs]) for labels, pairs in own]
        except (RequestException, PrometheusApiClientException, AttributeError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"Prometheus at {self.url}: {error}") from error


def samples_of(text: str, names: Sequence[str]) -> list[tuple[str, Mapping[str, str], float]]:
    """Samples of the named metrics in a Prometheus text page, as (name, labels, value); other lines are not parsed.

    Raises:
        ValueError: such a line is not in Prometheus' text format.
    """
    lines = [line for line in text.splitlines() if line.startswith(tuple(names))]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [(s.name, s.labels, s.value) for family in families for s in family.samples if s.name in names]


def _sample(at_s: float, values: Mapping[str, float]) -> PowerSample:
    """A reading from the values of the two metrics; one that is absent or not a number is None."""
    power_w, energy_j = (
        value if math.isfinite(value := values.get(name, math.nan)) else None for name in (POWER_METRIC, ENERGY_METRIC)
    )
    return PowerSample(at_s, power_w, energy_j)


class PrometheusCollector:
    """Polls a source in the background and keeps what it said.

    Args:
        source: where samples come from; None for a cluster without any meter.
        nodes: the nodes of the cluster.
        interval_s: time between polls, seconds.
        read_host: gives figures of the nodes themselves, by node and name, to be read with every poll.
    """

    def __init__(
        self, source: Source | None, nodes: Sequence[str], interval_s: float, read_host: Callable[[], HostFigures] | None = None
    ) -> None:
        self.latest: dict[str, PowerSample] = {}
        self._read_host = read_host
        self._host_history: list[tuple[float, HostFigures]] = []
        self.failed_polls = 0
        self._source = source
        self._interval_s = interval_s
        self._history: dict[str, list[PowerSample]] = {node: [] for node in nodes}
        self._polling = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power-poller", daemon=True)

    def __enter__(self) -> Self:
        if self._source is not None:
            self.poll()
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def poll(self) -> None:
        """Read the source once, now. A failure is counted and logged; the last samples stay, and grow old."""
        if self._source is None:
            return
        with self._polling:
            try:
                read = self._source.read()
            except OSError as error:
                self._poll_failed(error)
                return
            for node, samples in read.items():
                history = self._history[node]
                fresh = [sample for sample in samples if not history or sample.time_s > history[-1].time_s + 1e-3]
                history.extend(fresh)
                if fresh:
                    self.latest[node] = fresh[-1]

            if self._read_host:
                try:
                    self._host_history.append((time.monotonic(), self._read_host()))
                except OSError as error:
                    self._poll_failed(error)

    def _poll_failed(self, error: OSError) -> None:
        self.failed_polls += 1
        log = logger.warning if self.failed_polls == 1 else logger.debug
        log("power poll failed: %s", error)

    def is_up(self, node: str, max_age_s: float) -> bool:
        """Whether a sample of `node` is at most `max_age_s` old."""
        sample = self.latest.get(node)
        return sample is not None and time.monotonic() - sample.time_s <= max_age_s

    def energy(self, start_s: float, end_s: float, idle_w: Mapping[str, float]) -> dict[str, NodeEnergy]:
        """Energy of each node between two instants of the monotonic clock; `idle_w` by node, watts."""
        with self._polling:
            return {
                node: node_energy(history, start_s, end_s, idle_w[node], self._interval_s)
                for node, history in self._history.items()
            }

    def host_metrics(self, start_s: float, end_s: float) -> HostFigures:
        """Mean of each host figure between two instants of the monotonic clock, by node."""
        with self._polling:
            inside = [by_node for at_s, by_node in self._host_history if start_s <= at_s <= end_s]
        gathered: dict[str, dict[str, list[float]]] = {}
        for by_node in inside:
            for node, figures in by_node.items():
                for name, value in figures.items():
                    gathered.setdefault(node, {}).setdefault(name, []).append(value)
        return {node: {name: float(np.mean(values)) for name, values in figures.items()} for node, figures in gathered.items()}

    def idle_power_w(self, start_s: float, end_s: float) -> dict[str, float]:
        """Mean power of each node between two instants at which it was idle, watts; a node without samples is absent.

        Over the part of the interval that samples cover: `total / (total − above_idle)` at 1 W of idle power.
        """
        per_watt = self.energy(start_s, end_s, dict.fromkeys(self._history, 1.0))
        power_w = {}
        for node, (total_j, above_j, _) in per_watt.items():
            if total_j is not None and above_j is not None and total_j > above_j:
                power_w[node] = total_j / (total_j - above_j)
        return power_w

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self.poll()


def node_energy(samples: Sequence[PowerSample], start_s: float, end_s: float, idle_w: float, interval_s: float) -> NodeEnergy:
    """Energy of one node over a window.

    The increase of its joule counter, linear between samples, where it has one; else the trapezoidal integral of its power
    samples, the outermost held to the window's edges. Above idle: minus idle power times the time that was integrated.

    Args:
        samples: in order of time, which may reach beyond the window.
        start_s: start of the window, seconds.
        end_s: its end, seconds.
        idle_w: power of the idle node, watts.
        interval_s: time between polls, seconds: what lies further than two of them from a sample is uncovered.
    """
    counted = [(s.time_s, s.energy_j) for s in samples if s.energy_j is not None]
    metered = [(s.time_s, s.power_w) for s in samples if s.power_w is not None]
    series = np.array(counted if len(counted) >= 2 else metered, dtype=float).reshape(-1, 2)
    near = (series[:, 0] >= start_s - 2 * interval_s) & (series[:, 0] <= end_s + 2 * interval_s)
    times, values = series[near].T
    if len(times) < (2 if len(counted) >= 2 else 1) or end_s <= start_s:
        return NodeEnergy(None, None, 1.0)
    uncovered = uncovered_share(times, start_s, end_s, 2 * interval_s)
    if len(counted) >= 2:
        first_s, last_s = np.clip([start_s, end_s], times[0], times[-1]).tolist()
        total_j = counter_increase(times, values, first_s, last_s)
        return NodeEnergy(total_j, total_j - idle_w * (last_s - first_s), uncovered)
    total_j = power_integral(times, values, start_s, end_s)
    return NodeEnergy(total_j, total_j - idle_w * (end_s - start_s), uncovered)


def counter_increase(times_s: Floats, values: Floats, start_s: float, end_s: float) -> float:
    """Increase of a counter between two instants, linear between samples; a counter that fell has restarted from 0."""
    steps = np.diff(values, prepend=values[0])
    grown = np.cumsum(np.where(steps < 0, values, steps))
    return float(np.interp(end_s, times_s, grown) - np.interp(start_s, times_s, grown))


def power_integral(times_s: Floats, power_w: Floats, start_s: float, end_s: float) -> float:
    """Trapezoidal integral of power samples over a window, the outermost samples held to its edges; joules."""
    inside = times_s[(times_s > start_s) & (times_s < end_s)]
    at_s = np.concatenate([[start_s], inside, [end_s]])
    return float(np.trapezoid(np.interp(at_s, times_s, power_w), at_s))


def uncovered_share(times_s: Floats, start_s: float, end_s: float, reach_s: float) -> float:
    """Share of a window that lies further than `reach_s` from every sample."""
    lows = np.concatenate([[-np.inf], times_s + reach_s])
    highs = np.concatenate([times_s - reach_s, [np.inf]])
    gaps = np.minimum(highs, end_s) - np.maximum(lows, start_s)
    return float(np.maximum(gaps, 0).sum() / (end_s - start_s))


def require_url(option: str, url: str) -> str:
    """`url` without its closing slash, if it is an absolute http(s) address.

    Raises:
        UsageError: it is none.
    """
    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{option}: expected an address such as http://127.0.0.1:9090, found {url!r}")
    return url.rstrip("/")
