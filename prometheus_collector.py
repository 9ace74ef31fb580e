"""Node state and power: a background poller, the latest sample of each node in memory, and energy over a window.

A decision reads `PrometheusCollector.latest`; it never waits for a poll. Samples come from a Prometheus server, or, where there
is none, from the nodes' own `/metrics`. Times are on the master's monotonic clock.
"""

import logging
import math
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import urllib3
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_client.parser import text_string_to_metric_families
from requests import Response, Session
from requests.exceptions import ConnectionError, RequestException

from energy import counter_increase, node_energy
from run_figures import UNCOVERED_LIMIT
from task import NodeEnergy, PowerSample
from utils import UsageError

logger = logging.getLogger(__name__)

POWER_METRIC = "node_power_watts"
ENERGY_METRIC = "node_energy_joules_total"
MEASURED_METRIC = "node_energy_measured_seconds_total"
"""Seconds that the joules were counted over: fewer than have passed where the meter was away. Not every target exports it."""

_METRICS = (POWER_METRIC, ENERGY_METRIC, MEASURED_METRIC)
BUSY_METRIC = "inference_duration_seconds_sum"
"""Seconds that a server's accelerator has spent on inferences, by model: on those that nobody waited for, too."""
HOST_QUERIES = {
    "cpu_busy_fraction": '1 - avg by (node) (rate(node_cpu_seconds_total{mode="idle"}[30s]))',
    "memory_used_fraction": "1 - max by (node) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
    "network_bytes_per_s": (
        'sum by (node) (rate(node_network_receive_bytes_total{device!="lo"}[30s])'
        ' + rate(node_network_transmit_bytes_total{device!="lo"}[30s]))'
    ),
}
"""PromQL of the optional figures of a node, from node-exporter."""
HOST_QUERY = "\nor ".join(f'label_replace({query}, "figure", "{name}", "", "")' for name, query in HOST_QUERIES.items())
"""All of them at once; the label `figure` says which one a value is."""
_LONGEST_LOOK_BACK_S = 3600.0
_LONGEST_REASON = 160

HostFigures = dict[str, dict[str, float]]
"""Value of each of HOST_QUERIES, by node."""

_COUNTER_LOOK_BACK = 10
"""Samples among which the counter's value before the latest is looked for."""
_LONGEST_PAUSE_S = 0.5
_CLOCK_LIMIT_S = 0.5
_BUSY_LOOK_BACK_S = 15.0
_BUSY_END_S = 6.0
"""How long before the end of a window the last sample of a server's counter may be: a scrape of 5 s, and a little."""
_SOME_POWER_W = 1e-3
"""Idle power that is surely not too large, and not 0, with which a counter may stand still."""
_LEAST_PAUSE = 0.1
"""Share of the interval that the poller rests after a slow answer, so that others get at what it has read."""


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
        self._busy: dict[str, list[tuple[float, float]]] = {}
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
                    read = samples_of(response.data.decode(), (*_METRICS, BUSY_METRIC))
                except ValueError as error:
                    logger.debug("no metrics from %s: %s", node, error)
                    continue
                samples[node] = [_sample(at_s, {name: value for name, labels, value in read if labels.get("node") == node})]
                # no such line before the first inference
                busy_s = sum(value for name, _, value in read if name == BUSY_METRIC and math.isfinite(value))
                self._busy.setdefault(node, []).append((at_s, busy_s))
        return samples

    def busy_s(self, start_s: float, end_s: float) -> dict[str, float]:
        """See `PrometheusSource.busy_s`."""
        return {
            node: _increase(samples, start_s, end_s)
            for node, samples in self._busy.items()
            if samples[0][0] <= start_s and _reaches(samples, start_s, end_s)
        }


