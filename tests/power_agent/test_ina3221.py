"""The INA3221 as a directory tree: a rail is found by its name, wherever it stands."""

import itertools

import pytest

from power_agent.ina3221 import RailNotFound, find_rail
from power_agent.measurement import Reading
from tests.power_agent.sysfs_tree import Chip

RAILS = {"POM_5V_IN": (4.936, 0.516), "POM_5V_GPU": (4.92, 0.04), "POM_5V_CPU": (4.928, 0.2)}


@pytest.mark.parametrize("layout", ["iio", "hwmon"])
@pytest.mark.parametrize("order", list(itertools.permutations(RAILS)), ids="-".join)
def test_a_rail_is_found_by_its_name_on_any_channel(tmp_path, layout, order):
    Chip(tmp_path, layout, {name: RAILS[name] for name in order}, address="1-0041", number=3)
    for name, expected in RAILS.items():
        assert find_rail(tmp_path, name).read() == Reading(*expected)


def test_power_of_the_module_is_volts_times_amperes(tmp_path):
    Chip(tmp_path, "iio", RAILS)
    assert find_rail(tmp_path, "POM_5V_IN").read().power_w == pytest.approx(4.936 * 0.516)


def test_rails_of_several_chips_are_found_and_other_devices_left_alone(tmp_path):
    Chip(tmp_path, "iio", RAILS)
    Chip(tmp_path, "hwmon", {"VDD_SOC": (5.0, 1.0)}, address="2-0041")
    other = tmp_path / "bus" / "i2c" / "devices" / "0-0050"
    other.mkdir()
    (other / "name").write_text("24c02\n")
    assert find_rail(tmp_path, "VDD_SOC").read() == Reading(5.0, 1.0)
    assert find_rail(tmp_path, "POM_5V_GPU").read() == Reading(4.92, 0.04)


@pytest.mark.parametrize("layout", ["iio", "hwmon"])
def test_what_cannot_be_read_of_others_does_not_keep_a_rail_from_being_found(tmp_path, layout):
    chip = Chip(tmp_path, layout, RAILS)
    (tmp_path / "bus" / "i2c" / "devices" / "0-0011" / "name").mkdir(parents=True)
    chip.hide_label("POM_5V_GPU")
    assert find_rail(tmp_path, "POM_5V_IN").read() == Reading(4.936, 0.516)
    with pytest.raises(RailNotFound, match=r"found POM_5V_CPU, POM_5V_IN, unreadable (rail_name_1|in2_label)$"):
        find_rail(tmp_path, "POM_5V_GPU")


def test_a_missing_rail_names_those_that_there_are(tmp_path):
    Chip(tmp_path, "iio", RAILS)
    with pytest.raises(RailNotFound, match="no rail VDD_IN; found POM_5V_CPU, POM_5V_GPU, POM_5V_IN"):
        find_rail(tmp_path, "VDD_IN")


def test_a_board_without_the_chip_is_said(tmp_path):
    with pytest.raises(RailNotFound, match="found no rail of an INA3221"):
        find_rail(tmp_path, "POM_5V_IN")


def test_an_offset_below_zero_is_no_power(tmp_path):
    Chip(tmp_path, "iio", {"POM_5V_IN": (5.0, -0.008)})
    assert find_rail(tmp_path, "POM_5V_IN").read() == Reading(5.0, 0.0)
