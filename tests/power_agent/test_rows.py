"""The rows of the configuration: what a host reads, what is left out, and what a wrong row is told."""

import pytest

from power_agent.rows import InvalidRows, Row, load_rows

CORAL = '{node: coral1, accelerator: coral, sensor: atorch_ble, address: "a4:c1:38:00:00:01"}'
GUEST = '{node: jetson1, accelerator: jetson, sensor: atorch_ble, address: "A4:C1:38:00:00:02", host: coral1}'
RAIL = "{node: jetson2, accelerator: jetson, sensor: ina3221}"
EMPTY = '{node: hailo1, accelerator: hailo, sensor: atorch_ble, address: "<address of the meter of hailo1>"}'


@pytest.fixture
def load(tmp_path):
    def load(*rows, host="coral1"):
        path = tmp_path / "rows.yaml"
        path.write_text("".join(f"- {row}\n" for row in rows))
        return load_rows(path, host)

    return load


def test_a_host_reads_its_own_rows_and_those_that_name_it(load):
    assert load(CORAL, GUEST, RAIL) == [
        Row("coral1", "coral", "atorch_ble", "A4:C1:38:00:00:01", "coral1"),
        Row("jetson1", "jetson", "atorch_ble", "A4:C1:38:00:00:02", "coral1"),
    ]
    assert load(CORAL, GUEST, RAIL, host="jetson1") == []
    assert load(CORAL, GUEST, RAIL, host="jetson2") == [Row("jetson2", "jetson", "ina3221", "POM_5V_IN", "jetson2")]


@pytest.mark.parametrize("text, checksum", [("false", False), ("true", True), ("no", False)])
def test_the_checksum_of_a_meter_may_be_switched_off(load, text, checksum):
    (row,) = load(CORAL.replace("}", f", checksum: {text}}}"))
    assert (row.checksum, row.address) == (checksum, "A4:C1:38:00:00:01")


def test_another_rail_may_be_named(load):
    (row,) = load(RAIL.replace("}", ", address: VDD_IN}"), host="jetson2")
    assert row.address == "VDD_IN"


def test_a_placeholder_leaves_its_row_out_and_says_so(load, caplog):
    assert load(EMPTY, host="hailo1") == []
    assert caplog.messages == ["hailo1: left out: its address is still the placeholder <address of the meter of hailo1>"]


def test_a_placeholder_is_no_matter_to_other_hosts(load, caplog):
    assert len(load(EMPTY, CORAL)) == 1
    assert caplog.messages == []


def test_no_rows_are_fine(load):
    assert load() == []


@pytest.mark.parametrize(
    "row, reason",
    [
        (CORAL.replace("atorch_ble", "atroch"), "row 2 (coral1): sensor is 'atroch', expected atorch_ble or ina3221"),
        (
            CORAL.replace("a4:c1", "a4-c1"),
            "row 2 (coral1): address is 'a4-c1:38:00:00:01', expected the meter's Bluetooth address",
        ),
        (CORAL.replace(', address: "a4:c1:38:00:00:01"', ""), "row 2 (coral1): address is '', expected the meter's"),
        (CORAL.replace("address", "adress"), "row 2 (coral1): unknown key adress, expected node, accelerator"),
        (CORAL.replace("accelerator: coral, ", ""), "row 2 (coral1): accelerator is missing"),
        (CORAL.replace("node: coral1, ", ""), "row 2: node is missing"),
        (CORAL.replace("node: coral1", "node: 7"), "row 2 (7): node is 7, expected text"),
        (CORAL.replace("node: coral1", 'node: ""'), "row 2 (): node is '', expected text"),
        ("coral1", "row 2: found 'coral1', expected the keys node"),
        (CORAL.replace("}", ", checksum: 0}"), "row 2 (coral1): checksum is 0, expected true or false"),
        (CORAL.replace("}", ', checksum: "false"}'), "row 2 (coral1): checksum is 'false', expected true or false"),
        (CORAL.replace("}", ", checksum: }"), "row 2 (coral1): checksum is None, expected true or false"),
        (RAIL.replace("}", ", checksum: true}"), "row 2 (jetson2): checksum is True, but an INA3221 has none"),
        (RAIL.replace("jetson2", "jetson9").replace("}", ", host: coral1}"), "row 2 (jetson9): host is 'coral1', but an INA3221"),
        (RAIL, "node jetson2 stands in more than one row"),
    ],
)
def test_a_wrong_row_is_named_also_on_another_host(load, row, reason):
    with pytest.raises(InvalidRows) as raised:
        load(RAIL, row, host="hailo2")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_meter_measures_one_node(load):
    with pytest.raises(InvalidRows, match="address A4:C1:38:00:00:01 stands in more than one row"):
        load(CORAL, GUEST.replace("00:02", "00:01"))


TEXTS = [
    ("node: coral1\n", "expected a list of rows"),
    ("- {", "is no YAML"),
    ("[" * 5000 + "]" * 5000, "cannot be read: maximum recursion depth"),
    ("- {node: 2026-02-30}", "cannot be read: "),
]


@pytest.mark.parametrize("text", ["- !!map [a]", "- !!bool x", "- !!timestamp x", "- !!int x"])
def test_value_that_is_not_what_its_tag_says_is_refused(tmp_path, text):
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(InvalidRows, match="cannot be read"):
        load_rows(tmp_path / "rows.yaml", "coral1")


@pytest.mark.parametrize("text, reason", TEXTS, ids=["mapping", "broken", "deep", "no date"])
def test_a_file_that_holds_no_rows_is_refused_in_one_line(tmp_path, text, reason):
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(InvalidRows, match=reason) as raised:
        load_rows(tmp_path / "rows.yaml", "coral1")
    assert "\n" not in str(raised.value)


def test_a_forgotten_dash_is_refused_and_not_a_lost_node(tmp_path):
    text = "- node: coral1\n  accelerator: coral\n  sensor: ina3221\n  node: jetson1\n  accelerator: jetson\n  sensor: ina3221\n"
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(InvalidRows) as raised:
        load_rows(tmp_path / "rows.yaml", "hailo1")
    assert str(raised.value) == (
        f"{tmp_path / 'rows.yaml'}: line 4: key 'node' stands twice in one row, expected a dash before each row"
    )


def test_a_row_may_refer_to_another_with_other_values(load):
    rows = load(RAIL.replace("{", "&rail {"), "{<<: *rail, node: jetson3}", host="jetson3")
    assert [row.node for row in rows] == ["jetson3"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidRows, match=r"absent\.yaml: cannot be read"):
        load_rows(tmp_path / "absent.yaml", "coral1")
