"""Frames of ATORCH USB power meters (J7-C, UC96, UD18, UD24): bytes of notifications in, readings and faults out. No I/O.

A report is 36 bytes long, big-endian: FF 55, 01 for a report, 03 for a USB meter, voltage u24 in 0.01 V, current u24 in 0.01 A,
…, and a checksum: the sum of bytes 2 to 34, XOR 0x44. Meters for AC and DC use other scales and are refused. A notification
carries a piece of a report, often 20 bytes and then 16. Format: NiceLabs/atorch-console, docs/protocol-design.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from power_agent.measurement import Reading

HEADER = b"\xff\x55"
REPORT = 0x01
USB_METER = 0x03
FRAME_BYTES = 36
_BEGINNING = HEADER + bytes([REPORT, USB_METER])
DEVICE_TYPES = {0x01: "AC meter", 0x02: "DC meter"}

CHECKSUM = "checksum"
DEVICE_TYPE = "device_type"


@dataclass(frozen=True, slots=True)
class Fault:
    """A frame that is no reading.

    Attributes:
        kind: `CHECKSUM` or `DEVICE_TYPE`.
        reason: what was found and what was expected.
    """

    kind: str
    reason: str


def checksum(frame: bytes) -> int:
    """The checksum that a report of 36 bytes should end with."""
    return sum(frame[2 : FRAME_BYTES - 1]) & 0xFF ^ 0x44


class FrameReader:
    """Puts the pieces of one connection together.

    After a loss it looks for the next header, also inside of what it took for a frame.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[Reading | Fault]:
        """Take the bytes of one notification and give what they complete."""
        self._pending += data
        while self._at_report():
            if len(self._pending) < FRAME_BYTES:
                return
            frame = bytes(self._pending[:FRAME_BYTES])
            outcome = _decoded(frame)
            wrong = isinstance(outcome, Fault) and outcome.kind == CHECKSUM
            del self._pending[: len(HEADER) if wrong else FRAME_BYTES]
            yield outcome

    def _at_report(self) -> bool:
        """Drop what cannot begin a report; false when nothing is left that does."""
        while (start := self._pending.find(HEADER)) >= 0:
            del self._pending[:start]
            if len(self._pending) == len(HEADER):
                return False
            if self._pending[len(HEADER)] == REPORT:
                return True
            del self._pending[: len(HEADER)]
        del self._pending[: len(self._pending) - self._pending.endswith(HEADER[:1])]
        return False


def _decoded(frame: bytes) -> Reading | Fault:
    # Of two frames that a loss has run together, one in 256 has a right checksum.
    if _BEGINNING in frame[1:]:
        return Fault(CHECKSUM, "a frame was cut short: another begins inside of it")
    if frame[-1] != checksum(frame):
        return Fault(CHECKSUM, f"a frame ends with the checksum {frame[-1]:02X}, expected {checksum(frame):02X}")
    if frame[3] != USB_METER:
        kind = DEVICE_TYPES.get(frame[3], "unknown kind of meter")
        return Fault(DEVICE_TYPE, f"the meter says device type {frame[3]:02X} ({kind}), expected {USB_METER:02X} (USB meter)")
    return Reading(voltage_v=int.from_bytes(frame[4:7]) / 100, current_a=int.from_bytes(frame[7:10]) / 100)
