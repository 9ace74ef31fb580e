"""The INA3221 of a Jetson module, read from sysfs. A rail is found by its name: bus, device and channel numbers differ.

L4T r32 (kernel 4.9) shows it as an IIO device (`rail_name_0`, `in_voltage0_input`, `in_current0_input`), newer kernels under
hwmon (`in1_label`, `in1_input`, `curr1_input`); both in mV and mA.
Written from public descriptions; tried on directory trees only.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from power_agent.measurement import Measurement, Reading

DEFAULT_RAIL = "POM_5V_IN"
"""Input of a Jetson Nano's module. The rest of the carrier board does not pass through it."""

PERIOD_S = 0.2  # the board that is measured does the reading
RETRY_S = 1.0
READ = "read"
ERROR_KINDS = (READ,)

T = TypeVar("T")


class RailNotFound(Exception):
    """No rail of that name in sysfs; says which there are."""


@dataclass(frozen=True, slots=True)
class Rail:
    """One channel of an INA3221.

    Attributes:
        name: as on the board's schematic.
        voltage: file with millivolts.
        current: file with milliamperes.
    """

    name: str
    voltage: Path
    current: Path

    def read(self) -> Reading:
        """Volts and amperes now.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file holds no number.
        """
        # Near zero the offset of the chip may show a negative current; joules that fall would look like a restart to Prometheus.
        current_ma = max(0, int(self.current.read_text()))
        return Reading(int(self.voltage.read_text()) / 1000, current_ma / 1000)


def find_rail(sysfs: Path, name: str) -> Rail:
    """The rail of that name.

    Raises:
        RailNotFound: there is none.
    """
    rails = {rail.name: rail for rail in _rails(sysfs)}
    if name not in rails:
        found = ", ".join(sorted(rails)) or "no rail of an INA3221"
        raise RailNotFound(f"{sysfs}/bus/i2c/devices has no rail {name}; found {found}")
    return rails[name]


def _rails(sysfs: Path) -> list[Rail]:
    chips = [path.parent for path in sysfs.glob("bus/i2c/devices/*/name") if _text(path).startswith("ina3221")]
    rails = []
    for chip in chips:
        for label in chip.glob("iio:device*/rail_name_*"):
            channel = label.name.removeprefix("rail_name_")
            rails.append((label, f"in_voltage{channel}_input", f"in_current{channel}_input"))
        for label in chip.glob("hwmon/hwmon*/in*_label"):
            channel = label.name.removeprefix("in").removesuffix("_label")
            rails.append((label, f"in{channel}_input", f"curr{channel}_input"))
    return [
        Rail(_text(label), label.parent / voltage, label.parent / current)
        for label, voltage, current in rails
        if (label.parent / current).exists()
    ]


def _text(file: Path) -> str:
    """What the file says, or that it cannot be read: another device or rail must not keep the wanted one from being found."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return f"unreadable {file.name}"


class Ina3221:
    """Reads one rail for ever.

    Args:
        rail: its name.
        measurement: what takes the readings.
        sysfs: where the host's sysfs is mounted.
    """

    def __init__(self, rail: str, measurement: Measurement, sysfs: Path) -> None:
        self._rail = rail
        self._measurement = measurement
        self._sysfs = sysfs

    async def run(self) -> None:
        """Read until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                rail = await _in_thread(lambda: find_rail(self._sysfs, self._rail))
                next_s = loop.time()
                while True:
                    reading = await _in_thread(rail.read)
                    now_s = loop.time()
                    self._measurement.add(now_s, reading)
                    next_s = max(next_s + PERIOD_S, now_s)
                    await asyncio.sleep(next_s - now_s)
            except (RailNotFound, OSError, ValueError) as error:
                self._measurement.failed(READ, str(error))
                self._measurement.lost()
                await asyncio.sleep(RETRY_S)


async def _in_thread(work: Callable[[], T]) -> T:
    """What `work` gives, done in a daemon thread: unlike one of `asyncio.to_thread`, it may hang when the process ends."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed over to the caller
            future.set_exception(error)

    threading.Thread(target=run, name="sysfs", daemon=True).start()
    return await asyncio.wrap_future(future)
