"""Small cells and plans, and what a cell comes to."""

from dataclasses import replace

from comparison.cells import Cell, code_hash
from comparison.computation import run_cell
from comparison.plan import Plan
from tests.helpers import default_profile, default_settings


def cell(kind="run", scheduler="earliest_completion", load=1.0, seed=7, duration_s=12.0, profile=None, **settings):
    changed = default_settings(scheduler=scheduler, load=load, seed=seed, duration_s=duration_s, **settings)
    return Cell(kind, changed, profile or default_profile(), code_hash(scheduler))


def result_of(one):
    ended = run_cell(one)
    assert ended.error is None, ended.error
    assert ended.key == one.key
    return ended.result


def plan(**changes):
    few = Plan(default_settings(duration_s=6.0), default_profile(), ["topsis", "random"], ["fifo"], [0.5, 1.0], [3, 4])
    return replace(few, **changes)
