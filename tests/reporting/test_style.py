"""The look of figures and their formats: that they repeat, and stand together in one page."""

import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pandas as pd

from reporting.run_plots import energy_by_node
from reporting.style import drawn, looks, shortened
from utils import PROJECT_ROOT


def energy():
    return energy_by_node(pd.DataFrame({"node": ["a", "b"], "above_idle_j": [1.0, 20.0], "idle_j": [300.0, None]}))


def test_no_two_policies_of_a_sweep_look_alike():
    policies = [(f"policy{number}", discipline) for discipline in ("fifo", "edf") for number in range(9)]
    chosen = looks(policies).values()
    assert len({(look.colour, look.marker, look.face, str(look.line)) for look in chosen}) == len(policies)
    assert len({look.label for look in chosen}) == len(policies)


def test_a_long_name_is_shortened_from_its_front():
    assert shortened("my.own.package.of.policies.module:VeryGoodScheduler", 20).endswith("VeryGoodScheduler")
    assert len(shortened("x" * 100, 20)) == 20


def test_svg_and_png_repeat_byte_by_byte():
    once, again = (drawn(energy(), "one", png=True) for _ in range(2))
    assert once == again
    assert once.png is not None and once.png.startswith(b"\x89PNG")


def test_ids_of_two_figures_in_one_page_do_not_meet_and_every_reference_is_kept():
    found = []
    for name in ("first", "second"):
        text = drawn(energy(), name, png=False).svg
        ids = re.findall(r'\bid="([^"]+)"', text)
        references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
        assert references and {one or other for one, other in references} <= set(ids)
        assert len(ids) == len(set(ids))
        found.append(set(ids))
    assert not found[0] & found[1]


def test_svg_is_well_formed_and_says_no_date_and_no_place_outside():
    text = drawn(energy(), "one", png=False).svg
    ElementTree.fromstring(text)
    assert "<dc:date>" not in text
    assert not re.search(r'href="(?!#)', text)


DRAWS = """
import os, sys
from tests.reporting.test_style import drawn, energy
sys.stdout.write(drawn(energy(), "one", png=False).svg)
assert os.environ["MPLBACKEND"] == sys.argv[1]
"""


def test_no_environment_of_the_user_changes_or_breaks_a_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text("backend: none\ntext.usetex: True\nfont.size: 40\naxes.grid: perhaps\n")
    backend = "module://matplotlib_inline.backend_inline"
    places = {"PYTHONPATH": str(PROJECT_ROOT), "MATPLOTLIBRC": str(tmp_path), "HOME": "/proc/none", "MPLBACKEND": backend}
    environment = {**os.environ, **places}
    environment.pop("MPLCONFIGDIR", None)
    done = subprocess.run([sys.executable, "-c", DRAWS, backend], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == drawn(energy(), "one", png=False).svg
