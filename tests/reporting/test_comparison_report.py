"""The page of a comparison: what it says, and what it makes of missing tables."""

import csv
import json
import re
from html import unescape

import pytest

import report
from comparison.tables import FAMILY

from .folders import COMPARISON_FIGURES, JUNK, figures_in
from .sweep_folder import OPTIONAL_TABLES, POLICIES, write_sweep


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
    text = report.write_comparison_report(
        write_sweep(tmp_path, POLICIES[:2], loads=(1.0,), without=[table]), png=False
    ).read_text()
    assert f"{table}.csv is not there" in text
    assert "pareto" in figures_in(text)


def test_a_comparison_of_one_policy_one_load_and_one_seed_has_a_page(tmp_path):
    folder = write_sweep(tmp_path, POLICIES[:1], loads=(1.0,), seeds=1)
    text = report.write_comparison_report(folder, png=False).read_text()
    assert figures_in(text) == COMPARISON_FIGURES
    assert "No differences" in text


@pytest.mark.parametrize(
    "damage",
    [
        {"loads": [1, 2]},
        {"loads": [{"load": [1], "fraction_of_capacity": "x"}, {"fraction_of_capacity": 1}]},
        {"notes": 5, "verdict": 5},
        {"settings": {"duration_s": "x"}, "warm_up_s": "x", "cool_down_s": []},
        *({"settings": junk, "loads": junk, "notes": junk, "verdict": junk, "warm_up_s": junk} for junk in JUNK),
        *({"settings": {"duration_s": junk}, "options": junk, "versions": junk, "capacity_tasks_per_s": junk} for junk in JUNK),
    ],
    ids=lambda damage: ascii(damage)[:40],
)
def test_a_damaged_comparison_json_leaves_every_figure(tmp_path, quick, damage):
    folder = write_sweep(tmp_path, POLICIES[:1], loads=(1.0,), seeds=2)
    about = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps({**about, **damage}))
    assert figures_in(report.write_comparison_report(folder, png=False).read_text()) == COMPARISON_FIGURES


def test_rows_that_were_cut_short_are_left_out(tmp_path, quick):
    folder = write_sweep(tmp_path, POLICIES[:2], loads=(1.0,))
    for path in folder.glob("*.csv"):
        path.write_text(f"{path.read_text()}random,fi")
    assert figures_in(report.write_comparison_report(folder, png=False).read_text()) == COMPARISON_FIGURES


def test_captions_say_what_unanswered_tasks_count_as_and_what_the_bound_is_about(comparison_page):
    text = unescape(comparison_page.read_text())
    captions = dict(re.findall(r'<figure id="(\w+)">.*?<figcaption>(.*?)<span', text, re.DOTALL))
    late, drained = "Unanswered tasks count as infinitely late", "still unanswered when the drain timeout ended the run"
    assert {name for name, caption in captions.items() if late in caption} == {"response_over_load"}
    assert {name for name, caption in captions.items() if drained in caption} == {"energy_over_load", "pareto", "ablation"}
    assert "no schedule that answers every task can be below it" in captions["pareto"]
    tables = text[text.index("<h2>Policies</h2>") :]
    for said in (late, "never answered in some run", drained, "no schedule that answers every task can be below it"):
        assert said in tables


def test_table_of_bounds_shows_minimum_and_bound_of_misses_and_of_energy(comparison_page):
    text = comparison_page.read_text()
    table = text[text.index("<h3>Clairvoyant bounds") : text.index("tables/bounds.csv")]
    header, first = (re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", table) for tag in ("th", "td"))
    shown = dict(zip(header[1:], first, strict=False))  # the first column is the load
    assert shown["missed, per-task minimum, %"] == "1.0"
    assert shown["missed, bound, %"] == "0.6"
    assert shown["above idle per task, per-task minimum, mJ"] == "48.0"
    assert shown["above idle per task, bound at any misses, mJ"] == "50.0"
    assert shown["above idle per task, bound at fewest misses, mJ"] == "62.0"


def test_policies_without_a_closeness_have_no_rank_reversals(tmp_path, quick):
    folder = write_sweep(tmp_path, ("random", "round_robin"), loads=(1.0,))
    text = report.write_comparison_report(folder, png=False).read_text()
    assert "comparison.csv is not there or holds no rank_reversal_rate" in text


def test_old_comparison_that_calls_the_fixed_deadline_slo_has_the_same_page(tmp_path, quick):
    new, old = (write_sweep(tmp_path / name, POLICIES[:3], loads=(1.0,)) for name in ("new", "old"))
    for name in ("comparison", "ablation"):
        text = (old / f"{name}.csv").read_text()
        rows = text.splitlines(keepends=True)
        if name == "comparison":
            text = "".join(row for row in rows if ",fixed_" not in row)
            assert ",slo_hard," in text
        else:
            text = text.replace("fixed_deadline_compliance_rate", "slo_compliance_rate")
        (old / f"{name}.csv").write_text(text)
    pages = [report.write_comparison_report(folder, png=False).read_text() for folder in (new, old)]
    assert figures_in(pages[0]) == figures_in(pages[1])
    for table in ("policies_load_1", "differences_load_1", "ablation_fixed_deadline_compliance_rate"):
        given = [(folder / "tables" / f"{table}.csv").read_text() for folder in (new, old)]
        assert given[0] == given[1] and "slo_" not in given[0]


def test_family_of_tests_is_named_where_the_differences_stand(comparison_page):
    text = unescape(comparison_page.read_text())
    differences = text[text.index("<h2>Differences</h2>") : text.index("<h2>Highest loads</h2>")]
    assert f"The family of tests, in the verdict and here: {FAMILY}." in differences


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
