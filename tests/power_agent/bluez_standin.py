"""A stand-in for BlueZ on a private D-Bus: an adapter and ATORCH meters, so that bleak itself runs without a radio.

It knows what bleak asks of `org.bluez`: the object tree, discovery, Connect and Disconnect, the characteristic FFE1 and its
notifications. As with BlueZ, one client discovers once at a time, and a connection outlives the client that made it.
"""

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from tests.helpers import PATIENCE_S

ADAPTER = "/org/bluez/hci0"
DEVICE_INTERFACE = "org.bluez.Device1"
SERVICE_INTERFACE = "org.bluez.GattService1"
CHARACTERISTIC_INTERFACE = "org.bluez.GattCharacteristic1"
SERVICE_UUID = "0000ffe0-0000-1000-8000-00805f9b34fb"
NOTIFY_UUID = "0000ffe1-0000-1000-8000-00805f9b34fb"
ADVERTISING_PERIOD_S = 0.05
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECTS = "org.freedesktop.DBus.ObjectManager"


@contextmanager
def private_bus(folder):
    """A D-Bus daemon of this test's own; its address."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is missing: install the package dbus")
    address = f"unix:path={folder}/bus"
    command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1", f"--address={address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline().startswith(address)
            yield address
        finally:
            daemon.terminate()


@dataclass
class Meter:
    """A meter as BlueZ sees it."""

    address: str
    name: str = "UC96_BLE"
    services: Sequence[str] = (SERVICE_UUID,)
    in_range: bool = True
    connected: bool = False
    notifying: bool = False

    @property
    def path(self):
        return f"{ADAPTER}/dev_{self.address.replace(':', '_')}"

    @property
    def service(self):
        return f"{self.path}/service0001"

    @property
    def characteristic(self):
        return f"{self.service}/char0002"

    def device(self):
        return {
            "Address": Variant("s", self.address),
            "AddressType": Variant("s", "public"),
            "Name": Variant("s", self.name),
            "Alias": Variant("s", self.name),
            "Adapter": Variant("o", ADAPTER),
            "Connected": Variant("b", self.connected),
            "ServicesResolved": Variant("b", self.connected),
            "Paired": Variant("b", False),
            "UUIDs": Variant("as", list(self.services)),
            "RSSI": Variant("n", -60),
        }

    def attributes(self):
        service = {
            "UUID": Variant("s", SERVICE_UUID),
            "Primary": Variant("b", True),
            "Device": Variant("o", self.path),
        }
        characteristic = {
            "UUID": Variant("s", NOTIFY_UUID),
            "Service": Variant("o", self.service),
            "Flags": Variant("as", ["notify"]),
            "Notifying": Variant("b", self.notifying),
            "Value": Variant("ay", b""),
        }
        return {
            self.service: {SERVICE_INTERFACE: service},
            self.characteristic: {CHARACTERISTIC_INTERFACE: characteristic},
        }


class Bluez:
    """`org.bluez` on a private bus, on a thread of its own. What tests call returns when the bus has taken it.

    Args:
        address: of the bus.
        meters: what may be in range.
    """

    def __init__(self, address, meters):
        self.bus_address = address
        self.meters = {meter.address: meter for meter in meters}
        self.calls = []
        self.unanswered = set()  # calls that hang, by member or by member and path
        self.is_running = False
        self._held = []
        self._discovering = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bluez")

    def __enter__(self):
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *exc):
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def send(self, address, frame, sizes=(20, 16)):
        """Send a frame in notifications of these sizes; false if nobody listens."""
        return self._do(self._send(self.meters[address], frame, sizes))

    def vanish(self, address):
        """The meter goes out of range."""
        self._do(self._vanish(self.meters[address]))

    def appear(self, address):
        """The meter is in range again."""
        self._do(self._appear(self.meters[address]))

    def crash(self):
        """It dies: its name, its connections, objects and searches are gone, and no signal says so."""
        self._do(self._crash())

    def start_again(self):
        """It is back after a crash, and has yet to discover the meters anew."""
        self._do(self._start())

    def answer_again(self):
        """Nothing hangs any more; what was called meanwhile is answered late, as by a service that was stopped."""
        self.unanswered.clear()
        self._do(self._answer_held())

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _start(self):
        self._bus = await MessageBus(bus_address=self.bus_address).connect()
        self._bus.add_message_handler(self._handle)
        await self._bus.request_name("org.bluez")
        self._advertising = asyncio.create_task(self._advertise())
        self.is_running = True

    async def _stop(self):
        self.is_running = False
        self._advertising.cancel()
        await asyncio.wait({self._advertising})
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()

    async def _crash(self):
        await self._stop()
        self._discovering.clear()
        for meter in self.meters.values():
            meter.connected = meter.notifying = False

    async def _send(self, meter, frame, sizes):
        if not (meter.connected and meter.notifying):
            return False
        for size in sizes:
            piece, frame = frame[:size], frame[size:]
            await self._changed(meter.characteristic, CHARACTERISTIC_INTERFACE, {"Value": Variant("ay", piece)})
        assert not frame
        return True

    async def _vanish(self, meter):
        meter.in_range = False
        await self._dropped(meter)

    async def _appear(self, meter):
        meter.in_range = True

    async def _advertise(self):
        """Meters say again and again that they are there; BlueZ tells it while somebody discovers."""
        while True:
            for meter in self.meters.values():
                if self._discovering and meter.in_range and not meter.connected:
                    device = {DEVICE_INTERFACE: meter.device()}
                    await self._signal("/", OBJECTS, "InterfacesAdded", "oa{sa{sv}}", [meter.path, device])
            await asyncio.sleep(ADVERTISING_PERIOD_S)

    async def _dropped(self, meter):
        if not meter.connected:
            return
        meter.connected = meter.notifying = False
        await self._changed(meter.path, DEVICE_INTERFACE, {"ServicesResolved": Variant("b", False)})
        for path, interfaces in reversed(meter.attributes().items()):
            await self._signal("/", OBJECTS, "InterfacesRemoved", "oas", [path, list(interfaces)])
        await self._changed(meter.path, DEVICE_INTERFACE, {"Connected": Variant("b", False)})

    async def _changed(self, path, interface, values):
        await self._signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [interface, values, []])

    async def _signal(self, path, interface, member, signature, body):
        await self._bus.send(Message.new_signal(path, interface, member, signature, body))

    def _handle(self, message):
        if message.message_type is not MessageType.METHOD_CALL or message.path is None:
            return None
        work = getattr(self, f"_on_{message.member}", None)
        if work is None:
            return None
        self.calls.append((message.member, message.path))
        if {message.member, (message.member, message.path)} & self.unanswered:
            self._held.append((work, message))
        else:
            self._loop.create_task(self._answer(work, message))
        return True

    async def _answer_held(self):
        while self._held:
            await self._answer(*self._held.pop(0))

    async def _answer(self, work, message):
        found = [meter for meter in self.meters.values() if message.path.startswith(meter.path)]
        reply = await (work(message, found[0]) if found else work(message))
        await self._bus.send(reply or Message.new_method_return(message))

    async def _on_GetManagedObjects(self, message):  # noqa: N802 - the names of D-Bus
        adapter = {
            "Address": Variant("s", "00:00:00:00:00:01"),
            "Powered": Variant("b", True),
            "Roles": Variant("as", ["central", "peripheral"]),
        }
        tree = {ADAPTER: {"org.bluez.Adapter1": adapter}}
        for meter in self.meters.values():
            if meter.connected:
                tree |= {meter.path: {DEVICE_INTERFACE: meter.device()}, **meter.attributes()}
        return Message.new_method_return(message, "a{oa{sa{sv}}}", [tree])

    async def _on_SetDiscoveryFilter(self, message):  # noqa: N802
        return None

    async def _on_StartDiscovery(self, message):  # noqa: N802
        if message.sender in self._discovering:
            return Message.new_error(message, "org.bluez.Error.InProgress", "Operation already in progress")
        self._discovering.add(message.sender)
        return None

    async def _on_StopDiscovery(self, message):  # noqa: N802
        self._discovering.discard(message.sender)

    async def _on_Connect(self, message, meter):  # noqa: N802
        if not meter.in_range:
            return Message.new_error(message, "org.bluez.Error.Failed", "le-connection-timeout")
        meter.connected = True
        await self._changed(meter.path, DEVICE_INTERFACE, {"Connected": Variant("b", True)})
        for path, interfaces in meter.attributes().items():
            await self._signal("/", OBJECTS, "InterfacesAdded", "oa{sa{sv}}", [path, interfaces])
        await self._changed(meter.path, DEVICE_INTERFACE, {"ServicesResolved": Variant("b", True)})
        return None

    async def _on_Disconnect(self, message, meter):  # noqa: N802
        if not meter.connected:
            return _unknown(message)
        await self._dropped(meter)
        return None

    async def _on_StartNotify(self, message, meter):  # noqa: N802
        if not meter.connected:
            return _unknown(message)
        meter.notifying = True
        return None

    async def _on_StopNotify(self, message, meter):  # noqa: N802
        meter.notifying = False


def _unknown(message):
    return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownObject", f"there is no {message.path}")
