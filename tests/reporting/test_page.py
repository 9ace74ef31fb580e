"""The pages of both kinds: that they open anywhere, are one file, repeat byte by byte, and take names as text."""

import re
import shutil
from html import escape
from pathlib import Path
from typing import NamedTuple

import pytest

import report

from .folders import COMPARISON_FIGURES, RUN_FIGURES, change_rows, change_summary, figures_in, files_in
from .sweep_folder import write_sweep

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


class Made(NamedTuple):
    """A page, what it was made from, and the figures it should hold."""

    folder: Path
    page: Path
    figures: set[str]


@pytest.fixture(params=["run", "comparison"])
def made(request):
    figures = {"run": RUN_FIGURES, "comparison": COMPARISON_FIGURES}[request.param]
    folder = {"run": "finished_run", "comparison": "comparison_folder"}[request.param]
    return Made(request.getfixturevalue(folder), request.getfixturevalue(f"{request.param}_page"), figures)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


def test_opens_offline_in_a_browser_with_every_figure_and_without_errors(browser, made):
    address = made.page.resolve().as_uri()
    opened = browser.new_page()
    trouble, asked = [], []
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    for width, height in ((1280, 900), (360, 740)):
        opened.set_viewport_size({"width": width, "height": height})
        verdict = opened.locator("#verdict").bounding_box()
        for name in made.figures:
            box = opened.locator(f"figure#{name} svg").bounding_box()
            assert box["width"] > 200 and box["height"] > 100, name
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, name
            assert verdict["y"] + verdict["height"] < box["y"], name
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert trouble == []
    assert asked == [address]
    opened.close()


def test_page_is_one_file_without_script_and_with_ids_that_differ(made):
    text = made.page.read_text()
    assert not re.search(r"<script|<iframe|<object|@import|url\((?!#)", text)
    assert not re.search(r'(?:src|href)="(?!#|data:,")', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert '<html lang="en">' in text
    assert text.count('role="img" aria-label="') == len(figures_in(text))


def test_every_figure_and_table_is_a_file_too(made):
    assert {file.stem for file in (made.page.parent / "figures").glob("*.svg")} == made.figures
    named = set(re.findall(r"tables/([\w.]+)\.csv", made.page.read_text()))
    assert named and named == {file.stem for file in (made.page.parent / "tables").glob("*.csv")}


def test_the_same_folder_gives_the_same_bytes(made, tmp_path):
    report.write_report(made.folder, tmp_path, png=False)
    assert files_in(tmp_path) == files_in(made.page.parent)


def test_a_hostile_name_is_text_and_nothing_else(run_folder, quick, tmp_path):
    change_summary(run_folder, scheduler=HOSTILE, invalid_reasons=[HOSTILE], versions={HOSTILE: HOSTILE})
    change_rows(run_folder / "master_inference_results.csv", lambda row: {**row, "model_name": HOSTILE, "slo_class": HOSTILE})
    sweep = write_sweep(tmp_path / "sweep", (HOSTILE, "topsis"), loads=(1.0,))
    for page in (report.write_run_report(run_folder), report.write_comparison_report(sweep, png=False)):
        text = page.read_text()
        assert "<script" not in text
        assert escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
