"""An ATORCH meter over Bluetooth LE: finds it, listens, and tries again when it is gone. bleak talks to the host's BlueZ."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from bleak import BleakAdapter, BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.device import BLEDevice

from power_agent.atorch import CHECKSUM, DEVICE_TYPE, IMPLAUSIBLE, Fault, FrameReader
from power_agent.measurement import LONGEST_GAP_S, Measurement

SERVICE_UUID = "0000ffe0-0000-1000-8000-00805f9b34fb"
NOTIFY_UUID = "0000ffe1-0000-1000-8000-00805f9b34fb"
GENERIC_UUIDS = ["1800", "1801"]
NAME_ENDS = ("-BLE", "_BLE")

SCAN_TIMEOUT_S = 10.0
FIND_TIMEOUT_S = 4.0
"""How long one meter is searched: another one that is to be read again waits meanwhile."""

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
HANG_S = 60.0
END_TIMEOUT_S = 3.0
SILENCE_S = 2 * LONGEST_GAP_S
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

NOT_FOUND = "not_found"
CONNECTION = "connection"
DISCONNECTED = "disconnected"
SILENT = "silent"
CHECKSUM_HINT = "; if that is so with every frame, as of a J7-C: checksum: false in the meter's row"
ERROR_KINDS = (CHECKSUM, CONNECTION, DEVICE_TYPE, DISCONNECTED, IMPLAUSIBLE, NOT_FOUND, SILENT)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class SessionEnded(Exception):
    """A meter was not reached or is gone.

    Args:
        kind: one of ERROR_KINDS.
        reason: what happened.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class BluetoothHangs(Exception):
    """BlueZ has not answered a search; what it holds of us is unknown, so that only a new process can search again."""


class AtorchMeter:
    """Reads one meter for ever.

    Args:
        address: its Bluetooth address.
        measurement: what takes the readings.
        radio: held while a meter is searched and connected: BlueZ lets one client search once at a time.
        checked: whether its reports end with their checksum.
    """

    def __init__(self, address: str, measurement: Measurement, radio: asyncio.Lock, checked: bool = True) -> None:
        self._address = address
        self._measurement = measurement
        self._radio = radio
        self._checked = checked
        self._frames = FrameReader(checked)
        self._heard = asyncio.Event()
        self._gone = asyncio.Event()
        self._misled = False  # whether BlueZ was last said to hold the meter's connection, and nothing was read of it

    async def run(self) -> None:
        """Read until the task is cancelled; after a failure, pause 1 s, then twice as long each time, at most 30 s.

        Raises:
            BluetoothHangs: this process cannot search any more.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            self._frames, self._heard, self._gone = FrameReader(self._checked), asyncio.Event(), asyncio.Event()
            before = self._measurement.snapshot
            try:
                await self._session()
            except SessionEnded as error:
                self._measurement.failed(error.kind, str(error))
            except BluetoothHangs:
                raise
            except Exception as error:  # whatever bleak, D-Bus or BlueZ come up with: the other meters are to be read on
                self._measurement.failed(CONNECTION, f"{self._address}: {type(error).__name__}: {error}")
            self._measurement.lost()
            if self._measurement.snapshot is not before:
                pause_s, self._misled = FIRST_PAUSE_S, False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _session(self) -> NoReturn:
        async with self._radio:
            client = await self._connected()
        try:
            await _within(ANSWER_TIMEOUT_S, client.start_notify(NOTIFY_UUID, self._on_data), "send readings")
            await self._listen()
        finally:
            with contextlib.suppress(Exception):  # why the session ended is what is to be said
                await _within(END_TIMEOUT_S, client.disconnect(), "disconnect")

    async def _connected(self) -> BleakClient:
        device = None
        # bleak goes on listing the connections of a BlueZ that has crashed; a search gives it those objects anew.
        if not self._misled:
            device = await _within(ANSWER_TIMEOUT_S, _already_connected(self._address), "list its connections")
        self._misled = device is not None
        device = device or await self._found()
        if device is None:
            raise SessionEnded(
                NOT_FOUND, f"no meter {self._address} in range within {FIND_TIMEOUT_S:g} s; --scan lists those that are"
            )
        gone = self._gone
        client = BleakClient(device, disconnected_callback=lambda _: gone.set(), timeout=CONNECT_TIMEOUT_S)
        await _within(CONNECT_TIMEOUT_S + ANSWER_TIMEOUT_S, client.connect(), "connect")
        return client

    async def _found(self) -> BLEDevice | None:
        """The meter, if it is in range. A search is not broken off: BlueZ would still hold it, and refuse every further one."""
        try:
            search = BleakScanner.find_device_by_address(self._address, timeout=FIND_TIMEOUT_S)
            return await _within(FIND_TIMEOUT_S + HANG_S, search, "search")
        except SessionEnded as error:
            raise BluetoothHangs(str(error)) from None

    async def _listen(self) -> NoReturn:
        """Wait while readings arrive."""
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            while True:
                self._heard.clear()
                heard = asyncio.ensure_future(self._heard.wait())
                done, _ = await asyncio.wait({gone, heard}, timeout=SILENCE_S, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
                if gone in done:
                    raise SessionEnded(DISCONNECTED, f"the connection to {self._address} ended")
                if not done:
                    raise SessionEnded(SILENT, f"{self._address} is connected but sent no frame for {SILENCE_S:g} s")
        finally:
            gone.cancel()

    def _on_data(self, _: BleakGATTCharacteristic, data: bytearray) -> None:
        for outcome in self._frames.feed(data):
            if isinstance(outcome, Fault):
                hint = CHECKSUM_HINT if outcome.kind == CHECKSUM else ""
                self._measurement.failed(outcome.kind, f"{self._address}: {outcome.reason}{hint}")
            else:
                self._measurement.add(asyncio.get_running_loop().time(), outcome)
            self._heard.set()


async def _within(timeout_s: float, work: Coroutine[Any, Any, T], what: str) -> T:
    """What `work` gives, if it does so in time.

    bleak waits for BlueZ without an end, also while it cleans up after a cancellation. Such work is left behind, so that one
    meter does not keep the others waiting.

    Raises:
        SessionEnded: it did not.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise SessionEnded(CONNECTION, f"Bluetooth, told to {what}, has not answered for {timeout_s:g} s")
        return task.result()
    finally:
        for _ in range(2):  # the second time breaks off its cleaning up
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=END_TIMEOUT_S)
        if task.done() and not task.cancelled():
            task.exception()  # seen: asyncio need not complain of it


async def _already_connected(address: str) -> BLEDevice | None:
    """The meter if BlueZ still holds its connection, as it does after an agent that was killed; it does not advertise then."""
    adapter = await BleakAdapter.get()
    devices = await adapter.get_connected_devices([SERVICE_UUID, *GENERIC_UUIDS])
    return next((device for device in devices if device.address.upper() == address), None)


async def scan(timeout_s: float = SCAN_TIMEOUT_S) -> list[str]:
    """Address, name and signal of each device in range that looks like an ATORCH meter, strongest first."""
    found = await BleakScanner.discover(timeout=timeout_s, return_adv=True)
    meters = [
        (advertisement.rssi, device.address, device.name or "")
        for device, advertisement in found.values()
        if SERVICE_UUID in advertisement.service_uuids or (device.name or "").upper().endswith(NAME_ENDS)
    ]
    return [f"{address}  {_printable(name)}  {rssi} dBm" for rssi, address, name in sorted(meters, reverse=True)]


def _printable(name: str) -> str:
    """A name as anybody within range may have chosen it, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
