"""The command line of a comparison: what it refuses and how, what it writes, and that it goes on where it was stopped."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from io import StringIO

import pandas as pd
import pytest
import yaml
from rich.console import Console

from compare_schedulers import main, parse_options, print_comparison
from comparison import cells, record, store, workers
from report import write_comparison_report
from tests.helpers import default_profile, eventually
from utils import PROJECT_ROOT, UsageError

FEW = [
    "--schedulers",
    "topsis,earliest_completion",
    "--duration",
    "6",
    "--seeds",
    "2",
    "--load",
    "0.5,1",
    "--jobs",
    "1",
    "--quiet",
]
TABLES = ("cells", "minutes", "comparison", "pareto", "bounds", "gaps", "frontier", "load_limits", "ablation")
CELL_COLUMNS = (
    "scheduler,queue_discipline,load,seed,tasks,slo_compliance_rate,slo_hard,slo_normal,slo_soft,fixed_deadline_compliance_rate,"
    "base_deadline_compliance_rate,achievable_slo_rate,response_p50_s,response_p99_s,above_idle_per_task_j,"
    "above_idle_per_on_time_task_j,load_fairness,adapted_deadline_compliance_rate,delivered_rate,response_mean_s,response_p95_s,"
    "failed,unanswered,missed,rank_reversal_rate,untrimmed_slo_compliance_rate,untrimmed_above_idle_per_task_j,utilisation_coral1,"
    "utilisation_coral2,utilisation_jetson1,utilisation_jetson2,utilisation_hailo1,utilisation_hailo2,scenario_sha256,"
    "fixed_hard,fixed_normal,fixed_soft,untrimmed_fixed_deadline_compliance_rate,performance_profile_sha256"
)


@pytest.fixture(autouse=True)
def signals_stay_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def compare(tmp_path, capsys):
    """Runs the command line without a report; gives exit status, standard output and standard error."""

    def run(*arguments, resume=None):
        place = ["--resume", str(resume)] if resume else ["--output", str(tmp_path / "comparisons")]
        status = main([*map(str, arguments), *place, "--no-report"])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small comparison that ran to its end."""
    output = tmp_path_factory.mktemp("comparisons")
    assert main([*FEW, "--output", str(output), "--no-report"]) == 0
    return next(output.iterdir())


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished, tmp_path / finished.name)


def content_of(folder):
    return {name: (folder / f"{name}.csv").read_bytes() for name in TABLES}


