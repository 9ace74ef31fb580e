"""`make monitor` as a process: a real Prometheus that finds emulated nodes, and what it says when something stands in its way."""

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

from monitoring.local.stack import RULES, configuration
from tests.monitoring.prometheus_process import (
    NODE_EXPORTER,
    PROMETHEUS,
    PROMTOOL,
    PrometheusProcess,
    exporter,
    free_port,
    program,
)
from utils import PROJECT_ROOT

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
            targets = [{"targets": [listed], "labels": {"node": "coral1"}}]
            (folder / "targets" / ".emulated.json.new").write_text(json.dumps(targets))
            (folder / "targets" / ".emulated.json.new").rename(folder / "targets" / "emulated.json")
            server.wait_for('up{job="inference-server", node="coral1"} == 1')
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
    folder = tmp_path / "monitor"
    with stack(folder, free_port()) as process:
        said(process)
        status, error = refused("--port", str(free_port()), "--folder", str(folder))
        assert (status, error) == (
            2,
            f"monitor: {folder} is in use: another `make monitor` runs; end it (Ctrl-C), or give --folder\n",
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
