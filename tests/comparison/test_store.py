"""What the store of finished cells believes."""

import json

import pytest

from comparison.store import CellStore
from utils import HarnessError

from .few_cells import cell, result_of


@pytest.fixture
def said():
    """What the store has told a person."""
    return []


@pytest.fixture
def store(tmp_path, said):
    return CellStore(tmp_path / "cells", said.append)


def test_store_gives_back_what_was_kept_and_nothing_of_a_cell_that_was_not(store, said):
    result = result_of(cell(load=0.2))
    store.write(cell(load=0.2), result)
    assert store.read(cell(load=0.2)) == json.loads(json.dumps(result))
    assert store.read(cell(load=0.3)) is None
    assert said == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"meets": true', '"meets": false'),
        lambda text: text.replace('"result"', '"other"'),
        lambda text: text.replace('"seed": 7', '"seed": 8'),
        lambda text: text.replace('"meets": true', '"meets": NaN'),
        lambda text: "\x00\xff" * 20,
    ],
)
def test_damaged_cell_file_is_named_and_not_believed(store, said, tmp_path, damage):
    one = cell("limit")
    store.write(one, {"meets": True})
    path = tmp_path / "cells" / f"{one.key}.json"
    path.write_text(damage(path.read_text()))
    assert store.read(one) is None
    assert len(said) == 1 and str(path) in said[0] and "computed again" in said[0]


def test_file_of_another_cell_under_this_name_is_not_believed(store, said, tmp_path):
    one, other = cell("limit"), cell("limit", seed=8)
    store.write(other, {"meets": True})
    (tmp_path / "cells" / f"{other.key}.json").rename(tmp_path / "cells" / f"{one.key}.json")
    assert store.read(one) is None and len(said) == 1


def test_store_that_cannot_write_says_so_in_one_line(tmp_path):
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(HarnessError, match="cannot be written any more"):
        CellStore(tmp_path / "cells", print).write(cell("limit"), {"meets": True})