def one_line(err):
    assert err.startswith("compare_schedulers.py: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


# What it refuses.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--schedulers", "topsi"], "--schedulers: no policy 'topsi'; did you mean topsis"),
        (["--schedulers", ""], "--schedulers: expected names or numbers with commas"),
        (["--schedulers", "topsis,"], "--schedulers: expected names or numbers with commas"),
        (["--schedulers", "topsis,random,topsis"], "--schedulers: topsis stands twice"),
        (["--schedulers", "no_such_module:Policy"], "--schedulers: module 'no_such_module' cannot be imported"),
        (["--schedulers", "scheduler:Node"], "--schedulers: scheduler:Node must be a class derived from"),
        (["--load", "0"], "--load: expected a load above 0, found '0'"),
        (["--load=-1"], "--load: expected a load above 0"),
        (["--load", "nan"], "--load: expected a load above 0"),
        (["--load", "inf"], "--load: expected a load above 0"),
        (["--load", "1,heavy"], "--load: expected a load above 0, found 'heavy'"),
        (["--load", ""], "--load: expected names or numbers with commas"),
        (["--load", "1,1.0"], "--load: 1 stands twice"),
        (["--seeds", "0"], "--seeds: expected a whole number from 1 to 10000, found '0'"),
        (["--seeds=-3"], "--seeds: expected a whole number from 1 to 10000"),
        (["--seeds", "1000000000"], "--seeds: expected a whole number from 1 to 10000"),
        (["--load", "0.5,50000"], "load: expected less than or equal to 10000, found 50000.0"),
        (["--seeds", "2.5"], "--seeds: expected a whole number from 1 to 10000"),
        (["--first-seed", "-1"], "--first-seed: expected"),
        (["--duration", "0"], "--duration: expected seconds above 0"),
        (["--queue", "lifo"], "--queue: expected fifo or edf, found 'lifo'"),
        (["--queue", "fifo,fifo"], "--queue: fifo stands twice"),
        (["--jobs", "0"], "--jobs: expected a whole number from 1 to 10000"),
        (["--jobs=-1"], "--jobs: expected a whole number from 1 to 10000"),
        (["--backend", "treading"], "--backend: joblib knows no 'treading'; did you mean threading"),
        (["--dask-scheduler", "tcp://127.0.0.1:1"], "--dask-scheduler: only with --backend dask"),
        (["--config", "missing.yaml"], "missing.yaml: no such file"),
        (["--seed", "3"], "unrecognized arguments: --seed"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_made(compare, tmp_path, options, told):
    status, _, err = compare(*options)
    assert status == 2
    assert told in one_line(err)
    assert not (tmp_path / "comparisons").exists()


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main([*FEW, "--output", str(tmp_path / "taken")]) == 2
    assert "--output" in one_line(capsys.readouterr().err)


def test_defaults_are_those_of_the_help():
    given = parse_options([])
    assert given.backend == "loky" and given.report and not given.quiet
    assert {given.schedulers, given.load, given.seeds, given.queue, given.bounds, given.limits, given.ablation} == {None}


# What it writes.


def test_every_table_of_the_contract_is_there_with_its_columns(finished):
    assert (finished / "cells.csv").read_text().splitlines()[0] == CELL_COLUMNS
    cells = pd.read_csv(finished / "cells.csv")
    assert len(cells) == 2 * 2 * 2
    assert cells["seed"].tolist() == [42, 43] * 4
    assert cells["scheduler"].tolist() == ["topsis"] * 4 + ["earliest_completion"] * 4
    assert cells.groupby(["load", "seed"])["scenario_sha256"].nunique().tolist() == [1] * 4
    for name in TABLES:
        with open(finished / f"{name}.csv", newline="") as file:
            assert len(list(csv.reader(file))) > 1, name
    assert set(pd.read_csv(finished / "pareto.csv", dtype=str)["on_front"]) <= {"true", "false"}
    assert len(pd.read_csv(finished / "bounds.csv")) == 4
    assert pd.read_csv(finished / "load_limits.csv")["seeds"].tolist() == [2, 2]
    assert set(pd.read_csv(finished / "ablation.csv")["without"]) == {"slack", "performance", "power", "load"}
    assert {path.suffix for path in (finished / "cells").iterdir()} == {".json"}


def test_model_that_no_node_serves_ends_no_comparison(compare, tmp_path):
    profile = default_profile().model_dump(mode="json")
    profile["latency"]["nobody"] = {"provenance": "estimated", "mean_ms": {}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"performance_profile": "profile.yaml", "models": ["mobilenet", "nobody"]}))
    status, _, err = compare(*FEW, "--config", config)
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "comparisons").iterdir()
    content = json.loads((folder / "comparison.json").read_text())
    assert content["capacity_tasks_per_s"] == 0 and content["loads"][0]["fraction_of_capacity"] is None


def test_bound_is_no_higher_than_what_any_policy_reaches(finished):
    both = pd.read_csv(finished / "cells.csv").merge(pd.read_csv(finished / "bounds.csv"), on=["load", "seed"])
    assert (both["tasks_x"] == both["tasks_y"]).all()
    assert (both["missed"] >= both["miss_rate_bound"] * both["tasks_x"] - 1e-9).all()
    assert (both["above_idle_per_task_j"] >= both["energy_bound_j"]).all()


def test_comparison_json_says_what_was_compared(finished):
    content = json.loads((finished / "comparison.json").read_text())
    assert content["sweep_id"] == finished.name
    assert content["reference"] == "earliest_completion"
    assert content["verdict"] and content["notes"]
    assert content["warm_up_s"] == pytest.approx(0.6) and content["cool_down_s"] == pytest.approx(0.1)
    assert content["options"]["seeds"] == 2 and content["settings"]["duration_s"] == 6
    tasks = pd.read_csv(finished / "cells.csv").groupby("load")["tasks"].mean()
    for load in content["loads"]:
        assert load["dispatched_tasks_per_s"] == pytest.approx(tasks[load["load"]] / 5.3)
        share = load["dispatched_tasks_per_s"] / content["capacity_tasks_per_s"]
        assert load["fraction_of_capacity"] == pytest.approx(share)


