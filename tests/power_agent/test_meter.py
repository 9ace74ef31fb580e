"""ATORCH meters through bleak itself, on a stand-in for BlueZ; no radio and no meter took part."""

import asyncio
import signal

import pytest

from power_agent import meter as meter_module
from power_agent.measurement import LONGEST_GAP_S, Measurement, Snapshot
from tests.helpers import PATIENCE_S, eventually
from tests.power_agent.agent_process import run, serving
from tests.power_agent.bluez_standin import Bluez, Meter, private_bus
from tests.power_agent.test_atorch import J7C, frame_of

CORAL_ADDRESS, JETSON_ADDRESS = "A4:C1:38:00:00:01", "A4:C1:38:00:00:02"
CORAL_ROW = f'{{node: coral1, accelerator: coral, sensor: atorch_ble, address: "{CORAL_ADDRESS}"}}'
JETSON_ROW = f'{{node: jetson1, accelerator: jetson, sensor: atorch_ble, address: "{JETSON_ADDRESS}", host: coral1}}'
CORAL, JETSON = ("coral1", "coral"), ("jetson1", "jetson")
POWER, ENERGY = "node_power_watts", "node_energy_joules_total"


@pytest.fixture
def bluez(tmp_path):
    meters = [Meter(CORAL_ADDRESS), Meter(JETSON_ADDRESS, "UD18-BLE"), Meter("00:11:22:33:44:55", "headphones", services=[])]
    with private_bus(tmp_path) as address, Bluez(address, meters) as bluez:
        yield bluez


@pytest.fixture
def serve(tmp_path, bluez):
    def serve(*rows):
        return serving(tmp_path, rows, "coral1", bus=bluez.bus_address)

    return serve


def figure_while_sending(bluez, agent, address, frame, key):
    """The figure, as soon as there is one, while the meter sends that frame again and again."""
    assert eventually(lambda: bluez.send(address, frame) and agent.figure(*key) is not None), agent.log
    return agent.figure(*key)


def test_a_meter_is_found_and_its_split_frames_become_watts_and_joules(bluez, serve):
    with serve(CORAL_ROW) as agent:
        power_w = figure_while_sending(bluez, agent, CORAL_ADDRESS, frame_of(507, 61), (POWER, *CORAL))
        assert power_w == pytest.approx(5.07 * 0.61)
        figures = agent.figures()
        assert figures[ENERGY, *CORAL] > 0
        assert figures["power_agent_up", "coral1"] == 1
        assert {value for key, value in figures.items() if key[0] == "power_agent_errors_total"} == {0}


def test_two_meters_of_one_host_are_read_at_once(bluez, serve):
    with serve(CORAL_ROW, JETSON_ROW) as agent:

        def both():
            sent = bluez.send(CORAL_ADDRESS, frame_of(500, 100)), bluez.send(JETSON_ADDRESS, frame_of(500, 200))
            return all(sent) and {(POWER, *CORAL), (POWER, *JETSON)} <= agent.figures().keys()

        assert eventually(both), agent.log
        assert agent.figure(POWER, *CORAL) == pytest.approx(5.0)
        assert agent.figure(POWER, *JETSON) == pytest.approx(10.0)
        assert agent.figure("power_agent_errors_total", "jetson1", "connection") == 0


def test_a_meter_out_of_range_leaves_no_figure_and_is_found_again(bluez, serve):
    with serve(CORAL_ROW) as agent:
        figure_while_sending(bluez, agent, CORAL_ADDRESS, frame_of(500, 400), (POWER, *CORAL))
        before_j = agent.figure(ENERGY, *CORAL)
        bluez.vanish(CORAL_ADDRESS)
        assert eventually(lambda: agent.figure("power_agent_up", "coral1") == 0)
        gone = agent.figures()
        assert gone["power_agent_errors_total", "coral1", "disconnected"] == 1
        assert gone["power_agent_sample_age_seconds", "coral1"] < LONGEST_GAP_S  # at once, not when the sample has grown old
        assert not {(POWER, *CORAL), (ENERGY, *CORAL)} & gone.keys()
        assert eventually(lambda: agent.figure("power_agent_sample_age_seconds", "coral1") > LONGEST_GAP_S)
        assert not {(POWER, *CORAL), (ENERGY, *CORAL)} & agent.figures().keys()

        bluez.appear(CORAL_ADDRESS)
        assert eventually(lambda: bluez.send(CORAL_ADDRESS, frame_of(500, 400))), agent.log
        figure_while_sending(bluez, agent, CORAL_ADDRESS, frame_of(500, 400), (ENERGY, *CORAL))
        back_j = agent.figure(ENERGY, *CORAL)
        assert before_j <= back_j < before_j + 20.0 * LONGEST_GAP_S  # the gap was longer, at 20 W
        figure_while_sending(bluez, agent, CORAL_ADDRESS, frame_of(500, 400), (POWER, *CORAL))
        assert agent.figure(ENERGY, *CORAL) > back_j


