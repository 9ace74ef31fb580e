"""Reading tables that a spreadsheet has saved in its own way."""

import pandas as pd
import pytest

from reporting.reading import header_of, read_table

COLUMNS = ["model_name", "arrival_time_s", "met_fixed_deadline", "outcome"]
ROWS = 'model_name,arrival_time_s,met_fixed_deadline,outcome\nvgg16,1.25,true,on_time\n"a,b",2.5,false,late\nvgg16,3,,failed\n'


def of_a_spreadsheet(separator, point):
    flags = {"true": "TRUE", "false": "FALSE"}
    rows = [["model_name", "arrival_time_s", "met_fixed_deadline", "outcome"]]
    rows += [["vgg16", "1.25", "true", "on_time"], ["a,b", "2.5", "false", "late"], ["vgg16", "3", "", "failed"]]
    text = [[flags.get(field, field).replace(".", point) for field in row] for row in rows]
    return "\ufeff" + "".join(f"{separator.join(row)}\r\n" for row in text)


@pytest.mark.parametrize(("separator", "point"), [(";", ","), (";", "."), ("\t", ".")])
def test_table_of_a_spreadsheet_is_the_same_table(tmp_path, separator, point):
    (tmp_path / "ours.csv").write_text(ROWS)
    (tmp_path / "theirs.csv").write_text(of_a_spreadsheet(separator, point))
    ours = read_table(tmp_path / "ours.csv", COLUMNS)
    assert ours["arrival_time_s"].tolist() == [1.25, 2.5, 3.0] and ours["met_fixed_deadline"].tolist()[:2] == [1.0, 0.0]
    pd.testing.assert_frame_equal(read_table(tmp_path / "theirs.csv", COLUMNS), ours)
    assert header_of(tmp_path / "theirs.csv") == header_of(tmp_path / "ours.csv") == COLUMNS
