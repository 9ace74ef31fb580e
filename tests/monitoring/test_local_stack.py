"""`make monitor`: a real Prometheus that finds emulated nodes; what stands in its way; no pictures where there is no data."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from monitoring.local import stack as local_stack
from monitoring.local.stack import RULES, configuration
from terminal.options import StopSignal
from tests.helpers import Reply, eventually, scripted_server
from tests.monitoring.prometheus_process import (
    NODE_EXPORTER,
    PROMETHEUS,
    PROMTOOL,
    PrometheusProcess,
    exporter,
    free_port,
    program,
)
from utils import PROJECT_ROOT, HarnessError

COMMAND = [sys.executable, "-m", "monitoring.local.stack"]


@contextmanager
def stack(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The stack as a process, once it has said all that it says at its start."""
    command = [*COMMAND, "--port", str(port), "--folder", str(folder)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()  # killed, it would leave its Prometheus behind
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:
                process.kill()


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    lines: list[str] = []
    while not (lines and lines[-1].startswith("Ctrl-C")):
        line = process.stdout.readline()
        assert line, f"ended with {process.wait()}: {process.stderr and process.stderr.read()}"
        lines.append(line)
    return lines


def refused(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and standard error of a stack that does not start."""
    command = [*COMMAND, *arguments]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60
    )
    return done.returncode, done.stderr


def test_finds_what_the_harness_lists_and_leaves_nothing_behind(tmp_path):
    program(PROMETHEUS)
    program(NODE_EXPORTER)
    folder, port = tmp_path / "monitor", free_port()
    with stack(folder, port) as process:
        lines = said(process)
        assert f"http://127.0.0.1:{port}" in lines[0]
        (address,) = re.findall(r"node-exporter on (\S+)", lines[1])
        server = PrometheusProcess(f"http://127.0.0.1:{port}")
        with exporter(lambda registry: None) as listed:
            for node, name in (("coral1", "emulated"), ("coral2", f"emulated-{os.getpid()}"), ("", f"harness-{os.getpid()}")):
                targets = [{"targets": [listed], "labels": {"node": node}}]
                (folder / "targets" / f".{name}.json.new").write_text(json.dumps(targets))
                (folder / "targets" / f".{name}.json.new").rename(folder / "targets" / f"{name}.json")
            server.wait_for('up{job="inference-server", node="coral1"} == 1')
            server.wait_for('up{job="inference-server", node="coral2"} == 1')
            server.wait_for('up{job="harness"} == 1')
        server.wait_for(f'up{{job="node-exporter", node="{socket.gethostname()}"}} == 1')
        server.wait_for('up{job="prometheus"} == 1')
        loaded = {rule["name"] for group in server.api("rules")["groups"] for rule in group["rules"]}
        assert {"NodeDown", "cluster:node_power_watts:sum"} <= loaded
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr and process.stderr.read() == ""
    assert not folder.exists()
    for ended in (f"127.0.0.1:{port}", address):
        host, _, of = ended.partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(of)))


def test_target_files_of_a_killed_run_go_and_those_of_one_that_goes_on_stay(tmp_path):
    program(PROMETHEUS)
    targets = tmp_path / "monitor" / "targets"
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as run,
        stack(targets.parent, free_port()) as process,
    ):
        said(process)
        going_on, killed = targets / f"emulated-{os.getpid()}.json", targets / f"emulated-{run.pid}.json"
        going_on.write_text("[]")
        killed.write_text("[]")
        run.kill()
        run.wait()
        assert eventually(lambda: not killed.exists())
        assert going_on.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_end_it_clean_up_too(tmp_path, number):
    program(PROMETHEUS)
    folder, port = tmp_path / "monitor", free_port()
    with stack(folder, port) as process:
        said(process)
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_two_at_once_do_not_share_a_folder(tmp_path):
    program(PROMETHEUS)
    folder, port = tmp_path / "monitor", free_port()
    with stack(folder, port) as process:
        said(process)
        hint = "end it (Ctrl-C), or give both --port and --folder"
        for of_the_second in (free_port(), port):
            assert refused("--port", str(of_the_second), "--folder", str(folder)) == (
                2,
                f"monitor: {folder} is in use: another `make monitor` runs; {hint}\n",
            )
        assert (folder / "targets").is_dir()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_what_a_killed_stack_left_is_no_obstacle(tmp_path):
    program(PROMETHEUS)
    folder = tmp_path / "monitor"
    (folder / "targets").mkdir(parents=True)
    (folder / "targets" / "emulated.json").write_text("[]")
    (folder / "lock").touch()
    with stack(folder, free_port()) as process:
        said(process)
        assert not (folder / "targets" / "emulated.json").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_foreign_files_are_refused_and_kept(tmp_path):
    program(PROMETHEUS)
    (tmp_path / "thesis.txt").touch()
    status, error = refused("--port", str(free_port()), "--folder", str(tmp_path))
    assert status == 2
    assert "holds files that are not of this program" in error
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_port_in_use_is_named(tmp_path):
    program(PROMETHEUS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, error = refused("--port", str(port), "--folder", str(tmp_path / "monitor"))
    assert status == 2
    assert error.startswith(f"monitor: --port: 127.0.0.1:{port} cannot be listened on (Address already in use)")
    assert not (tmp_path / "monitor").exists()


def test_missing_prometheus_costs_one_line_with_the_command_that_installs_it(tmp_path):
    status, error = refused("--folder", str(tmp_path / "monitor"), environment={**os.environ, "PATH": str(tmp_path)})
    assert (status, error) == (
        1,
        "monitor: prometheus is not installed; on Debian: sudo apt install --no-install-recommends prometheus\n",
    )


@pytest.mark.parametrize(
    "script, says",
    [
        ("echo 'level=warn msg=full'; echo 'level=info msg=bye'; kill -KILL $$", "was killed by SIGKILL: level=warn msg=full"),
        ("echo 'level=error msg=1'; echo 'level=ERROR msg=2'; echo bye; exit 3", "ended with status 3: level=ERROR msg=2"),
        ("echo 'level=info msg=level=none'; echo bye; exit 3", "ended with status 3: bye"),
        ("kill -40 $$", "was killed by signal 40: it wrote no log"),
    ],
)
def test_prometheus_that_ends_by_itself_is_told_with_the_line_that_says_why(tmp_path, script, says):
    standing_in = tmp_path / "bin" / "prometheus"
    standing_in.parent.mkdir()
    standing_in.write_text(f"#!/bin/bash\n{script}\n")
    standing_in.chmod(0o755)
    arguments = ("--port", str(free_port()), "--folder", str(tmp_path / "monitor"))
    environment = {**os.environ, "PATH": str(standing_in.parent)}
    assert refused(*arguments, environment=environment) == (1, f"monitor: prometheus {says}\n")
    assert not (tmp_path / "monitor").exists()


def test_prometheus_that_is_never_ready_is_told_with_the_last_line_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(local_stack, "_READY_TIMEOUT_S", 0.0)
    log = tmp_path / "prometheus.log"
    with local_stack.started("prometheus", [sys.executable, "-c", "input()"], tmp_path / "output") as running:
        log.write_text("level=warn msg=slow\nlevel=info msg=replaying\n")
        with pytest.raises(HarnessError, match="^prometheus was not ready within 0 s: level=info msg=replaying$"):
            local_stack._wait_until_ready(running._replace(log=log), f"127.0.0.1:{free_port()}", StopSignal())


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_wrong_port_is_refused(port):
    assert refused("--port", port) == (2, f"monitor: --port: expected a port from 1 to 65535, found '{port}'\n")


def test_configuration_and_rules_pass_promtool(tmp_path):
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration("127.0.0.1:9090"))
    checked = subprocess.run([program(PROMTOOL), "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(re.findall(r"SUCCESS: \d+ rules found", checked.stdout)) == len(list(RULES.glob("*.yaml"))) > 0


def test_power_is_scraped_every_second_and_pages_say_their_node_themselves():
    jobs = {job["job_name"]: job for job in yaml.safe_load(configuration("127.0.0.1:9090"))["scrape_configs"]}
    assert jobs.keys() == {"inference-server", "harness", "node-exporter", "prometheus"}
    assert jobs["inference-server"]["scrape_interval"] == "1s"
    assert jobs["inference-server"]["honor_labels"] and jobs["harness"]["honor_labels"]


def test_apostrophes_and_spaces_in_the_way_to_the_rules_are_kept(tmp_path):
    folder = tmp_path / "a b: 'c' \"d\" $e"
    assert yaml.safe_load(configuration("127.0.0.1:9090", folder))["rule_files"] == [str(folder / "*.yaml")]


def test_pictures_of_a_time_without_data_are_not_drawn(tmp_path):
    nothing = {"status": "success", "data": {"resultType": "matrix", "result": []}}
    with scripted_server(lambda asked: Reply(content=nothing)) as server:
        command = [sys.executable, "-m", "monitoring.local.draw", "--prometheus-url", server.url, "--ago", "60"]
        output = tmp_path / "pictures"
        done = subprocess.run(
            [*command, "--output", str(output)], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"draw\.py: no data between {moment} and {moment}; see --minutes and --ago\n", done.stderr)
    assert not output.exists()
