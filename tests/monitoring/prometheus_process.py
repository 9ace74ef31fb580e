"""A real Prometheus, other programs of Debian packages and small exporters, on loopback, for the tests that need them."""

import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIServer

import pytest
import urllib3
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from tests.helpers import eventually

PROMETHEUS, NODE_EXPORTER, PROMTOOL = "prometheus", "prometheus-node-exporter", "promtool"
_PORTS = range(20000, 30000)
_PACKAGE = {PROMTOOL: "prometheus"}

Labels = dict[str, str]


class Series(NamedTuple):
    """One series of an instant query's answer."""

    labels: Labels
    value: float


class PrometheusProcess:
    """A running Prometheus.

    Args:
        url: its address, without a closing slash.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(timeout=10.0, retries=False)

    def api(self, path: str, **fields: str) -> Any:
        """`data` of an answer of /api/v1/`path`; an AssertionError with Prometheus' words where it refuses."""
        response = self._http.request("GET", f"{self.url}/api/v1/{path}", fields=fields)
        answer = json.loads(response.data)
        assert answer["status"] == "success", f"{path} {fields}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[Series]:
        """Series that an instant query returns now; a scalar is one series without labels."""
        data = self.api("query", query=expression)
        if data["resultType"] == "scalar":
            return [Series({}, float(data["result"][1]))]
        return [Series(series["metric"], float(series["value"][1])) for series in data["result"]]

    def wait_for(self, expression: str, count: int = 1) -> None:
        """Wait until a query returns at least `count` series."""
        assert eventually(lambda: len(self.query(expression)) >= count), f"{expression}: fewer than {count} series: " + str(
            [(target["labels"], target["lastError"]) for target in self.api("targets")["activeTargets"]]
        )

    def reload(self) -> None:
        """Have it read its configuration again."""
        response = self._http.request("POST", f"{self.url}/-/reload")
        assert response.status == 200, response.data.decode()

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return self._http.request("GET", f"{self.url}/-/ready").status == 200
        except urllib3.exceptions.HTTPError:
            return False


def program(name: str) -> str:
    """Path of a program; skips the test, naming the Debian package, where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt install {_PACKAGE.get(name, name)}")
    return path


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens; not of those that the kernel gives away by itself, so that it stays free."""
    while True:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block; what it prints goes to `log`."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as running:
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def prometheus(config: Mapping[str, Any] | Path, folder: Path, arguments: Iterable[str] = ()) -> Iterator[PrometheusProcess]:
    """A real Prometheus on a free port until the end of the block.

    It is ready for queries; the first scrape comes seconds later, so wait for what you need with `wait_for`.

    Args:
        config: its configuration, or a file that holds it. Relative paths in a mapping start at `folder`.
        folder: where its storage, its log and a configuration given as a mapping go.
        arguments: further options of its command line.
    """
    if isinstance(config, Path):
        config_file = config
    else:
        config_file = folder / "prometheus.yml"
        config_file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    port, log = free_port(), folder / "prometheus.log"
    command = [
        program(PROMETHEUS),
        f"--config.file={config_file}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-lifecycle",
        *arguments,
    ]
    with process(command, log) as running:
        server = PrometheusProcess(f"http://127.0.0.1:{port}")
        assert eventually(lambda: running.poll() is not None or server.is_ready())
        assert running.poll() is None, f"prometheus ended while it started:\n{log.read_text()}"
        yield server


@contextmanager
def node_exporter(folder: Path, *arguments: str) -> Iterator[str]:
    """A real node-exporter on a free port until the end of the block; gives `host:port`."""
    address = f"127.0.0.1:{free_port()}"
    folder.mkdir(exist_ok=True)
    with process([program(NODE_EXPORTER), f"--web.listen-address={address}", *arguments], folder / "node-exporter.log"):
        assert eventually(lambda: _answers(address))
        yield address


@contextmanager
def exporter(fill: Callable[[CollectorRegistry], None]) -> Iterator[str]:
    """Serve the metrics that `fill` registers, on a free port, until the end of the block; gives `host:port`."""
    registry = CollectorRegistry()
    fill(registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    assert isinstance(server, WSGIServer)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answers(address: str) -> bool:
    try:
        return urllib3.request("GET", f"http://{address}/metrics", retries=False, timeout=5.0).status == 200
    except urllib3.exceptions.HTTPError:
        return False
