"""The load of a run: every task of every device, drawn before the clock starts and kept as columns.

The tasks of all devices together are one Poisson process: its gaps are exponential with the sum of the devices' rates, and
each arrival belongs to a device with probability proportional to that device's rate (superposition theorem: Kingman, "Poisson
Processes", Oxford 1993, section 2.2). A shorter run is therefore the beginning of a longer one with the same seed.
"""

import csv
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobility.mobility_manager import Cell, Mobility, MobilityManager, RecordedMobility
from settings import FASTEST_MPS, LONGEST_RUN_S, Settings
from task import Arrival, Device, Task, from_fields
from utils import UsageError, did_you_mean, open_to_read, random_stream, write_failure

TRACE_COLUMNS = (
    "task_id",
    "device_id",
    "device_type",
    "model_name",
    "slo_class",
    "arrival_time_s",
    "base_deadline_s",
    "device_x_m",
    "device_y_m",
    "device_vx_mps",
    "device_vy_mps",
    "in_coverage",
    "service_noise",
)
OVERHEAD_NOISE = "overhead_noise"
"""An optional last column of a trace: standard normal, like service_noise; there where request overheads vary."""
MOST_TASKS, MOST_DEVICE_SECONDS = 10**7, 10**8
"""Most tasks of a run, and most seconds of all its devices' paths together: about 10 GB and 3 GB of memory."""
MOST_TRACE_BYTES, _LONGEST_LINE = 2**31, 2**16
_ROWS_AT_ONCE = 4096

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Names:
    """A column of few different texts: `names[codes[i]]` is the text of row i."""

    names: tuple[str, ...]
    codes: NDArray[np.int16]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Names":
        """The column that holds `texts`."""
        names = tuple(dict.fromkeys(texts))
        code = {name: position for position, name in enumerate(names)}
        return cls(names, np.array([code[text] for text in texts], dtype=np.int16))

    def slice(self, first: int, last: int) -> list[str]:
        """The texts of the rows first … last − 1."""
        return [self.names[code] for code in self.codes[first:last].tolist()]


