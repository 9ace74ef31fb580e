"""The outside world of a run: drawn from the seed, or a replay of a trace file.

Beside a saved trace stands `<trace>.meta.json` with what its columns do not hold: the seed and the devices of the run, from which
a replay rebuilds their paths, its load and its length. A trace without that file is replayed too; where its devices went after
they had sent a task is then a guess.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mobility.mobility_manager import Mobility, MobilityManager
from settings import DeviceSettings, Duration, Load, Seed, Settings
from task_generator import MOST_TRACE_BYTES, OVERHEAD_NOISE, Trace, generate_trace, load_trace, recorded_mobility, save_trace
from utils import StrictModel, UsageError, open_to_read, validated, write_failure, write_json_atomically

_MOST_META_BYTES = 2**20
_SAME_PLACE_M = 1e-6
_FAR_RATE = 100.0
"""A trace with so many times more or fewer tasks per second than the settings give is probably not in seconds."""
_MANY = 10
"""So many tasks of a load do not all arrive in its second half."""


class TraceMeta(StrictModel):
    """Content of `<trace>.meta.json`; `trace_sha256` is that of the trace file it belongs to."""

    trace_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    seed: Seed
    load: Load
    duration_s: Duration
    devices: DeviceSettings


@dataclass(frozen=True)
class Replay:
    """The trace file that a run replays; seed and load are None where no meta file tells them."""

    file: Path
    sha256: str
    seed: int | None = None
    load: float | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the paths of the devices are those of the run that saved the trace."""
        return self.seed is not None


@dataclass(frozen=True)
class Scenario:
    """The outside world of a run.

    Attributes:
        device_ids: of all its devices.
        replay: the trace file it was read from; None for one that was drawn.
        warnings: what a reader of the results must know of it, a sentence each.
    """

    trace: Trace
    mobility: Mobility
    device_ids: Sequence[int]
    replay: Replay | None = None
    warnings: Sequence[str] = ()


def build_scenario(
    settings: Settings, trace_file: Path | None, duration_s: float | None, overhead_varies: bool = False
) -> tuple[Settings, Scenario]:
    """The world of the run, drawn from the seed or read from `trace_file`, and the settings that describe it.

    A replay takes the duration of its trace and, where they are known, its load and its devices; a shorter `duration_s` cuts it.
    Where request overheads vary (`overhead_varies`), a world that is drawn holds their noise.

    Raises:
        UsageError: the trace file cannot be run.
    """
    if trace_file is None:
        mobility = MobilityManager(settings.devices, settings.seed)
        return settings, Scenario(generate_trace(settings, mobility, overhead_varies), mobility, range(mobility.device_count))
    sha256 = _file_sha256(trace_file)
    warnings = []
    try:
        meta = _read_meta(meta_path(trace_file), sha256)
        own = settings.replace(devices=meta.devices, load=meta.load)
        trace = replace(load_trace(trace_file, own), duration_s=meta.duration_s)
        walked: MobilityManager | None = _fitting_mobility(meta_path(trace_file), meta, trace)
        settings, replay = own, Replay(trace_file, sha256, meta.seed, meta.load)
    except UsageError as error:
        trace = load_trace(trace_file, settings)
        walked, replay = None, Replay(trace_file, sha256)
        warnings += [f"delivered_rate and in_cell_share are estimates: {error}", *_time_hints(trace_file, trace, settings)]
    if overhead_varies and trace.overhead_noise is None:
        warnings.append(
            f"{trace_file} has no column {OVERHEAD_NOISE}: every request takes the mean request overhead,"
            " whatever overhead_cv the profile has"
        )
    if duration_s is not None and duration_s < trace.duration_s:
        trace = trace.before(duration_s)
    if not len(trace):
        raise UsageError(f"--duration: {trace_file} holds no task before {duration_s:g} s")
    settings = settings.replace(duration_s=trace.duration_s)
    if walked:
        return settings, Scenario(trace, walked, range(walked.device_count), replay, warnings)
    device_ids = sorted(set(trace.device_id.tolist()))
    return settings, Scenario(trace, recorded_mobility(settings, trace), device_ids, replay, warnings)


def save_scenario(scenario: Scenario, settings: Settings, path: Path) -> None:
    """Write the trace at `path` and its meta file beside it; none where the seed of the devices' paths is not known.

    Raises:
        UsageError: a file cannot be made.
        HarnessError: the disk is full.
    """
    save_trace(scenario.trace, path)
    if not path.is_file():  # a pipe or a device: whoever reads it gets the trace alone
        return
    meta, replay = meta_path(path), scenario.replay
    try:
        if replay and not replay.is_exact:
            meta.unlink(missing_ok=True)
            return
        content: dict[str, Any] = {
            "trace_sha256": _file_sha256(path),
            "seed": replay.seed if replay else settings.seed,
            "load": settings.load,
            "duration_s": scenario.trace.duration_s,
            "devices": settings.devices.model_dump(mode="json"),
        }
        write_json_atomically(meta, content)
    except OSError as error:
        raise write_failure(f"--save-trace: {meta} cannot be written", error) from None


def meta_path(trace_file: Path) -> Path:
    """Where the meta file of a trace stands."""
    return trace_file.with_name(f"{trace_file.name}.meta.json")


def _file_sha256(path: Path) -> str:
    with open_to_read(path, MOST_TRACE_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_meta(path: Path, sha256: str) -> TraceMeta:
    """The meta file of the trace with that hash.

    Raises:
        UsageError: there is none, or it is of another trace.
    """
    with open_to_read(path, _MOST_META_BYTES) as file:
        try:
            content = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(content).__name__}")
    meta = validated(TraceMeta, content, str(path), {})
    if meta.trace_sha256 != sha256:
        raise UsageError(f"{path} is of another trace: expected trace_sha256 {sha256}, found {meta.trace_sha256}")
    return meta


def _fitting_mobility(path: Path, meta: TraceMeta, trace: Trace) -> MobilityManager:
    """The paths of the devices of a trace.

    Raises:
        UsageError: they do not lead to where the trace says that they were.
    """
    mobility = MobilityManager(meta.devices, meta.seed)
    own = (trace.device_id >= 0) & (trace.device_id < mobility.device_count)
    fits = own.all() and trace.arrival_time_s[-1] < meta.duration_s
    if not fits or np.abs(mobility.states(trace.device_id, trace.arrival_time_s)[0] - trace.position_m).max() > _SAME_PLACE_M:
        raise UsageError(f"{path} does not fit the trace: its seed and devices lead to other positions")
    return mobility


def _time_hints(trace_file: Path, trace: Trace, settings: Settings) -> list[str]:
    """Says so where the times of the trace are probably not in seconds from the start of the load."""
    devices = settings.devices
    expected_per_s = settings.load * devices.count * sum(kind.share * kind.tasks_per_s for kind in devices.types.values())
    found_per_s, first_s = len(trace) / trace.duration_s, float(trace.arrival_time_s[0])
    hints = []
    if not expected_per_s / _FAR_RATE < found_per_s < expected_per_s * _FAR_RATE:
        hints.append(
            f"{trace_file} holds {found_per_s:.3g} tasks/s where the settings give {expected_per_s:.3g}:"
            " arrival_time_s is in seconds; is it in milliseconds there?"
        )
    if len(trace) >= _MANY and first_s > trace.duration_s / 2:
        hints.append(
            f"{trace_file}: its first task arrives at {first_s:.6g} s of {trace.duration_s:.6g} s: times start at 0, the start of"
            " the load; take the time of its start off arrival_time_s"
        )
    return hints
