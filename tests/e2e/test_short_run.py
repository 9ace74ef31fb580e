"""Whole runs as a user starts them: real processes, real HTTP, real signals; no orphan whatever happens."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from inference_request import WORKERS
from metric_collector import DEVICE_COLUMNS, RESULT_COLUMNS, decision_columns
from slo_monitor import VIOLATION_COLUMNS
from task_generator import TRACE_COLUMNS
from tests.helpers import eventually
from utils import PROJECT_ROOT

PROGRAM = PROJECT_ROOT / "main_pregenerated.py"
MARK = "HARNESS_OF_THIS_TEST"
LONGEST_S = 100.0


class Started:
    """A run in a process of its own; everything it starts inherits a mark by which it is found."""

    def __init__(self, *arguments: object, cwd: Path = PROJECT_ROOT, **options: Any) -> None:
        self._mark = f"{MARK}={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        command = [sys.executable, str(PROGRAM), *map(str, arguments)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=cwd, env={**os.environ, name: value}, **pipes, **options)

    def descendants(self) -> list[int]:
        """Processes that run and carry the mark, the run itself left out."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.process.pid:
                try:
                    marked = self._mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                except OSError:  # it has ended, or is not ours
                    continue
                if marked:
                    found.append(int(folder.name))
        return found

    def ended(self) -> "Ended":
        out, err = self.process.communicate(timeout=LONGEST_S)
        return Ended(self.process.returncode, out, err)


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Results:
    """The files of one run, read."""

    def __init__(self, output: Path) -> None:
        (self.folder,) = output.iterdir()
        self.id = self.folder.name
        self.summary = json.loads((self.folder / f"experiment_summary_{self.id}.json").read_text())
        self.tasks = self._read("master_inference_results.csv", RESULT_COLUMNS)
        self.violations = self._read(f"slo_violations_{self.id}.csv", VIOLATION_COLUMNS)
        self.decisions = self._read(f"scheduling_decisions_{self.id}.csv", decision_columns(tuple(WORKERS)))
        self.devices = self._read(f"devices_{self.id}.csv", DEVICE_COLUMNS)

    def _read(self, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
        text = (self.folder / name).read_text()
        assert text.endswith("\n")
        header, *rows = csv.reader(text.splitlines())
        assert tuple(header) == columns
        assert all(len(row) == len(columns) for row in rows)
        return [dict(zip(columns, row, strict=True)) for row in rows]


@contextmanager
def started(*arguments: object, **options: Any) -> Iterator[Started]:
    """A run that is ended with the block, whatever the test found."""
    run = Started(*arguments, **options)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


class Done(NamedTuple):
    ended: Ended
    results: Results
    trace: Path
    orphans: list[int]


def done(tmp: Path, *arguments: object, cwd: Path = PROJECT_ROOT) -> Done:
    trace = tmp / "saved.csv"
    with started("--quiet", "--output", tmp / "results", "--save-trace", trace, *arguments, cwd=cwd) as run:
        ended = run.ended()
        assert ended.status == 0, ended.err
        return Done(ended, Results(tmp / "results"), trace, run.descendants())


OWN_POLICY = """
from scheduler import BaseScheduler

class SlowestNode(BaseScheduler):
    def schedule(self, task, nodes):
        return max(nodes, key=lambda node: node.service_time_s)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """One run; the same seed with a user's policy; a replay of the first one's trace under another seed."""
    first, second, third = (tmp_path_factory.mktemp(name) for name in ("plain", "own", "replay"))
    (second / "my_policies.py").write_text(textwrap.dedent(OWN_POLICY))
    plain = done(first, "--duration", "3", "--seed", "7")
    with ThreadPoolExecutor() as pool:
        own = pool.submit(done, second, "--duration", 3, "--seed", 7, "--scheduler", "my_policies:SlowestNode", cwd=second)
        replay = pool.submit(done, third, "--trace", plain.trace, "--seed", 8, "--scheduler", "round_robin")
        return {"plain": plain, "own": own.result(), "replay": replay.result()}


EVERY_RUN = pytest.mark.parametrize("name", ["plain", "own", "replay"])


@EVERY_RUN
def test_run_ends_well_and_leaves_no_process(runs, name):
    ended = runs[name].ended
    assert (ended.status, ended.err) == (0, "")
    assert "placeholders" in ended.out.splitlines()[0]  # auto took the emulated cluster, and says so
    assert f"files: {runs[name].results.folder}" in ended.out
    assert runs[name].orphans == []


@EVERY_RUN
def test_rows_are_the_tasks_of_the_trace_and_counts_add_up(runs, name):
    results = runs[name].results
    with runs[name].trace.open() as file:
        trace = {row["task_id"]: row for row in csv.DictReader(file)}
    assert tuple(next(iter(trace.values()))) == TRACE_COLUMNS
    assert Counter(row["task_id"] for row in results.tasks) == Counter(list(trace))
    counts = Counter(row["outcome"] for row in results.tasks)
    tasks = results.summary["tasks"]
    assert tasks == {"generated": len(trace), **{outcome: counts[outcome] for outcome in tasks if outcome != "generated"}}
    assert sum(counts.values()) == len(trace) > 50
    assert counts["on_time"] > 0 and counts["unfinished"] == 0
    for row in results.tasks:
        origin = trace[row["task_id"]]
        for column in ("device_id", "device_type", "model_name", "slo_class", "arrival_time_s", "base_deadline_s"):
            assert row[column] == origin[column]


@EVERY_RUN
def test_times_of_every_row_are_in_order_and_response_is_completion_minus_arrival(runs, name):
    for row in runs[name].results.tasks:
        steps = [row[f"{step}_time_s"] for step in ("arrival", "dispatch", "start", "completion")]
        times = [float(step) for step in steps if step]
        assert times == sorted(times)
        if row["completion_time_s"]:
            assert len(times) == 4
            assert float(row["response_time_s"]) == times[3] - times[0]
            assert float(row["waiting_time_s"]) == times[2] - times[0]
            assert row["outcome"] == ("on_time" if times[3] - times[0] <= float(row["adapted_deadline_s"]) else "late")
            assert row["error"] == ""


@EVERY_RUN
def test_violations_decisions_and_devices_agree_with_the_rows(runs, name):
    results = runs[name].results
    violated = {row["task_id"] for row in results.tasks if row["outcome"] in ("late", "failed")}
    assert {row["task_id"] for row in results.violations} == violated
    assert len(results.violations) == len(violated)
    attempts = Counter(row["task_id"] for row in results.decisions)
    assert all(int(row["attempts"]) == attempts[row["task_id"]] for row in results.tasks)
    assert {row["scheduler"] for row in results.decisions} == {results.summary["scheduler"]}
    generated = Counter(row["device_id"] for row in results.tasks)
    skipped = Counter(row["device_id"] for row in results.tasks if row["outcome"] == "skipped")
    for row in results.devices:
        assert int(row["tasks_generated"]) == generated[row["device_id"]]
        assert int(row["tasks_skipped"]) == skipped[row["device_id"]]


@EVERY_RUN
def test_summary_says_what_ran_and_what_it_cost(runs, name):
    summary = runs[name].results.summary
    assert summary["experiment_id"] == runs[name].results.id
    assert (summary["cluster"], summary["interrupted"]) == ("emulated", False)
    assert summary["window_s"] >= 3.0
    assert set(summary["utilisation"]) == set(summary["energy_j"]["by_node"]) == set(WORKERS)
    # Every node draws at least its idle power and at most its busy power: 2.29 … 6.47 W over the window.
    for joules in summary["energy_j"]["by_node"].values():
        assert 0.9 * 2.29 * summary["window_s"] <= joules <= 1.1 * 6.47 * summary["window_s"]


def test_policy_of_the_user_is_named_and_decides(runs):
    results = runs["own"].results
    assert results.summary["scheduler"] == "my_policies:SlowestNode"
    vgg16 = {row["assigned_node"] for row in results.tasks if row["model_name"] == "vgg16" and row["assigned_node"]}
    assert vgg16 <= {"coral1", "coral2"}  # 344 ms, the slowest of the profile


def test_one_seed_gives_the_same_trace_and_the_same_paths_whatever_the_policy(runs):
    plain, own = runs["plain"], runs["own"]
    assert plain.trace.read_bytes() == own.trace.read_bytes()
    devices = [(r.folder / f"devices_{r.id}.csv").read_bytes() for r in (plain.results, own.results)]
    assert devices[0] == devices[1]
    assert plain.results.summary["scenario_sha256"] == own.results.summary["scenario_sha256"]


def test_replay_meets_the_same_scenario(runs):
    plain, replay = runs["plain"], runs["replay"]
    assert replay.trace.read_bytes() == plain.trace.read_bytes()
    assert replay.results.summary["scenario_sha256"] == plain.results.summary["scenario_sha256"]
    arrivals = [{row["task_id"]: row["arrival_time_s"] for row in run.results.tasks} for run in (plain, replay)]
    assert arrivals[0] == arrivals[1]
    assert replay.results.summary["settings"]["duration_s"] == 3.0
    assert replay.results.summary["scheduler"] == "round_robin"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle_leaves_complete_files_and_no_process(tmp_path, number):
    output, trace = tmp_path / "results", tmp_path / "trace.csv"
    with started("--quiet", "--duration", 60, "--seed", 7, "--output", output, "--save-trace", trace) as run:
        rows = "*/master_inference_results.csv"
        assert eventually(lambda: any(file.read_text().count("\n") > 20 for file in output.glob(rows)), LONGEST_S)
        run.process.send_signal(number)
        ended = run.ended()
        assert run.descendants() == []
    assert ended.status == 130
    assert ended.err == "" and "INVALID: the run was interrupted" in ended.out
    results = Results(output)
    assert results.summary["interrupted"] is True and results.summary["valid"] is False
    assert Counter(row["task_id"] for row in results.tasks) == Counter(row.partition(",")[0] for row in _lines(trace))
    assert results.summary["tasks"]["unfinished"] > 0
    assert len(results.devices) == 100


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_the_nodes_start_ends_at_once_and_leaves_no_process(tmp_path, number):
    output = tmp_path / "results"
    with started("--quiet", "--duration", 60, "--output", output) as run:
        assert eventually(lambda: len(run.descendants()) > 0, LONGEST_S)
        run.process.send_signal(number)
        ended = run.ended()
        assert run.descendants() == []
    assert ended.status == 130
    assert "Traceback" not in ended.err and ended.err.count("\n") <= 1
    for folder in output.iterdir():  # no folder is left, or a whole one
        assert Results(output).folder == folder


def test_second_signal_does_no_harm(tmp_path):
    output = tmp_path / "results"
    with started("--quiet", "--duration", 60, "--output", output) as run:
        assert eventually(lambda: any(file.stat().st_size > 2000 for file in output.glob("*/master*.csv")), LONGEST_S)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            run.process.send_signal(number)
        ended = run.ended()
        assert run.descendants() == []
    assert (ended.status, ended.err) == (130, "")
    assert Results(output).summary["interrupted"] is True


def test_full_disk_ends_the_run_with_one_error_and_leaves_no_process(tmp_path):
    # A file may not grow beyond 20,000 bytes, which settings.json does not reach: writing more fails as it does on a full disk.
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))}
    with started("--quiet", "--duration", 60, "--seed", 7, "--output", tmp_path / "results", **limit) as run:
        ended = run.ended()
        assert run.descendants() == []
    assert ended.status == 1
    assert ended.err.count("\n") == 1 and ended.err.startswith("main_pregenerated.py: ")
    assert "cannot be written any more" in ended.err and "Traceback" not in ended.err


def test_killed_run_leaves_no_process(tmp_path):
    output = tmp_path / "results"
    with started("--quiet", "--duration", 60, "--output", output) as run:
        assert eventually(lambda: len(run.descendants()) == 6, LONGEST_S)
        run.process.kill()
        run.ended()
        assert eventually(lambda: run.descendants() == [])
