"""Where power samples come from: a Prometheus server, or the nodes' own `/metrics`. Times are on the master's monotonic clock."""

import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import urllib3
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_client.parser import text_string_to_metric_families
from requests import Response, Session
from requests.exceptions import RequestException

from measurement.energy import counter_increase
from measurement.http_exchange import BoundedExchanges, WrongAnswer, exchange, without_secrets
from settings import PowerMetrics
from task import PowerSample
from utils import UsageError, did_you_mean, printable

logger = logging.getLogger(__name__)
POWER_METRIC = "node_power_watts"
ENERGY_METRIC = "node_energy_joules_total"
MEASURED_METRIC = "node_energy_measured_seconds_total"
"""Seconds that the joules were counted over: fewer than have passed where the meter was away. Not every target exports it."""
_METRICS = (POWER_METRIC, ENERGY_METRIC, MEASURED_METRIC)
BUSY_METRIC = "inference_duration_seconds_sum"
"""Seconds that a server's accelerator has spent on inferences, by model: on those that nobody waited for, too."""
OWN_METRICS = PowerMetrics(power_w=[POWER_METRIC], energy_j=[ENERGY_METRIC], measured_s=[MEASURED_METRIC], label="node", nodes={})
"""How the power agents and the emulated nodes name what they measure."""
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
_CLOCK_LIMIT_S = 0.5
_BUSY_LOOK_BACK_S = 15.0
_BUSY_END_S = 6.0
"""How long before the end of a window the last sample of a server's counter may be: a scrape of 5 s, and a little."""
_CLOCK_DRIFT = 1e-3
"""By this share of the time that passed a clock may be slewed without a step."""
_LOOK_EVERY_S = 0.1


