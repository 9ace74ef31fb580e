"""The whole agent as a process: the INA3221 of a directory tree over real HTTP, the textfile, its ends and its refusals."""

import os
import re
import socket
from contextlib import suppress

import pytest

from tests.helpers import eventually
from tests.power_agent.agent_process import figures, run, running, serving
from tests.power_agent.sysfs_tree import Chip

RAIL = "{node: jetson1, accelerator: jetson, sensor: ina3221}"
JETSON = ("jetson1", "jetson")


@pytest.fixture
def chip(tmp_path):
    return Chip(tmp_path / "sys", "iio", {"POM_5V_GPU": (5.0, 0.1), "POM_5V_IN": (5.0, 0.5)})


@pytest.fixture
def serve(tmp_path, chip):
    return serving(tmp_path, [RAIL], "jetson1", "--sysfs", tmp_path / "sys")


def rows_file(folder, *rows):
    path = folder / "rows.yaml"
    path.write_text("".join(f"- {row}\n" for row in rows))
    return path


def test_power_and_energy_of_a_rail_are_served(serve, chip):
    with serve as agent:
        assert eventually(lambda: agent.figure("node_power_watts", *JETSON) == pytest.approx(2.5))
        chip.show("POM_5V_IN", 5.0, 0.8)
        assert eventually(lambda: agent.figure("node_power_watts", *JETSON) == pytest.approx(4.0))
        first, second = agent.figures(), agent.figures()
        energy = ("node_energy_joules_total", *JETSON)
        assert eventually(lambda: agent.figure(*energy) > second[energy])
        assert 2.5 < first[energy] <= second[energy]
        assert first["power_agent_up", "jetson1"] == 1
        assert 0 <= first["power_agent_sample_age_seconds", "jetson1"] < 5
        assert first["power_agent_errors_total", "jetson1", "read"] == 0
        assert {key[0] for key in first} == {
            *("node_power_watts", "node_energy_joules_total", "node_energy_measured_seconds_total"),
            *("power_agent_sample_age_seconds", "power_agent_up", "power_agent_errors_total"),
        }


def test_labels_are_node_and_accelerator_and_samples_bear_no_time(serve):
    with serve as agent:
        assert eventually(lambda: agent.figure("node_power_watts", *JETSON))
        text = agent.text()
        assert re.search(r'^node_power_watts\{accelerator="jetson",node="jetson1"\} \S+$', text, re.MULTILINE)
        assert re.search(r'^node_energy_joules_total\{accelerator="jetson",node="jetson1"\} \S+$', text, re.MULTILINE)


def test_a_sensor_that_goes_takes_its_figures_with_it_and_brings_them_back(serve, chip):
    with serve as agent:
        assert eventually(lambda: agent.figure("node_power_watts", *JETSON))
        before_j = agent.figure("node_energy_joules_total", *JETSON)
        chip.unplug("POM_5V_IN")
        assert eventually(lambda: agent.figure("power_agent_up", "jetson1") == 0)
        gone = agent.figures()
        assert not {"node_power_watts", "node_energy_joules_total"} & {key[0] for key in gone}
        assert gone["power_agent_sample_age_seconds", "jetson1"] < 5  # at once, not when the sample has grown old
        assert gone["power_agent_errors_total", "jetson1", "read"] > 0
        chip.show("POM_5V_IN", 5.0, 0.5)
        assert eventually(lambda: agent.figure("node_energy_joules_total", *JETSON) is not None)
        assert agent.figure("node_energy_joules_total", *JETSON) >= before_j


def test_a_board_without_the_chip_serves_that_it_is_not_up(tmp_path):
    with serving(tmp_path, [RAIL], "jetson1", "--sysfs", tmp_path) as agent:
        assert eventually(lambda: agent.figure("power_agent_errors_total", "jetson1", "read"))
        assert agent.figure("power_agent_up", "jetson1") == 0
        assert agent.log.count("jetson1: read: ") == 1
        assert "found no rail of an INA3221" in agent.log


def test_a_host_without_rows_idles_with_empty_metrics(tmp_path):
    with serving(tmp_path, [RAIL], "hailo1") as agent:
        assert agent.text() == ""
        assert eventually(lambda: "no row names this host" in agent.log)
        assert agent.end() == 0


