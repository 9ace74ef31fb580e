"""What the tests of the reports share: a finished run, a comparison and their pages, each made once."""

import shutil

import pytest

import main_pregenerated
import report
from reporting import page
from reporting.style import Drawn

from .sweep_folder import POLICIES, write_sweep


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a run without its report; it stays as it is."""
    output = tmp_path_factory.mktemp("runs")
    options = ["--cluster", "simulated", "--duration", "10", "--quiet", "--no-report", "--output", str(output)]
    assert main_pregenerated.main(options) == 0
    (folder,) = output.iterdir()
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of that folder, for a test to change."""
    return shutil.copytree(finished_run, tmp_path / finished_run.name)


@pytest.fixture(scope="session")
def run_page(finished_run, tmp_path_factory):
    return report.write_run_report(finished_run, tmp_path_factory.mktemp("run report"))


@pytest.fixture(scope="session")
def comparison_folder(tmp_path_factory):
    """The folder of a comparison without its report; it stays as it is."""
    return write_sweep(tmp_path_factory.mktemp("sweep"), POLICIES[:3], loads=(0.5, 1.0))


@pytest.fixture(scope="session")
def comparison_page(comparison_folder, tmp_path_factory):
    return report.write_comparison_report(comparison_folder, tmp_path_factory.mktemp("comparison report"), png=False)


@pytest.fixture
def quick(monkeypatch):
    """Figures are made but not drawn."""
    monkeypatch.setattr(page, "drawn", lambda figure, name, png: Drawn('<svg viewBox="0 0 1 1"></svg>', b"png" if png else None))
