"""Whole runs in virtual time by the command line, and what their files hold."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from main_pregenerated import main
from terminal.options import StopSignal


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an experiment of 5 s; gives its folder and its summary."""
    monkeypatch.setattr(StopSignal, "install", lambda self: None)

    def one(*options: str, to: str = "runs") -> tuple[Path, dict[str, Any]]:
        command = ["--cluster", "simulated", "--quiet", "--output", str(tmp_path / to), *options]
        assert main([*command, *([] if "--trace" in options else ["--duration", "5"])]) == 0
        (path,) = (tmp_path / to).glob("*/experiment_summary_*.json")
        return path.parent, json.loads(path.read_text())

    return one


def rows_of(folder, pattern):
    (path,) = folder.glob(pattern)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def large(number, digits):
    """An id that no float holds: 2^53 + 1 and 2^62 and what follows them."""
    return str((2**53 + 1 if int(digits) % 2 else 2**62) + int(number))


def test_ids_that_no_float_holds_stay_as_they_are_in_every_file(run, tmp_path):
    trace, renamed = tmp_path / "trace.csv", tmp_path / "renamed.csv"
    _, small = run("--save-trace", str(trace), "--no-report")
    _, small_again = run("--trace", str(trace), "--no-report", to="again")
    with trace.open(newline="") as file, renamed.open("w", newline="") as target:
        rows = list(csv.DictReader(file))
        writer = csv.DictWriter(target, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            row.update({name: large(row[name], row[name]) for name in ("task_id", "device_id")})
        writer.writerows(rows)
    folder, summary = run("--trace", str(renamed), "--save-trace", str(tmp_path / "back.csv"), to="renamed")
    assert (tmp_path / "back.csv").read_bytes() == renamed.read_bytes()
    task_ids, device_ids = ({row[name] for row in rows} for name in ("task_id", "device_id"))
    results, devices = rows_of(folder, "master_*.csv"), rows_of(folder, "devices_*.csv")
    assert {row["task_id"] for row in results} == task_ids and len(results) == len(task_ids)
    assert {row["device_id"] for row in results} == {row["device_id"] for row in devices} == device_ids
    for device in devices:
        own = [row for row in rows if row["device_id"] == device["device_id"]]
        assert int(device["tasks_generated"]) == len(own)
        assert int(device["tasks_skipped"]) == sum(row["in_coverage"] == "false" for row in own)
    for pattern in ("slo_violations_*.csv", "scheduling_decisions_*.csv"):
        found = {row["task_id"] for row in rows_of(folder, pattern)}
        assert found and found <= task_ids
    assert summary["tasks"] == small["tasks"] == small_again["tasks"]
    assert summary["delivered_rate"] == small_again["delivered_rate"]
