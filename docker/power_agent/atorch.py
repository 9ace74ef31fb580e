"""Frames of ATORCH USB power meters (J7-C, UC96, UD18, UD24): bytes of notifications in, readings and faults out. No I/O.

A report is 36 bytes long, big-endian: FF 55, 01 for a report, 03 for a USB meter, voltage u24 in 0.01 V, current u24 in 0.01 A,
…, D- and D+ u16 in 0.01 V, temperature u16 in degrees, hours u16, minutes, seconds, backlight, 7 bytes of settings, and a
checksum: the sum of bytes 2 to 34, XOR 0x44. Meters for AC and DC use other scales and are refused. A notification carries a
piece of a report, often 20 bytes and then 16. Format: NiceLabs/atorch-console, docs/protocol-design.md.

The last byte of some meters is not that sum (J7-C: syssi/esphome-atorch-dl24, issue 48 and README.md). For them the checksum is
switched off, and a report must be plausible instead.
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
IMPLAUSIBLE = "implausible"

SETTINGS = slice(28, 35)
LOWEST_VOLTAGE_V = 3.0  # a meter lives on what it measures
HIGHEST_VOLTAGE_V = 40.0
HIGHEST_CURRENT_A = 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A frame that is no reading.

    Attributes:
        kind: `CHECKSUM`, `DEVICE_TYPE` or `IMPLAUSIBLE`.
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

    Args:
        checked: whether a report must end with its checksum; otherwise it must be plausible, and its settings those of the report
            before.
    """

    def __init__(self, checked: bool = True) -> None:
        self._pending = bytearray()
        self._checked = checked
        self._settings: bytes | None = None

    def feed(self, data: bytes | bytearray) -> Iterator[Reading | Fault]:
        """Take the bytes of one notification and give what they complete."""
        self._pending += data
        while self._at_report():
            if len(self._pending) < FRAME_BYTES:
                return
            frame = bytes(self._pending[:FRAME_BYTES])
            outcome = self._decoded(frame)
            wrong = isinstance(outcome, Fault) and outcome.kind in (CHECKSUM, IMPLAUSIBLE)
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

    def _decoded(self, frame: bytes) -> Reading | Fault:
        # Of two frames that a loss has run together, one in 256 has a right checksum.
        if _BEGINNING in frame[1:]:
            return Fault(CHECKSUM if self._checked else IMPLAUSIBLE, "a frame was cut short: another begins inside of it")
        if self._checked and frame[-1] != checksum(frame):
            return Fault(CHECKSUM, f"a frame ends with the checksum {frame[-1]:02X}, expected {checksum(frame):02X}")
        if frame[3] != USB_METER:
            kind = DEVICE_TYPES.get(frame[3], "unknown kind of meter")
            return Fault(DEVICE_TYPE, f"the meter says device type {frame[3]:02X} ({kind}), expected {USB_METER:02X} (USB meter)")
        if not self._checked and (fault := self._implausible(frame)) is not None:
            return fault
        return Reading(voltage_v=int.from_bytes(frame[4:7]) / 100, current_a=int.from_bytes(frame[7:10]) / 100)

    def _implausible(self, frame: bytes) -> Fault | None:
        """What in a report cannot be; None if nothing."""
        for name, value, lowest, highest in _ranges(frame):
            if not lowest <= value <= highest:
                return Fault(IMPLAUSIBLE, f"a frame says {name} {value:g}, expected {lowest:g} to {highest:g}")
        before, self._settings = self._settings, frame[SETTINGS]
        if before not in (None, self._settings):  # the next report confirms them, if they were changed at the meter
            return Fault(IMPLAUSIBLE, f"a frame has the settings {self._settings.hex()}, the one before had {before.hex()}")
        return None


def _ranges(frame: bytes) -> list[tuple[str, float, float, float]]:
    """Name, value, lowest and highest of what a report says of the meter and of what it measures."""
    return [
        ("volts", int.from_bytes(frame[4:7]) / 100, LOWEST_VOLTAGE_V, HIGHEST_VOLTAGE_V),
        ("amperes", int.from_bytes(frame[7:10]) / 100, 0, HIGHEST_CURRENT_A),
        ("volts at D-", int.from_bytes(frame[17:19]) / 100, 0, HIGHEST_VOLTAGE_V),
        ("volts at D+", int.from_bytes(frame[19:21]) / 100, 0, HIGHEST_VOLTAGE_V),
        ("degrees Celsius", int.from_bytes(frame[21:23]), 0, 150),
        ("minutes", frame[25], 0, 59),
        ("seconds", frame[26], 0, 59),
        ("seconds of backlight", frame[27], 0, 60),
    ]
