"""Frames of ATORCH meters: vectors that three public parsers agree on, and what Bluetooth does to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_agent.atorch import CHECKSUM, DEVICE_TYPE, Fault, FrameReader, checksum
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


def outcomes(*pieces):
    reader = FrameReader()
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


def test_replies_and_commands_between_reports_are_skipped():
    reply = bytes.fromhex("FF55020101000040")
    command = bytes.fromhex("FF551103310000000001")
    assert outcomes(reply, FRAME, command, FRAME) == [READING, READING]
