"""Energy from samples, the two sources of samples, and the poller that a decision never waits for."""

import contextlib
import math
import queue
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import requests

from measurement.energy import PowerRange
from measurement.power_sources import (
    ENERGY_METRIC,
    HOST_QUERIES,
    HOST_QUERY,
    POWER_METRIC,
    NodeMetricsSource,
    PrometheusSource,
    require_url,
    samples_of,
)
from prometheus_collector import PrometheusCollector
from settings import PowerMetrics
from task import PowerSample
from tests.helpers import Reply, eventually, scripted_server
from utils import HarnessError, UsageError


def times(*values):
    return np.array(values, dtype=float)


# Reading the nodes' own /metrics.

PAGE = """\
# HELP node_power_watts Mean power over the last whole second.
# TYPE node_power_watts gauge
node_power_watts{accelerator="coral",node="coral1"} 4.56
# TYPE node_energy_joules_total counter
node_energy_joules_total{accelerator="coral",node="coral1"} 1234.5
node_energy_joules_created{accelerator="coral",node="coral1"} 1.7e+09
inference_requests_total{code="200",model="resnet50"} 7.0
"""


def page(text):
    return lambda asked: Reply(content=text.encode())


def test_samples_of_reads_labels_of_any_text():
    values = ["a b", "{x},}", 'quote\\"', "#", "모델", "line\u2028separator", "\x85\x0b\x1c"]
    page = "".join(f'node_power_watts{{node="{value}"}} 1\n' for value in values)
    assert [labels["node"] for _, labels, _ in samples_of(page, ("node_power_watts",))] == [
        value.replace('\\"', '"') for value in values
    ]


def test_samples_of_takes_the_named_metrics_only():
    assert samples_of(PAGE, ("node_power_watts",)) == [("node_power_watts", {"accelerator": "coral", "node": "coral1"}, 4.56)]
    assert samples_of("", ("node_power_watts",)) == []


def test_nodes_are_read_from_their_own_metrics():
    with scripted_server(page(PAGE)) as server:
        before_s = time.monotonic()
        read = NodeMetricsSource({"coral1": f"{server.url}/metrics"}).read()
        after_s = time.monotonic()
    ((sample,),) = read.values()
    assert (sample.power_w, sample.energy_j) == (4.56, 1234.5)
    assert before_s <= sample.time_s <= after_s
    assert server.paths() == ["/metrics"]


def test_busy_time_is_the_increase_of_the_servers_own_counters_over_all_models():
    text = {"": PAGE}
    with scripted_server(lambda asked: Reply(content=text[""].encode())) as server:
        source = NodeMetricsSource({"coral1": f"{server.url}/metrics"})
        collector = PrometheusCollector(source, ["coral1"], 1.0, read_busy=source.busy_s)
        collector.poll()
        start_s = time.monotonic()
        for of_resnet50_s, of_vgg16_s in ((0.5, 0.0), (0.75, 2.0), (0.25, 1.0)):  # then it was started anew
            text[""] = PAGE + f'inference_duration_seconds_sum{{model="resnet50"}} {of_resnet50_s}\n'
            text[""] += f'inference_duration_seconds_sum{{model="vgg16"}} {of_vgg16_s}\ninference_duration_seconds_sum 1e999\n'
            time.sleep(0.02)
            collector.poll()
        end_s = time.monotonic()
        assert collector.busy_s(start_s, end_s) == {"coral1": pytest.approx(0.5 + 2.25 + 1.25, rel=0.2)}
        assert collector.busy_s(start_s, end_s + 100.0) == {}  # its samples end long before
        assert collector.busy_s(start_s - 100.0, end_s) == {}
        assert (collector.latest["coral1"].power_w, collector.latest["coral1"].energy_j) == (4.56, 1234.5)


def test_metrics_of_another_node_are_not_taken_for_its_own():
    with scripted_server(page(PAGE)) as server:
        ((sample,),) = NodeMetricsSource({"hailo1": f"{server.url}/metrics"}).read().values()
    assert (sample.power_w, sample.energy_j) == (None, None)


def test_node_that_cannot_be_read_is_absent_and_the_others_are_not():
    with scripted_server(page(PAGE)) as good, scripted_server(lambda asked: Reply(500)) as bad, scripted_server(page("")) as gone:
        gone.stop()
        urls = {"hailo1": f"{bad.url}/metrics", "jetson1": f"{gone.url}/metrics", "coral1": f"{good.url}/metrics"}
        assert list(NodeMetricsSource(urls).read()) == ["coral1"]


def test_node_that_is_silent_is_said_once(caplog):
    silent = [True]
    with scripted_server(lambda asked: Reply(500) if silent[0] else page(PAGE)(asked)) as server:
        source = NodeMetricsSource({"coral1": f"{server.url}/metrics"})
        assert source.read() == source.read() == {}
        silent[0] = False
        assert list(source.read()) == ["coral1"]
    assert [record.getMessage() for record in caplog.records] == ["no metrics of coral1: HTTP 500"]


def test_node_that_does_not_answer_in_time_is_absent():
    never = threading.Event()
    with scripted_server(lambda asked: Reply(after=never)) as slow, scripted_server(page(PAGE)) as good:
        urls = {"hailo1": f"{slow.url}/metrics", "coral1": f"{good.url}/metrics"}
        assert list(NodeMetricsSource(urls, timeout_s=0.2).read()) == ["coral1"]


@pytest.mark.parametrize(
    "garbage", [b'node_power_watts{node="coral1"', b'node_power_watts{node="coral1"} much', b'node_power_watts{node="\xff"} 1']
)
def test_garbage_instead_of_metrics_stops_neither_the_poll_nor_the_other_nodes(garbage):
    with scripted_server(lambda asked: Reply(content=garbage)) as bad, scripted_server(page(PAGE)) as good:
        source = NodeMetricsSource({"hailo1": f"{bad.url}/metrics", "coral1": f"{good.url}/metrics"})
        collector = PrometheusCollector(source, ["hailo1", "coral1"], 1.0)
        collector.poll()
    assert collector.latest["coral1"].power_w == 4.56