def test_frames_of_another_kind_and_damaged_ones_are_counted_and_give_no_watts(bluez, serve):
    damaged = frame_of(507, 61)[:-1] + b"\x00"
    with serve(CORAL_ROW) as agent:
        assert eventually(lambda: bluez.send(CORAL_ADDRESS, damaged))
        assert bluez.send(CORAL_ADDRESS, frame_of(507, 61, kind=1))
        assert eventually(lambda: agent.figure("power_agent_errors_total", "coral1", "device_type") == 1)
        figures = agent.figures()
        assert figures["power_agent_errors_total", "coral1", "checksum"] == 1
        assert not {(POWER, *CORAL), (ENERGY, *CORAL)} & figures.keys()
        assert figures["power_agent_up", "coral1"] == 0
        assert "(AC meter), expected 03 (USB meter)" in agent.log


def test_a_j7c_is_read_where_its_row_says_that_its_checksum_is_none(bluez, serve):
    with serve(CORAL_ROW) as agent:
        assert eventually(lambda: bluez.send(CORAL_ADDRESS, J7C[0]))
        assert eventually(lambda: agent.figure("power_agent_errors_total", "coral1", "checksum"))
        assert "expected 8F; if that is so with every frame, as of a J7-C: checksum: false in the meter's row" in agent.log
        assert agent.figure("power_agent_up", "coral1") == 0
    with serve(CORAL_ROW.replace("}", ", checksum: false}")) as agent:
        assert figure_while_sending(bluez, agent, CORAL_ADDRESS, J7C[0], (POWER, *CORAL)) == pytest.approx(20.31 * 0.35)
        assert agent.figure("power_agent_errors_total", "coral1", "implausible") == 0
        assert bluez.send(CORAL_ADDRESS, J7C[0][:25] + b"\x77" + J7C[0][26:])
        assert eventually(lambda: agent.figure("power_agent_errors_total", "coral1", "implausible") == 1)
        assert "implausible: A4:C1:38:00:00:01: a frame says minutes 119, expected 0 to 59" in agent.log


def test_the_meter_is_let_go_when_the_agent_is_told_to_end(bluez, serve):
    with serve(CORAL_ROW) as agent:
        assert eventually(lambda: bluez.send(CORAL_ADDRESS, frame_of(507, 61)))
        assert agent.end() == 0
        assert ("Disconnect", bluez.meters[CORAL_ADDRESS].path) in bluez.calls
        assert not bluez.meters[CORAL_ADDRESS].connected
        assert "Traceback" not in agent.log


def test_a_meter_still_connected_by_an_agent_that_was_killed_is_taken_over(bluez, serve):
    with serve(CORAL_ROW) as agent:
        assert eventually(lambda: bluez.send(CORAL_ADDRESS, frame_of(507, 61)))
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait(PATIENCE_S)
    assert bluez.meters[CORAL_ADDRESS].connected
    with serve(CORAL_ROW) as agent:
        assert figure_while_sending(bluez, agent, CORAL_ADDRESS, frame_of(507, 61), (POWER, *CORAL)) == pytest.approx(3.0927)


def test_once_prints_a_reading_and_lets_the_meter_go(tmp_path, bluez):
    (tmp_path / "rows.yaml").write_text(f"- {CORAL_ROW}\n")

    async def sending():
        done = asyncio.ensure_future(
            asyncio.to_thread(run, "--rows", tmp_path / "rows.yaml", "--host", "coral1", "--once", bus=bluez.bus_address)
        )
        while not done.done():
            await asyncio.to_thread(bluez.send, CORAL_ADDRESS, frame_of(507, 61))
            await asyncio.wait({done}, timeout=0.05)
        return done.result()

    done = asyncio.run(sending())
    assert done.stdout == f"coral1 (atorch_ble {CORAL_ADDRESS}): 5.07 V x 0.61 A = 3.09 W\n"
    assert done.returncode == 0
    assert not bluez.meters[CORAL_ADDRESS].connected


def test_scan_lists_what_looks_like_a_meter(monkeypatch, bluez):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bluez.bus_address)
    assert asyncio.run(meter_module.scan(5.0)) == [f"{JETSON_ADDRESS}  UD18-BLE  -60 dBm", f"{CORAL_ADDRESS}  UC96_BLE  -60 dBm"]


def test_names_of_devices_are_shown_without_control_characters():
    assert meter_module._printable("UD18\x1b[31m\n-BLE 전력") == r"UD18\x1b[31m\n-BLE 전력"


