"""The command line of the reports."""

import subprocess
import sys

import pytest

import report
from utils import PROJECT_ROOT, UsageError

from .folders import COMPARISON_FIGURES, RUN_FIGURES
from .sweep_folder import POLICIES, write_sweep


def test_command_line_makes_the_report_of_a_run_again(finished_run, tmp_path, quick, capsys):
    assert report.main([str(finished_run), "--output", str(tmp_path), "--png"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == RUN_FIGURES


def test_command_line_knows_a_comparison_by_its_folder(tmp_path, quick):
    assert report.main([str(write_sweep(tmp_path, POLICIES[:1], loads=(1.0,)))]) == 0
    assert "Comparison of 1 scheduling policy" in (tmp_path / "report.html").read_text()


def test_command_line_keeps_the_png_that_a_sweep_wrote_and_writes_none_for_a_run(finished_run, tmp_path, quick):
    sweep = write_sweep(tmp_path / "sweep", POLICIES[:1], loads=(1.0,))
    report.write_comparison_report(sweep)
    for arguments in ([str(sweep)], [str(sweep), "--png"]):
        assert report.main(arguments) == 0
        assert {path.stem for path in (sweep / "figures").glob("*.png")} == COMPARISON_FIGURES
    assert report.main([str(finished_run), "--output", str(tmp_path / "run")]) == 0
    assert not list((tmp_path / "run" / "figures").glob("*.png"))


def test_command_line_ends_with_status_2_and_without_a_traceback(tmp_path):
    done = subprocess.run([sys.executable, "report.py", tmp_path / "nowhere"], cwd=PROJECT_ROOT, capture_output=True, text=True)
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


def test_importing_the_module_loads_neither_pandas_nor_matplotlib_nor_jinja2():
    code = "import sys, report; print(sorted({'pandas', 'matplotlib', 'jinja2', 'reporting', 'comparison'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