@pytest.mark.parametrize("number", ["NaN", "+Inf"])
def test_reading_that_is_no_number_counts_as_none(number):
    with scripted_server(page(PAGE.replace("4.56", number))) as server:
        ((sample,),) = NodeMetricsSource({"coral1": f"{server.url}/metrics"}).read().values()
    assert sample.power_w is None
    assert sample.energy_j == 1234.5


# Reading a Prometheus server.


def series(metric, node, values, instance="x"):
    labels = {"__name__": metric, "node": node, "instance": instance}
    return {"metric": labels, "values": [[at, str(value)] for at, value in values]}


def matrix(*results):
    return Reply(content={"status": "success", "data": {"resultType": "matrix", "result": list(results)}})


def query_of(asked):
    return parse_qs(urlsplit(asked.path).query)["query"][0]


def test_one_query_reads_all_nodes_and_keeps_their_timestamps():
    now_unix_s = time.time()
    to_monotonic_s = time.monotonic() - now_unix_s
    answer = matrix(
        series("node_power_watts", "coral1", [(now_unix_s - 2, 4.5), (now_unix_s - 1, 4.6)]),
        series("node_energy_joules_total", "coral1", [(now_unix_s - 2, 100), (now_unix_s - 1, 105)]),
        series("node_power_watts", "hailo1", [(now_unix_s - 1, 5.0)]),
    )
    with scripted_server(lambda asked: answer) as server:
        read = PrometheusSource(server.url, ["coral1", "hailo1"], window_s=10.0).read()
        (asked,) = server.asked
    assert urlsplit(asked.path).path == "/api/v1/query"
    assert "node_power_watts" in query_of(asked) and "node_energy_joules_total" in query_of(asked)
    assert query_of(asked).endswith("[10000ms]")
    assert [(s.power_w, s.energy_j) for s in read["coral1"]] == [(4.5, 100.0), (4.6, 105.0)]
    assert [(s.power_w, s.energy_j) for s in read["hailo1"]] == [(5.0, None)]
    expected = [now_unix_s - 2 + to_monotonic_s, now_unix_s - 1 + to_monotonic_s]
    assert [s.time_s for s in read["coral1"]] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("ahead_s", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_clock_of_the_server_that_differs_makes_no_counter_fall(ahead_s, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("prometheus_collector.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("prometheus_collector.time.time", lambda: clock[0] + 1e9)

    def answer(asked):
        scraped = [at for at in np.arange(900.0, clock[0] + 0.01, 1.0).tolist() if at > clock[0] - 10]
        return matrix(series(ENERGY_METRIC, "coral1", [(at + 1e9 + ahead_s, 5.0 * at) for at in scraped]))

    with scripted_server(answer) as server:
        collector = PrometheusCollector(PrometheusSource(server.url, ["coral1"], 10.0), ["coral1"], 1.0)
        for _ in range(60):
            collector.poll()
            clock[0] += 0.7
    energy = collector.energy(1000.0, 1030.0, {"coral1": 0.0})["coral1"]
    assert energy.total_j == pytest.approx(150.0, abs=5.0 * 0.8)
    assert energy.uncovered == 0.0


@pytest.mark.parametrize(
    ("ahead_s", "says"),
    [
        (-3600.0, "3[56][0-9]{2}[.][0-9] s or more behind"),
        (-1.6, "or more behind"),
        (0.0, ""),
        (1.6, "or more ahead of"),
        (None, ""),
    ],
)
def test_clock_of_the_server_that_differs_is_warned_of_once(ahead_s, says, caplog):
    def answer(asked):
        date = "yesterday" if ahead_s is None else formatdate(time.time() + ahead_s, usegmt=True)
        return Reply(content=matrix().content, headers={"Date": date})

    with scripted_server(answer) as server:
        source = PrometheusSource(server.url, ["coral1"], 10.0)
        source.read()
        source.read()
    warned = [record.getMessage() for record in caplog.records if "the clock of Prometheus" in record.getMessage()]
    assert len(warned) == bool(says)
    assert all(re.search(f"at {server.url} is .*{says} this machine's", line) for line in warned)


@pytest.mark.parametrize(
    ("took_s", "said_s", "warns"),
    [(1.0, -1.4, False), (0.0, -1.4, False), (0.0, -1.6, True), (1.0, -1.6, False), (1.0, -2.6, True)],
)
def test_clock_is_judged_by_what_whole_seconds_and_the_time_of_the_answer_leave_open(took_s, said_s, warns, monkeypatch, caplog):
    monkeypatch.setattr("prometheus_collector.time.time", lambda: 1e9)
    elapsed = property(lambda response: timedelta(seconds=took_s), lambda response, measured: None)
    monkeypatch.setattr(requests.Response, "elapsed", elapsed, raising=False)
    date = datetime.fromtimestamp(1e9, UTC) + timedelta(seconds=said_s)
    monkeypatch.setattr("measurement.power_sources.parsedate_to_datetime", lambda text: date)
    with scripted_server(lambda asked: matrix()) as server:
        PrometheusSource(server.url, ["coral1"], 10.0).read()
    assert ("the clock of Prometheus" in caplog.text) == warns


def test_other_nodes_and_series_without_a_node_are_ignored():
    at = time.time()
    nameless = {"metric": {"__name__": "node_power_watts"}, "values": [[at, "1"]]}
    answer = matrix(
        series("node_power_watts", "master", [(at, 3.0)]), nameless, series("node_power_watts", "coral1", [(at, 4.5)])
    )
    with scripted_server(lambda asked: answer) as server:
        assert list(PrometheusSource(server.url, ["coral1"], 10.0).read()) == ["coral1"]


def test_sample_from_the_future_counts_as_of_now():
    with scripted_server(lambda asked: matrix(series("node_power_watts", "coral1", [(time.time() + 60, 4.5)]))) as server:
        ((sample,),) = PrometheusSource(server.url, ["coral1"], 10.0).read().values()
    assert sample.time_s <= time.monotonic() + 0.001  # times are rounded to the millisecond


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(500, b"internal"),
        Reply(503, {"status": "error"}),
        Reply(400, {"status": "error", "error": "parse error"}),
        Reply(content=b"<html>not Prometheus</html>"),
        Reply(content={"status": "success"}),
        Reply(content={"status": "success", "data": None}),
        Reply(reset=True),
    ],
)
def test_server_error_is_an_os_error_that_names_the_server(trouble):
    with (
        scripted_server(lambda asked: trouble) as server,
        pytest.raises(OSError, match=f"Prometheus at {server.url}"),
    ):
        PrometheusSource(server.url, ["coral1"], 10.0).read()


def test_server_that_is_gone_or_silent_is_an_os_error():
    never = threading.Event()
    with scripted_server(lambda asked: Reply(after=never)) as server:
        with pytest.raises(OSError, match="Prometheus at"):
            PrometheusSource(server.url, ["coral1"], 10.0, timeout_s=0.2).read()
        assert len(server.asked) == 1  # the next poll is the retry
        server.stop()
        with pytest.raises(OSError, match="Prometheus at"):
            PrometheusSource(server.url, ["coral1"], 10.0).read()


def test_host_metrics_are_read_by_one_query_and_told_apart_by_name():
    figures = {name: 0.25 + index for index, name in enumerate(HOST_QUERIES)}
    result = [
        {"metric": {"node": node, "figure": name}, "value": [1.0, str(value)]}
        for node in ("coral1", "stranger")
        for name, value in figures.items()
    ]
    result.append({"metric": {"node": "hailo1", "figure": "cpu_busy_fraction"}, "value": [1.0, "NaN"]})
    answer = Reply(content={"status": "success", "data": {"resultType": "vector", "result": result}})
    with scripted_server(lambda asked: answer) as server:
        read = PrometheusSource(server.url, ["coral1", "hailo1"], 10.0).host_metrics()
        assert list(map(query_of, server.asked)) == [HOST_QUERY]
    assert all(query in HOST_QUERY for query in HOST_QUERIES.values())
    assert read == {"coral1": figures}


def test_busy_time_by_prometheus_adds_models_and_the_servers_that_followed_each_other():
    now_s = time.time()

    def busy(node, samples, model, instance="x"):
        labels = {"node": node, "instance": instance, "model": model}
        return {"metric": labels, "values": [[now_s + at_s, str(value)] for at_s, value in samples]}

    answer = matrix(
        busy("coral1", [(-30, 100.0), (-20, 100.0), (-10, 104.0), (0, 106.0)], "resnet50"),
        busy("coral1", [(-10, 1.0), (0, 3.0)], "vgg16"),  # its first inference was after the start
        busy("hailo1", [(-30, 50.0), (-15, 51.5)], "vgg16"),  # a pod that was replaced
        busy("hailo1", [(-10, 0.5), (0, 2.5)], "vgg16", "y"),
        busy("jetson1", [(-30, 1.0), (-15, 9.0)], "vgg16"),  # not scraped any more
    )
    with scripted_server(lambda asked: answer) as server:
        source = PrometheusSource(server.url, ["coral1", "hailo1", "jetson1"], 10.0)
        collector = PrometheusCollector(source, ["coral1", "hailo1", "jetson1"], 1.0, read_busy=source.busy_s)
        end_s = time.monotonic()
        busy_s = collector.busy_s(end_s - 20.0, end_s)
        (asked,) = server.asked
    assert query_of(asked) == "inference_duration_seconds_sum[36s]"
    assert busy_s == {"coral1": pytest.approx(6.0 + 3.0, abs=0.1), "hailo1": pytest.approx(0.5 + 2.5, abs=0.1)}


def test_busy_time_that_prometheus_does_not_give_is_absent():
    with scripted_server(lambda asked: Reply(500)) as server:
        source = PrometheusSource(server.url, ["coral1"], 10.0)
        assert PrometheusCollector(source, ["coral1"], 1.0, read_busy=source.busy_s).busy_s(0.0, 1.0) == {}


def test_poll_of_six_nodes_is_one_http_request():
    nodes = [f"node{number}" for number in range(6)]

    def answer(asked):
        return matrix(*(series(metric, node, [(time.time(), 4.5)]) for node in nodes for metric in (POWER_METRIC, ENERGY_METRIC)))

    with scripted_server(answer) as server:
        collector = PrometheusCollector(PrometheusSource(server.url, nodes, 10.0), nodes, 1.0)
        collector.poll()
        assert len(server.asked) == 1
        assert list(collector.latest) == nodes
        collector.poll()
        assert len(server.asked) == 2


@pytest.mark.parametrize("first_j", [3.0, 9000.0])
def test_series_that_follow_each_other_are_one_meter_that_was_replaced(first_j):
    now = time.time()
    answer = matrix(
        series(ENERGY_METRIC, "coral1", [(now - 2, first_j), (now - 1, first_j + 5)], "b"),  # comes first in the answer
        series(ENERGY_METRIC, "coral1", [(now - 5, 100.0), (now - 4, 105.0)], "a"),
        series(POWER_METRIC, "coral1", [(now - 2, 5.0)], "b"),
        series(POWER_METRIC, "coral1", [(now - 4, 4.0)], "a"),
    )
    later = matrix(series(ENERGY_METRIC, "coral1", [(now - 1, first_j + 5), (now - 0.8, first_j + 6)], "b"))
    back = matrix(series(ENERGY_METRIC, "coral1", [(now - 0.5, 200.0), (now - 0.4, 201.0)], "a"))
    answers = iter([answer, later, back])
    with scripted_server(lambda asked: next(answers)) as server:
        source = PrometheusSource(server.url, ["coral1"], 10.0)
        first, second, third = (source.read()["coral1"] for _ in range(3))
    assert [sample.energy_j for sample in first] == pytest.approx([100.0, 105.0, 0.0, 5.0])
    assert [sample.power_w for sample in first] == [None, 4.0, 5.0, None]
    assert [sample.energy_j for sample in second] == pytest.approx([6.0])
    assert [sample.energy_j for sample in third] == pytest.approx([0.0, 1.0])


def test_two_meters_of_a_node_at_the_same_time_are_named_once_and_not_mixed(caplog):
    now = time.time()
    twice = [
        series(ENERGY_METRIC, "coral1", [(now - 2 + late, joules), (now - 1 + late, joules + 5)])
        for late, joules in ((0.0, 100.0), (0.5, 9000.0))
    ]
    answer = matrix(*twice, series(POWER_METRIC, "coral1", [(now - 1, 4.5)]), series(ENERGY_METRIC, "hailo1", [(now - 1, 7.0)]))
    with scripted_server(lambda asked: answer) as server:
        source = PrometheusSource(server.url, ["coral1", "hailo1"], 10.0)
        read = source.read()
        source.read()
    assert [(sample.power_w, sample.energy_j) for sample in read["coral1"]] == [(4.5, None)]
    assert [sample.energy_j for sample in read["hailo1"]] == [7.0]
    assert caplog.text.count('2 series of node_energy_joules_total{node="coral1"} at once') == 1


def test_query_after_failures_reaches_back_to_the_last_answer(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("prometheus_collector.time.monotonic", lambda: clock[0])
    replies = [matrix(), Reply(503), matrix(), matrix()]
    with scripted_server(lambda asked: replies[len(server.asked) - 1]) as server:
        source = PrometheusSource(server.url, ["coral1"], 10.0)
        source.read()
        clock[0] += 30.0
        with pytest.raises(OSError, match="Prometheus at"):
            source.read()
        clock[0] += 30.0
        source.read()
        clock[0] += 86400.0
        source.read()
        assert [query_of(asked).partition("}")[2] for asked in server.asked] == [
            "[10000ms]",
            "[40000ms]",
            "[70000ms]",
            "[3600000ms]",
        ]


def test_polls_of_a_prometheus_server_keep_each_sample_once():
    start = time.time() - 10
    known = [(start + second, 4.0 + second) for second in range(6)]
    answers = [matrix(series("node_power_watts", "coral1", known[:4])), matrix(series("node_power_watts", "coral1", known[1:]))]
    with scripted_server(lambda asked: answers[len(server.asked) - 1]) as server:
        collector = PrometheusCollector(PrometheusSource(server.url, ["coral1"], 10.0), ["coral1"], 1.0)
        collector.poll()
        assert collector.latest["coral1"].power_w == 7.0
        collector.poll()
        assert len(server.asked) == 2
    assert collector.latest["coral1"].power_w == 9.0
    zero = time.monotonic() - time.time() + start
    # 4 W to 9 W in 5 s, rising evenly; counted twice, the samples would give more than one per second
    energy = collector.energy(zero, zero + 5.0, {"coral1": 4.0})["coral1"]
    assert energy.total_j == pytest.approx(32.5, abs=0.1)
    assert energy.above_idle_j == pytest.approx(12.5, abs=0.1)


@pytest.mark.parametrize("set_by_s", [-3600.0, -5.0, 5.0, 3600.0])
@pytest.mark.parametrize("whose", ["this machine", "Prometheus", "both"])
def test_clock_that_is_set_while_it_runs_makes_energy_invalid(whose, set_by_s, monkeypatch):
    clock, wall_s, server_s = [1000.0], [1e9], [1e9]
    monkeypatch.setattr("prometheus_collector.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("prometheus_collector.time.time", lambda: clock[0] + wall_s[0])
    scrapes: list[tuple[float, float]] = []

    def answer(asked):
        now_s = clock[0] + server_s[0]
        scrapes.append((now_s, 5.0 * clock[0]))
        inside = sorted((at, joules) for at, joules in scrapes if now_s - 15 < at <= now_s)
        return Reply(
            content=matrix(series(ENERGY_METRIC, "coral1", inside)).content, headers={"Date": formatdate(now_s, usegmt=True)}
        )

    with scripted_server(answer) as server:
        source = PrometheusSource(server.url, ["coral1"], 15.0)
        collector = PrometheusCollector(source, ["coral1"], 1.0)
        for polls in range(40):
            if polls == 20:
                wall_s[0] += set_by_s if whose != "Prometheus" else 0.0
                server_s[0] += set_by_s if whose != "this machine" else 0.0
            collector.poll()
            clock[0] += 1.0
    idle_w = {"coral1": 4.5}
    expected = f"the clock of {'Prometheus' if whose == 'Prometheus' else 'this machine'} was set"
    assert collector.history().impossible(1000.0, 1040.0, idle_w)["coral1"].startswith(expected)
    assert collector.history().impossible(1000.0, 1015.0, idle_w) == {}
    energy_j = collector.energy(1000.0, 1039.0, idle_w)["coral1"].total_j
    assert energy_j is not None and energy_j <= 5.0 * 40
    if whose == "both":
        assert collector.latest["coral1"].time_s == pytest.approx(1039.0, abs=0.01)
        assert energy_j == pytest.approx(5.0 * 39, abs=10.0)


@pytest.mark.parametrize("drift", [-5e-4, 0.0, 5e-4])
@pytest.mark.parametrize("silent_s", [1.0, 600.0])
def test_clock_that_drifts_or_is_slewed_was_not_set(drift, silent_s, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("prometheus_collector.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("prometheus_collector.time.time", lambda: 1e9 + clock[0] * (1 + drift))

    def answer(asked):
        return Reply(content=matrix().content, headers={"Date": formatdate(1e9 + clock[0], usegmt=True)})

    with scripted_server(answer) as server:
        source = PrometheusSource(server.url, ["coral1"], 15.0)
        for _ in range(20):
            source.read()
            clock[0] += silent_s
    assert source.clock_steps == []


def test_user_password_and_query_of_the_address_go_with_every_request_and_are_never_shown(caplog):
    replies = [
        matrix(),
        Reply(503, b"no entry for user:hush?token=tell"),
        Reply(302, headers={"Location": "ftp://user:hush@x"}),
        matrix(),
    ]
    with scripted_server(lambda asked: replies[min(len(server.asked), 4) - 1]) as server:
        address = server.url.replace("http://", "http://user:hush@")
        source = PrometheusSource(f"{address}/prom/?token=tell", ["coral1"], 15.0)
        collector = PrometheusCollector(source, ["coral1"], 1.0)
        for _ in range(3):
            collector.poll()
            collector._failing.clear()
        assert [urlsplit(asked.path).path for asked in server.asked] == ["/prom/api/v1/query"] * 3
        assert all(parse_qs(urlsplit(asked.path).query)["token"] == ["tell"] for asked in server.asked)
        assert {asked.headers["Authorization"] for asked in server.asked} == {"Basic dXNlcjpodXNo"}
    assert len(caplog.records) == 2 and f"Prometheus at {server.url}/prom/" in caplog.text
    assert "hush" not in caplog.text and "tell" not in caplog.text


@pytest.mark.parametrize(
    "url", ["ftp://user:hush@127.0.0.1", "user:hush@127.0.0.1:9090", "http://user:hush@[::1", "127.0.0.1?t=hush"]
)
def test_address_that_is_refused_is_shown_without_its_secrets(url):
    with pytest.raises(UsageError, match="--prometheus-url: expected an address such as") as refused:
        require_url("--prometheus-url", url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_proxies_and_passwords_of_the_environment_are_not_used(name, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    with scripted_server(lambda asked: matrix(series(POWER_METRIC, "coral1", [(time.time(), 4.5)]))) as server:
        assert PrometheusSource(server.url, ["coral1"], 15.0).read()["coral1"][0].power_w == 4.5
        assert "Authorization" not in server.asked[0].headers


PREDECESSOR = PowerMetrics(
    power_w=["raspberry_power_watt", "jetson_board_power_watt"],
    energy_j=[],
    measured_s=[],
    label="instance",
    nodes={"coral1": "10.0.0.7:8000", "jetson1": "10.0.0.9:8001"},
)


def test_metrics_and_nodes_may_have_other_names():
    now = time.time()
    foreign = [("raspberry_power_watt", "10.0.0.7:8000", 4.5), ("jetson_board_power_watt", "10.0.0.9:8001", 2.4)]
    foreign += [
        ("raspberry_power_watt", "10.0.0.8:8000", 9.0),
        (POWER_METRIC, "10.0.0.7:8000", 7.0),
        ("raspberry_power_watt", "hailo1", 5.1),
    ]
    answer = matrix(*(series(metric, "somewhere", [(now, value)], instance) for metric, instance, value in foreign))
    with scripted_server(lambda asked: answer) as server:
        read = PrometheusSource(server.url, ["coral1", "jetson1", "hailo1"], 15.0, metrics=PREDECESSOR).read()
        assert query_of(server.asked[0]) == '{__name__=~"raspberry_power_watt|jetson_board_power_watt"}[15000ms]'
    assert {node: sample.power_w for node, (sample,) in read.items()} == {"coral1": 4.5, "jetson1": 2.4, "hailo1": 5.1}


def test_two_names_of_one_quantity_of_a_node_are_two_series_at_once(caplog):
    now, both = time.time(), PREDECESSOR.model_copy(update={"label": "node", "nodes": {}})
    answer = matrix(*(series(metric, "coral1", [(now - 1, 4.5), (now, 4.5)]) for metric in both.power_w))
    with scripted_server(lambda asked: answer) as server:
        assert PrometheusSource(server.url, ["coral1"], 15.0, metrics=both).read() == {"coral1": []}
    assert '2 series of jetson_board_power_watt and raspberry_power_watt{node="coral1"} at once' in caplog.text


def test_node_of_the_metrics_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match=r"power\.metrics\.nodes: coral1 is none of the nodes; did you mean coral2\?"):
        PrometheusSource("http://127.0.0.1:1", ["coral2", "jetson1"], 15.0, metrics=PREDECESSOR)


def test_name_that_stands_for_two_nodes_is_refused():
    swapped = PREDECESSOR.model_copy(update={"nodes": {"coral1": "jetson1", "jetson1": "coral1"}})
    PrometheusSource("http://127.0.0.1:1", ["coral1", "jetson1"], 15.0, metrics=swapped)
    twice = PREDECESSOR.model_copy(update={"nodes": {"coral1": "jetson1"}})
    with pytest.raises(UsageError, match=r"power\.metrics\.nodes: jetson1 stands for both coral1 and jetson1"):
        PrometheusSource("http://127.0.0.1:1", ["coral1", "jetson1"], 15.0, metrics=twice)


@pytest.mark.parametrize(
    "trouble",
    [
        b"[" * 200_000,
        b'{"data": {"result": [{"metric": {"node": "coral1"}, "values": [[1e999, "1"]]}]}}',
        b'{"data": {"result": [{"metric": {"node": "coral1"}, "values": [["nan", "1"]]}]}}',
        b'{"data": {"result": [{"metric": {"node": ["coral1"]}, "values": [[1, "1"]]}]}}',
        b'{"data": {"result": [{"metric": 1, "values": [[1, "1", 2]]}]}}',
        b'{"data": {"result": {"a": 1}}}',
        b" " * (17 << 20),
    ],
)
def test_whatever_prometheus_answers_is_no_data_and_the_next_poll_goes_on(trouble, caplog):
    replies = [Reply(content=trouble), Reply(content=trouble), matrix(series(POWER_METRIC, "coral1", [(time.time(), 4.5)]))]
    with scripted_server(lambda asked: replies[len(server.asked) - 1]) as server:
        collector = PrometheusCollector(PrometheusSource(server.url, ["coral1"], 15.0), ["coral1"], 1.0)
        for _ in replies:
            collector.poll()
    assert collector.failed_polls == 2 and collector.latest["coral1"].power_w == 4.5
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["power poll failed", "power polls work again"]


# The poller.


class ListSource:
    """Answers with what it is given, one poll after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.polls = 0

    def read(self):
        answer = self.answers[min(self.polls, len(self.answers) - 1)]
        self.polls += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("when", ["before", "after"])
def test_poller_that_dies_is_told_whenever_somebody_asks(when):
    told: queue.Queue[HarnessError] = queue.Queue()
    died = threading.Event()

    class Dying(ListSource):
        def read(self):
            if when == "after" and self.polls:
                asked.wait(10)
            if self.polls:
                died.set()
                raise SystemExit(3)
            return super().read()

    asked = threading.Event()
    with PrometheusCollector(Dying({}), ["coral1"], 0.01) as collector:
        if when == "before":
            assert died.wait(10)
            collector._thread.join(10)
        collector.on_death(told.put)
        asked.set()
        text = str(told.get(timeout=10))
    assert "the thread power-poller died of SystemExit: 3" in text and told.empty()


def test_failed_poll_is_counted_and_the_old_samples_stay_and_age(caplog):
    old = PowerSample(time.monotonic() - 100.0, 4.5)
    collector = PrometheusCollector(ListSource({"coral1": [old]}, OSError("gone"), OSError("gone")), ["coral1"], 1.0)
    for _ in range(3):
        collector.poll()
    assert collector.failed_polls == 2
    assert collector.latest == {"coral1": old}
    assert collector.is_up("coral1", 3600.0) and not collector.is_up("coral1", 50.0)
    assert caplog.text.count("power poll failed: gone") == 1  # said once, not at every poll


def test_outage_is_said_once_at_its_start_and_once_at_its_end(caplog):
    answers = ListSource(OSError("gone"), OSError("gone"), {}, {}, OSError("gone again"), {})
    collector = PrometheusCollector(answers, ["coral1"], 1.0)
    for _ in range(6):
        collector.poll()
    assert [record.getMessage() for record in caplog.records] == [
        "power poll failed: gone",
        "power polls work again",
        "power poll failed: gone again",
        "power polls work again",
    ]


def test_power_of_a_node_with_only_a_counter_is_the_mean_between_its_last_two_values():
    polls = [{"coral1": [PowerSample(float(t), None, j)]} for t, j in ((1, 100.0), (3, 109.0), (4, 2.0), (5, 8.0))]
    collector = PrometheusCollector(ListSource(*polls), ["coral1"], 1.0)
    seen = []
    for _ in polls:
        collector.poll()
        seen.append(collector.latest["coral1"].power_w)
    assert seen == [None, 4.5, None, 6.0]  # of a counter that restarted nothing is known
    assert collector.latest["coral1"] == PowerSample(5.0, 6.0, 8.0)


def test_power_is_that_of_the_gauge_where_there_is_one():
    samples = [PowerSample(1.0, 4.0, 100.0), PowerSample(2.0, 4.5, 107.0)]
    collector = PrometheusCollector(ListSource({"coral1": samples}), ["coral1"], 1.0)
    collector.poll()
    assert collector.latest["coral1"] == samples[1]


def test_latest_sample_without_a_value_is_not_up_however_young():
    now_s = time.monotonic()
    samples = [PowerSample(now_s - 0.5, 4.5), PowerSample(now_s, None)]
    collector = PrometheusCollector(ListSource({"coral1": samples[:1]}, {"coral1": samples}), ["coral1"], 1.0)
    collector.poll()
    assert collector.is_up("coral1", 3600.0)
    collector.poll()
    assert not collector.is_up("coral1", 3600.0) and collector.latest["coral1"].power_w is None


def test_metrics_of_each_node_are_those_it_showed_lately():
    now_s = time.monotonic()
    read = {
        "both": [PowerSample(now_s - 3, None, 100.0), PowerSample(now_s - 2, 4.5)],
        "counter": [PowerSample(now_s - 200, 4.5), PowerSample(now_s - 2, None, 100.0)],
        "gauge": [PowerSample(now_s - 2, 4.5)],
        "stale": [PowerSample(now_s - 200, 4.5, 100.0)],
        "nan": [PowerSample(now_s - 2, None)],
    }
    collector = PrometheusCollector(ListSource(read), [*read, "none"], 1.0)
    collector.poll()
    assert collector.metrics(max_age_s=100.0) == {
        "both": (ENERGY_METRIC, POWER_METRIC),
        "counter": (ENERGY_METRIC,),
        "gauge": (POWER_METRIC,),
        "stale": (),
        "nan": (),
        "none": (),
    }


def test_polling_past_an_instant_waits_for_the_nodes_that_still_send_and_for_no_other(monkeypatch):
    monkeypatch.setattr("prometheus_collector._LONGEST_PAUSE_S", 30.0)
    now_s = time.monotonic()
    before = {"coral1": [PowerSample(now_s - 1, 4.0)], "hailo1": [PowerSample(now_s - 900, 4.0)]}
    past = {"coral1": [PowerSample(now_s, 4.0)]}
    source = ListSource(before, before, past, OSError("nobody asks so often"))
    collector = PrometheusCollector(source, ["coral1", "hailo1", "jetson1"], 0.01)
    collector.poll_past(now_s, max_age_s=600.0)
    assert source.polls == 3
    assert collector.latest["coral1"].time_s == now_s


def test_polling_past_an_instant_gives_up_when_nothing_comes(monkeypatch):
    monkeypatch.setattr("prometheus_collector._FIRST_POLL_S", 0.3)
    now_s = time.monotonic()
    source = ListSource({"coral1": [PowerSample(now_s - 1, 4.0)]}, OSError("gone"))
    collector = PrometheusCollector(source, ["coral1"], 0.01)
    collector.poll_past(now_s, max_age_s=600.0)
    assert collector.failed_polls == source.polls - 1 > 1


def test_node_that_was_never_seen_is_not_up():
    assert not PrometheusCollector(ListSource({}), ["coral1"], 1.0).is_up("coral1", 1e9)


def test_sample_that_is_already_known_is_not_kept_twice():
    samples = [PowerSample(1.0, 4.0), PowerSample(2.0, 5.0)]
    collector = PrometheusCollector(ListSource({"coral1": samples[:1]}, {"coral1": samples}), ["coral1"], 1.0)
    collector.poll()
    collector.poll()
    assert collector.latest["coral1"] == samples[1]
    assert collector.energy(1.0, 2.0, {"coral1": 0.0})["coral1"].total_j == pytest.approx(4.5)


def test_idle_power_is_the_mean_between_two_instants_and_absent_without_samples():
    samples = [PowerSample(float(t), 4.0 + t % 2) for t in range(11)]
    collector = PrometheusCollector(ListSource({"coral1": samples}), ["coral1", "hailo1"], 1.0)
    collector.poll()
    assert collector.idle_power_w(0.0, 10.0) == {"coral1": pytest.approx(4.5)}


@pytest.mark.parametrize("scraped_every_s", [1.0, 2.5])
def test_idle_power_by_a_counter_is_over_the_time_that_the_counter_covers(scraped_every_s):
    scrapes = np.arange(0.4, 29.0, scraped_every_s).tolist()
    collector = PrometheusCollector(ListSource({"coral1": [PowerSample(at, None, 4.56 * at) for at in scrapes]}), ["coral1"], 1.0)
    collector.poll()
    assert collector.idle_power_w(1.0, 27.0) == {"coral1": pytest.approx(4.56)}


def test_values_that_are_no_numbers_are_no_samples():
    now = time.time()
    answer = matrix(series("node_power_watts", "coral1", [(now - 2, 4.5), (now - 1, math.nan)]))
    with scripted_server(lambda asked: answer) as server:
        first, second = PrometheusSource(server.url, ["coral1"], 10.0).read()["coral1"]
    assert (first.power_w, second.power_w) == (4.5, None)


@pytest.mark.parametrize(
    "series_of_node", [{"metric": {"node": "coral1"}}, {"metric": {"node": "coral1"}, "values": [["now", "x"]]}, 3]
)
def test_series_that_is_not_as_agreed_is_an_os_error(series_of_node):
    with (
        scripted_server(lambda asked: matrix(series_of_node)) as server,
        pytest.raises(OSError, match=f"Prometheus at {server.url}"),
    ):
        PrometheusSource(server.url, ["coral1"], 10.0).read()


def test_series_without_a_sample_or_a_name_is_ignored():
    nameless = {"metric": {"node": "coral1"}, "values": [[time.time(), "1"]]}
    empty = {"metric": {"__name__": POWER_METRIC, "node": "coral1"}, "values": []}
    with scripted_server(lambda asked: matrix(nameless, empty, series(POWER_METRIC, "coral1", [(time.time(), 4.5)]))) as server:
        assert [sample.power_w for sample in PrometheusSource(server.url, ["coral1"], 10.0).read()["coral1"]] == [4.5]


@pytest.mark.parametrize("error", [RuntimeError("defect"), RecursionError(), MemoryError(), UnicodeError("label too long")])
def test_no_exception_ends_the_poller(error, caplog):
    source = ListSource(error, error, {"coral1": [PowerSample(1.0, 4.0)]})
    with PrometheusCollector(source, ["coral1"], 0.01) as collector:
        assert eventually(lambda: "coral1" in collector.latest)
    assert collector.failed_polls == 2
    assert caplog.text.count(f"power poll failed: {type(error).__name__}") == 1


def test_nobody_waits_for_an_exchange_that_hangs(monkeypatch):
    monkeypatch.setattr("prometheus_collector._AFTER_STOP_S", 0.1)
    entered, gate = threading.Event(), threading.Event()

    class Hanging:
        def read(self):
            entered.set()
            assert gate.wait(30.0)
            return {}

    began_s = time.monotonic()
    try:
        with PrometheusCollector(Hanging(), ["coral1"], 1.0, stopping=lambda: True) as collector:
            assert entered.wait(30.0)
            collector.poll_now()
            collector.poll_past(time.monotonic(), 5.0)
            assert collector.energy(0.0, 1.0, {"coral1": 1.0}) == {"coral1": (None, None, 1.0)}
            assert (
                collector.busy_s(0.0, 1.0) == {}
                and collector.metrics(5.0) == {"coral1": ()}
                and collector.host_metrics(0.0, 1.0) == {}
            )
        assert time.monotonic() - began_s < 10.0  # the exchange would take three times as long
    finally:
        gate.set()


@pytest.mark.parametrize("watts", [0.0, -1.0, 5000.0, 1e308, math.inf])
def test_power_that_cannot_be_is_not_shown_to_a_decision(watts):
    polls = [{"coral1": [PowerSample(float(t), w)]} for t, w in ((1, 4.5), (2, watts), (3, 4.6))]
    collector = PrometheusCollector(ListSource(*polls), ["coral1"], 1.0, power_ranges={"coral1": PowerRange(2.28, 10.7)})
    seen = []
    for _ in polls:
        collector.poll()
        seen.append(collector.latest["coral1"].power_w)
    assert seen == [4.5, None, 4.6]


def test_idle_power_that_cannot_be_is_absent():
    samples = [PowerSample(float(t), 0.0) for t in range(31)]
    collector = PrometheusCollector(
        ListSource({"coral1": samples}), ["coral1"], 1.0, power_ranges={"coral1": PowerRange(2.28, 10.7)}
    )
    collector.poll()
    assert collector.idle_power_w(0.0, 30.0) == {}


def test_latest_sample_is_read_while_a_poll_waits():
    entered, gate = threading.Event(), threading.Event()
    first, second = PowerSample(1.0, 4.0), PowerSample(2.0, 5.0)

    class Blocking:
        polls = 0

        def read(self):
            self.polls += 1
            if self.polls == 1:
                return {"coral1": [first]}
            entered.set()
            assert gate.wait(30.0)
            return {"coral1": [second]}

    collector = PrometheusCollector(Blocking(), ["coral1"], 0.01)
    with collector:
        assert entered.wait(30.0)  # the poller's thread is inside read() and stays there
        assert collector.latest["coral1"] == first
        assert collector.is_up("coral1", math.inf)
        gate.set()
        assert eventually(lambda: collector.latest["coral1"] == second)


def test_poller_goes_on_after_a_failure_and_ends_with_the_block():
    source = ListSource(OSError("not yet"), {"coral1": [PowerSample(1.0, 4.0)]})
    collector = PrometheusCollector(source, ["coral1"], 0.01)
    with collector:
        assert eventually(lambda: "coral1" in collector.latest)
    assert collector.failed_polls == 1
    assert "power-poller" not in [thread.name for thread in threading.enumerate()]


def test_cluster_without_any_meter_has_no_energy():
    with PrometheusCollector(None, ["coral1"], 1.0) as collector:
        collector.poll()
        assert collector.latest == {}
        assert collector.energy(0.0, 1.0, {"coral1": 1.0}) == {"coral1": (None, None, 1.0)}


@pytest.mark.parametrize("url", ["http://127.0.0.1:9090", "https://prometheus.local/path", "http://127.0.0.1:9090/"])
def test_address_of_a_prometheus_server_is_taken_without_its_closing_slash(url):
    assert require_url("--prometheus-url", url) == url.rstrip("/")


@pytest.mark.parametrize("url", ["", "127.0.0.1:9090", "localhost", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_what_is_no_address_is_refused_by_the_name_of_its_option(url):
    with pytest.raises(UsageError, match="--prometheus-url: expected an address such as"):
        require_url("--prometheus-url", url)


def test_host_figures_are_read_with_every_poll_and_averaged_over_the_window():
    figures = iter([{"coral1": {"cpu_busy_fraction": busy}} for busy in (0.2, 0.4, 0.9)])
    collector = PrometheusCollector(ListSource({}, {}, {}), ["coral1"], 1.0, lambda: next(figures))
    start_s = time.monotonic()
    collector.poll()
    collector.poll()
    end_s = time.monotonic()
    collector.poll()
    assert collector.host_metrics(start_s, end_s) == {"coral1": {"cpu_busy_fraction": pytest.approx(0.3)}}


def test_host_figures_that_cannot_be_read_cost_no_power_sample():
    def unreadable():
        raise OSError("no node-exporter")

    collector = PrometheusCollector(ListSource({"coral1": [PowerSample(1.0, 4.0)]}), ["coral1"], 1.0, unreadable)
    collector.poll()
    assert collector.latest == {"coral1": PowerSample(1.0, 4.0)}
    assert collector.failed_polls == 1 and collector.host_metrics(0.0, math.inf) == {}


def test_after_a_gap_no_power_is_made_up_from_the_counter():
    polls = [
        PowerSample(10.0, 5.0, 50.0),
        PowerSample(30.0, None, 50.0),
        PowerSample(31.0, None, 52.0),
        PowerSample(32.0, 5.0, 57.0),
    ]
    collector = PrometheusCollector(ListSource(*({"coral1": [sample]} for sample in polls)), ["coral1"], 1.0)
    seen = []
    for _ in polls:
        collector.poll()
        seen.append(collector.latest["coral1"].power_w)
    assert seen == [5.0, None, None, 5.0]


def test_a_counter_alone_gives_no_power_over_a_long_silence():
    polls = [PowerSample(10.0, None, 50.0), PowerSample(40.0, None, 52.0), PowerSample(41.0, None, 57.0)]
    collector = PrometheusCollector(ListSource(*({"coral1": [sample]} for sample in polls)), ["coral1"], 1.0)
    seen = []
    for _ in polls:
        collector.poll()
        seen.append(collector.latest["coral1"].power_w)
    assert seen == [None, None, 5.0]


def test_idle_power_is_not_believed_of_a_few_samples():
    now_s = time.monotonic()
    spike = [PowerSample(now_s - 20.0, 9.0), PowerSample(now_s - 19.0, 9.0)]
    steady = [PowerSample(now_s - 30.0 + t, 4.5) for t in range(31)]
    collector = PrometheusCollector(ListSource({"coral1": spike, "coral2": steady}), ["coral1", "coral2"], 1.0)
    collector.poll()
    assert collector.idle_power_w(now_s - 30.0, now_s) == {"coral2": pytest.approx(4.5)}


def test_series_of_another_runs_nodes_are_not_these_nodes_series():
    now_s = round(time.time())
    series = [
        {"metric": {"__name__": name, "node": "coral1", "instance": instance}, "values": [[now_s - ago_s, value]]}
        for instance, ago_s, value in (("127.0.0.1:1111", 9, "9000"), ("127.0.0.1:2222", 1, "40"), ("127.0.0.1:3333", 0, "7"))
        for name in (POWER_METRIC, ENERGY_METRIC)
    ]
    answer = {"status": "success", "data": {"resultType": "matrix", "result": series}}
    with scripted_server(lambda asked: Reply(content=answer)) as server:
        source = PrometheusSource(server.url, ["coral1"], 10.0, instances={"coral1": "127.0.0.1:2222"})
        ((sample,),) = source.read().values()
    assert sample[1:] == (40.0, 40.0, None)


@pytest.mark.parametrize("joules_at", [lambda t: 7.0, lambda t: 36.0 * (t // 36)])
def test_idle_power_is_the_gauges_where_the_counter_is_of_no_use(joules_at):
    samples = [PowerSample(float(t), 1.0, joules_at(t)) for t in range(31)]
    collector = PrometheusCollector(ListSource({"coral1": samples}), ["coral1"], 1.0)
    collector.poll()
    assert collector.idle_power_w(0.0, 30.0) == {"coral1": pytest.approx(1.0)}


def test_idle_power_leaves_out_what_a_still_counter_did_not_count():
    samples = [PowerSample(float(t), None, 4.5 * min(t, max(60, t - 4))) for t in range(131)]
    collector = PrometheusCollector(ListSource({"coral1": samples}), ["coral1"], 1.0)
    collector.poll()
    assert collector.idle_power_w(0.0, 120.0) == {"coral1": pytest.approx(4.5)}


def reason_of(url):
    with pytest.raises(OSError, match="^Prometheus at ") as raised:
        PrometheusSource(url, ["coral1"], 10.0, timeout_s=0.3).read()
    said, _, reason = str(raised.value).removeprefix(f"Prometheus at {url} ").partition(": ")
    return said, reason


def test_reasons_for_which_prometheus_cannot_be_read_are_short():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert reason_of(address) == ("does not answer", "no answer within 0.3 s")
    assert reason_of(address) == ("does not answer", "connection refused")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        address = full.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        said = reason_of(f"http://127.0.0.1:{address[1]}")
    assert said == ("does not answer", "no answer within 0.3 s")
    with scripted_server(lambda asked: Reply(content={"status": "success", "data": {}})) as server:
        assert reason_of(server.url) == ("answers wrongly", "KeyError: 'result'")
    with scripted_server(lambda asked: Reply(status=503, content=b"starting")) as server:
        assert reason_of(server.url)[0] == "answers wrongly"