class Source(Protocol):
    """Where samples come from; one that places them by another clock than the monotonic one has `clock_steps`."""

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
        self._timeout_s = timeout_s
        self._silent: set[str] = set()

    def read(self) -> dict[str, list[PowerSample]]:
        """One sample of each node that answers, stamped with the middle of its round trip; an outage is warned of once."""
        samples = {}
        for node, url in self._urls.items():
            try:
                samples[node] = [self._read(node, url)]
                self._silent.discard(node)
            except Exception as error:  # what a node sends is no reason to lose the others
                log = logger.debug if node in self._silent else logger.warning
                self._silent.add(node)
                log("no metrics of %s: %s", node, _reason(error))
        return samples

    def _read(self, node: str, url: str) -> PowerSample:
        asked_s = time.monotonic()
        answer = exchange("GET", url, self._timeout_s)
        at_s = (asked_s + time.monotonic()) / 2
        if answer.status != 200:
            raise OSError(f"HTTP {answer.status}")
        read = samples_of(answer.body.decode(), (*_METRICS, BUSY_METRIC))
        # no such line before the first inference
        busy_s = sum(value for name, _, value in read if name == BUSY_METRIC and math.isfinite(value))
        self._busy.setdefault(node, []).append((at_s, busy_s))
        return _sample(at_s, {name: value for name, labels, value in read if labels.get("node") == node})

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
    as of now. When one of the two clocks is set while it is read, the samples around that instant cannot be placed: see
    `clock_steps`.

    Args:
        url: address of the server; a user and a password in it, or a query, go with every request and are never shown.
        nodes: the nodes of the cluster.
        window_s: how far a query looks back beyond the last answer, seconds: a few polls, so that none is lost between two.
        timeout_s: longest wait for an answer, seconds.
        instances: host:port by node; series of a node with another `instance` are those of another run. None: any will do.
        metrics: names of metrics and nodes there.

    Raises:
        UsageError: `metrics` names a node that there is not, or one as another.
    """

    def __init__(
        self,
        url: str,
        nodes: Iterable[str],
        window_s: float,
        timeout_s: float = 5.0,
        instances: Mapping[str, str] | None = None,
        metrics: PowerMetrics = OWN_METRICS,
    ) -> None:
        self.url = without_secrets(url)
        self.clock_steps: list[tuple[float, str]] = []
        """When a clock that samples are placed by was set, on the monotonic clock, and words for that."""
        self._nodes = frozenset(nodes)
        for node in metrics.nodes:
            if node not in self._nodes:
                raise UsageError(f"power.metrics.nodes: {node} is none of the nodes{did_you_mean(node, self._nodes)}")
        self._metrics = metrics
        self._metric_of = {
            name: metric
            for metric, names in zip(_METRICS, (metrics.power_w, metrics.energy_j, metrics.measured_s), strict=True)
            for name in names
        }
        self._node_of = {metrics.nodes.get(node, node): node for node in sorted(self._nodes)}
        for node in self._nodes:
            if (other := self._node_of[metrics.nodes.get(node, node)]) != node:
                raise UsageError(f"power.metrics.nodes: {metrics.nodes.get(node, node)} stands for both {node} and {other}")
        session = Session()
        session.trust_env = False  # no proxy leads to an address of the cluster
        session.hooks["response"].append(self._check_clock)
        self._exchanges = BoundedExchanges()
        address, self._url_fields = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
        self._secrets = [text for text in (address.password, address.query, *self._url_fields.values()) if text]
        base = address._replace(query="", fragment="").geturl().rstrip("/")
        self._prometheus = PrometheusConnect(url=base, session=session)
        session.mount(f"{address.scheme}://", self._exchanges)
        session.mount(base, self._exchanges)
        self._timeout_s = timeout_s
        self._instances = instances
        self._window_s = window_s
        self._answered_s: float | None = None
        self._read_until: dict[tuple[str, str], float] = {}
        self._ambiguous: set[tuple[str, str]] = set()
        self._clock_differs = False
        self._wall_to_monotonic_s: float | None = None
        self._server_to_monotonic_s: tuple[float, float] | None = None  # bounds of it
        self._followed: dict[tuple[str, str], tuple[str, float]] = {}  # labels of a node's series, what it is counted from

    def read(self) -> dict[str, list[PowerSample]]:
        """All samples that it has not given yet, as far back as shortly before the last answer.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        asked_s = time.monotonic()
        silent_s = 0.0 if self._answered_s is None else asked_s - self._answered_s
        look_back_ms = max(1, round(1e3 * min(self._window_s + silent_s, _LONGEST_LOOK_BACK_S)))
        server_to_monotonic_s = self._server_to_monotonic_s
        pieces: dict[tuple[str, str], list[tuple[list[tuple[float, float]], str, str]]] = {}
        for labels, values in self._ask(f'{{__name__=~"{"|".join(self._metric_of)}"}}[{look_back_ms}ms]', "values"):
            node, name = self._node_of.get(labels.get(self._metrics.label, "")), labels.get("__name__", "")
            if values and node and name in self._metric_of and self._is_meant(node, labels):
                pieces.setdefault((node, self._metric_of[name]), []).append((values, str(sorted(labels.items())), name))
        now_s = time.monotonic()
        wall_to_monotonic_s = now_s - time.time()
        self._note_clock_step(now_s, wall_to_monotonic_s, server_to_monotonic_s)
        self._answered_s, self._wall_to_monotonic_s = asked_s, wall_to_monotonic_s
        by_node: dict[str, dict[float, dict[str, float]]] = {}
        for (node, metric), series in pieces.items():
            times = by_node.setdefault(node, {})
            for unix_s, value in self._new(node, metric, series):
                at_s = unix_s + wall_to_monotonic_s
                if not self.clock_steps or at_s <= now_s + _CLOCK_LIMIT_S:  # else it was scraped before a clock was set back
                    times.setdefault(round(min(at_s, now_s), 3), {})[metric] = value
        return {node: [_sample(at_s, values) for at_s, values in sorted(times.items())] for node, times in by_node.items()}

    def _check_clock(self, response: Response, **_: object) -> None:
        """Warn once of a clock that is surely further off than the limit, by the whole seconds of the header Date."""
        answered_s, now_s = time.time(), time.monotonic()
        try:
            said_s = parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return
        took_s = response.elapsed.total_seconds()
        self._server_to_monotonic_s = now_s - took_s - (said_s + 1), now_s - said_s
        ahead_s = said_s - answered_s
        behind_s = answered_s - took_s - (said_s + 1)
        if max(ahead_s, behind_s) > _CLOCK_LIMIT_S and not self._clock_differs:
            self._clock_differs = True
            logger.warning(
                "the clock of Prometheus at %s is %.1f s or more %s this machine's, and energy is over a window that is off by "
                "as much: synchronise the clocks",
                *(self.url, max(ahead_s, behind_s), "ahead of" if ahead_s > behind_s else "behind"),
            )

    def _note_clock_step(self, now_s: float, wall_to_monotonic_s: float, server_before_s: tuple[float, float] | None) -> None:
        """Note a clock that was set since the last answer; what it drifts, or is slewed by, is no step.

        Samples from before then stand under times of the old clock, and after a clock was set back Prometheus may hold others
        under the same times.
        """
        if self._answered_s is None or self._wall_to_monotonic_s is None:
            return
        limit_s = _CLOCK_LIMIT_S + _CLOCK_DRIFT * (now_s - self._answered_s)
        own_s, server_s = self._wall_to_monotonic_s - wall_to_monotonic_s, 0.0
        if server_before_s and self._server_to_monotonic_s:
            (low_s, high_s), (before_low_s, before_high_s) = self._server_to_monotonic_s, server_before_s
            server_s = max(before_low_s - high_s, 0.0) - max(low_s - before_high_s, 0.0)  # by as much at least
        set_by_s, whose = (own_s, "this machine") if abs(own_s) > limit_s else (server_s, "Prometheus")
        if abs(set_by_s) > limit_s:
            how = "forward" if set_by_s > 0 else "back"
            self.clock_steps.append((now_s, f"the clock of {whose} was set {how} by {abs(set_by_s):.1f} s"))
        if abs(server_s) > limit_s:
            self._read_until.clear()

    def _is_meant(self, node: str, labels: Mapping[str, str]) -> bool:
        return self._instances is None or labels.get("instance") == self._instances[node]

    def _new(self, node: str, metric: str, series: list[tuple[list[tuple[float, float]], str, str]]) -> list[tuple[float, float]]:
        """Samples that were not given yet, of series that follow each other, as when a meter's pod is replaced.

        A counter that follows another is counted from its first sample. Nothing is given of series at the same time: two meters
        of one node cannot be told apart, and the steps between two counters would be taken for energy.
        """
        series.sort()
        if any(later[0][0] <= earlier[-1][0] for (earlier, _, _), (later, _, _) in pairwise(series)):
            if (node, metric) not in self._ambiguous:
                self._ambiguous.add((node, metric))
                names = " and ".join(sorted({name for _, _, name in series}))
                label = f'{self._metrics.label}="{self._metrics.nodes.get(node, node)}"'
                logger.warning(
                    "Prometheus at %s has %d series of %s{%s} at once: none of them is used; let one target export it",
                    *(self.url, len(series), names, label),
                )
            return []
        given = []
        for values, labels, _ in series:
            # by the server's clock, which may differ from this one and be set meanwhile
            read_until_s = self._read_until.get((node, metric), -math.inf)
            if new := [(unix_s, value) for unix_s, value in values if unix_s > read_until_s]:
                followed, counted_from = self._followed.get((node, metric), (labels, 0.0))
                if labels != followed and metric != POWER_METRIC:
                    counted_from = next((value for _, value in new if math.isfinite(value)), 0.0)
                for unix_s, value in new:
                    if value < counted_from:
                        counted_from = 0.0  # it has restarted
                    given.append((unix_s, value - counted_from))
                self._followed[node, metric] = labels, counted_from
                self._read_until[node, metric] = new[-1][0]
        return given

    def host_metrics(self) -> HostFigures:
        """Latest CPU, memory and network figures by node, by one query; a node without node-exporter is absent.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        by_node: HostFigures = {}
        for labels, values in self._ask(HOST_QUERY, "value"):
            if (
                (figure := labels.get("figure")) in HOST_QUERIES
                and labels.get("node") in self._nodes
                and math.isfinite(values[0][1])
            ):
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
            if samples and (node := labels.get("node")) in self._nodes and self._is_meant(node, labels):
                if samples[0][0] > start_s:
                    samples.insert(0, (start_s, 0.0))  # a series begins with the first inference of its model
                by_node.setdefault(node, []).append(samples)
        return {
            node: sum(_increase(samples, start_s, end_s) for samples in series)
            for node, series in by_node.items()
            if any(_reaches(samples, start_s, end_s) for samples in series)
        }

    def _ask(self, query: str, kind: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels and (Unix seconds, value) pairs of each series; `kind` is "value" or "values"."""
        self._exchanges.deadline_s = time.monotonic() + self._timeout_s
        try:
            answer = self._prometheus.custom_query(query, self._url_fields)
            series = [(one["metric"], one["values"] if kind == "values" else [one[kind]]) for one in answer]
            return [(labels, [(_unix_s(at), float(value)) for at, value in pairs]) for labels, pairs in series]
        except TimeoutError:
            raise OSError(f"Prometheus at {self.url} does not answer: no answer within {self._timeout_s:g} s") from None
        except Exception as error:  # an answer may be wrong in many ways
            is_silent = isinstance(error, OSError) and not isinstance(error, (RequestException, WrongAnswer))
            how = "does not answer" if is_silent else "answers wrongly"
            raise OSError(f"Prometheus at {self.url} {how}: {_reason(error, self._secrets)}") from None