def test_verdict_stands_first_on_the_terminal_and_the_folder_last(compare, tmp_path):
    status, out, err = compare(*FEW, "--no-bounds", "--no-limits", "--no-ablation")
    folder = next((tmp_path / "comparisons").iterdir())
    assert status == 0 and err == ""
    verdict = json.loads((folder / "comparison.json").read_text())["verdict"]
    assert " ".join(out.split()).startswith(" ".join(verdict[0].split()))
    assert out.rstrip().endswith(f"files: {folder}")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    left_out = {"bounds", "gaps", "frontier", "load_limits", "ablation"}
    assert {path.stem for path in folder.glob("*.csv")} == set(TABLES) - left_out


def test_one_seed_runs_and_says_that_it_gives_no_intervals(compare):
    status, out, _ = compare("--schedulers", "random", "--seeds", "1", "--duration", "6", "--jobs", "1")
    assert status == 0
    assert "no interval" in " ".join(out.split())


def test_both_queue_disciplines_and_first_seed(compare, tmp_path):
    options = [
        "--schedulers",
        "random",
        "--queue",
        "edf,fifo",
        "--first-seed",
        "5",
        "--seeds",
        "2",
        "--duration",
        "6",
        "--jobs",
        "1",
    ]
    assert compare(*options, "--no-limits", "--no-bounds")[0] == 0
    cells = pd.read_csv(next((tmp_path / "comparisons").iterdir()) / "cells.csv")
    assert list(zip(cells["queue_discipline"], cells["seed"], strict=True)) == [("edf", 5), ("edf", 6), ("fifo", 5), ("fifo", 6)]


OWN_POLICY = """
from scheduler import BaseScheduler

class Last(BaseScheduler):
    def schedule(self, task, nodes):
        if task.task_id > {breaks_after}:
            raise RuntimeError("out of ideas")
        return nodes[-1]
"""


def test_policy_of_ones_own_is_compared_and_its_change_is_drift(compare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "policy_of_test.py").write_text(OWN_POLICY.format(breaks_after=10**9))
    options = ["--schedulers", "policy_of_test:Last", "--seeds", "2", "--duration", "6", "--jobs", "1", "--no-limits"]
    assert compare(*options)[0] == 0
    folder = next((tmp_path / "comparisons").iterdir())
    assert set(pd.read_csv(folder / "cells.csv")["scheduler"]) == {"policy_of_test:Last"}
    cells.policy_hash.cache_clear()
    (tmp_path / "policy_of_test.py").write_text(OWN_POLICY.format(breaks_after=5))
    status, _, err = compare(resume=folder)
    assert status == 2 and "a policy changed since" in one_line(err) and "policy_of_test:Last" in err


def test_policy_that_fails_ends_the_comparison_in_one_line_that_names_the_cell(compare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_policy_of_test.py").write_text(OWN_POLICY.format(breaks_after=20))
    options = [
        "--schedulers",
        "random,failing_policy_of_test:Last",
        "--seeds",
        "1",
        "--duration",
        "6",
        "--jobs",
        "1",
        "--no-limits",
    ]
    status, _, err = compare(*options)
    assert status == 1
    assert "cell failing_policy_of_test:Last, fifo, load 1, seed 42" in one_line(err) and "out of ideas" in err
    assert len(list((tmp_path / "comparisons").glob("*/cells/*.json"))) == 2


def test_full_disk_ends_the_comparison_in_one_line(compare, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_json_atomically", full)
    status, _, err = compare(*FEW)
    assert status == 1
    assert "No space left on device" in one_line(err)


# Going on.


def test_finished_comparison_is_not_run_again_and_gives_the_same_tables(compare, folder, monkeypatch):
    before = content_of(folder)
    for name in TABLES:
        (folder / f"{name}.csv").unlink()
    monkeypatch.setattr(workers, "run_cell", lambda cell: pytest.fail("a finished cell was run again"))
    assert compare(resume=folder)[0] == 0
    assert content_of(folder) == before


def test_missing_and_damaged_cells_are_computed_again_and_the_tables_are_the_same(compare, folder):
    before = content_of(folder)
    cells = sorted((folder / "cells").iterdir())
    for path in cells[::3]:
        path.unlink()
    cells[1].write_text(cells[1].read_text()[:-40])
    cells[2].write_text(cells[4].read_text())
    status, out, _ = compare("--jobs", "1", resume=folder)
    assert status == 0
    assert content_of(folder) == before
    assert sorted((folder / "cells").iterdir()) == cells
    said = [line for line in out.splitlines() if "computed again" in line]
    assert len(said) == 2 and str(cells[1]) in "".join(said) and str(cells[2]) in "".join(said)


def test_options_that_agree_are_taken_on_going_on(compare, folder):
    assert compare(*FEW, resume=folder)[0] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--schedulers", "topsis"], "another --schedulers: found ['topsis'], expected ['topsis', 'earliest_completion']"),
        (["--load", "0.5"], "another --load"),
        (["--seeds", "3"], "another --seeds: found 3, expected 2"),
        (["--first-seed", "1"], "another --first-seed: found 1, expected 42"),
        (["--duration", "7"], "another --duration: found 7.0, expected 6.0"),
        (["--queue", "edf"], "another --queue"),
        (["--no-bounds"], "another --no-bounds"),
        (["--no-limits"], "another --no-limits"),
        (["--no-ablation"], "another --no-ablation"),
        (["--output", "elsewhere"], "--output: not together with --resume"),
    ],
)
def test_options_of_another_comparison_are_refused(compare, folder, options, told):
    status, _, err = compare(*options, resume=folder)
    assert status == 2 and told in one_line(err)


