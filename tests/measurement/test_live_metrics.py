"""The harness's own metrics, the target files by which Prometheus finds it, and the annotation of a run in Grafana."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from measurement.live_metrics import (
    TARGETS_VARIABLE,
    HarnessMetrics,
    annotate_in_grafana,
    listed_target,
    remove_targets,
    remove_targets_of_the_dead,
    targets_file,
    targets_folder,
    write_targets,
)
from task import Decision, Outcome, TaskResult
from tests.helpers import DEVICE, PATIENCE_S, Reply, default_settings, eventually, make_task, scripted_server
from utils import PROJECT_ROOT, UsageError

TOKEN = "glsa_very_secret"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def samples(metrics):
    """Value of each sample, by name and sorted label values."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def made(**changes):
    return HarnessMetrics(default_settings(**changes), "20260102_030405", "emulated", ["coral1", "hailo1"])


def ended(outcome, dispatched_s=None, completed_s=None, slo="soft"):
    return TaskResult(
        make_task(arrival_s=10.0, slo=slo), DEVICE, 0.0, outcome, dispatch_time_s=dispatched_s, completion_time_s=completed_s
    )


# What is counted.


def test_every_outcome_of_every_class_and_every_node_is_there_from_the_start_with_zero():
    shown = samples(made())
    classes = default_settings().slo_classes
    assert [shown["harness_tasks_total", *sorted((o.value, name))] for o in Outcome for name in classes] == [0] * len(
        Outcome
    ) * len(classes)
    assert shown["harness_decisions_total", "coral1"] == shown["harness_decisions_total", "hailo1"] == 0
    assert shown["harness_dispatch_lag_seconds_count",] == shown["harness_response_seconds_count",] == 0
    assert not any(name.endswith("_created") for name, *_ in shown)


def test_tasks_are_counted_by_outcome_and_class_and_timed_as_far_as_they_came():
    metrics = made()
    metrics.ended(ended(Outcome.ON_TIME, 10.003, 10.25))
    metrics.ended(ended(Outcome.LATE, 10.0005, 12.0, slo="hard"))
    metrics.ended(ended(Outcome.FAILED, 10.0001))
    metrics.ended(ended(Outcome.SKIPPED))
    shown = samples(metrics)
    counted = {key[1:]: value for key, value in shown.items() if key[0] == "harness_tasks_total" and value}
    assert counted == {("on_time", "soft"): 1, ("hard", "late"): 1, ("failed", "soft"): 1, ("skipped", "soft"): 1}
    assert shown["harness_dispatch_lag_seconds_count",] == 3
    assert shown["harness_dispatch_lag_seconds_sum",] == pytest.approx(0.0036)
    assert shown["harness_dispatch_lag_seconds_bucket", "0.005"] == 3
    assert shown["harness_dispatch_lag_seconds_bucket", "0.002"] == 2
    assert shown["harness_response_seconds_count",] == 2
    assert shown["harness_response_seconds_sum",] == pytest.approx(2.25)
    assert shown["harness_response_seconds_bucket", "0.3"] == 1


def test_decisions_queues_and_idle_power_are_shown_by_node():
    metrics, depth = made(), [4]
    metrics.watch_queue("coral1", lambda: depth[0])
    metrics.decided(Decision(1, 1, 0.5, "hailo1", {}, None))
    metrics.decided(Decision(2, 1, 0.6, "hailo1", {}, None))
    assert ("harness_node_idle_watts", "coral1") not in samples(metrics)  # nothing is claimed before it is known
    metrics.idle_power({"coral1": 2.5, "hailo1": 3.0})
    shown = samples(metrics)
    assert (shown["harness_decisions_total", "coral1"], shown["harness_decisions_total", "hailo1"]) == (0, 2)
    assert (shown["harness_node_idle_watts", "coral1"], shown["harness_node_idle_watts", "hailo1"]) == (2.5, 3.0)
    assert shown["harness_queue_depth", "coral1"] == 4
    depth[0] = 7
    assert samples(metrics)["harness_queue_depth", "coral1"] == 7


def test_run_is_named_and_the_budget_is_shown_only_where_there_is_one():
    shown = samples(made())
    assert shown["harness_run_info", *sorted(("20260102_030405", "power_aware_topsis", "emulated", "42"))] == 1
    assert ("harness_power_budget_watts",) not in shown
    assert samples(made(power_aware_topsis={"power_budget_w": 27.0}))["harness_power_budget_watts",] == 27.0


# The page.


