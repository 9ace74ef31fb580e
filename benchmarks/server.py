"""What one request costs beside its inference, whether /health answers under load, and whether memory stays flat."""

import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests
from urllib3.util import parse_url

from benchmarks.figures import Figure, median_figure
from cluster.http_client import IMAGE, NodeClient
from settings import load_settings
from utils import PROJECT_ROOT

REQUESTS = 1000
CLIENTS = 200
MEMORY_REQUESTS = 100_000
MEMORY_CONNECTIONS = 2
SETTLED_AFTER = 10_000
LOADED_INFERENCE_S = 0.01
HEALTH_EVERY_S = 0.02


def server_overhead(repeats: int) -> list[Figure]:
    """Round trip of a request whose inference takes no time, beside the plain way, alternating in one run."""
    with _served("shared") as shared, _served("plain") as plain:
        client = _client(shared.port)
        url = f"http://127.0.0.1:{plain.port}/infer"

        def kept() -> None:
            client.infer("mobilenet", 0.0, binary=True)

        def requested() -> None:
            encoded = base64.b64encode(IMAGE).decode()
            requests.post(url, json={"model": "mobilenet", "input": encoded}, timeout=10).raise_for_status()

        def bare() -> None:
            body = json.dumps({"model": "mobilenet", "input": base64.b64encode(IMAGE).decode()})
            connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=10)
            connection.request("POST", "/infer", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
            connection.close()

        medians: dict[Callable[[], None], list[float]] = {kept: [], requested: [], bare: []}
        for _ in range(repeats):
            times_ms: dict[Callable[[], None], list[float]] = {way: [] for way in medians}
            for _ in range(REQUESTS):
                for way, times in times_ms.items():
                    start_s = time.perf_counter()
                    way()
                    times.append((time.perf_counter() - start_s) * 1e3)
            for way, times in times_ms.items():
                medians[way].append(statistics.median(times))
        client.close()
    ours = median_figure("overhead of one request, kept connection, raw bytes", medians[kept], "ms")
    figures = [ours]
    for client_name, way, target in (("requests", requested, 0.35), ("http.client", bare, None)):
        theirs = median_figure(f"the plain way: new connection, base64 JSON, by {client_name}", medians[way], "ms")
        shares = [mine / other for mine, other in zip(medians[kept], medians[way], strict=True)]
        figures += [theirs, median_figure(f"ours as a share of the plain way by {client_name}", shares, "", target)]
    return figures


def server_health(seconds: float, repeats: int) -> list[Figure]:
    """Latency of /health while 200 clients ask for inferences without a pause."""
    p99_ms = []
    for _ in range(repeats):
        with _served("shared", LOADED_INFERENCE_S) as server:
            end_s = time.monotonic() + seconds
            threads = [threading.Thread(target=_ask_until, args=(server.port, end_s)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            client = _client(server.port)
            times_ms = []
            due_s = time.monotonic()
            while due_s < end_s:  # on a schedule, and counted from it: a slow answer must not hide the next question
                time.sleep(max(0.0, due_s - time.monotonic()))
                client.health()
                times_ms.append((time.monotonic() - due_s) * 1e3)
                due_s += HEALTH_EVERY_S
            client.close()
            for thread in threads:
                thread.join()
            p99_ms.append(statistics.quantiles(times_ms, n=100)[98])
    return [median_figure(f"/health p99 beside {CLIENTS} clients, {seconds:g} s", p99_ms, "ms", 50.0)]


def server_memory() -> list[Figure]:
    """Growth of a server's memory over 100,000 requests, after the first 10,000."""
    with _served("shared") as server:
        _ask_many(server.port, SETTLED_AFTER)
        before_mb = _memory_mb(server.pid)
        _ask_many(server.port, MEMORY_REQUESTS)
        after_mb = _memory_mb(server.pid)
    return [
        Figure(f"server memory grown over {MEMORY_REQUESTS:,} requests", after_mb - before_mb, "MB", 1.0, ("before", before_mb))
    ]


class Served(NamedTuple):
    """A running server."""

    port: int
    pid: int


@contextmanager
def _served(kind: str, inference_s: float = 0.0) -> Iterator[Served]:
    """A server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.served", kind, str(inference_s)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "docker")])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Served(int(process.stdout.readline()), process.pid)
    finally:
        process.terminate()
        process.wait()


def _client(port: int) -> NodeClient:
    client = NodeClient(parse_url(f"http://127.0.0.1:{port}/infer"), load_settings().requests)
    client.connect()
    return client


def _ask_until(port: int, end_s: float) -> None:
    client = _client(port)
    while time.monotonic() < end_s:
        client.infer("mobilenet", 0.0, binary=True)
    client.close()


def _ask_many(port: int, requests_in_all: int) -> None:
    def ask() -> None:
        client = _client(port)
        for _ in range(requests_in_all // MEMORY_CONNECTIONS):
            client.infer("mobilenet", 0.0, binary=True)
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(MEMORY_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
