"""The local emulated servers: they start, answer, are calibrated, and never outlive the harness."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import urllib3

from cluster.emulated import EmulatedNodes, Lateness
from cluster.http_client import IMAGE, NodeClient
from inference_request import require_worker_urls
from measurement.power_sources import samples_of
from tests.helpers import PATIENCE_S, default_profile, default_settings, eventually, small_profile
from utils import PROJECT_ROOT, HarnessError, Interrupted

SMALL = small_profile({"a": {"resnet50": 5.0}, "b": {"resnet50": 5.0, "vgg16": 8.0}}, overhead_ms=30.0)


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def pids_of(nodes):
    return [process.pid for process in nodes._processes.values()]


def test_servers_find_what_the_callers_python_path_names_too(monkeypatch):
    seen = []

    def refuse(*arguments, env, **options):
        seen.append(env["PYTHONPATH"])
        raise OSError("enough")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for value in ("/of/the/caller", None):
        monkeypatch.setenv("PYTHONPATH", value) if value else monkeypatch.delenv("PYTHONPATH")
        with pytest.raises(HarnessError, match="cannot be started: enough"), EmulatedNodes(SMALL):
            pass
    own = str(PROJECT_ROOT / "docker")
    assert seen == [f"{own}{os.pathsep}/of/the/caller", own]


def sleeps(lateness):
    """How often each node slept, where it did."""
    counts = {node: max(buckets.values()) for node, buckets in lateness.sleeps_up_to.items()}
    return {node: count for node, count in counts.items() if count}


def remembered_pids(nodes):
    """A list that gets the process of every node that is started; the nodes themselves forget theirs."""
    started, start = [], nodes._start

    def start_and_remember(node):
        start(node)
        started.append(nodes._processes[node].pid)

    nodes._start = start_and_remember
    return started


def get(url):
    return urllib3.request("GET", url, retries=False, timeout=PATIENCE_S)


def infer(nodes, node, model):
    headers = {"Content-Type": "application/octet-stream", "X-Service-Noise": "0.0"}
    url = f"{nodes.workers[node]}?model={model}"
    return urllib3.request("POST", url, body=IMAGE, headers=headers, retries=False, timeout=PATIENCE_S)


def test_six_nodes_start_answer_are_calibrated_and_are_gone_afterwards():
    profile = default_profile()
    with EmulatedNodes(profile) as nodes:
        pids = pids_of(nodes)
        assert len(set(pids)) == 6 and all(map(alive, pids))
        assert list(nodes.workers) == list(nodes.metrics_urls) == list(profile.nodes)
        assert len(set(nodes.workers.values())) == 6
        for name, url in nodes.workers.items():
            health = get(url.replace("/infer", "/health")).json()
            assert (health["server"], health["accelerator"]) == (name, profile.nodes[name].accelerator)
            assert health["models"] == list(profile.service_time_s(name)) and health["binary"] is True

            answer = infer(nodes, name, "mobilenet").json()
            sigma = profile.sigma(name)
            mean_s = profile.service_time_s(name)["mobilenet"]
            assert answer["server"] == name
            assert mean_s * (1 - sigma**2) <= answer["inference_time"] <= mean_s  # noise 0: the median, mean × exp(−σ²/2)

            page = get(nodes.metrics_urls[name]).data.decode()
            assert {labels["node"] for _, labels, _ in samples_of(page, ("node_power_watts", "node_energy_joules_total"))} == {
                name
            }
        before = nodes.lateness()
        infer(nodes, "hailo2", "mobilenet")
        assert sleeps(nodes.lateness().since(before)) == {"hailo2": 1}
    assert not any(map(alive, pids))
    with pytest.raises(urllib3.exceptions.HTTPError):
        get(nodes.metrics_urls["hailo2"])


def test_calibrated_node_holds_a_request_for_its_overhead_less_the_round_trip():
    nodes, told = EmulatedNodes(SMALL), []
    post = nodes._post

    def post_and_remember(node, url, **content):
        answer = post(node, url, **content)
        if "hold_ms" in answer:
            told.append((node, answer))
        return answer

    nodes._post = post_and_remember  # type: ignore[method-assign]
    with nodes:
        held = {node: answer for node, answer in told}["a"]  # the last that it was told
        assert held["local_round_trip_ms"] > 0
        assert held["hold_ms"] == max(0.0, 30.0 - held["local_round_trip_ms"]) / 2  # before the accelerator, and again after
        sent_s = time.monotonic()
        answer = infer(nodes, "a", "resnet50").json()
        elapsed_s = time.monotonic() - sent_s
    assert elapsed_s - answer["inference_time"] - answer["queue_time"] >= 2 * held["hold_ms"] / 1e3


def test_calibration_measures_the_round_trip_without_any_hold():
    with EmulatedNodes(SMALL) as nodes:
        told = []
        nodes._tell_round_trip = lambda node, round_trip_ms: told.append((node, round_trip_ms))  # type: ignore[method-assign]
        nodes._round_trip_ms = lambda node, model: {"resnet50": 3.0}[model]  # type: ignore[method-assign]
        nodes._calibrate("b")
    assert told == [("b", 30.0), ("b", 3.0)]  # the whole overhead first: nothing is held while it is measured


@pytest.mark.parametrize(
    ("measured_ms", "kept_ms", "asked", "warned"),
    [
        ({"a": [0.9], "b": [1.0], "c": [1.1]}, {"a": 0.9, "b": 1.0, "c": 1.1}, 3, []),
        ({"a": [0.9], "b": [7.0, 1.2], "c": [1.1]}, {"a": 0.9, "b": 1.2, "c": 1.1}, 4, []),
        ({"a": [0.9], "b": [1.7, 1.8, 1.75, 1.74], "c": [1.1]}, {"a": 0.9, "b": 1.74, "c": 1.1}, 6, []),
        ({"a": [0.9], "b": [7.0, 6.0, 8.0, 6.5], "c": [1.1]}, {"a": 0.9, "b": 6.5, "c": 1.1}, 6, ["b"]),
        ({"a": [3.0, 1.5], "b": [2.9, 2.1, 1.0], "c": [3.1] * 4}, {"a": 1.5, "b": 1.0, "c": 3.1}, 9, ["c"]),
    ],
)
def test_calibration_that_stands_out_is_repeated_and_told_if_it_stays(measured_ms, kept_ms, asked, warned):
    nodes = EmulatedNodes(small_profile(dict.fromkeys("abc", {"resnet50": 5.0}), overhead_ms=30.0))
    measured = []

    def calibrate(node):
        measured.append(measured_ms[node][0])
        nodes.round_trip_ms[node] = measured_ms[node].pop(0)

    nodes._calibrate = calibrate  # type: ignore[method-assign]
    for node in "abc":
        nodes._calibrate(node)
    nodes._repeat_outliers()
    assert nodes.round_trip_ms == kept_ms and len(measured) == asked
    told = " ".join(nodes.calibration_warnings())
    assert [name for name, ms in kept_ms.items() if f"{name} {ms:.1f}" in told] == warned


def test_target_file_lists_the_nodes_for_prometheus_while_they_run(tmp_path):
    file = tmp_path / "emulated.json"
    with EmulatedNodes(SMALL, targets_file=file) as nodes:
        listed = {group["labels"]["node"]: group["targets"] for group in json.loads(file.read_text())}
        assert {name: f"http://{address}/metrics" for name, (address,) in listed.items()} == nodes.metrics_urls
        for name, (address,) in listed.items():
            assert (
                f'node_power_watts{{accelerator="kind of {name}",node="{name}"}}'
                in get(f"http://{address}/metrics").data.decode()
            )
    assert list(tmp_path.iterdir()) == []


def test_target_file_that_cannot_be_written_is_a_warning_and_the_nodes_run(tmp_path, caplog):
    with EmulatedNodes(SMALL, targets_file=tmp_path / "nowhere" / "emulated.json") as nodes:
        assert get(nodes.metrics_urls["a"]).status == 200
    assert "emulated.json cannot be written, so Prometheus will not find its targets: No such file" in caplog.text


def test_nodes_are_gone_whatever_becomes_of_their_target_file(tmp_path, monkeypatch, caplog):
    with EmulatedNodes(SMALL, targets_file=tmp_path / "emulated.json") as nodes:
        pids = pids_of(nodes)
        (tmp_path / "emulated.json").unlink()
        (tmp_path / "emulated.json").mkdir()
    assert len(pids) == 2 and not any(map(alive, pids))
    assert "emulated.json cannot be removed, so Prometheus keeps its targets: Is a directory" in caplog.text

    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.emulated.remove_targets", interrupted)
    with pytest.raises(KeyboardInterrupt), EmulatedNodes(SMALL, targets_file=tmp_path / "absent" / "emulated.json") as nodes:
        pids = pids_of(nodes)
    assert len(pids) == 2 and not any(map(alive, pids))


def test_nodes_are_gone_after_an_exception():
    with pytest.raises(ZeroDivisionError), EmulatedNodes(SMALL) as nodes:
        pids = pids_of(nodes)
        raise ZeroDivisionError
    assert len(pids) == 2 and not any(map(alive, pids))


def test_nodes_that_hang_are_killed(monkeypatch):
    with EmulatedNodes(SMALL) as nodes:
        pids = pids_of(nodes)
        os.kill(pids[0], signal.SIGSTOP)  # SIGTERM is then not heard
        patient = subprocess.Popen.wait
        monkeypatch.setattr(subprocess.Popen, "wait", lambda self, timeout=None: patient(self, timeout and 0.1))
    assert not any(map(alive, pids))


def test_stopping_twice_does_nothing():
    with EmulatedNodes(SMALL) as nodes:
        pass
    nodes.__exit__()


def test_stop_while_the_nodes_start_interrupts_and_leaves_none():
    nodes = EmulatedNodes(SMALL, stopping=lambda: True)
    started = remembered_pids(nodes)
    with pytest.raises(Interrupted):
        nodes.__enter__()
    assert len(started) == 2 and not any(map(alive, started))


def test_node_that_ends_while_it_starts_is_named_and_the_others_are_stopped(capfd):
    broken = default_profile().model_copy(deep=True)
    figures = dict(broken.nodes)
    figures["coral2"] = figures["coral2"].model_copy(update={"request_overhead_ms": -1.0})  # which the server refuses
    nodes = EmulatedNodes(broken.model_copy(update={"nodes": {name: figures[name] for name in ("coral1", "coral2")}}))
    started = remembered_pids(nodes)
    with pytest.raises(HarnessError, match="emulated node coral2 ended with status 2 while it was starting"):
        nodes.__enter__()
    assert len(started) == 2 and not any(map(alive, started))
    assert "request_overhead_ms" in capfd.readouterr().err


def test_node_that_has_died_takes_nothing_from_the_lateness_of_the_others(caplog):
    with EmulatedNodes(SMALL) as nodes:
        before = nodes.lateness()
        process = nodes._processes["b"]
        process.kill()
        process.wait()
        infer(nodes, "a", "resnet50")
        since = nodes.lateness().since(before)
    assert "emulated node b" in caplog.text
    assert sleeps(since) == {"a": 1}
    assert since.percentile_s(99) is not None


def test_nodes_are_gone_after_the_harness_was_killed():
    program = """
        import time
        from cluster.emulated import EmulatedNodes
        from performance_profile import load_profile
        from settings import load_settings
        with EmulatedNodes(load_profile(load_settings().performance_profile)) as nodes:
            print(*[process.pid for process in nodes._processes.values()], flush=True)
            time.sleep(600)
        """
    harness = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True
    )
    with harness:
        assert harness.stdout is not None
        pids = [int(pid) for pid in harness.stdout.readline().split()]
        assert len(pids) == 6 and all(map(alive, pids))
        harness.send_signal(signal.SIGKILL)
        assert harness.wait(PATIENCE_S) == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, pids)))


def test_nodes_do_not_hear_the_ctrl_c_that_is_meant_for_the_harness():
    with EmulatedNodes(SMALL) as nodes:
        sessions = {os.getsid(pid) for pid in pids_of(nodes)}
        assert os.getsid(0) not in sessions and len(sessions) == 2


def test_lateness_is_the_smallest_bound_that_enough_sleeps_of_all_nodes_kept():
    lateness = Lateness({"a": {0.001: 80.0, 0.002: 89.0, math.inf: 90.0}, "b": {0.001: 10.0, 0.002: 10.0, math.inf: 10.0}})
    assert [lateness.percentile_s(percent) for percent in (50, 90, 91, 99)] == [0.001, 0.001, 0.002, 0.002]
    assert Lateness({}).percentile_s(99) is None


def test_lateness_beyond_the_largest_bound_is_that_bound_since_json_knows_no_infinity():
    lateness = Lateness({"a": {0.05: 0.0, 0.1: 90.0, math.inf: 100.0}})
    assert lateness.percentile_s(99) == 0.1


def test_lateness_since_holds_only_what_was_added():
    earlier = Lateness({"a": {0.001: 90.0, 0.002: 90.0, math.inf: 90.0}})
    later = Lateness({"a": {0.001: 90.0, 0.002: 99.0, math.inf: 100.0}})
    assert later.since(earlier).percentile_s(50) == 0.002  # of the ten that were added
    assert later.since(later).percentile_s(99) is None


def test_threads_of_the_harness_are_left_alone():
    before = set(threading.enumerate())
    with EmulatedNodes(SMALL):
        pass
    assert set(threading.enumerate()) == before


def test_server_that_cannot_be_started_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("cluster.emulated.sys.executable", "/nowhere/python3")
    with (
        pytest.raises(HarnessError, match="emulated node coral1 cannot be started: .*No such file"),
        EmulatedNodes(default_profile()),
    ):
        pass


NAMES = ["mobilenet v2", "a/b", "50%", "what?", "#1", "모델 é", "a&model=b", "a+b", "quote\"'\\", "{x},}", "unknown"]


def test_models_of_any_name_are_served_and_counted_and_no_proxy_is_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    profile = small_profile({"a": dict.fromkeys(NAMES, 1.0)})
    with EmulatedNodes(profile) as nodes:
        url = require_worker_urls(nodes.workers)["a"]
        with closing(NodeClient(url, default_settings().requests)) as client:
            assert client.health().models == frozenset(NAMES)
            assert {client.infer(name, 0.0, binary).model for name in NAMES for binary in (True, False)} == set(NAMES)
        page = get(nodes.metrics_urls["a"]).data.decode()
    counted = {labels["model"]: n for _, labels, n in samples_of(page, ("inference_duration_seconds_count",))}
    assert counted.keys() == set(NAMES) and min(counted.values()) == 2  # more of the one that calibrates