def test_page_is_served_while_the_block_runs_and_port_and_thread_are_free_afterwards():
    metrics, port = made(), free_port()
    threads = set(threading.enumerate())
    for _ in range(2):
        with metrics.served(port):
            answer = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", retries=False, timeout=PATIENCE_S)
            names = {family.name for family in text_string_to_metric_families(answer.data.decode())}
        assert {"harness_tasks", "harness_run_info", "harness_dispatch_lag_seconds"} <= names
    assert set(threading.enumerate()) == threads
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", retries=False, timeout=PATIENCE_S)


def test_page_shows_nothing_of_other_programs_or_runs():
    first, second = made(), made()
    first.ended(ended(Outcome.ON_TIME))
    assert samples(second)["harness_tasks_total", "on_time", "soft"] == 0
    assert all(name.startswith("harness_") for name, *_ in samples(first))


def test_port_that_is_taken_is_one_clear_line_and_leaves_nothing_open():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"--metrics-port: port {port} cannot be served: Address already in use; free it"):
            made().served(port).__enter__()
    gc.collect()  # a socket left open would warn now


def test_tasks_are_taken_in_while_a_scrape_waits():
    metrics, entered, gate = made(), threading.Event(), threading.Event()

    def depth():
        entered.set()
        assert gate.wait(PATIENCE_S)
        return 0.0

    metrics.watch_queue("coral1", depth)
    scrape = threading.Thread(target=samples, args=(metrics,))
    scrape.start()
    assert entered.wait(PATIENCE_S)  # the scrape is in the middle of its page
    metrics.ended(ended(Outcome.ON_TIME, 10.0, 10.1))
    metrics.decided(Decision(1, 1, 0.5, "hailo1", {}, None))
    gate.set()
    scrape.join()
    metrics.watch_queue("coral1", lambda: 0.0)
    assert samples(metrics)["harness_tasks_total", "on_time", "soft"] == 1


# Target files.


def test_target_file_is_as_prometheus_reads_it_and_may_be_removed_twice(tmp_path):
    file = tmp_path / "emulated.json"
    write_targets(file, {"127.0.0.1:1234": {"node": "coral1"}, "127.0.0.1:1235": {}})
    assert json.loads(file.read_text()) == [
        {"targets": ["127.0.0.1:1234"], "labels": {"node": "coral1"}},
        {"targets": ["127.0.0.1:1235"], "labels": {}},
    ]
    assert list(tmp_path.iterdir()) == [file]
    remove_targets(file)
    remove_targets(file)
    remove_targets(tmp_path / "gone with its folder" / "emulated.json")


def test_target_file_that_cannot_be_removed_is_a_warning(tmp_path, caplog):
    (tmp_path / "emulated.json").mkdir()
    remove_targets(tmp_path / "emulated.json")
    assert "emulated.json cannot be removed, so Prometheus keeps its targets: Is a directory" in caplog.text


