"""Frames of ATORCH meters: vectors that three public parsers agree on, and what Bluetooth does to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_agent.atorch import CHECKSUM, DEVICE_TYPE, IMPLAUSIBLE, Fault, FrameReader, checksum
from power_agent.measurement import Reading

VECTORS = {
    "FF5501030001F3000000000638000003110007000A000000122E333C000000000000004E": Reading(4.99, 0.0),
    "FF5501030001FB000001006C3F00006C4400070006001A00471C1A3C0000000000000078": Reading(5.07, 0.01),
    "FF5501030001FC00000000000000000000000800070013000000063C0DAC000003E86429": Reading(5.08, 0.0),
}
FRAMES = {bytes.fromhex(frame): reading for frame, reading in VECTORS.items()}
FRAME, READING = list(FRAMES.items())[1]


def frame_of(voltage_cv, current_ca, kind=3, rest=bytes(25)):
    """A report with voltage and current in hundredths and 25 bytes of everything else."""
    body = b"\xff\x55\x01" + bytes([kind]) + voltage_cv.to_bytes(3) + current_ca.to_bytes(3) + rest
    return body + bytes([checksum(body)])


# Sent by a J7-C one after the other, from the public report syssi/esphome-atorch-dl24#48: no last byte is the documented sum.
J7C = [
    bytes.fromhex("FF5501030007EF00002300015A000002BF00090009001F000026003C0DAC01220320000D"),
    bytes.fromhex("FF5501030007F000002100015A000002BF00090009001F000026013C0DAC0122032000BE"),
    bytes.fromhex("FF5501030007EF00002300015A000002BF00090009001E000026023C0DAC0122032000E8"),
    bytes.fromhex("FF5501030007ED00002E00015B000002C000080009001F000026053C0DAC012203200095"),
]
J7C_READINGS = [Reading(20.31, 0.35), Reading(20.32, 0.33), Reading(20.31, 0.35), Reading(20.29, 0.46)]


def outcomes(*pieces, checked=True):
    reader = FrameReader(checked)
    return [outcome for piece in pieces for outcome in reader.feed(piece)]


def readings(*pieces):
    return [outcome for outcome in outcomes(*pieces) if isinstance(outcome, Reading)]


u24 = st.integers(0, 0xFFFFFF)
frames = st.builds(frame_of, u24, u24, rest=st.binary(min_size=25, max_size=25)).filter(
    lambda frame: b"\xff\x55\x01\x03" not in frame[1:]
)


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize("frame", FRAMES, ids=bytes.hex)
def test_frames_of_real_meters_are_read(frame):
    assert outcomes(frame) == [FRAMES[frame]]


def test_power_is_volts_times_amperes():
    (reading,) = outcomes(frame_of(507, 61))
    assert (reading.voltage_v, reading.current_a) == (5.07, 0.61)
    assert reading.power_w == pytest.approx(3.0927)


@pytest.mark.parametrize("place", range(37))
@pytest.mark.parametrize("frame", FRAMES, ids=bytes.hex)
def test_a_frame_may_be_split_anywhere(frame, place):
    assert outcomes(frame[:place], frame[place:]) == [FRAMES[frame]]


@given(st.lists(frames, min_size=1, max_size=4), st.lists(st.integers(0, 200), max_size=12))
def test_the_cuts_of_notifications_do_not_matter(sent, places):
    stream = b"".join(sent)
    expected = [Reading(int.from_bytes(frame[4:7]) / 100, int.from_bytes(frame[7:10]) / 100) for frame in sent]
    assert outcomes(*cut(stream, places)) == expected


@given(st.binary(max_size=80).map(lambda data: data.replace(b"\x55", b"")), st.lists(st.integers(0, 200), max_size=6))
def test_garbage_without_a_header_is_skipped_in_silence(garbage, places):
    assert outcomes(*cut(garbage + FRAME + garbage + FRAME, places)) == [READING, READING]


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6))
def test_garbage_never_raises_and_cuts_do_not_change_what_is_made_of_it(garbage, places):
    stream = garbage + FRAME
    assert outcomes(*cut(stream, places)) == outcomes(stream)


@pytest.mark.parametrize("kept", range(3, 36))
def test_a_frame_after_one_that_lost_its_end_is_read(kept):
    found = outcomes(FRAME[:kept], FRAME)
    assert found[-1] == READING
    assert [fault.kind for fault in found[:-1]] == [CHECKSUM]


@pytest.mark.parametrize("lost", range(1, 36))
def test_a_frame_after_one_that_lost_its_beginning_is_read(lost):
    assert readings(FRAME[lost:], FRAME) == [READING]


@given(frames, st.integers(3, 35), st.integers(1, 255))
def test_no_single_wrong_byte_gives_a_reading(frame, place, change):
    damaged = bytearray(frame)
    damaged[place] ^= change
    assert readings(damaged) == []


def test_two_frames_run_together_are_no_reading_even_with_a_right_checksum():
    assert checksum(FRAME[:12] + FRAME[:24]) == FRAME[23]
    (fault, reading) = outcomes(FRAME[:12], FRAME)
    assert (fault.reason, reading) == ("a frame was cut short: another begins inside of it", READING)


def test_a_wrong_checksum_says_both():
    (fault,) = outcomes(FRAME[:-1] + b"\x00")
    assert fault == Fault(CHECKSUM, "a frame ends with the checksum 00, expected 78")


@pytest.mark.parametrize("kind, name", [(1, "AC meter"), (2, "DC meter"), (9, "unknown kind of meter")])
def test_meters_of_another_kind_are_refused(kind, name):
    (fault,) = outcomes(frame_of(507, 61, kind=kind))
    assert fault.kind == DEVICE_TYPE
    assert f"device type 0{kind} ({name}), expected 03 (USB meter)" in fault.reason


def test_frames_of_a_j7c_are_refused_unless_its_checksum_is_switched_off():
    assert [fault.kind for fault in outcomes(*J7C)] == [CHECKSUM] * 4
    assert outcomes(*J7C, checked=False) == J7C_READINGS


@given(st.lists(st.integers(0, 200), max_size=12))
def test_the_cuts_of_notifications_do_not_matter_without_a_checksum_either(places):
    assert outcomes(*cut(b"".join(J7C), places), checked=False) == J7C_READINGS


def changed(frame, place, *values):
    return frame[:place] + bytes(values) + frame[place + len(values) :]


@pytest.mark.parametrize(
    "place, values, reason",
    [
        (4, (0x01,), "volts 675.67, expected 3 to 40"),
        (4, (0, 0, 0), "volts 0, expected 3 to 40"),
        (7, (0, 0x10), "amperes 41.31, expected 0 to 10"),
        (17, (0x20,), "volts at D- 82.01"),
        (19, (0x20,), "volts at D+ 82.01"),
        (21, (0x01,), "degrees Celsius 287, expected 0 to 150"),
        (25, (60,), "minutes 60, expected 0 to 59"),
        (26, (99,), "seconds 99, expected 0 to 59"),
        (27, (61,), "seconds of backlight 61, expected 0 to 60"),
    ],
)
def test_without_a_checksum_a_report_must_be_plausible(place, values, reason):
    fault, reading = outcomes(changed(J7C[0], place, *values), J7C[1], checked=False)
    assert (fault.kind, reading) == (IMPLAUSIBLE, J7C_READINGS[1])
    assert reason in fault.reason


@pytest.mark.parametrize("place", range(28, 35))
def test_without_a_checksum_settings_that_change_are_believed_when_they_come_again(place):
    damaged = changed(J7C[1], place, 0x77)
    first, fault, second_fault, third = outcomes(J7C[0], damaged, J7C[2], J7C[3], checked=False)
    assert (first, third) == (J7C_READINGS[0], J7C_READINGS[3])
    assert fault.kind == second_fault.kind == IMPLAUSIBLE
    assert "0dac01220320" in second_fault.reason
    found = outcomes(J7C[0], damaged, damaged, checked=False)
    assert [isinstance(outcome, Reading) for outcome in found] == [True, False, True]


def test_without_a_checksum_another_kind_of_meter_and_a_frame_cut_short_are_refused_still():
    (fault,) = outcomes(frame_of(507, 61, kind=2)[:-1] + b"\x00", checked=False)
    assert fault.kind == DEVICE_TYPE
    short, reading = outcomes(J7C[0][:20], J7C[1], checked=False)
    assert (short.kind, reading) == (IMPLAUSIBLE, J7C_READINGS[1])


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6))
def test_garbage_never_raises_without_a_checksum_either(garbage, places):
    stream = garbage + b"".join(J7C)
    assert outcomes(*cut(stream, places), checked=False) == outcomes(stream, checked=False)


def test_replies_and_commands_between_reports_are_skipped():
    reply = bytes.fromhex("FF55020101000040")
    command = bytes.fromhex("FF551103310000000001")
    assert outcomes(reply, FRAME, command, FRAME) == [READING, READING]
