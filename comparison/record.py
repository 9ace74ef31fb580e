"""A comparison begun or gone on with: sweep.json, and whether all that bears on the cells is still the same."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from comparison.cells import package_versions, plain_settings, policy_hash, source_hashes
from comparison.plan import Plan
from measurement.summary import versions
from metric_collector import RunFolder
from performance_profile import PerformanceProfile, load_profile
from scheduler import create_scheduler
from settings import load_settings, require_known_models
from utils import HarnessError, StrictModel, UsageError, git_commit, random_stream, validated, write_json_atomically

_BASIS = {
    "settings": "the settings",
    "profile": "the performance profile",
    "sources": "the source code",
    "policies": "a policy",
    "packages": "a package",
}
_SHA256_DIGITS = 64


class SweepOptions(StrictModel):
    """The options that say what is swept, as they stand in sweep.json."""

    config: Path | None
    schedulers: list[str] = Field(min_length=1)
    load: list[float] = Field(min_length=1)
    seeds: int = Field(ge=1)
    first_seed: int = Field(ge=0)
    duration: float = Field(gt=0)
    queue: list[Literal["fifo", "edf"]] = Field(min_length=1)
    bounds: bool
    limits: bool
    ablation: bool


class SweepRecord(StrictModel):
    """Content of sweep.json: what is swept, and everything else that bears on its cells."""

    sweep_id: str
    created_at: str
    options: SweepOptions
    settings: dict[str, Any]
    profile: dict[str, Any]
    sources: dict[str, str]
    policies: dict[str, str | None]
    packages: dict[str, str]
    versions: dict[str, str]
    git_commit: str | None


class Sweep(NamedTuple):
    """A sweep and the folder that keeps it."""

    folder: Path
    record: SweepRecord
    plan: Plan


def begun(swept: SweepOptions, output: Path) -> Sweep:
    """A new sweep, checked; its folder, below `output`, holds sweep.json.

    Raises:
        UsageError: an option or the settings are wrong, or the folder cannot be made.
        HarnessError: the disk is full.
    """
    plan = planned(swept)
    now = datetime.now().astimezone()
    folder = RunFolder(output, now)
    record = SweepRecord(
        sweep_id=folder.experiment_id,
        created_at=now.isoformat(),
        options=swept,
        **basis(plan),
        versions=dict(versions()),
        git_commit=git_commit(),
    )
    write_json(folder.path / "sweep.json", record.model_dump(mode="json"))
    return Sweep(folder.path, record, plan)


def planned(swept: SweepOptions) -> Plan:
    """The plan that the options mean with the settings, the profile and the policies as they are now.

    Raises:
        UsageError: one of these is wrong.
    """
    settings = load_settings(swept.config).replace(duration_s=swept.duration)
    profile = load_profile(settings.performance_profile)
    require_known_models(settings, profile.latency)
    for load in swept.load:
        settings.replace(load=load)  # refused now rather than in a cell
    for name in swept.schedulers:
        try:
            create_scheduler(name, settings, random_stream(settings.seed, "policy"))
        except UsageError as error:
            raise UsageError(str(error).replace("--scheduler:", "--schedulers:", 1)) from error
    seeds = range(swept.first_seed, swept.first_seed + swept.seeds)
    return Plan(settings, profile, swept.schedulers, swept.queue, swept.load, seeds, swept.bounds, swept.limits, swept.ablation)


def basis(plan: Plan) -> dict[str, Any]:
    """Everything beside the options that bears on the cells, as it is now."""
    return {
        "settings": plain_settings(plan.settings),
        "profile": plan.profile.model_dump(mode="json"),
        "sources": dict(source_hashes()),
        "policies": {name: policy_hash(name) for name in plan.schedulers},
        "packages": dict(package_versions()),
    }


def resumed(folder: Path, given: Mapping[str, Any]) -> Sweep:
    """The sweep that was begun in `folder`, if it is still the same.

    Args:
        folder: holds its sweep.json.
        given: options beside `--resume`, by their names in SweepOptions, None where one was not given; and `mixed_profiles`,
            whether finished cells may have been run with another profile.

    Raises:
        UsageError: the folder holds no sweep, an option differs from the sweep's, or something that bears on it has changed.
    """
    record = _recorded(folder)
    for name, expected in record.options.model_dump(exclude={"config"}).items():
        found = given[name]
        if found is not None and found != expected:
            option = ("--no-" if isinstance(expected, bool) else "--") + name.replace("_", "-")
            raise UsageError(f"--resume: {folder} was begun with another {option}: found {found}, expected {expected}")
    config: Path | None = given["config"]
    plan = planned(record.options.model_copy(update={"config": config.absolute()} if config else {}))
    before = record.model_dump(mode="json")
    for name, content in basis(plan).items():
        if changed := _first_difference(content, before[name]):
            if name == "profile" and given["mixed_profiles"]:
                plan = replace(plan, earlier_profile=PerformanceProfile.model_validate(record.profile))
                continue
            mixed = ", or give --mixed-profiles" if name == "profile" else ""
            raise UsageError(f"--resume: {_BASIS[name]} changed since {folder} was begun: {changed}; begin a new sweep{mixed}")
    return Sweep(folder, record, plan)


def _recorded(folder: Path) -> SweepRecord:
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--resume: {folder} is no folder of a sweep: there is no {path}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--resume: {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--resume: {path} is damaged: expected a mapping, found {type(content).__name__}")
    return validated(SweepRecord, content, f"--resume: {path}", {})


def _first_difference(now: Any, before: Any, at: str = "") -> str | None:
    """Where two JSON-able values differ first, and how; None where they do not."""
    if isinstance(now, dict) and isinstance(before, dict):
        if sorted(now) == sorted(before) and list(now) != list(before):
            return f"{at}: found the order {', '.join(now)}, expected {', '.join(before)}"
        keys = dict.fromkeys([*before, *now])
        deeper = (_first_difference(now.get(key), before.get(key), f"{at}.{key}" if at else key) for key in keys)
        return next(filter(None, deeper), None)
    if now == before:
        return None
    return at if isinstance(before, str) and len(before) == _SHA256_DIGITS else f"{at}: found {now}, expected {before}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        HarnessError: the disk is full, or the folder cannot be written.
    """
    try:
        write_json_atomically(path, content)
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror}") from None
