"""The power agent as a process, asked over real HTTP."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import PATIENCE_S, eventually

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def command(*options):
    return [sys.executable, "-W", "error", "-m", "power_agent", *map(str, options)]


def environment(bus):
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(DOCKER), "PYTHONUNBUFFERED": "1"}
    return {**settings, "DBUS_SYSTEM_BUS_ADDRESS": bus or "unix:path=/nonexistent/bus"}


def run(*options, bus=None):
    """Run it to its end."""
    return subprocess.run(command(*options), env=environment(bus), capture_output=True, text=True, timeout=PATIENCE_S)


def figures(text):
    """Value of each sample of an exposition, by its name, its node and its other label, if it has one."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *_labels(**sample.labels)): sample.value for sample in samples}


def _labels(node, **others):
    return node, *others.values()


class Agent:
    """A running agent."""

    def __init__(self, process, log, pool):
        self.process = process
        self._log = log
        self._pool = pool

    @property
    def log(self):
        return self._log.read_text()

    @property
    def url(self):
        found = re.search(r"serves (http://\S+)", self.log)
        return found and found.group(1)

    def text(self):
        reply = self._pool.request("GET", self.url, retries=False)
        assert reply.status == 200
        return reply.data.decode()

    def figures(self):
        return figures(self.text())

    def figure(self, *key):
        return self.figures().get(key)

    def end(self):
        """Tell it to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def running(folder, *options, bus=None):
    """An agent with these options that is ended with the block."""
    log = folder / "agent.log"
    with log.open("w") as stream, urllib3.PoolManager() as pool:
        process = subprocess.Popen(command(*options), env=environment(bus), stdout=stream, stderr=stream)
        try:
            yield Agent(process, log, pool)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def serving(folder, rows, host, *options, bus=None):
    """An agent that serves what these rows (YAML lines) say."""
    (folder / "rows.yaml").write_text("".join(f"- {row}\n" for row in rows))
    named = ("--rows", folder / "rows.yaml", "--host", host, "--listen", "127.0.0.1", "--port", 0)
    with running(folder, *named, *options, bus=bus) as agent:
        assert eventually(lambda: agent.url or agent.process.poll() is not None)
        assert agent.url, agent.log
        yield agent
