"""`make monitor`: a real Prometheus on this machine, for developing without a cluster.

It scrapes the emulated nodes and the harness, which write down where they listen, and this machine's node-exporter, and follows
the rules of the cluster. Ctrl-C ends it and removes what it stored.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import urllib3

from measurement.live_metrics import remove_targets_of_the_dead
from terminal.options import EXIT_INTERRUPTED, OptionParser, StopSignal, stoppable
from utils import PROJECT_ROOT, HarnessError, Interrupted, UsageError

PROGRAM = "monitor"
DEFAULT_FOLDER = PROJECT_ROOT / ".cache" / "monitor"
RULES = PROJECT_ROOT / "monitoring" / "rules"
_TEMPLATE = Path(__file__).with_name("prometheus.yml")
_READY_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 30.0
_CLEAR_INTERVAL_S = 1.0
_TROUBLE = re.compile(r"\blevel=\"?(warn|error)", re.IGNORECASE)


class Program(NamedTuple):
    """A running program and the file that it logs to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_running(self) -> None:
        """Nothing, while it runs.

        Raises:
            HarnessError: it has ended; with the last line of its log that is a warning or an error, else the last.
        """
        if (status := self.process.poll()) is not None:
            how = f"ended with status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
            lines = self.log_lines()
            raise HarnessError(f"{self.name} {how}: {next(filter(_TROUBLE.search, reversed(lines)), lines[-1])}")

    def log_lines(self) -> list[str]:
        """What it has logged; at least one line."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it wrote no log"]


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make the folder, with `targets/` in it, for this process alone; remove it with what is in it at the end.

    What an earlier one left there, that could not clean up, goes first.

    Raises:
        UsageError: the folder is another's, holds something else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / "lock").exists():
            raise UsageError(f"--folder: {folder} holds files that are not of this program; name one that is empty or absent")
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"--folder: {folder} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "end it (Ctrl-C), or give both --port and --folder"
            raise UsageError(f"{folder} is in use: another `make monitor` runs; {hint}") from None
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != "lock":
                left.unlink()
        (folder / "targets").mkdir()
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def started(name: str, command: Sequence[str], log: Path) -> Iterator[Program]:
    """A program until the end of the block. Ctrl-C does not reach it: it is ended here, in order."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield Program(name, process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def configuration(address: str, rules: Path = RULES) -> str:
    """Text of Prometheus' configuration.

    Args:
        address: `host:port` of Prometheus itself.
        rules: folder with the rules.
    """
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(address=address, node=socket.gethostname(), rule_files=json.dumps([str(rules / "*.yaml")]))


def require_free(port: int) -> None:
    """Refuse a port on which something listens.

    Raises:
        UsageError: naming the port.
    """
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        hint = "give another one, such as --port 9091"
        raise UsageError(f"--port: 127.0.0.1:{port} cannot be listened on ({os.strerror(error.errno or 0)}); {hint}") from error


def run(options: argparse.Namespace, stop: StopSignal) -> int:
    """Run Prometheus until somebody wants it to end; the exit status.

    Raises:
        HarnessError: it is not installed, did not start or ended by itself.
    """
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # a closed terminal must not leave Prometheus behind
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        raise HarnessError("prometheus is not installed; on Debian: sudo apt install --no-install-recommends prometheus")
    folder: Path = options.folder.resolve()
    address = f"127.0.0.1:{options.port}"
    with ExitStack() as stack:
        stack.enter_context(own_folder(folder))
        require_free(options.port)
        exporter = _start_node_exporter(stack, folder)
        config = folder / "prometheus.yml"
        config.write_text(configuration(address), encoding="utf-8")
        arguments = [
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            "--storage.tsdb.retention.time=1d",
            f"--web.listen-address={address}",
        ]
        server = stack.enter_context(started("prometheus", [prometheus, *arguments], folder / "prometheus.log"))
        _wait_until_ready(server, address, stop)
        _say(address, folder, exporter)
        clear_at_s = time.monotonic()
        while not stop.received:
            server.require_running()
            if time.monotonic() >= clear_at_s:
                remove_targets_of_the_dead(folder / "targets")
                clear_at_s = time.monotonic() + _CLEAR_INTERVAL_S
            time.sleep(0.1)
        print("monitor: ending", flush=True)
    return EXIT_INTERRUPTED


def _start_node_exporter(stack: ExitStack, folder: Path) -> str | None:
    """Start this machine's node-exporter, if it is installed, and have it scraped; its `host:port`."""
    program = shutil.which("prometheus-node-exporter")
    if program is None:
        return None
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    stack.enter_context(started("node-exporter", [program, f"--web.listen-address={address}"], folder / "node-exporter.log"))
    target = {"targets": [address], "labels": {"node": socket.gethostname()}}
    (folder / "targets" / "node-exporter.json").write_text(json.dumps([target]), encoding="utf-8")
    return address


def _wait_until_ready(server: Program, address: str, stop: StopSignal) -> None:
    http = urllib3.PoolManager(timeout=2.0, retries=False)
    give_up_s = time.monotonic() + _READY_TIMEOUT_S
    while not stop.received:
        server.require_running()
        try:
            if http.request("GET", f"http://{address}/-/ready").status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        if time.monotonic() > give_up_s:
            raise HarnessError(f"prometheus was not ready within {_READY_TIMEOUT_S:g} s: {server.log_lines()[-1]}")
        time.sleep(0.05)
    raise Interrupted("stopped while prometheus was starting")


def _say(address: str, folder: Path, exporter: str | None) -> None:
    where = "" if folder == DEFAULT_FOLDER else f"MONITOR_TARGETS={folder / 'targets'} "
    host = f"node-exporter on {exporter}" if exporter else "no figures (sudo apt install prometheus-node-exporter)"
    print(
        f"Prometheus is up: http://{address} (queries at /graph, what is scraped at /targets, alerts at /alerts)\n"
        f"This machine: {host}\n"
        "An experiment on emulated nodes that reads its power from here, in another terminal:\n"
        f'  {where}make run ARGS="--prometheus-url http://{address} --metrics-port 9105"\n'
        "Ctrl-C ends Prometheus and removes what it stored.",
        flush=True,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, found {text!r}")
    return int(text)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = OptionParser(PROGRAM, "Run a Prometheus for the emulated nodes and the harness on this machine.")
    parser.add_argument("--port", type=_port, default=9090, metavar="N", help="port on 127.0.0.1 (9090)")
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="where its files lie while it runs (.cache/monitor)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return stoppable(PROGRAM, lambda stop: run(parse_options(arguments), stop))


if __name__ == "__main__":
    sys.exit(main())