@dataclass(frozen=True, eq=False)
class Trace:
    """All tasks of a run in order of arrival, one array entry per task; the columns of the trace file (design: TRACE_COLUMNS).

    `position_m` and `velocity_mps` have shape (2, tasks); `duration_s` is the length of the load in seconds; `overhead_noise` is
    None where request overheads do not vary.
    """

    duration_s: float
    task_id: NDArray[np.int64]
    device_id: NDArray[np.int64]
    device_type: Names
    model_name: Names
    slo_class: Names
    arrival_time_s: Floats
    base_deadline_s: Floats
    position_m: Floats
    velocity_mps: Floats
    in_coverage: NDArray[np.bool_]
    service_noise: Floats
    overhead_noise: Floats | None = None

    def __len__(self) -> int:
        return len(self.task_id)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows of the trace file as Python values, made a few thousand at a time."""
        for columns in self._blocks():
            yield from zip(*columns, strict=True)

    def arrivals(self) -> Iterator[Arrival]:
        """The tasks with their devices, in order of arrival."""
        for (
            task_id,
            device_id,
            kind,
            model,
            slo_class,
            arrival_s,
            base_s,
            x_m,
            y_m,
            vx_mps,
            vy_mps,
            inside,
            noise,
            *overhead_noise,
        ) in self._blocks():
            overhead = overhead_noise[0] if overhead_noise else [None] * len(noise)
            tasks = zip(task_id, device_id, kind, model, slo_class, arrival_s, base_s, base_s, base_s, strict=True)
            devices = zip(device_id, kind, x_m, y_m, vx_mps, vy_mps, inside, strict=True)
            yield from map(_ARRIVAL, zip(map(_TASK, tasks), map(_DEVICE, devices), noise, overhead, strict=True))

    def _blocks(self) -> Iterator[tuple[list[Any], ...]]:
        """The columns of the trace file as lists of Python values, a few thousand rows at a time."""
        for first in range(0, len(self), _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, len(self))
            yield (
                self.task_id[first:last].tolist(),
                self.device_id[first:last].tolist(),
                self.device_type.slice(first, last),
                self.model_name.slice(first, last),
                self.slo_class.slice(first, last),
                self.arrival_time_s[first:last].tolist(),
                self.base_deadline_s[first:last].tolist(),
                *self.position_m[:, first:last].tolist(),
                *self.velocity_mps[:, first:last].tolist(),
                self.in_coverage[first:last].tolist(),
                self.service_noise[first:last].tolist(),
                *([] if self.overhead_noise is None else [self.overhead_noise[first:last].tolist()]),
            )

    def device(self, index: int) -> Device:
        """State of the device of the task at `index`, at its arrival."""
        return Device(
            int(self.device_id[index]),
            self.device_type.names[self.device_type.codes[index]],
            float(self.position_m[0, index]),
            float(self.position_m[1, index]),
            float(self.velocity_mps[0, index]),
            float(self.velocity_mps[1, index]),
            bool(self.in_coverage[index]),
        )

    def before(self, duration_s: float) -> "Trace":
        """The tasks that arrive before `duration_s`, as the trace of a run of that length."""
        n = int(np.searchsorted(self.arrival_time_s, duration_s))
        return replace(
            self,
            duration_s=duration_s,
            task_id=self.task_id[:n],
            device_id=self.device_id[:n],
            device_type=replace(self.device_type, codes=self.device_type.codes[:n]),
            model_name=replace(self.model_name, codes=self.model_name.codes[:n]),
            slo_class=replace(self.slo_class, codes=self.slo_class.codes[:n]),
            arrival_time_s=self.arrival_time_s[:n],
            base_deadline_s=self.base_deadline_s[:n],
            position_m=self.position_m[:, :n],
            velocity_mps=self.velocity_mps[:, :n],
            in_coverage=self.in_coverage[:n],
            service_noise=self.service_noise[:n],
            overhead_noise=None if self.overhead_noise is None else self.overhead_noise[:n],
        )


_TASK, _DEVICE, _ARRIVAL = from_fields(Task), from_fields(Device), from_fields(Arrival)


def generate_trace(settings: Settings, mobility: MobilityManager, overhead_varies: bool = False) -> Trace:
    """Draw every task of a run.

    Args:
        settings: the experiment.
        mobility: the devices' paths, made from the same seed.
        overhead_varies: whether tasks get an `overhead_noise`; nothing else changes with it.

    Returns:
        The trace; a function of the arguments alone.

    Raises:
        UsageError: no device of the population sends tasks, or the run is too large for any memory.
    """
    seed = settings.seed
    rates = np.array([kind.tasks_per_s for kind in settings.devices.types.values()])
    rate_of_device = settings.load * rates[mobility.type_code]
    if not rate_of_device.any():
        raise UsageError("devices: none of the devices sends tasks: every tasks_per_s in use is 0")
    expected = float(rate_of_device.sum()) * settings.duration_s
    if expected > MOST_TASKS or mobility.device_count * settings.duration_s > MOST_DEVICE_SECONDS:
        raise UsageError(
            f"duration_s, load and devices.count: {settings.duration_s:g} s of {mobility.device_count} devices give"
            f" {expected:.3g} tasks: expected at most {MOST_TASKS:g} tasks and {MOST_DEVICE_SECONDS:g} device seconds,"
            " which fit in memory; make one of the three smaller"
        )
    arrival_time_s = _poisson_arrivals(random_stream(seed, "arrivals"), float(rate_of_device.sum()), settings.duration_s)
    n = len(arrival_time_s)

    device_id = _drawn(random_stream(seed, "devices_of_arrivals"), rate_of_device, n)
    slo_classes = list(settings.slo_classes.values())
    slo_code = _drawn(random_stream(seed, "slo_classes"), np.array([slo.share for slo in slo_classes]), n)
    low, high = np.array([slo.base_deadline_s for slo in slo_classes])[slo_code].T
    position, velocity = mobility.states(device_id, arrival_time_s)
    return Trace(
        duration_s=settings.duration_s,
        task_id=np.arange(n),
        device_id=device_id,
        device_type=Names(mobility.type_names, mobility.type_code[device_id].astype(np.int16)),
        model_name=Names(
            tuple(settings.models), _drawn(random_stream(seed, "models"), np.ones(len(settings.models)), n).astype(np.int16)
        ),
        slo_class=Names(tuple(settings.slo_classes), slo_code.astype(np.int16)),
        arrival_time_s=arrival_time_s,
        base_deadline_s=low + (high - low) * random_stream(seed, "deadlines").random(n),
        position_m=position,
        velocity_mps=velocity,
        in_coverage=mobility.cell.covers(*position),
        service_noise=random_stream(seed, "service_noise").standard_normal(n),
        overhead_noise=random_stream(seed, "overhead_noise").standard_normal(n) if overhead_varies else None,
    )


def _poisson_arrivals(rng: np.random.Generator, rate_per_s: float, duration_s: float) -> Floats:
    """Arrival times of a Poisson process before `duration_s`, seconds."""
    expected = rate_per_s * duration_s
    blocks: list[Floats] = []
    last_s = 0.0
    while last_s < duration_s:
        gaps = rng.exponential(1 / rate_per_s, int(expected + 4 * np.sqrt(expected)) + 16)
        gaps[0] += last_s
        blocks.append(np.cumsum(gaps))
        last_s = float(blocks[-1][-1])
    times = np.concatenate(blocks)
    return times[: np.searchsorted(times, duration_s)]


def _drawn(rng: np.random.Generator, weights: Floats, n: int) -> NDArray[np.int64]:
    """`n` draws of an index with probability proportional to its weight (inverse of the cumulative distribution)."""
    cumulative = np.cumsum(weights / weights.sum())
    possible = np.flatnonzero(weights)
    drawn: NDArray[np.int64] = np.minimum(np.searchsorted(cumulative, rng.random(n), side="right"), possible[-1])
    return drawn


def recorded_mobility(settings: Settings, trace: Trace) -> Mobility:
    """The devices' world as a replayed trace knows it."""
    return RecordedMobility(
        Cell.of(settings.devices), trace.task_id, trace.device_id, trace.arrival_time_s, trace.in_coverage, trace.device
    )


