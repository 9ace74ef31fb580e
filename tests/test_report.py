"""The reports of a run and of a comparison: what they say, that they open anywhere, and what they make of damaged folders."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest

import plots
import report
from utils import PROJECT_ROOT, UsageError

from .sweep_folder import OPTIONAL_TABLES, POLICIES, write_sweep

RUN_FIGURES = {"outcomes", "response_times", "queue_depth", "power", "nodes", "energy", "map"}
COMPARISON_FIGURES = {
    "attainment",
    "pareto",
    "energy_over_load",
    "response_over_load",
    "load_limits",
    "compliance_by_minute",
    "rank_reversal",
    "ablation",
    "utilisation",
}
HOSTILE = "<script>alert('&amp;')</script>\"$x_{1}$"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        "main_pregenerated.py",
        "--cluster",
        "simulated",
        "--duration",
        "10",
        "--quiet",
        "--output",
        output,
    ]
    subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True)
    (folder,) = output.iterdir()
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / finished_run.name)


@pytest.fixture(scope="module")
def run_page(finished_run, tmp_path_factory):
    return report.write_run_report(finished_run, tmp_path_factory.mktemp("run report"))


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory):
    return report.write_comparison_report(
        write_sweep(tmp_path_factory.mktemp("sweep"), POLICIES[:4], loads=(0.5, 1.0)), png=False
    )


@pytest.fixture
def quick(monkeypatch):
    """Figures are made but not drawn."""
    monkeypatch.setattr(
        plots, "drawn", lambda figure, name, png: plots.Drawn('<svg viewBox="0 0 1 1"></svg>', b"png" if png else None)
    )


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


def summary_of(folder: Path) -> Path:
    (path,) = folder.glob("experiment_summary_*.json")
    return path


def change_summary(folder: Path, **changes) -> None:
    path = summary_of(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_rows(path: Path, change) -> None:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in map(change, reader) if row is not None]
        names = reader.fieldnames or []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def figures_in(page: str) -> set[str]:
    return set(re.findall(r'<figure id="(\w+)">', page))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("page", "figures"), [("run_page", RUN_FIGURES), ("comparison_page", COMPARISON_FIGURES)])
def test_opens_offline_in_a_browser_with_every_figure_and_without_errors(browser, request, page, figures):
    address = request.getfixturevalue(page).resolve().as_uri()
    opened = browser.new_page()
    trouble, asked = [], []
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    for width, height in ((1280, 900), (360, 740)):
        opened.set_viewport_size({"width": width, "height": height})
        verdict = opened.locator("#verdict").bounding_box()
        for name in figures:
            box = opened.locator(f"figure#{name} svg").bounding_box()
            assert box["width"] > 200 and box["height"] > 100, name
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, name
            assert verdict["y"] + verdict["height"] < box["y"], name
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert trouble == []
    assert asked == [address]
    opened.close()


@pytest.mark.parametrize("page", ["run_page", "comparison_page"])
def test_page_is_one_file_without_script_and_with_ids_that_differ(request, page):
    text = request.getfixturevalue(page).read_text()
    assert not re.search(r"<script|<iframe|<object|@import|url\((?!#)", text)
    assert not re.search(r'(?:src|href)="(?!#|data:,")', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert '<html lang="en">' in text
    assert text.count('role="img" aria-label="') == len(figures_in(text))


@pytest.mark.parametrize(("page", "figures"), [("run_page", RUN_FIGURES), ("comparison_page", COMPARISON_FIGURES)])
def test_every_figure_and_table_is_a_file_too(request, page, figures):
    path = request.getfixturevalue(page)
    assert {file.stem for file in (path.parent / "figures").glob("*.svg")} == figures
    named = set(re.findall(r"tables/([\w.]+)\.csv", path.read_text()))
    assert named and named == {file.stem for file in (path.parent / "tables").glob("*.csv")}


def test_run_page_says_first_what_was_measured_and_how_well(finished_run, run_page):
    text, summary = run_page.read_text(), json.loads(summary_of(finished_run).read_text())
    top = text[: text.index("<figure")]
    assert "Valid run" in top
    assert "No real board was measured" in top
    for share in (summary["slo_compliance_rate"], summary["achievable_slo_rate"]):
        assert f"{100 * share:.1f} %" in top
    assert f"{1e3 * summary['energy_j']['above_idle_per_task']:.1f} mJ" in top


def test_class_table_agrees_with_the_summary(finished_run, run_page):
    summary = json.loads(summary_of(finished_run).read_text())
    with (run_page.parent / "tables" / "classes.csv").open() as file:
        rows = {row["slo_class"]: row for row in csv.DictReader(file)}
    assert {name: float(row["slo_compliance_rate"]) for name, row in rows.items()} == pytest.approx(
        summary["slo_compliance_rate_by_class"]
    )
    assert sum(int(row["late"]) for row in rows.values()) == summary["tasks"]["late"]


def test_a_run_on_real_workers_claims_them(run_folder, quick):
    change_summary(run_folder, cluster="workers")
    text = report.write_run_report(run_folder).read_text()
    assert "Real workers" in text and "No real board" not in text


def test_an_invalid_run_says_so_with_its_reasons_before_anything_else(run_folder, quick):
    change_summary(
        run_folder,
        valid=False,
        invalid_reasons=["dispatch lag p99 9.1 ms"],
        energy_valid=False,
        energy_invalid_reasons=["no meter on hailo1"],
        interrupted=True,
    )
    text = report.write_run_report(run_folder).read_text()
    top = text[text.index('id="verdict"') : text.index("</section>")]
    assert "Valid run" not in top
    for said in ("INVALID run", "dispatch lag p99 9.1 ms", "ENERGY INVALID", "no meter on hailo1", "interrupted"):
        assert said in top


def test_an_interrupted_run_shows_its_unfinished_tasks(run_folder, quick):
    def unfinished(row):
        late = float(row["arrival_time_s"]) > 5
        gone = dict.fromkeys(("assigned_node", "response_time_s", "met_fixed_deadline", "delivered"), "")
        return {**row, **gone, "outcome": "unfinished"} if late else row

    change_rows(run_folder / "master_inference_results.csv", unfinished)
    assert figures_in(report.write_run_report(run_folder).read_text()) == RUN_FIGURES


@pytest.mark.parametrize("left", ["none", "skipped"])
def test_a_run_that_dispatched_nothing_has_a_page(run_folder, left):
    empty = dict.fromkeys(("assigned_node", "response_time_s", "met_fixed_deadline"), "")
    change_rows(
        run_folder / "master_inference_results.csv",
        lambda row: {**row, **empty, "outcome": "skipped"} if left == "skipped" else None,
    )
    for kind in ("scheduling_decisions", "slo_violations"):
        change_rows(next(run_folder.glob(f"{kind}_*.csv")), lambda row: None)
    change_summary(
        run_folder, slo_compliance_rate=None, response_time_s=None, load_fairness=None, by_minute=[], energy_j={"by_node": None}
    )
    text = report.write_run_report(run_folder).read_text()
    assert figures_in(text) == ({"outcomes", "map"} if left == "skipped" else set())
    assert "left out, no task was dispatched" in text or "holds no task" in text


def test_a_run_whose_tasks_all_failed_has_a_page(run_folder):
    failed = {**dict.fromkeys(("response_time_s", "delivered"), ""), "outcome": "failed", "error": "no node serves <vgg16>"}
    change_rows(run_folder / "master_inference_results.csv", lambda row: {**row, **failed, "met_fixed_deadline": "false"})
    text = report.write_run_report(run_folder).read_text()
    assert figures_in(text) == RUN_FIGURES
    assert "no node serves &lt;vgg16&gt;" in text


def test_nodes_without_a_meter_leave_out_their_power(run_folder, quick):
    change_rows(
        next(run_folder.glob("scheduling_decisions_*.csv")),
        lambda row: {name: "" if name.startswith("power_w_") else value for name, value in row.items()},
    )
    change_summary(run_folder, energy_j={"total": None, "by_node": {"hailo1": None, "coral1": 55.0}}, idle_w={"hailo1": 5.0})
    text = report.write_run_report(run_folder).read_text()
    assert figures_in(text) == RUN_FIGURES - {"power", "energy"}
    assert "no power was measured" in text


def test_null_and_missing_keys_of_an_old_summary_become_dashes(run_folder, quick):
    path = summary_of(run_folder)
    keys = json.loads(path.read_text())
    for content in ({}, dict.fromkeys(keys), {**dict.fromkeys(keys), "tasks": keys["tasks"], "settings": keys["settings"]}):
        path.write_text(json.dumps(content))
        text = report.write_run_report(run_folder).read_text()
        assert "does not say whether this run is valid" in text
        assert "– %" in text


def test_a_folder_with_the_summary_alone_has_a_page(run_folder, quick):
    for path in run_folder.glob("*.csv"):
        path.unlink()
    text = report.write_run_report(run_folder).read_text()
    assert "Valid run" in text
    assert figures_in(text) == {"energy"}


def test_damaged_tables_are_read_as_far_as_they_go(run_folder, quick):
    results = run_folder / "master_inference_results.csv"
    results.write_bytes(results.read_bytes()[:-50] + b'\n1,2,3\n,,,"x\n')
    next(run_folder.glob("devices_*.csv")).write_bytes(b"\xff\xfe\x00")
    assert "outcomes" in figures_in(report.write_run_report(run_folder).read_text())


def test_many_nodes_are_shown_by_their_busiest(run_folder, quick):
    names = [f"node{number}" for number in range(30)]
    header = ["task_id", "decision_time_s", *(f"{kind}_{name}" for name in names for kind in ("queue_depth", "power_w"))]
    with next(run_folder.glob("scheduling_decisions_*.csv")).open("w") as file:
        csv.writer(file).writerows([header, [0, 1.0, *[1.5] * 60]])
    change_rows(run_folder / "master_inference_results.csv", lambda row: {**row, "assigned_node": "node29"})
    change_summary(run_folder, utilisation={name: 0.1 for name in names})
    text = report.write_run_report(run_folder).read_text()
    assert "12 of 30 nodes" in text
    assert len((run_folder / "tables" / "nodes.csv").read_text().splitlines()) == 31


def test_the_same_run_gives_the_same_bytes(finished_run, run_page, tmp_path):
    report.write_run_report(finished_run, tmp_path)
    assert files_in(tmp_path) == files_in(run_page.parent)


def test_the_same_comparison_gives_the_same_bytes(comparison_page, tmp_path):
    report.write_comparison_report(comparison_page.parent, tmp_path, png=False)
    for name, content in files_in(tmp_path).items():
        assert content == (comparison_page.parent / name).read_bytes(), name


def test_files_of_an_earlier_report_do_not_stay(run_folder, quick):
    report.write_run_report(run_folder, png=True)
    assert {path.stem for path in (run_folder / "figures").glob("*.png")} == RUN_FIGURES
    next(run_folder.glob("devices_*.csv")).unlink()
    change_summary(run_folder, energy_j=None)
    report.write_run_report(run_folder)
    assert not list((run_folder / "figures").glob("*.png"))
    assert not (run_folder / "figures" / "energy.svg").exists()


def test_comparison_shows_verdict_and_notes_before_its_figures(comparison_page):
    text = comparison_page.read_text()
    first = text.index("<figure")
    assert (
        text.index("At load 0.5, power_aware_topsis has the highest compliance")
        < text.index("Every figure is of simulated")
        < first
    )
    assert text.index("No real board was measured") < first


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_optional_tables_that_are_missing_leave_their_sections_out_and_that_is_said(tmp_path, quick, how):
    gone = {"without": OPTIONAL_TABLES if how == "missing" else (), "empty": OPTIONAL_TABLES}
    text = report.write_comparison_report(
        write_sweep(tmp_path, POLICIES[:2], loads=(1.0,), without=gone["without"], empty=gone["empty"]), png=False
    ).read_text()
    drawn_from = {"compliance_by_minute": "minutes", "pareto": "pareto", "load_limits": "load_limits", "ablation": "ablation"}
    assert figures_in(text) == COMPARISON_FIGURES - set(drawn_from)
    for table in drawn_from.values():
        assert f"left out, {table}.csv is not there or holds none" in text
    assert "bounds.csv, gaps.csv and pareto.csv are not there" in text


@pytest.mark.parametrize("table", ["frontier", "gaps"])
def test_a_table_that_adds_to_another_figure_can_be_missing_alone(tmp_path, quick, table):
    text = report.write_comparison_report(
        write_sweep(tmp_path, POLICIES[:1], loads=(1.0,), without=[table]), png=False
    ).read_text()
    assert len(figures_in(text)) >= len(COMPARISON_FIGURES) - 1


@pytest.mark.parametrize("table", ["cells", "comparison"])
def test_a_comparison_without_a_main_table_has_a_page(tmp_path, quick, table):
    text = report.write_comparison_report(write_sweep(tmp_path, POLICIES[:2], without=[table]), png=False).read_text()
    assert f"{table}.csv is not there" in text
    assert "pareto" in figures_in(text)


def test_a_comparison_of_one_policy_one_load_and_one_seed_has_a_page(tmp_path):
    folder = write_sweep(tmp_path, POLICIES[:1], loads=(1.0,), seeds=1)
    text = report.write_comparison_report(folder, png=False).read_text()
    assert figures_in(text) == COMPARISON_FIGURES
    assert "No differences" in text


def test_policies_without_a_closeness_have_no_rank_reversals(tmp_path, quick):
    folder = write_sweep(tmp_path, ("random", "round_robin"), loads=(1.0,))
    text = report.write_comparison_report(folder, png=False).read_text()
    assert "comparison.csv is not there or holds no rank_reversal_rate" in text


def test_two_queue_disciplines_have_tables_of_their_own(tmp_path, quick):
    folder = write_sweep(tmp_path, POLICIES[:2], loads=(1.0,), disciplines=("fifo", "edf"))
    report.write_comparison_report(folder, png=False)
    assert {"policies_load_1_fifo.csv", "policies_load_1_edf.csv"} <= {path.name for path in (tmp_path / "tables").iterdir()}


def test_table_of_policies_holds_what_comparison_csv_says(tmp_path, quick):
    folder = write_sweep(tmp_path, POLICIES[:3], loads=(1.0,))
    report.write_comparison_report(folder, png=False)
    with (folder / "tables" / "policies_load_1.csv").open() as shown, (folder / "comparison.csv").open() as given:
        means = {row["scheduler"]: float(row["response_p99_s"]) for row in csv.DictReader(shown)}
        assert means == {
            row["scheduler"]: pytest.approx(float(row["mean"]))
            for row in csv.DictReader(given)
            if row["metric"] == "response_p99_s"
        }


def test_a_hostile_name_is_text_and_nothing_else(run_folder, quick, tmp_path):
    change_summary(run_folder, scheduler=HOSTILE, invalid_reasons=[HOSTILE], versions={HOSTILE: HOSTILE})
    change_rows(run_folder / "master_inference_results.csv", lambda row: {**row, "model_name": HOSTILE, "slo_class": HOSTILE})
    sweep = write_sweep(tmp_path / "sweep", (HOSTILE, "topsis"), loads=(1.0,))
    for page in (report.write_run_report(run_folder), report.write_comparison_report(sweep, png=False)):
        text = page.read_text()
        assert "<script" not in text
        assert escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text


def test_command_line_makes_the_report_of_a_run_again(finished_run, tmp_path, quick, capsys):
    assert report.main([str(finished_run), "--output", str(tmp_path), "--png"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == RUN_FIGURES


def test_command_line_knows_a_comparison_by_its_folder(tmp_path, quick):
    assert report.main([str(write_sweep(tmp_path, POLICIES[:1], loads=(1.0,)))]) == 0
    assert "Comparison of 1 scheduling policy" in (tmp_path / "report.html").read_text()


def test_command_line_ends_with_status_2_and_without_a_traceback(tmp_path):
    done = subprocess.run([sys.executable, "report.py", tmp_path], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("report.py: ") and done.stderr.count("\n") == 1


def test_a_wrong_folder_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "comparison.json").write_text("{")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "experiment_summary_1.json").write_text("[]")
    for arguments in (["nowhere"], ["empty"], ["file"], ["broken"], ["list"]):
        assert report.main([str(tmp_path / arguments[0])]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(tmp_path / arguments[0]) in said
    assert report.main([]) == 2
    assert "FOLDER" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(finished_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file.*cannot be"):
        report.write_run_report(finished_run, tmp_path / "file")


def test_importing_the_module_loads_neither_pandas_nor_matplotlib():
    code = "import sys, report; print(sorted({'pandas', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