def in_process(bluez, monkeypatch, holds, addresses=(CORAL_ADDRESS,), **constants):
    """Run meters on this test's loop until something holds of their measurements."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bluez.bus_address)
    for name, value in constants.items():
        monkeypatch.setattr(meter_module, name, value)

    async def read():
        measurements = [Measurement(address, "coral", meter_module.ERROR_KINDS) for address in addresses]
        radio = asyncio.Lock()
        meters = [meter_module.AtorchMeter(of.node, of, radio) for of in measurements]
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(meter.run()) for meter in meters]
            while not holds(*measurements):
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()

    asyncio.run(read())


def test_a_meter_that_is_connected_and_silent_is_connected_anew(bluez, monkeypatch):
    in_process(bluez, monkeypatch, lambda found: found.errors["silent"] > 1, SILENCE_S=0.1, FIRST_PAUSE_S=0.01)
    assert bluez.calls.count(("Connect", bluez.meters[CORAL_ADDRESS].path)) > 1


QUICK = {
    **{"ANSWER_TIMEOUT_S": 0.1, "CONNECT_TIMEOUT_S": 0.1, "FIND_TIMEOUT_S": 0.2, "END_TIMEOUT_S": 0.05, "FIRST_PAUSE_S": 0.01},
    "LONGEST_PAUSE_S": 0.1,
}


@pytest.mark.parametrize("member", ["Connect", "StartNotify", "Disconnect"])
def test_a_meter_whose_bluetooth_hangs_does_not_keep_another_from_being_read(bluez, monkeypatch, member):
    coral = bluez.meters[CORAL_ADDRESS]
    bluez.unanswered |= {(member, coral.path), (member, coral.characteristic)}

    def hung_and_read(coral, jetson):
        bluez.send(JETSON_ADDRESS, frame_of(500, 200))
        return coral.errors["silent" if member == "Disconnect" else "connection"] > 1 and jetson.snapshot is not None

    both = (CORAL_ADDRESS, JETSON_ADDRESS)
    in_process(bluez, monkeypatch, hung_and_read, both, SILENCE_S=0.3, **QUICK)


@pytest.mark.parametrize("member", ["StartDiscovery", "StopDiscovery", "Connect", "StartNotify"])
def test_a_bluetooth_service_that_hung_is_used_again(bluez, monkeypatch, member):
    bluez.unanswered |= {member}
    hung = []

    def read_after_a_hang(coral):
        if member in {name for name, _ in bluez.calls}:
            hung.append(coral.snapshot)
        if len(hung) == 100:  # looked at every 5 ms: longer than any of QUICK
            bluez.answer_again()
        bluez.send(CORAL_ADDRESS, frame_of(500, 200))
        return coral.snapshot is not None

    in_process(bluez, monkeypatch, read_after_a_hang, HANG_S=PATIENCE_S, **QUICK)
    assert len(hung) >= 100
    assert set(hung[:100]) == {None}


@pytest.mark.parametrize("failures", [0, 3], ids=["back at once", "back later"])
@pytest.mark.parametrize("taken_over", [False, True], ids=["found", "taken over"])
def test_a_meter_is_read_again_after_bluetooth_has_crashed(bluez, monkeypatch, taken_over, failures):
    bluez.meters[CORAL_ADDRESS].connected = taken_over
    before: list[int] = []
    heard: list[Snapshot | None] = []

    def read_again(coral):
        if bluez.send(CORAL_ADDRESS, frame_of(500, 200)) and before:
            heard.append(coral.snapshot)
        if not before and coral.snapshot is not None:
            before.append(coral.errors.total())
            bluez.crash()
        elif not bluez.is_running and coral.errors.total() >= before[0] + failures:
            bluez.start_again()
        return bool(heard) and coral.snapshot is not heard[0]

    in_process(bluez, monkeypatch, read_again, SILENCE_S=0.3, **QUICK)


def test_a_meter_that_stays_connected_and_cannot_be_found_is_taken_over_again(bluez, monkeypatch):
    bluez.meters[CORAL_ADDRESS].connected = True
    bluez.unanswered |= {"StartNotify", "Disconnect"}

    def read_after_a_search(coral):
        if coral.errors["not_found"]:
            bluez.unanswered.clear()
        bluez.send(CORAL_ADDRESS, frame_of(500, 200))
        return coral.snapshot is not None

    in_process(bluez, monkeypatch, read_after_a_search, **QUICK)


@pytest.mark.parametrize("member", ["StartDiscovery", "StopDiscovery"])
def test_a_search_that_is_never_answered_ends_the_agent(bluez, monkeypatch, member):
    bluez.unanswered |= {member}
    with pytest.raises(BaseExceptionGroup) as raised:
        in_process(bluez, monkeypatch, lambda coral: False, HANG_S=0.3, **QUICK)
    assert raised.group_contains(meter_module.BluetoothHangs, match="told to search, has not answered for 0.5 s")


def test_a_meter_that_is_not_there_is_searched_ever_more_rarely(bluez, monkeypatch):
    pauses = []
    sleep = asyncio.sleep

    async def noted(pause_s):
        if pause_s >= 1.0:
            pauses.append(pause_s)
        await sleep(min(pause_s, 0.001))

    bluez.vanish(CORAL_ADDRESS)
    monkeypatch.setattr(asyncio, "sleep", noted)
    in_process(bluez, monkeypatch, lambda found: found.errors["not_found"] > 6, FIND_TIMEOUT_S=0.02)
    assert pauses[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