def _reaches(samples: Sequence[tuple[float, float]], start_s: float, end_s: float) -> bool:
    """Whether samples, as (time, value), go on until about the end of a window."""
    return samples[-1][0] >= end_s - min(_BUSY_END_S, 0.1 * (end_s - start_s))


def _increase(samples: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    times_s, values = np.array(samples).T
    return counter_increase(times_s, values, start_s, end_s)


def _unix_s(value: object) -> float:
    unix_s = float(str(value))
    if not math.isfinite(unix_s):
        raise ValueError(f"expected a time in seconds, found {value!r}")
    return unix_s


def _reason(error: Exception, secrets: Iterable[str] = ()) -> str:
    """What happened, in one short line without addresses and secrets."""
    text = str(error) or type(error).__name__
    for secret in secrets:
        text = text.replace(secret, "...")
    kind = "" if isinstance(error, (OSError, PrometheusApiClientException)) else f"{type(error).__name__}: "
    return printable(kind + re.sub(r"\S+://\S+", "its address", text), _LONGEST_REASON)


def samples_of(text: str, names: Sequence[str]) -> list[tuple[str, Mapping[str, str], float]]:
    """Samples of the named metrics in a Prometheus text page, as (name, labels, value); other lines are not parsed.

    Raises:
        ValueError: such a line is not in Prometheus' text format.
    """
    lines = [line for line in text.split("\n") if line.startswith(tuple(names))]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [(s.name, s.labels, s.value) for family in families for s in family.samples if s.name in names]


def _sample(at_s: float, values: Mapping[str, float]) -> PowerSample:
    """A reading from the values of the metrics; one that is absent or not a number is None."""
    return PowerSample(at_s, *(value if math.isfinite(value := values.get(name, math.nan)) else None for name in _METRICS))


def require_url(option: str, url: str) -> str:
    """`url` without its closing slash, if it is an absolute http(s) address; an error shows no password and no query.

    Raises:
        UsageError: it is none.
    """
    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{option}: expected an address such as http://127.0.0.1:9090, found {without_secrets(url)!r}")
    return url.rstrip("/")