def test_each_process_has_target_files_of_its_own(tmp_path):
    file = targets_file(tmp_path, "emulated")
    assert file == tmp_path / f"emulated-{os.getpid()}.json"
    others = (
        "from pathlib import Path; from measurement.live_metrics import targets_file; print(targets_file(Path(), 'emulated'))"
    )
    other = subprocess.run([sys.executable, "-c", others], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert other.stdout.strip() not in ("", file.name)


def test_files_of_a_killed_run_go_when_the_next_one_lists_itself_and_those_of_others_stay(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as run:
        left = {f"emulated-{run.pid}.json", f"harness-{run.pid}.json", f".emulated-{run.pid}.json.tmp"}
        others = {"emulated.json", f"node-exporter-{run.pid}.json", f"emulated-{run.pid}.json.bak", "emulated-0.json"}
        others |= {f"harness-{os.getpid()}.json", "emulated-1.json"}
        for name in left | others:
            (tmp_path / name).touch()
        remove_targets_of_the_dead(tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == left | others
        run.send_signal(signal.SIGKILL)
        run.wait(PATIENCE_S)
        with listed_target(tmp_path / "harness.json", "127.0.0.1:9105"):
            assert {file.name for file in tmp_path.iterdir()} == others | {"harness.json"}


def test_process_of_another_person_runs(tmp_path, monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    (tmp_path / "emulated-4321.json").touch()
    monkeypatch.setattr(os, "kill", refuse)
    remove_targets_of_the_dead(tmp_path)
    assert (tmp_path / "emulated-4321.json").exists()


def test_folder_that_is_gone_holds_nothing_of_the_dead(tmp_path):
    remove_targets_of_the_dead(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_target_is_listed_while_the_block_runs(tmp_path):
    file = tmp_path / "harness.json"
    with listed_target(file, "127.0.0.1:9105"):
        assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:9105"], "labels": {}}]
    assert not file.exists()


def test_target_that_cannot_be_listed_is_a_warning_and_the_block_runs(tmp_path, caplog):
    with listed_target(tmp_path / "nowhere" / "harness.json", "127.0.0.1:9105"):
        pass
    assert "Prometheus will not find its targets" in caplog.text


def test_targets_folder_is_the_named_one_if_it_is_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(TARGETS_VARIABLE, str(tmp_path))
    assert targets_folder() == tmp_path
    monkeypatch.setenv(TARGETS_VARIABLE, "")
    assert targets_folder() is None
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["absent", "file", "file/below"])
def test_targets_folder_that_is_named_and_not_there_is_one_warning(tmp_path, monkeypatch, caplog, name):
    (tmp_path / "file").touch()
    monkeypatch.setenv(TARGETS_VARIABLE, str(tmp_path / name))
    assert targets_folder() is None
    assert caplog.messages == [f"MONITOR_TARGETS: {tmp_path / name} is no folder, so Prometheus will not find this run"]


def test_targets_folder_is_that_of_make_monitor_while_it_runs(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv(TARGETS_VARIABLE, raising=False)
    monkeypatch.setattr("measurement.live_metrics._DEFAULT_TARGETS", tmp_path / "targets")
    assert targets_folder() is None
    (tmp_path / "targets").mkdir()
    assert targets_folder() == tmp_path / "targets"
    assert caplog.messages == []


# Annotations.


def summary(**changes):
    return {
        "experiment_id": "20260102_030405",
        "started_at": "2026-01-02T03:04:05.250+00:00",
        "finished_at": "2026-01-02T04:05:05+01:00",
        "scheduler": "topsis",
        "cluster": "emulated",
        "seed": 7,
        "valid": True,
        "invalid_reasons": [],
        "energy_invalid_reasons": [],
        "slo_compliance_rate": 0.9876,
        "energy_j": {"above_idle_per_task": 0.0987},
        **changes,
    }


def annotate(url, token=TOKEN, timeout_s=PATIENCE_S, **changes):
    return annotate_in_grafana(summary(**changes), {"GRAFANA_URL": url, "GRAFANA_TOKEN": token}, timeout_s)


def test_run_is_marked_from_its_start_to_its_end_with_its_verdict():
    with scripted_server(lambda asked: Reply(content={"id": 1})) as server:
        assert annotate(f"{server.url}/") is None
        (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/api/annotations")
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["Content-Type"] == "application/json"
    assert json.loads(asked.body) == {
        "time": 1767323045250,
        "timeEnd": 1767323105000,
        "tags": ["edge-harness", "valid", "topsis", "emulated"],
        "text": "20260102_030405: topsis, seed 7, emulated cluster: valid; SLO compliance 98.8%; 0.0987 J above idle per task",
    }


def test_run_that_must_not_be_believed_says_why_in_plain_text():
    reasons = {
        "valid": False,
        "invalid_reasons": ["coral1 said <b>no</b>"],
        "energy_invalid_reasons": ["hailo1 has no power data"],
    }
    nothing = {"slo_compliance_rate": None, "energy_j": {"above_idle_per_task": None}}
    with scripted_server(lambda asked: Reply(content={"id": 1})) as server:
        assert annotate(server.url, **reasons, **nothing) is None
        note = json.loads(server.asked[0].body)
    assert note["tags"][1] == "not valid"
    assert note["text"].endswith(
        "not valid; no task dispatched; no energy above idle; coral1 said &lt;b&gt;no&lt;/b&gt;; hailo1 has no power data"
    )


def test_nothing_is_sent_or_said_where_no_grafana_is_named():
    assert annotate_in_grafana(summary(), {}) is None
    assert annotate_in_grafana(summary(), {"GRAFANA_TOKEN": TOKEN}) is None


@pytest.mark.parametrize("trouble, says", [(Reply(401), "it answered 401"), (Reply(500), "500"), (Reply(reset=True), "reset")])
def test_grafana_that_refuses_is_one_line_without_the_token(trouble, says):
    with scripted_server(lambda asked: trouble) as server:
        problem = annotate(server.url)
    assert problem.startswith(f"no annotation in Grafana at 127.0.0.1:{server.port}: ") and says in problem
    assert TOKEN not in problem and "\n" not in problem


def test_grafana_that_is_gone_or_silent_is_one_line_without_the_token():
    never = threading.Event()
    with scripted_server(lambda asked: Reply(after=never)) as server:
        silent = annotate(server.url, timeout_s=0.2)
        assert len(server.asked) == 1
        server.stop()
        gone = annotate(server.url)
    for problem in (silent, gone):
        assert problem.startswith("no annotation in Grafana at 127.0.0.1") and TOKEN not in problem and "\n" not in problem


def test_grafana_that_answers_drop_by_drop_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not told.wait(0.05):
                    connection.sendall(b" ")

        told = threading.Event()
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            problem = annotate(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.4)
        finally:
            told.set()
            dripping.join()
    assert problem.endswith(": no answer within 0.4 s")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Welcome</html>", b"\xff", b"[" * 100_000, b" " * 70_000 + b'{"id": 1}', {"message": "x"}, ["id"], "id", None],
)
def test_answer_that_is_not_grafanas_is_a_problem(content):
    with scripted_server(lambda asked: Reply(content=content)) as server:
        problem = annotate(server.url)
    assert problem == f"no annotation in Grafana at 127.0.0.1:{server.port}: it answered, but not as Grafana does"


def test_token_is_cut_out_of_what_went_wrong():
    with scripted_server(lambda asked: Reply(raw=f"{asked.headers['Authorization']}\r\n\r\n".encode())) as server:
        problem = annotate(server.url)
    assert "BadStatusLine('Bearer …" in problem and TOKEN not in problem


def test_token_follows_no_redirect():
    with scripted_server(lambda asked: Reply(content={"id": 1})) as elsewhere:
        moved = Reply(302, headers={"Location": f"{elsewhere.url}/api/annotations"})
        with scripted_server(lambda asked: moved) as server:
            assert "it answered 302" in annotate(server.url)
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "token, says", [("", "GRAFANA_TOKEN is not"), (f"{TOKEN}\n", "line break"), (f"{TOKEN}é", "no token has")]
)
def test_token_that_cannot_be_one_is_said_without_it_and_nothing_is_sent(token, says):
    with scripted_server(lambda asked: Reply(content={"id": 1})) as server:
        problem = annotate(server.url, token=token)
        assert server.asked == []
    assert says in problem and TOKEN not in problem


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[::1", "://", "ftp://127.0.0.1"])
def test_address_that_is_none_is_one_line(url):
    problem = annotate(url)
    assert problem.startswith("no annotation in Grafana") and "\n" not in problem


def test_credentials_in_the_address_are_not_repeated():
    with scripted_server(lambda asked: Reply(500)) as server:
        problem = annotate(server.url.replace("http://", f"http://admin:{TOKEN}-too@"))
    assert problem == f"no annotation in Grafana at 127.0.0.1:{server.port}: it answered 500"


# All of it in one run.


def page_of(port):
    try:
        return urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", retries=False, timeout=PATIENCE_S).data.decode()
    except urllib3.exceptions.HTTPError:
        return ""


def tasks_on(page):
    families = text_string_to_metric_families(page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == "harness_tasks_total")


def test_run_shows_itself_while_it_goes_on_and_marks_itself_when_it_is_over(tmp_path):
    targets, port = tmp_path / "targets", free_port()
    targets.mkdir()
    with scripted_server(lambda asked: Reply(401)) as grafana:
        environment = {**os.environ, "GRAFANA_URL": grafana.url, "GRAFANA_TOKEN": TOKEN, TARGETS_VARIABLE: str(targets)}
        command = [sys.executable, "main_pregenerated.py", "--cluster", "emulated", "--duration", "15", "--quiet", "--no-report"]
        with subprocess.Popen(
            [*command, "--metrics-port", str(port), "--output", str(tmp_path / "results")],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as harness:
            assert eventually(lambda: tasks_on(page_of(port)) > 0)
            page = page_of(port)
            listed = {file.name: json.loads(file.read_text()) for file in targets.iterdir()}
            output, _ = harness.communicate(timeout=PATIENCE_S * 2)
    assert harness.returncode == 0, output
    written = json.loads(next(Path(tmp_path / "results").glob("*/experiment_summary_*.json")).read_text())
    assert f'experiment_id="{written["experiment_id"]}"' in page
    assert 0 < tasks_on(page) <= written["tasks"]["generated"]
    assert all(f'harness_node_idle_watts{{node="{node}"}} {power_w}' in page for node, power_w in written["idle_w"].items())
    assert all(f'harness_queue_depth{{node="{node}"}}' in page for node in written["idle_w"])
    assert listed.keys() == {f"harness-{harness.pid}.json", f"emulated-{harness.pid}.json"}
    assert listed[f"harness-{harness.pid}.json"] == [{"targets": [f"127.0.0.1:{port}"], "labels": {}}]
    assert [group["labels"]["node"] for group in listed[f"emulated-{harness.pid}.json"]] == list(written["idle_w"])
    assert list(targets.iterdir()) == []
    assert [asked.path for asked in grafana.asked] == ["/api/annotations"]
    assert f"no annotation in Grafana at 127.0.0.1:{grafana.port}: it answered 401" in output and TOKEN not in output
    assert page_of(port) == ""
