"""What a person asks while setting up meters: one reading of each row, and which meters are in range."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from bleak.exc import BleakError

from power_agent.agent import sensor_of
from power_agent.measurement import Measurement, Reading
from power_agent.meter import scan
from power_agent.rows import Row


class FirstReading(Measurement):
    """Keeps the first reading, and the latest failure before it.

    Args:
        row: what is read.
    """

    def __init__(self, row: Row) -> None:
        super().__init__(row.node, row.accelerator, ())
        self.reading: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        self.reason = "nothing read"

    def add(self, time_s: float, reading: Reading) -> None:
        """Keep the first reading."""
        if not self.reading.done():
            self.reading.set_result(reading)

    def failed(self, kind: str, reason: str) -> None:
        """Keep the latest reason."""
        self.reason = f"{kind}: {' '.join(reason.split())}"


async def print_readings(rows: Sequence[Row], sysfs: Path, timeout_s: float) -> bool:
    """Print one line for each row; false if a row gave no reading within `timeout_s` seconds."""
    radio = asyncio.Lock()
    outcomes = await asyncio.gather(*(_first_reading(row, sysfs, radio, timeout_s) for row in rows))
    for row, outcome in zip(rows, outcomes, strict=True):
        if isinstance(outcome, Reading):
            shown = f"{outcome.voltage_v:.2f} V x {outcome.current_a:.2f} A = {outcome.power_w:.2f} W"
        else:
            shown = f"no reading within {timeout_s:g} s: {outcome}"
        print(f"{row.node} ({row.sensor} {row.address}): {shown}", flush=True)
    if not rows:
        print("no row names this host: nothing to read")
    return all(isinstance(outcome, Reading) for outcome in outcomes)


async def _first_reading(row: Row, sysfs: Path, radio: asyncio.Lock, timeout_s: float) -> Reading | str:
    measurement = FirstReading(row)
    task = asyncio.create_task(sensor_of(row, measurement, sysfs, radio).run())
    try:
        async with asyncio.timeout(timeout_s):
            return await measurement.reading
    except TimeoutError:
        return measurement.reason
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def print_meters() -> bool:
    """Print a line for each meter in range; false if there is none."""
    try:
        meters = await scan()
    except (BleakError, OSError, EOFError) as error:
        print(f"no Bluetooth here (is bluetoothd running, and in a container /run/dbus mounted?): {error}")
        return False
    print("\n".join(meters) or "no ATORCH meter in range (one that is connected to something does not show itself)")
    return bool(meters)