def test_an_empty_placeholder_is_left_out(tmp_path):
    row = '{node: coral1, accelerator: coral, sensor: atorch_ble, address: "<address of the meter of coral1>"}'
    with serving(tmp_path, [row], "coral1") as agent:
        assert agent.text() == ""
        assert "coral1: left out" in agent.log


def test_it_ends_cleanly_when_told(serve):
    with serve as agent:
        assert eventually(lambda: agent.figure("power_agent_up", "jetson1"))
        assert agent.end() == 0
        assert agent.log.splitlines()[-1].endswith("INFO ended")
        assert all(re.match(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING) ", line) for line in agent.log.splitlines())


def test_it_ends_when_told_while_a_read_hangs(tmp_path, chip):
    folder = tmp_path / "textfile"
    folder.mkdir()
    fifo = chip.hang("POM_5V_IN")
    options = ("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--sysfs", tmp_path / "sys", "--textfile", folder)
    ends: list[int] = []

    def is_read():
        with suppress(OSError):  # until somebody reads
            ends.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    with running(tmp_path, *options) as agent:
        assert eventually(is_read)
        assert agent.end() == 0
        os.close(ends[0])
        assert agent.log.splitlines()[-1].endswith("INFO ended")
    assert list(folder.iterdir()) == []


def test_once_ends_in_time_while_a_read_hangs(tmp_path, chip):
    chip.hang("POM_5V_IN")
    done = run("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--sysfs", tmp_path / "sys", "--once", "--timeout", "1")
    assert done.stdout == "jetson1 (ina3221 POM_5V_IN): no reading within 1 s: nothing read\n"
    assert (done.returncode, done.stderr) == (1, "")


def test_textfile_is_written_whole_and_removed_at_the_end(tmp_path, chip):
    folder = tmp_path / "textfile"
    folder.mkdir()
    file = folder / "power_agent.prom"
    options = ("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--sysfs", tmp_path / "sys", "--textfile", folder)
    with running(tmp_path, *options) as agent:
        assert eventually(lambda: file.exists() and ("node_power_watts", *JETSON) in figures(file.read_text()))
        text = file.read_text()
        assert figures(text)["node_power_watts", *JETSON] == pytest.approx(2.5)
        assert all(len(line.split()) == 2 for line in text.splitlines() if not line.startswith("#"))
        assert "serves" not in agent.log
        assert agent.end() == 0
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path, chip):
    done = run("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--textfile", tmp_path / "absent")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"power_agent: {tmp_path / 'absent'}: ")


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--listen", "127.0.0.1", "--port", port)
    assert done.returncode == 1
    assert f"power_agent: 127.0.0.1:{port}: " in done.stderr.splitlines()[-1]


def test_a_wrong_row_ends_it_with_one_line(tmp_path):
    done = run("--rows", rows_file(tmp_path, RAIL, RAIL.replace("ina3221", "ina322")), "--host", "hailo1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"power_agent: {tmp_path / 'rows.yaml'}: row 2 (jetson1): sensor is 'ina322', expected atorch_ble or ina3221\n"
    )


@pytest.mark.parametrize("options", [("--port", "x"), ("--timeout", "0"), ("--timeout", "soon"), ("--fast",)])
def test_wrong_options_are_refused(options):
    assert run(*options).returncode == 2


def test_once_prints_one_reading_of_each_row(tmp_path, chip):
    done = run("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--sysfs", tmp_path / "sys", "--once")
    assert done.stdout == "jetson1 (ina3221 POM_5V_IN): 5.00 V x 0.50 A = 2.50 W\n"
    assert done.returncode == 0


def test_once_says_why_there_is_no_reading(tmp_path):
    done = run("--rows", rows_file(tmp_path, RAIL), "--host", "jetson1", "--sysfs", tmp_path, "--once", "--timeout", "1")
    assert done.stdout.startswith("jetson1 (ina3221 POM_5V_IN): no reading within 1 s: read: ")
    assert done.returncode == 1


def test_scan_without_bluetooth_says_what_to_look_at():
    done = run("--scan")
    assert done.returncode == 1
    assert "is bluetoothd running" in done.stdout
