"""Power through a real Prometheus: its energy against exact counters, which metric a node has, outages and stale series."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from benchmarks.power import above_idle_j, measure_agreement, total_j
from measurement.live_metrics import TARGETS_VARIABLE
from measurement.power_sources import ENERGY_METRIC, POWER_METRIC, PrometheusSource
from prometheus_collector import PrometheusCollector
from tests.helpers import eventually
from tests.monitoring.prometheus_process import PROMETHEUS, PrometheusProcess, exporter, free_port, process, program, prometheus
from utils import PROJECT_ROOT

WATTS = 5.0


def config(interval, **discovery):
    job = {"job_name": "inference-server", "honor_labels": True, "scrape_interval": interval, **discovery}
    return {"scrape_configs": [job]}


@pytest.fixture(scope="module")
def agreement(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    (folder / "targets").mkdir()
    found_by_file = {"file_sd_configs": [{"files": ["targets/emulated.json"], "refresh_interval": "1s"}]}
    with prometheus(config("1s", **found_by_file), folder) as server:
        return measure_agreement(server.url, folder / "targets" / "emulated.json", seconds=30.0)


def test_energy_above_idle_agrees_with_the_exact_counters_of_the_nodes(agreement):
    assert above_idle_j(agreement.counted) == pytest.approx(above_idle_j(agreement.exact), rel=0.05)


def test_summary_of_the_run_has_that_energy(agreement):
    assert agreement.summary["energy_valid"], agreement.summary["energy_invalid_reasons"]
    assert agreement.summary["energy_j"]["above_idle"] == pytest.approx(above_idle_j(agreement.exact), rel=0.05)
    assert agreement.summary["energy_j"]["total"] == pytest.approx(total_j(agreement.exact), rel=0.01)


def test_counter_and_integration_of_the_power_samples_agree(agreement):
    assert total_j(agreement.integrated) == pytest.approx(total_j(agreement.counted), rel=0.01)
    assert total_j(agreement.integrated) != total_j(agreement.counted)  # they are two readings


def test_increase_of_promql_agrees_node_by_node(agreement):
    assert agreement.increase_j.keys() == agreement.counted.keys()
    for node, energy in agreement.counted.items():
        assert agreement.increase_j[node] == pytest.approx(energy.total_j, rel=0.05)  # it extrapolates to both edges


def test_runs_one_after_another_wait_each_for_power_of_their_own_nodes(tmp_path):
    targets, results = tmp_path / "targets", tmp_path / "results"
    targets.mkdir()
    found_by_file = {"file_sd_configs": [{"files": ["targets/emulated*.json"], "refresh_interval": "1s"}]}
    with prometheus(config("1s", **found_by_file), tmp_path) as server:
        options = ["--cluster", "emulated", "--duration", "3", "--quiet", "--no-report", "--output", str(results)]
        for _ in range(2):  # the second finds the first one's samples, which are a few seconds old
            done = subprocess.run(
                [sys.executable, "main_pregenerated.py", *options, "--prometheus-url", server.url],
                cwd=PROJECT_ROOT,
                env={**os.environ, TARGETS_VARIABLE: str(targets)},
                capture_output=True,
                text=True,
                timeout=100.0,
            )
            assert done.returncode == 0, done.stderr
            assert "no power data" not in done.stdout
    assert list(targets.iterdir()) == []
    summaries = [json.loads(file.read_text()) for file in results.glob("*/experiment_summary_*.json")]
    assert len(summaries) == 2
    for summary in summaries:
        assert summary["energy_valid"], summary["energy_invalid_reasons"]
        for node, idle_w in summary["idle_w"].items():
            assert summary["energy_j"]["by_node"][node] > 0.95 * idle_w * summary["window_s"]


class Meter:
    """A node that takes 5 W, with the metrics that it is given."""

    def __init__(self, node, *metrics):
        self.node, self.metrics, self.since_s = node, metrics, time.monotonic()

    def collect(self):
        power = GaugeMetricFamily(POWER_METRIC, "Power.", labels=["node"])
        power.add_metric([self.node], WATTS)
        energy = CounterMetricFamily(ENERGY_METRIC, "Energy.", labels=["node"])
        energy.add_metric([self.node], WATTS * (time.monotonic() - self.since_s))
        return [family for family in (power, energy) if {family.name, f"{family.name}_total"} & set(self.metrics)]


@contextmanager
def metered(*meters):
    """Serve each meter on a port of its own; gives the configuration that scrapes them, and one `close` by node."""
    with ExitStack() as stack:
        closes, addresses = {}, []
        for meter in meters:
            own = stack.enter_context(ExitStack())
            addresses.append(own.enter_context(exporter(partial(CollectorRegistry.register, collector=meter))))
            closes[meter.node] = own.close
        yield config("200ms", scrape_timeout="200ms", static_configs=[{"targets": addresses}]), closes


def test_collector_finds_which_metric_each_node_has_and_sees_a_series_end(tmp_path):
    meters = (
        Meter("both", ENERGY_METRIC, POWER_METRIC),
        Meter("counter", ENERGY_METRIC),
        Meter("gauge", POWER_METRIC),
    )
    nodes = ["both", "counter", "gauge", "none"]
    with metered(*meters) as (scraped, closes), prometheus(scraped, tmp_path) as server:
        collector = PrometheusCollector(PrometheusSource(server.url, nodes, window_s=10.0), nodes, 0.1)
        start_s = time.monotonic()
        with collector:
            assert eventually(lambda: len(collector.latest) == 3 and all(seen.power_w for seen in collector.latest.values()))
            assert collector.metrics(max_age_s=5.0) == {
                "both": (ENERGY_METRIC, POWER_METRIC),
                "counter": (ENERGY_METRIC,),
                "gauge": (POWER_METRIC,),
                "none": (),
            }
            # where there is no gauge, by the counter's steps, whose scrapes may come late
            assert eventually(lambda: all(collector.latest[name].power_w == pytest.approx(WATTS, rel=0.2) for name in nodes[:3]))

            closes["both"]()
            assert eventually(lambda: not collector.is_up("both", max_age_s=1.0))
            assert eventually(lambda: collector.is_up("counter", max_age_s=1.0) and collector.is_up("gauge", max_age_s=1.0))
            assert eventually(lambda: collector.metrics(max_age_s=1.0)["both"] == ())
            last_s = collector.latest["both"].time_s
            energy = collector.energy(last_s, time.monotonic() + 10.0, dict.fromkeys(nodes, 0.0))
            assert energy["both"].uncovered > 0.5 and energy["none"] == (None, None, 1.0)
        assert start_s < last_s


def test_poller_survives_that_prometheus_is_killed_and_comes_back(tmp_path, caplog):
    port = free_port()
    with metered(Meter("coral1", ENERGY_METRIC)) as (scraped, _):
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(scraped))
        command = [
            program(PROMETHEUS),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        server = PrometheusProcess(f"http://127.0.0.1:{port}")
        collector = PrometheusCollector(PrometheusSource(server.url, ["coral1"], window_s=1.0), ["coral1"], 0.1)
        with process(command, tmp_path / "first.log") as first:
            assert eventually(server.is_ready)
            collector.__enter__()
            assert eventually(lambda: collector.is_up("coral1", max_age_s=1.0))
            start_s = collector.latest["coral1"].time_s
            first.kill()
            assert first.wait(10.0) == -9
        try:
            before = collector.failed_polls
            assert eventually(lambda: collector.failed_polls >= before + 3)
            assert eventually(lambda: not collector.is_up("coral1", max_age_s=1.0))
            with process(command, tmp_path / "second.log"):
                assert eventually(lambda: collector.is_up("coral1", max_age_s=1.0))
                assert eventually(lambda: collector.latest["coral1"].time_s > start_s + 1.0)
        finally:
            collector.__exit__()
        end_s = collector.latest["coral1"].time_s
        energy = collector.energy(start_s, end_s, {"coral1": 0.0})["coral1"]
        assert energy.total_j == pytest.approx(WATTS * (end_s - start_s), rel=0.3)  # the counter went on counting
    assert "power polls work again" in caplog.text


def test_every_sample_scraped_while_prometheus_could_not_be_asked_is_read_afterwards(tmp_path):
    with metered(Meter("coral1", ENERGY_METRIC)) as (scraped, _), prometheus(scraped, tmp_path) as server:
        source = PrometheusSource(server.url, ["coral1"], window_s=0.5)
        collector = PrometheusCollector(source, ["coral1"], 0.5)
        assert collector.poll_until(lambda: collector.is_up("coral1", max_age_s=1.0), within_s=30.0)
        start_s = collector.latest["coral1"].time_s
        latest = f"timestamp({ENERGY_METRIC})"
        scraped_s = server.query(latest)[0].value
        assert eventually(lambda: server.query(latest)[0].value > scraped_s + 3.0)  # nobody polls meanwhile
        collector.poll()
        end_s = collector.latest["coral1"].time_s
        assert end_s > start_s + 2.0
        assert collector.energy(start_s, end_s, {"coral1": 0.0})["coral1"].uncovered < 0.5