def scenario_sha256(settings: Settings, trace: Trace) -> str:
    """Hash of the trace and of the settings that bear on it and on the fixed deadline: equal for runs that may be compared."""
    bearing = {
        "area_side_m": settings.devices.area_side_m,
        "cell_radius_m": settings.devices.cell_radius_m,
        "exit_safety": settings.exit_safety,
    }
    digest = hashlib.sha256(json.dumps(bearing, sort_keys=True).encode())
    for first in range(0, len(trace), _ROWS_AT_ONCE):
        last = first + _ROWS_AT_ONCE
        for texts in (trace.device_type, trace.model_name, trace.slo_class):
            digest.update("\n".join([*texts.slice(first, last), ""]).encode())
    for column in (
        trace.task_id,
        trace.device_id,
        trace.arrival_time_s,
        trace.base_deadline_s,
        trace.position_m,
        trace.velocity_mps,
        trace.in_coverage,
        trace.service_noise,
        *([] if trace.overhead_noise is None else [trace.overhead_noise]),
    ):
        digest.update(np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def save_trace(trace: Trace, path: Path) -> None:
    """Write the trace as CSV; floats in the shortest form that reads back as the same number.

    Raises:
        UsageError: the file cannot be made.
        HarnessError: the disk is full.
    """
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(TRACE_COLUMNS if trace.overhead_noise is None else (*TRACE_COLUMNS, OVERHEAD_NOISE))
            writer.writerows(_with_flag_text(row) for row in trace.rows())
    except OSError as error:
        raise write_failure(f"--save-trace: {path} cannot be written", error) from None


def _with_flag_text(row: tuple[Any, ...]) -> list[Any]:
    return ["true" if value is True else "false" if value is False else value for value in row]


def load_trace(path: Path, settings: Settings) -> Trace:
    """Read and check a trace file.

    Returns:
        The trace; its duration is the first whole second after its last arrival.

    Raises:
        UsageError: the file is missing, lacks a column, or a line holds something that cannot be run; the text names the line.
    """
    with open_to_read(path, MOST_TRACE_BYTES) as file, TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(iter(partial(text.readline, _LONGEST_LINE), ""))
        try:
            header = next(reader, [])
            _require_columns(path, header)
            rows = list(itertools.islice(reader, MOST_TASKS + 1))
        except csv.Error as error:
            raise UsageError(f"{path}: cannot be read: {error}") from None
    while rows and not any(map(str.strip, rows[-1])):  # a blank last line, as spreadsheets and editors leave it
        rows.pop()
    if not rows:
        raise UsageError(f"{path}: holds no task")
    if len(rows) > MOST_TASKS:
        raise UsageError(f"{path}: expected at most {MOST_TASKS} tasks, found more")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UsageError(f"{path}:{line}: expected {len(header)} fields, found {len(row)}")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return _TraceReader(path, columns, settings).trace()


def _require_columns(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in TRACE_COLUMNS if name not in header]
    if missing:
        hint = "; fields are separated by commas, not by semicolons" if any(";" in name for name in header) else ""
        raise UsageError(f"{path}:1: missing column {missing[0]}; expected {','.join(TRACE_COLUMNS)}{hint}")
    if len(set(header)) != len(header):
        raise UsageError(f"{path}:1: a column stands twice: {','.join(header)}")


class _TraceReader:
    """Turns the texts of a trace file into columns and refuses what cannot be run, naming the line."""

    def __init__(self, path: Path, columns: dict[str, tuple[str, ...]], settings: Settings) -> None:
        self._path = path
        self._columns = columns
        self._settings = settings

    def trace(self) -> Trace:
        """The columns, checked."""
        arrival_time_s = self._numbers("arrival_time_s")
        self._require("arrival_time_s", arrival_time_s >= 0, "a time from 0 on")
        below = f"seconds below {LONGEST_RUN_S:g} (times start at 0, the start of the load)"
        self._require("arrival_time_s", arrival_time_s < LONGEST_RUN_S, below)
        self._require("arrival_time_s", np.diff(arrival_time_s, prepend=0.0) >= 0, "times in non-decreasing order")
        base_deadline_s = self._numbers("base_deadline_s")
        self._require("base_deadline_s", base_deadline_s > 0, "a deadline above 0")
        noises = {name: self._numbers(name) for name in ("service_noise", OVERHEAD_NOISE) if name in self._columns}
        for name, noise in noises.items():
            self._require(name, np.abs(noise) <= 10, "a standard normal number within ±10")
        task_id = self._integers("task_id")
        self._require("task_id", np.isin(np.arange(len(task_id)), np.unique(task_id, return_index=True)[1]), "each id once")
        position = np.stack([self._numbers("device_x_m"), self._numbers("device_y_m")])
        side_m = self._settings.devices.area_side_m
        for axis, name in enumerate(("device_x_m", "device_y_m")):
            self._require(name, (position[axis] >= 0) & (position[axis] <= side_m), f"a position within 0 … {side_m:g}")
        velocity = np.stack([self._numbers("device_vx_mps"), self._numbers("device_vy_mps")])
        for axis, name in enumerate(("device_vx_mps", "device_vy_mps")):
            self._require(name, np.abs(velocity[axis]) <= FASTEST_MPS, f"a velocity within ±{FASTEST_MPS:g} m/s")
        in_coverage = self._flags("in_coverage")
        covered = Cell.of(self._settings.devices).covers(*position)
        self._require("in_coverage", in_coverage == covered, "what the device's position and the cell of the settings give")
        return Trace(
            duration_s=float(np.floor(arrival_time_s[-1]) + 1),
            task_id=task_id,
            device_id=self._integers("device_id"),
            device_type=Names.of(self._columns["device_type"]),
            model_name=self._known("model_name", self._settings.models),
            slo_class=self._known("slo_class", list(self._settings.slo_classes)),
            arrival_time_s=arrival_time_s,
            base_deadline_s=base_deadline_s,
            position_m=position,
            velocity_mps=velocity,
            in_coverage=in_coverage,
            service_noise=noises["service_noise"],
            overhead_noise=noises.get(OVERHEAD_NOISE),
        )

    def _require(self, column: str, holds: NDArray[np.bool_], expected: str) -> None:
        if not holds.all():
            self._refuse(column, int(np.argmin(holds)), expected)

    def _refuse(self, column: str, index: int, expected: str) -> None:
        raise UsageError(f"{self._path}:{index + 2}: {column}: expected {expected}, found {self._columns[column][index]!r}")

    def _numbers(self, column: str) -> Floats:
        numbers = np.full(len(self._columns[column]), np.nan)
        for index, text in enumerate(self._columns[column]):
            try:
                numbers[index] = float(text)
            except ValueError:
                self._refuse(column, index, "a number")
        self._require(column, np.isfinite(numbers), "a finite number")
        return numbers

    def _integers(self, column: str) -> NDArray[np.int64]:
        integers = np.zeros(len(self._columns[column]), dtype=np.int64)
        for index, text in enumerate(self._columns[column]):
            try:
                integers[index] = int(text)
            except (ValueError, OverflowError):
                self._refuse(column, index, "a whole number")
        return integers

    def _flags(self, column: str) -> NDArray[np.bool_]:
        texts = np.array([text.lower() for text in self._columns[column]])
        self._require(column, np.isin(texts, ["true", "false"]), "true or false")
        flags: NDArray[np.bool_] = texts == "true"
        return flags

    def _known(self, column: str, known: list[str]) -> Names:
        names = Names.of(self._columns[column])
        for name in names.names:
            if name not in known:
                index = self._columns[column].index(name)
                self._refuse(column, index, f"one of {', '.join(known)}{did_you_mean(name, known)}")
        return names
