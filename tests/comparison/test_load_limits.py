"""The search for the highest load: what it brackets, what it believes, what it asks for next."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from comparison.load_limits import LoadLimit, next_load


def bisected(meets, known):
    """`next_load` asked, and answered by `meets`, until it has the answer; `known` verdicts are not asked for again."""
    verdicts = dict(known)
    while not isinstance(load := next_load(verdicts), LoadLimit):
        verdicts[load] = meets(load)
    return load


@given(st.floats(0.1, 7), st.lists(st.floats(0.1, 8), max_size=4))
def test_bisection_brackets_a_monotone_limit(limit, loads_known):
    asked = []

    def meets(load):
        asked.append(load)
        return load <= limit

    known = {load: load <= limit for load in loads_known}
    found = bisected(meets, known)
    assert len(asked) == len(set(asked) - set(known)) <= 12
    assert all(0.25 <= load <= 6.0 for load in asked)
    if limit < 0.25:
        assert found == (None, "below")
    elif limit >= 6.0:
        assert found == (None, "above")
    else:
        assert found.kind == "found"
        assert found.load is not None
        assert found.load <= limit <= found.load + 0.05
        assert found.load in asked or known[found.load]


@given(st.dictionaries(st.floats(0.25, 6), st.booleans(), max_size=6), st.integers(0, 2**32))
def test_verdicts_that_are_not_monotone_give_the_first_crossing_that_was_seen(known, seed):
    verdicts = dict(known)
    rng = np.random.default_rng(seed)

    def meets(load):
        verdicts[load] = bool(rng.integers(2))
        return verdicts[load]

    found = bisected(meets, known)
    first_failing = min((load for load, passes in verdicts.items() if not passes), default=math.inf)
    if found.kind == "found":
        assert found.load is not None
        assert verdicts[found.load]
        assert found.load < first_failing <= found.load + 0.05
    elif found.kind == "below":
        assert verdicts[0.25] is False
    else:
        assert verdicts[6.0]
        assert math.isinf(first_failing)


def test_known_verdicts_narrow_the_bracket():
    assert next_load({1.0: True, 2.0: False}) == 1.5
    assert next_load({1.0: True, 1.04: False}) == LoadLimit(1.0, "found")


def test_load_is_doubled_while_nothing_fails_but_never_beyond_the_highest():
    assert [next_load({}), next_load({0.25: True}), next_load({1.5: True}), next_load({4.0: True})] == [0.25, 0.5, 3.0, 6.0]


def test_verdicts_beyond_the_loads_to_be_tried_prove_nothing():
    assert next_load({0.1: False, 8.0: True}) == 0.25
