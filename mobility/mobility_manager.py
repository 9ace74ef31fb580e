"""Movement of the devices and the radio cell they move through.

Pure kernels (`reflected`, `time_to_exit_s`) and two sources of positions: `MobilityManager` walks every device in steps of
1 s, `RecordedMobility` continues the states that a replayed trace holds in straight lines.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from settings import DeviceSettings
from task import Device
from utils import random_stream

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Cell(NamedTuple):
    """Square area of side `area_side_m` with a disc of radius `radius_m` at its centre: the radio cell."""

    area_side_m: float
    radius_m: float

    @classmethod
    def of(cls, settings: DeviceSettings) -> "Cell":
        """The cell that the settings describe."""
        return cls(settings.area_side_m, settings.cell_radius_m)

    def covers(self, x_m: Floats, y_m: Floats) -> NDArray[np.bool_]:
        """Whether each position lies in the cell; any shape."""
        centre_m = self.area_side_m / 2
        return (x_m - centre_m) ** 2 + (y_m - centre_m) ** 2 <= self.radius_m**2

    def contains(self, x_m: float, y_m: float) -> bool:
        """Whether one position lies in the cell."""
        centre_m = self.area_side_m / 2
        return (x_m - centre_m) ** 2 + (y_m - centre_m) ** 2 <= self.radius_m**2

    def time_to_exit_s(self, device: Device) -> float:
        """Seconds until `device` leaves the cell if it keeps its velocity; 0 outside, infinite at rest."""
        centre_m = self.area_side_m / 2
        return time_to_exit_s(device.x_m - centre_m, device.y_m - centre_m, device.vx_mps, device.vy_mps, self.radius_m)


def time_to_exit_s(x_m: float, y_m: float, vx_mps: float, vy_mps: float, radius_m: float) -> float:
    """Seconds until a point in straight motion leaves a disc around the origin.

    The positive root of |p + v·t| = R, in the form that does not subtract nearly equal numbers: Press et al., "Numerical
    Recipes", 3rd edition, section 5.6.

    Args:
        x_m: position relative to the centre of the disc, metres.
        y_m: the same, second coordinate.
        vx_mps: velocity, metres per second.
        vy_mps: the same, second coordinate.
        radius_m: radius of the disc, metres.

    Returns:
        0 for a point outside, infinity for one at rest inside.
    """
    a = vx_mps * vx_mps + vy_mps * vy_mps
    b = x_m * vx_mps + y_m * vy_mps
    c = x_m * x_m + y_m * y_m - radius_m * radius_m
    if c > 0:
        return 0.0
    if a == 0:
        return math.inf
    root = math.sqrt(b * b - a * c)
    if b <= 0:
        return (root - b) / a
    return -c / (root + b)


def reflected(position_m: Floats, velocity_mps: Floats, side_m: float) -> tuple[Floats, Floats]:
    """Positions folded back into [0, side] at its walls, and velocities turned around as often as a wall was met.

    Args:
        position_m: any shape, metres; may lie any distance outside.
        velocity_mps: same shape.
        side_m: length of the interval, metres.

    Returns:
        Folded positions and velocities, same shape.
    """
    folded = np.mod(position_m, 2 * side_m)
    turned = folded > side_m
    return np.where(turned, 2 * side_m - folded, folded), np.where(turned, -velocity_mps, velocity_mps)


class Mobility(Protocol):
    """What an experiment asks of the devices' world."""

    def device(self, device_id: int, time_s: float) -> Device:
        """State of a device at a time, seconds after the start of the load."""

    def still_covered(self, device: Device, arrival_s: float, time_s: float) -> bool:
        """Whether a device, known as it was at `arrival_s`, is in the cell at `time_s`."""

    def covered(self, task_id: Integers, device_id: Integers, time_s: Floats) -> NDArray[np.bool_]:
        """`still_covered` of many at once: the tasks they sent, their ids and a time for each, all of shape (n,)."""

    def in_cell_share(self, start_s: float, end_s: float) -> float | None:
        """Mean share of the devices inside the cell between two times; None where nothing is known of them."""