def test_settings_that_changed_are_refused_by_name(compare, folder, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("safety_margin: 0.3\n")
    status, _, err = compare("--config", config, resume=folder)
    assert status == 2 and "the settings changed since" in one_line(err) and "safety_margin: found 0.3, expected 0.1" in err


def test_profile_that_changed_is_refused_by_name(compare, folder, tmp_path):
    text = (PROJECT_ROOT / "config" / "performance_profile.yaml").read_text()
    (tmp_path / "profile.yaml").write_text(text.replace("hailo: 0.003", "hailo: 0.004"))
    (tmp_path / "config.yaml").write_text("performance_profile: profile.yaml\n")
    status, _, err = compare("--config", tmp_path / "config.yaml", resume=folder)
    assert status == 2 and "the performance profile changed since" in one_line(err)
    assert "cv.hailo: found 0.004, expected 0.003" in err


def test_profile_that_changed_may_be_mixed_in_when_told(compare, folder, tmp_path):
    old = pd.read_csv(folder / "cells.csv")
    text = (PROJECT_ROOT / "config" / "performance_profile.yaml").read_text()
    (tmp_path / "profile.yaml").write_text(text.replace("hailo: 0.003", "hailo: 0.004"))
    (tmp_path / "config.yaml").write_text("performance_profile: profile.yaml\n")
    options = ("--config", tmp_path / "config.yaml")
    assert "or give --mixed-profiles" in compare(*options, resume=folder)[2]
    missing = [path for path in (folder / "cells").iterdir() if '"kind": "run"' in path.read_text()][0]
    missing.unlink()
    status, out, _ = compare(*options, "--mixed-profiles", "--no-report", "--jobs", "1", resume=folder)
    assert status == 0 and "two performance profiles are compared" in " ".join(out.split())
    mixed = pd.read_csv(folder / "cells.csv")
    assert sorted(mixed["performance_profile_sha256"].value_counts()) == [1, len(mixed) - 1]
    assert set(old["performance_profile_sha256"]) < set(mixed["performance_profile_sha256"])
    with pytest.raises(UsageError, match=r"cells\.csv: expected runs with one performance profile, found 2 .*--mixed-profiles$"):
        write_comparison_report(folder)
    write_comparison_report(folder, png=False, mixed_profiles=True)


def test_nodes_in_another_order_are_refused(compare, folder, tmp_path):
    profile = default_profile().model_dump(mode="json")
    profile["nodes"] = dict(reversed(profile["nodes"].items()))
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    (tmp_path / "config.yaml").write_text("performance_profile: profile.yaml\n")
    status, _, err = compare("--config", tmp_path / "config.yaml", resume=folder)
    assert status == 2 and "nodes: found the order hailo2, hailo1" in one_line(err)


def test_source_code_that_changed_is_refused_by_name(compare, folder, monkeypatch):
    changed = {**cells.source_hashes(), "cluster/base.py": "0" * 64}
    monkeypatch.setattr(record, "source_hashes", lambda: changed)
    status, _, err = compare(resume=folder)
    assert status == 2 and "the source code changed since" in one_line(err) and "cluster/base.py" in err


def test_package_that_changed_is_refused_by_name(compare, folder, monkeypatch):
    versions = {**cells.package_versions(), "numpy": "0.1"}
    monkeypatch.setattr(record, "package_versions", lambda: versions)
    status, _, err = compare(resume=folder)
    assert status == 2 and "numpy: found 0.1" in one_line(err)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", '{"sweep_id": 3}', "\x00"])
def test_folder_whose_sweep_json_is_damaged_is_refused(compare, folder, damage):
    (folder / "sweep.json").write_text(damage)
    status, _, err = compare(resume=folder)
    assert status == 2 and "sweep.json" in one_line(err)


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_place_that_is_no_comparison_is_refused(compare, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    status, _, err = compare(resume=tmp_path / name)
    assert status == 2 and "is no folder of a sweep" in one_line(err)


# Being stopped.


def start(*options):
    command = [sys.executable, "compare_schedulers.py", *options, "--no-report", "--quiet"]
    return subprocess.Popen(
        command, cwd=PROJECT_ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def alive_in_session(session):
    """Processes of a session that have not ended."""
    told = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [stat for stat in told.stdout.split() if not stat.startswith("Z")]


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_stopped_comparison_keeps_its_cells_and_goes_on_to_the_same_tables(compare, tmp_path, number, whole_group):
    options = ["--schedulers", "random,round_robin", "--seeds", "6", "--duration", "60", "--no-limits", "--no-bounds"]
    output = tmp_path / "stopped"
    process = start(*options, "--jobs", "2", "--output", str(output))
    assert eventually(lambda: len(list(output.glob("*/cells/*.json"))) >= 2)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    folder = next(output.iterdir())
    assert process.returncode == 130, err
    go_on = rf"python3 compare_schedulers\.py --resume {re.escape(str(folder))}"
    assert out == ""
    assert re.fullmatch(rf"compare_schedulers\.py: interrupted; \d+ of 12 cells are finished; go on with: {go_on}\n", err), err
    assert eventually(lambda: not alive_in_session(process.pid))
    kept = list((folder / "cells").iterdir())
    assert 2 <= len(kept) < 12 and all(json.loads(path.read_text())["result"] for path in kept)
    assert not (folder / "cells.csv").exists()
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    assert compare("--quiet", "--jobs", "1", resume=folder)[0] == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert compare(*options, "--jobs", "1")[0] == 0
    uninterrupted = next((tmp_path / "comparisons").iterdir())
    assert (folder / "cells.csv").read_bytes() == (uninterrupted / "cells.csv").read_bytes()


def test_progress_on_no_terminal_is_a_line_now_and_then(compare, monkeypatch):
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr("compare_schedulers.time.monotonic", lambda: float(next(clock)))
    options = ["--schedulers", "random", "--seeds", "4", "--duration", "6", "--jobs", "1", "--no-limits", "--no-bounds"]
    status, out, _ = compare(*options)
    assert status == 0
    assert re.findall(r"(\d) of 4 cells, about \d+ s left", out) == ["2", "4"]


def test_terminal_leaves_out_a_mean_where_comparison_csv_does():
    few = pd.DataFrame(
        {
            **{"scheduler": ["a", "a", "b", "b"], "queue_discipline": "fifo", "load": 3.0, "seed": [1, 2, 1, 2]},
            **{"fixed_deadline_compliance_rate": [0.9, 0.8, None, None], "achievable_slo_rate": [0.97, 0.97, None, None]},
            **{"response_p99_s": [87.754, None, 0.2, 0.4], "above_idle_per_task_j": [0.05, 0.07, 0.1, 0.1]},
        }
    )
    text = StringIO()
    print_comparison(Console(file=text, width=100), {"verdict": [], "notes": []}, few, PROJECT_ROOT)
    rows = [[field.strip() for field in line.strip("│").split("│")] for line in text.getvalue().splitlines() if line[0:1] == "│"]
    assert rows == [["a", "85.00%", "97.00%", "–", "60.0"], ["b", "–", "–", "300", "100.0"]]


# What the page about it says.

PAGE = (PROJECT_ROOT / "docs" / "comparing_policies.md").read_text(encoding="utf-8")


def test_commands_of_the_page_are_understood():
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    ours = [shlex.split(line)[2:] for line in commands if "compare_schedulers.py" in line]
    assert len(ours) >= 5
    for arguments in ours:
        parse_options(arguments)


def test_page_names_every_file_column_and_option(capsys):
    named = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
    assert {f"{name}.csv" for name in TABLES} | {"sweep.json", "comparison.json", "report.html"} <= named
    columns = {column for column in CELL_COLUMNS.split(",") if not column.startswith("utilisation_")}
    assert columns - named == set()
    options = set(re.findall(r"--[a-z-]+", " ".join(named)))
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    assert set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - options == {"--help"}