class PrometheusSource:
    """Reads a Prometheus server: the raw samples of all nodes, with their own timestamps, by one query.

    The server's clock is taken for the master's, on which it runs; one that differs is warned of. A sample from the future counts
    as of now.

    Args:
        url: address of the server.
        nodes: names to look for in the label `node`.
        window_s: how far a query looks back beyond the last answer, seconds: a few polls, so that none is lost between two.
        timeout_s: longest wait for an answer, seconds.
        instances: host:port by node; series of a node with another `instance` are those of another run. None: any will do.
    """

    def __init__(
        self,
        url: str,
        nodes: Iterable[str],
        window_s: float,
        timeout_s: float = 5.0,
        instances: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        session = Session()
        session.hooks["response"].append(self._check_clock)
        no_retry = urllib3.Retry(total=0)  # the next poll is the retry
        self._prometheus = PrometheusConnect(url=url, retry=no_retry, timeout=timeout_s, session=session)
        self._nodes = frozenset(nodes)
        self._instances = instances
        self._window_s = window_s
        self._answered_s: float | None = None
        self._read_until: dict[tuple[str, str], float] = {}
        self._ambiguous: set[tuple[str, str]] = set()
        self._clock_differs = False
        self._followed: dict[tuple[str, str], tuple[str, float]] = {}  # labels of a node's series, what it is counted from

    def read(self) -> dict[str, list[PowerSample]]:
        """All samples that it has not given yet, as far back as shortly before the last answer.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        asked_s = time.monotonic()
        silent_s = 0.0 if self._answered_s is None else asked_s - self._answered_s
        look_back_ms = max(1, round(1e3 * min(self._window_s + silent_s, _LONGEST_LOOK_BACK_S)))
        pieces: dict[tuple[str, str], list[tuple[list[tuple[float, float]], str]]] = {}
        for labels, values in self._ask(f'{{__name__=~"{"|".join(_METRICS)}"}}[{look_back_ms}ms]', "values"):
            if values and (metric := labels.get("__name__")) is not None and self._is_meant(labels):
                pieces.setdefault((labels["node"], metric), []).append((values, str(sorted(labels.items()))))
        self._answered_s = asked_s
        now_s = time.monotonic()
        wall_to_monotonic_s = now_s - time.time()
        by_node: dict[str, dict[float, dict[str, float]]] = {}
        for (node, metric), series in pieces.items():
            times = by_node.setdefault(node, {})
            for unix_s, value in self._new(node, metric, series):
                at_s = min(unix_s + wall_to_monotonic_s, now_s)
                times.setdefault(round(at_s, 3), {})[metric] = value
        return {node: [_sample(at_s, values) for at_s, values in sorted(times.items())] for node, times in by_node.items()}

    def _check_clock(self, response: Response, **_: object) -> None:
        """Warn once of a clock that is surely further off than the limit, by the whole seconds of the header Date."""
        answered_s = time.time()
        try:
            said_s = parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return
        ahead_s = said_s - answered_s
        behind_s = answered_s - response.elapsed.total_seconds() - (said_s + 1)
        if max(ahead_s, behind_s) > _CLOCK_LIMIT_S and not self._clock_differs:
            self._clock_differs = True
            logger.warning(
                "the clock of Prometheus at %s is %.1f s or more %s this machine's, and energy is over a window that is off by "
                "as much: synchronise the clocks",
                *(self.url, max(ahead_s, behind_s), "ahead of" if ahead_s > behind_s else "behind"),
            )

    def _is_meant(self, labels: Mapping[str, str]) -> bool:
        return self._instances is None or labels.get("instance") == self._instances[labels["node"]]

    def _new(self, node: str, metric: str, series: list[tuple[list[tuple[float, float]], str]]) -> list[tuple[float, float]]:
        """Samples that were not given yet, of series that follow each other, as when a meter's pod is replaced.

        A counter that follows another is counted from its first sample. Nothing is given of series at the same time: two meters
        of one node cannot be told apart, and the steps between two counters would be taken for energy.
        """
        series.sort()
        if any(later[0][0] <= earlier[-1][0] for (earlier, _), (later, _) in pairwise(series)):
            if (node, metric) not in self._ambiguous:
                self._ambiguous.add((node, metric))
                logger.warning(
                    'Prometheus at %s has %d series of %s{node="%s"} at once: none of them is used; let one target export it',
                    *(self.url, len(series), metric, node),
                )
            return []
        given = []
        for values, labels in series:
            # by the server's clock, which may differ from this one and be set meanwhile
            read_until_s = self._read_until.get((node, metric), -math.inf)
            if new := [(unix_s, value) for unix_s, value in values if unix_s > read_until_s]:
                followed, counted_from = self._followed.get((node, metric), (labels, 0.0))
                if labels != followed and metric != POWER_METRIC:
                    counted_from = next((value for _, value in new if math.isfinite(value)), 0.0)
                self._followed[node, metric] = labels, counted_from
                self._read_until[node, metric] = new[-1][0]
                given += [(unix_s, value - counted_from) for unix_s, value in new]
        return given

    def host_metrics(self) -> HostFigures:
        """Latest CPU, memory and network figures by node, by one query; a node without node-exporter is absent.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        by_node: HostFigures = {}
        for labels, values in self._ask(HOST_QUERY, "value"):
            if (figure := labels.get("figure")) in HOST_QUERIES and math.isfinite(values[0][1]):
                by_node.setdefault(labels["node"], {})[figure] = values[0][1]
        return by_node

    def busy_s(self, start_s: float, end_s: float) -> dict[str, float]:
        """Seconds that each node's accelerator was busy between two instants of the monotonic clock, by its server's counters.

        A node whose counters do not reach from the one to the other is absent.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        now_s = time.monotonic()
        wall_to_monotonic_s = now_s - time.time()
        by_node: dict[str, list[list[tuple[float, float]]]] = {}
        for labels, values in self._ask(f"{BUSY_METRIC}[{math.ceil(now_s - start_s + _BUSY_LOOK_BACK_S)}s]", "values"):
            samples = [(unix_s + wall_to_monotonic_s, value) for unix_s, value in values if math.isfinite(value)]
            if samples and self._is_meant(labels):
                if samples[0][0] > start_s:
                    samples.insert(0, (start_s, 0.0))  # a series begins with the first inference of its model
                by_node.setdefault(labels["node"], []).append(samples)
        return {
            node: sum(_increase(samples, start_s, end_s) for samples in series)
            for node, series in by_node.items()
            if any(_reaches(samples, start_s, end_s) for samples in series)
        }

    def _ask(self, query: str, kind: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels and (Unix seconds, value) pairs of each series that belongs to a node; `kind` is "value" or "values"."""
        try:
            answer = self._prometheus.custom_query(query)
            series = [(one["metric"], one["values"] if kind == "values" else [one[kind]]) for one in answer]
            own = [(labels, pairs) for labels, pairs in series if labels.get("node") in self._nodes]
            return [(labels, [(float(unix_s), float(value)) for unix_s, value in pairs]) for labels, pairs in own]
        except ConnectionError as error:
            raise OSError(f"Prometheus at {self.url} does not answer: {_reason(error)}") from error
        except (RequestException, PrometheusApiClientException, AttributeError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"Prometheus at {self.url} answers wrongly: {_reason(error)}") from error


def _reaches(samples: Sequence[tuple[float, float]], start_s: float, end_s: float) -> bool:
    """Whether samples, as (time, value), go on until about the end of a window."""
    return samples[-1][0] >= end_s - min(_BUSY_END_S, 0.1 * (end_s - start_s))


def _increase(samples: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    times_s, values = np.array(samples).T
    return counter_increase(times_s, values, start_s, end_s)


def _reason(error: Exception) -> str:
    """The innermost cause of an error of `requests`, in one short line, without the connection at its beginning."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), Exception):
        error = inner
    texts = [argument for argument in error.args if isinstance(argument, str)]
    text = " ".join((texts[-1] if texts else str(error)).split())
    kind = f"{type(error).__name__} " if isinstance(error, LookupError) else ""
    return textwrap.shorten(kind + re.sub(r"^<[^>]*>: |^\S+\(host=.*?\): ", "", text), _LONGEST_REASON) or type(error).__name__


def samples_of(text: str, names: Sequence[str]) -> list[tuple[str, Mapping[str, str], float]]:
    """Samples of the named metrics in a Prometheus text page, as (name, labels, value); other lines are not parsed.

    Raises:
        ValueError: such a line is not in Prometheus' text format.
    """
    lines = [line for line in text.splitlines() if line.startswith(tuple(names))]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [(s.name, s.labels, s.value) for family in families for s in family.samples if s.name in names]


def _sample(at_s: float, values: Mapping[str, float]) -> PowerSample:
    """A reading from the values of the metrics; one that is absent or not a number is None."""
    return PowerSample(at_s, *(value if math.isfinite(value := values.get(name, math.nan)) else None for name in _METRICS))


class PrometheusCollector:
    """Polls a source in the background and keeps what it said.

    `latest` holds the last sample of each node. Its power is the gauge's, or, where a node has only a counter, the mean between
    the counter's last two samples if they are near enough; a value that is not a number is None there, and an old sample is known
    by its time.

    Args:
        source: where samples come from; None for a cluster without any meter.
        nodes: the nodes of the cluster.
        interval_s: time between polls, seconds.
        read_host: gives figures of the nodes themselves, by node and name, to be read with every poll.
        read_busy: gives the seconds that accelerators were busy between two instants, by node.
        delay_s: how long after each multiple of `interval_s` on the wall clock it polls, seconds. Meters and Prometheus keep to
            that clock too, so equal runs that start at a whole second see equal samples at equal times.
    """

    def __init__(
        self,
        source: Source | None,
        nodes: Sequence[str],
        interval_s: float,
        read_host: Callable[[], HostFigures] | None = None,
        delay_s: float = 0.0,
        read_busy: Callable[[float, float], dict[str, float]] = lambda start_s, end_s: {},
    ) -> None:
        self.latest: dict[str, PowerSample] = {}
        self._read_host = read_host
        self._read_busy = read_busy
        self._host_history: list[tuple[float, HostFigures]] = []
        self.failed_polls = 0
        self._failing: set[str] = set()
        self._source = source
        self._interval_s = interval_s
        self._delay_s = delay_s
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
                self._failed("power", error)
                return
            self._worked("power")
            for node, samples in read.items():
                history = self._history[node]
                fresh = [sample for sample in samples if not history or sample.time_s > history[-1].time_s + 1e-3]
                history.extend(fresh)
                if fresh:
                    longest_s = _COUNTER_LOOK_BACK * self._interval_s
                    self.latest[node] = _with_power(fresh[-1], history[-_COUNTER_LOOK_BACK:-1], longest_s)

            if self._read_host:
                try:
                    self._host_history.append((time.monotonic(), self._read_host()))
                except OSError as error:
                    self._failed("host", error)
                else:
                    self._worked("host")

    def poll_until(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Poll until `holds`, at most for a time in seconds; whether it does."""
        give_up_s = time.monotonic() + within_s
        self.poll()
        while not holds():
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(min(self._interval_s, _LONGEST_PAUSE_S))
            self.poll()
        return True

    def poll_past(self, time_s: float, max_age_s: float) -> None:
        """Poll until every node that still sends has a sample from `time_s` on, so that its energy reaches up to there.

        Args:
            time_s: an instant on the monotonic clock, of now or shortly before.
            max_age_s: age in seconds from which on a node is no longer waited for.
        """
        self.poll_until(
            lambda: all(self.latest[node].time_s >= time_s for node in self._history if self.is_up(node, max_age_s)),
            within_s=max(3 * self._interval_s, _LONGEST_PAUSE_S),
        )

    def _failed(self, what: str, error: OSError) -> None:
        self.failed_polls += 1
        log = logger.debug if what in self._failing else logger.warning
        self._failing.add(what)
        log("%s poll failed: %s", what, error)

    def _worked(self, what: str) -> None:
        if what in self._failing:
            self._failing.remove(what)
            logger.warning("%s polls work again", what)

    def is_up(self, node: str, max_age_s: float) -> bool:
        """Whether the latest sample of `node` holds a value and is at most `max_age_s` old."""
        sample = self.latest.get(node)
        has_value = sample is not None and (sample.power_w is not None or sample.energy_j is not None)
        return has_value and sample is not None and time.monotonic() - sample.time_s <= max_age_s

    def metrics(self, max_age_s: float) -> dict[str, tuple[str, ...]]:
        """Which of the two power metrics each node has shown within the last `max_age_s`; none for a node without power data."""
        since_s = time.monotonic() - max_age_s
        found = {}
        with self._polling:
            for node, history in self._history.items():
                recent = [sample for sample in history if sample.time_s >= since_s]
                counter = any(sample.energy_j is not None for sample in recent)
                gauge = any(sample.power_w is not None for sample in recent)
                found[node] = (ENERGY_METRIC,) * counter + (POWER_METRIC,) * gauge
        return found

    def energy(self, start_s: float, end_s: float, idle_w: Mapping[str, float]) -> dict[str, NodeEnergy]:
        """Energy of each node between two instants of the monotonic clock; `idle_w` by node, watts."""
        with self._polling:
            return {
                node: node_energy(history, start_s, end_s, idle_w[node], self._interval_s)
                for node, history in self._history.items()
            }

    def busy_s(self, start_s: float, end_s: float) -> dict[str, float]:
        """Seconds that accelerators were busy between two instants of the monotonic clock, for nodes whose servers say so."""
        with self._polling:
            try:
                return self._read_busy(start_s, end_s)
            except OSError as error:
                self._failed("busy time", error)
                return {}

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
        """Mean power of each node between two instants at which it was idle, watts.

        Over the part of the interval that samples cover, which is what idle power is taken off for. A node whose samples leave
        out more of the interval than a valid energy figure may is absent.
        """
        in_all = self.energy(start_s, end_s, dict.fromkeys(self._history, _SOME_POWER_W))
        rough_w = {node: energy.total_j / (end_s - start_s) if energy.total_j else 0.0 for node, energy in in_all.items()}
        power_w = {}
        for node, (total_j, above_j, uncovered) in self.energy(start_s, end_s, rough_w).items():
            if total_j is not None and above_j is not None and total_j > above_j and uncovered <= UNCOVERED_LIMIT:
                power_w[node] = rough_w[node] * total_j / (total_j - above_j)
        return power_w

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s(time.time())):
            self.poll()

    def _pause_s(self, unix_s: float) -> float:
        """Seconds from `unix_s` until the next poll."""
        least_s = _LEAST_PAUSE * self._interval_s
        return least_s + self._interval_s - (unix_s + least_s - self._delay_s) % self._interval_s


def _with_power(sample: PowerSample, before: Sequence[PowerSample], longest_s: float) -> PowerSample:
    """The sample; of a node that has only a counter, with the mean power since the counter's value before.

    None is worked out for a node with a gauge, which is silent after a gap until it has measured a whole second, and none over
    more than `longest_s` seconds: the meter may have been away, its counter standing still.
    """
    if sample.power_w is not None or sample.energy_j is None or any(earlier.power_w is not None for earlier in before):
        return sample
    for earlier in reversed(before):
        if earlier.energy_j is not None and sample.time_s - earlier.time_s <= longest_s:
            grown_j = sample.energy_j - earlier.energy_j
            return sample._replace(power_w=grown_j / (sample.time_s - earlier.time_s)) if grown_j >= 0 else sample
    return sample


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