class MobilityManager:
    """Every device's path as a function of seed, device and time only.

    A device's position at time t is its position at ⌊t⌋ plus its velocity times (t − ⌊t⌋), reflected at the border of the
    area. Its speed is drawn once; at each whole second it takes a new uniform heading with its type's probability.

    Args:
        settings: population, area and cell.
        seed: seed of the run; the streams "placement" and "movement" are taken from it.
    """

    def __init__(self, settings: DeviceSettings, seed: int) -> None:
        self.cell = Cell.of(settings)
        self.type_names = tuple(settings.types)
        self.type_code = _allotted_types(settings)
        self._movement = random_stream(seed, "movement")
        types = list(settings.types.values())
        self._turn_probability = np.array([kind.turn_probability for kind in types])[self.type_code]

        placement = random_stream(seed, "placement")
        n = settings.count
        low, high = np.array([kind.speed_mps for kind in types])[self.type_code].T
        self._speed_mps = low + (high - low) * placement.random(n)
        self._seconds = 1
        self._position_m = _placed(placement, n, settings)[np.newaxis]
        self._velocity_mps = _headed(placement.random(n), self._speed_mps)[np.newaxis]

    @property
    def device_count(self) -> int:
        """Number of devices; their ids are 0 … device_count − 1."""
        return len(self.type_code)

    def extend_to(self, time_s: float) -> None:
        """Walk all devices up to `time_s`; asking for a later state does so too."""
        while self._seconds <= math.floor(time_s):
            self._step()

    def _step(self) -> None:
        now = self._seconds
        if now == len(self._position_m):
            self._position_m, self._velocity_mps = _with_room(self._position_m), _with_room(self._velocity_mps)
        last_m, last_mps = self._position_m[now - 1], self._velocity_mps[now - 1]
        self._position_m[now], velocity = reflected(last_m + last_mps, last_mps, self.cell.area_side_m)
        draws = self._movement.random((2, self.device_count))
        turning = draws[0] < self._turn_probability
        self._velocity_mps[now] = np.where(turning, _headed(draws[1], self._speed_mps), velocity)
        self._seconds += 1

    def states(self, device_id: Integers, time_s: Floats) -> tuple[Floats, Floats]:
        """Positions (metres) and velocities (m/s) of devices, each at a time of its own.

        Args:
            device_id: shape (n,).
            time_s: shape (n,), seconds after the start of the load.

        Returns:
            Two arrays of shape (2, n).
        """
        if len(time_s):
            self.extend_to(float(time_s.max()))
        second = np.floor(time_s).astype(np.int64)
        velocity = self._velocity_mps[second, :, device_id].T
        moved = self._position_m[second, :, device_id].T + velocity * (time_s - second)
        return reflected(moved, velocity, self.cell.area_side_m)

    def device(self, device_id: int, time_s: float) -> Device:
        """State of a device at a time, seconds after the start of the load."""
        self.extend_to(time_s)
        second = math.floor(time_s)
        since_s = time_s - second
        vx_mps, vy_mps = self._velocity_mps[second][:, device_id].tolist()
        x_m, y_m = self._position_m[second][:, device_id].tolist()
        moved = (x_m + vx_mps * since_s, y_m + vy_mps * since_s)
        return _device(device_id, self.type_names[self.type_code[device_id]], moved, (vx_mps, vy_mps), self.cell)

    def still_covered(self, device: Device, arrival_s: float, time_s: float) -> bool:
        """Whether a device is in the cell at `time_s`, by its path."""
        return self.device(device.device_id, time_s).in_coverage

    def covered(self, task_id: Integers, device_id: Integers, time_s: Floats) -> NDArray[np.bool_]:
        """Whether each device is in the cell at its time, by its path; shape (n,)."""
        return self.cell.covers(*self.states(device_id, time_s)[0])

    def in_cell_share(self, start_s: float, end_s: float) -> float:
        """Mean share of the devices inside the cell, over the whole seconds from `start_s` on and before `end_s`."""
        self.extend_to(end_s)
        first = math.ceil(start_s)
        x_m, y_m = self._position_m[first : max(first + 1, math.ceil(end_s))].swapaxes(0, 1)
        return float(self.cell.covers(x_m, y_m).mean())


