"""When two cells are the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from comparison.cells import SOURCES
from performance_profile import PerformanceProfile
from tests.helpers import default_profile, default_settings, small_profile
from utils import PROJECT_ROOT

from .few_cells import cell


def test_key_changes_with_everything_that_bears_on_a_cell():
    base = cell()
    others = [
        cell("limit"),
        cell(scheduler="random"),
        cell(load=1.1),
        cell(seed=8),
        cell(duration_s=13.0),
        cell(queue_discipline="edf"),
        cell(safety_margin=0.2),
        cell(profile=small_profile({"one": dict.fromkeys(default_settings().models, 10)})),
        replace(base, code="other"),
        replace(base, without="slack"),
    ]
    assert len({one.key for one in [base, *others]}) == 1 + len(others)
    assert all(len(one.key) == 32 and set(one.key) <= set("0123456789abcdef") for one in others)


def test_key_knows_the_order_of_the_nodes():
    content = default_profile().model_dump()
    turned = PerformanceProfile.model_validate({**content, "nodes": dict(reversed(content["nodes"].items()))})
    assert turned == default_profile()
    assert cell(profile=turned).key != cell().key


def test_key_does_not_change_with_the_place_of_the_profile():
    assert cell(performance_profile=Path("elsewhere.yaml")).key == cell().key


@pytest.mark.parametrize("pattern", SOURCES)
def test_every_place_where_sources_are_looked_for_has_some(pattern):
    assert list(PROJECT_ROOT.glob(pattern))