class RecordedMobility:
    """Devices of a replayed trace: each continues in a straight line from its state at its latest task before the time asked.

    Args:
        cell: area and cell.
        task_id: shape (n,), one entry per task, in order of time.
        device_id: shape (n,).
        time_s: shape (n,), arrival times, seconds.
        in_coverage: shape (n,), whether the device was in the cell then.
        devices: function from the position of a task in those arrays to the device's state then.
    """

    def __init__(
        self,
        cell: Cell,
        task_id: Integers,
        device_id: Integers,
        time_s: Floats,
        in_coverage: NDArray[np.bool_],
        devices: "DeviceAt",
    ) -> None:
        self.cell = cell
        self._index_of = {identifier: index for index, identifier in enumerate(task_id.tolist())}
        self._time_s = time_s
        self._in_coverage = in_coverage
        self._device_at = devices
        order = np.argsort(device_id, kind="stable")
        ids, starts = np.unique(device_id[order], return_index=True)
        self._tasks_of = dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))

    def device(self, device_id: int, time_s: float) -> Device:
        """State of a device at a time, seconds after the start of the load; before its first task, at that task."""
        tasks = self._tasks_of[device_id]
        latest = tasks[max(0, int(np.searchsorted(self._time_s[tasks], time_s, side="right")) - 1)]
        since = self._device_at(int(latest))
        return self._moved(since, max(0.0, time_s - float(self._time_s[latest])))

    def still_covered(self, device: Device, arrival_s: float, time_s: float) -> bool:
        """Whether a device is in the cell at `time_s`, on a straight line from its state at `arrival_s`."""
        return self._moved(device, time_s - arrival_s).in_coverage

    def covered(self, task_id: Integers, device_id: Integers, time_s: Floats) -> NDArray[np.bool_]:
        """Whether each device is in the cell at its time, on a straight line from its state when it sent the task; shape (n,)."""
        sent = [self._index_of[identifier] for identifier in task_id.tolist()]
        elapsed_s = (time_s - self._time_s[sent]).tolist()
        moved = (self._moved(self._device_at(index), elapsed) for index, elapsed in zip(sent, elapsed_s, strict=True))
        return np.array([device.in_coverage for device in moved], dtype=bool)

    def _moved(self, since: Device, elapsed_s: float) -> Device:
        moved = (since.x_m + since.vx_mps * elapsed_s, since.y_m + since.vy_mps * elapsed_s)
        return _device(since.device_id, since.device_type, moved, (since.vx_mps, since.vy_mps), self.cell)

    def in_cell_share(self, start_s: float, end_s: float) -> float | None:
        """Share of the tasks between two times whose device was inside: the best a trace can say of the devices."""
        first, last = np.searchsorted(self._time_s, [start_s, end_s])
        return float(self._in_coverage[first:last].mean()) if last > first else None


class DeviceAt(Protocol):
    """State of the device of the i-th task of a trace at that task's arrival."""

    def __call__(self, index: int) -> Device:
        """Look it up."""


def _device(
    device_id: int, device_type: str, moved_m: tuple[float, float], velocity_mps: tuple[float, float], cell: Cell
) -> Device:
    """A device that moved to `moved_m`, reflected at the border of the area as in `reflected`."""
    (x_m, y_m), (vx_mps, vy_mps) = moved_m, velocity_mps
    side_m = cell.area_side_m
    x_m, y_m = x_m % (2 * side_m), y_m % (2 * side_m)
    if x_m > side_m:
        x_m, vx_mps = 2 * side_m - x_m, -vx_mps
    if y_m > side_m:
        y_m, vy_mps = 2 * side_m - y_m, -vy_mps
    return Device(device_id, device_type, x_m, y_m, vx_mps, vy_mps, cell.contains(x_m, y_m))


def _allotted_types(settings: DeviceSettings) -> Integers:
    """Type code of each device: shares rounded by largest remainder, devices of one type in a row."""
    exact = np.array([kind.share for kind in settings.types.values()]) * settings.count
    counts = np.floor(exact + 1e-9).astype(np.int64)
    missing = settings.count - int(counts.sum())
    counts[np.argsort(-(exact - counts), kind="stable")[:missing]] += 1
    allotted: Integers = np.repeat(np.arange(len(counts)), counts)
    return allotted


def _placed(rng: np.random.Generator, n: int, settings: DeviceSettings) -> Floats:
    """Uniform positions, shape (2, n): in the disc by the square root of the radius, or in the square."""
    first, second = rng.random((2, n))
    if settings.placement == "area":
        return np.stack([first, second]) * settings.area_side_m
    radius, angle = settings.cell_radius_m * np.sqrt(first), 2 * np.pi * second
    offset_m: Floats = radius * np.stack([np.cos(angle), np.sin(angle)])
    return settings.area_side_m / 2 + offset_m


def _with_room(history: Floats) -> Floats:
    """A history, shape (seconds, 2, n), with as much room again; memory that is not written is not taken."""
    longer = np.empty((2 * len(history), *history.shape[1:]))
    longer[: len(history)] = history
    return longer


def _headed(draw: Floats, speed_mps: Floats) -> Floats:
    """Velocities, shape (2, n), from uniform draws and speeds of shape (n,)."""
    angle = 2 * np.pi * draw
    velocity_mps: Floats = speed_mps * np.stack([np.cos(angle), np.sin(angle)])
    return velocity_mps
