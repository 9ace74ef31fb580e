"""Latency and power of every node and model: what a scheduler may expect, and what an emulated node answers with.

The table is read here, and written anew when profile_nodes.py has measured.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import AwareDatetime, Field, model_validator

from utils import StrictModel, UsageError, YamlDumper, read_yaml, validated

Floats = NDArray[np.float64]
Provenance = Literal["measured", "published", "estimated", "mixed"]

# What a node of any kind can have: a number beyond is a slip of the unit or of the hand, and its results would be none.
LARGEST_OVERHEAD_MS = 1000.0
LONGEST_NAME = 200
Watts = Annotated[float, Field(ge=0, le=1e5, strict=True)]
BusyWatts = Annotated[float, Field(ge=1e-3, le=1e5, strict=True)]
OverheadMs = Annotated[float, Field(ge=0, le=LARGEST_OVERHEAD_MS, strict=True)]
MeanMs = Annotated[float, Field(ge=1e-3, le=3.6e6, strict=True)]
Variation = Annotated[float, Field(ge=0, le=10, strict=True)]


class NodeFigures(StrictModel):
    """Power of one node, watts at its supply, and what one HTTP request costs beside the inference, milliseconds.

    `overhead_w` is what each request draws above idle while it is received or answered, which is the request overhead, half of it
    before the accelerator and half after: the host's own work. `overhead_cv` is the coefficient of variation of the overhead from
    request to request.
    """

    accelerator: str
    idle_w: Watts
    busy_w: BusyWatts
    power_provenance: Provenance
    request_overhead_ms: OverheadMs
    overhead_provenance: Provenance
    overhead_w: Watts = 0.0
    overhead_w_provenance: Provenance = "estimated"
    overhead_cv: Variation = 0.0
    overhead_cv_provenance: Provenance = "estimated"

    @model_validator(mode="after")
    def _busy_draws_no_less(self) -> Self:
        if self.busy_w < self.idle_w:
            raise ValueError(
                f"busy_w {self.busy_w} is below idle_w {self.idle_w}: a busy accelerator cannot draw less than an idle one"
            )
        return self


class ModelFigures(StrictModel):
    """Mean accelerator time of one model on each node that serves it, milliseconds."""

    provenance: Provenance
    mean_ms: dict[str, MeanMs]
    note: str = ""


class Measurement(StrictModel):
    """How and when profile_nodes.py measured mean times, variation and request overheads.

    Args:
        measured_at: when it ended, with its time zone.
        cluster: real nodes (workers) or emulated ones.
        nodes: the nodes that were measured.
        models: the models that were asked for; a node was measured with those of them that it serves.
        requests: counted requests of each model to each node.
        warm_up: requests of each model that were sent before and not counted.
        order: mixed (the models in random order) or grouped (one model after the other).
        seed: seed of the random order.
    """

    measured_at: AwareDatetime
    cluster: Literal["workers", "emulated"]
    nodes: list[str] = Field(min_length=1)
    models: list[str] = Field(min_length=1)
    requests: Annotated[int, Field(ge=2, strict=True)]
    warm_up: Annotated[int, Field(ge=0, strict=True)]
    order: Literal["mixed", "grouped"]
    seed: Annotated[int, Field(ge=0, strict=True)]


class PerformanceProfile(StrictModel):
    """The table of config/performance_profile.yaml.

    Args:
        nodes: figures by node name.
        latency: figures by model name; a node without an entry does not serve that model.
        cv: coefficient of variation (std / mean) of the accelerator time, by accelerator.
        measurements: what profile_nodes.py did to the table, oldest first; a later one replaced the figures of the nodes and
            models that it names.
    """

    nodes: dict[str, NodeFigures] = Field(min_length=1)
    latency: dict[str, ModelFigures] = Field(min_length=1)
    cv: dict[str, Variation]
    measurements: list[Measurement] = []

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for name, node in self.nodes.items():
            if node.accelerator not in self.cv:
                raise ValueError(f"node {name}: cv has no entry for its accelerator {node.accelerator}")
        for model, figures in self.latency.items():
            if not 0 < len(model) <= LONGEST_NAME or not model.isprintable():  # what every server and every file can hold
                raise ValueError(f"latency: expected names of 1 to {LONGEST_NAME} printable characters, found {model[:80]!r}")
            for name in figures.mean_ms:
                if name not in self.nodes:
                    raise ValueError(f"latency of {model}: {name} is not among the nodes {', '.join(self.nodes)}")
        return self

    @cached_property
    def sha256(self) -> str:
        """Hash of the content, whatever the file looks like; the order of the nodes counts, since ties go by it."""
        content = self.model_dump(mode="json")
        content["nodes"] = list(content["nodes"].items())
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def service_time_s(self, node: str) -> dict[str, float]:
        """Mean accelerator time in seconds by model, for the models that `node` serves."""
        return {model: figures.mean_ms[node] / 1e3 for model, figures in self.latency.items() if node in figures.mean_ms}

    def overhead_s(self, node: str) -> float:
        """Request overhead of `node` in seconds: round trip minus accelerator time."""
        return self.nodes[node].request_overhead_ms / 1e3

    @property
    def overhead_varies(self) -> bool:
        """Whether the request overhead of some node differs from task to task."""
        return any(node.overhead_cv > 0 for node in self.nodes.values())

    def overhead_of_tasks_s(self, node: str, overhead_noise: Floats) -> Floats:
        """Request overhead of tasks on `node` by their own noise, shape (n,), seconds; the mean for a task without one, NaN.

        Log-normal like the service time, with the mean of the profile: recorded overheads have a tail to the right, and none is
        below 0.
        """
        factor = lognormal_factor(self.overhead_sigma(node), overhead_noise)
        return np.where(np.isnan(overhead_noise), 1.0, factor) * self.overhead_s(node)

    def expected_s(self, node: str, model: str, service_noise: float, overhead_noise: float | None = None) -> float:
        """How long a task takes on the idle `node` by its noise, seconds; at least the mean, for real nodes draw their own."""
        service = max(1.0, float(lognormal_factor(self.sigma(node), service_noise)))
        overhead = max(1.0, float(lognormal_factor(self.overhead_sigma(node), overhead_noise or 0.0)))
        return overhead * self.overhead_s(node) + service * self.latency[model].mean_ms[node] / 1e3

    def overhead_j(self, node: str) -> float:
        """Mean energy above idle that the request overhead takes on `node`, joules."""
        return self.nodes[node].overhead_w * self.overhead_s(node)

    def power_range_w(self, node: str, factor: float, connections: int) -> tuple[float, float]:
        """Least and most power that `node` can draw, watts: its idle power over `factor`, its busy power times `factor`.

        To the busy one belongs the power of as many request overheads at once as the node has connections.
        """
        figures = self.nodes[node]
        return figures.idle_w / factor, (figures.busy_w + figures.overhead_w * connections) * factor

    def sigma(self, node: str) -> float:
        """Shape of the log-normal service time of `node`: σ² = ln(1 + cv²)."""
        return _lognormal_sigma(self.cv[self.nodes[node].accelerator])

    def overhead_sigma(self, node: str) -> float:
        """Shape of the log-normal request overhead of `node`."""
        return _lognormal_sigma(self.nodes[node].overhead_cv)

    def emulation_slice(self, node: str) -> dict[str, Any]:
        """What an emulated inference server must know of itself, as JSON-able values."""
        own = self.nodes[node]
        return {
            "node": node,
            "accelerator": own.accelerator,
            "idle_w": own.idle_w,
            "busy_w": own.busy_w,
            "request_overhead_ms": own.request_overhead_ms,
            "overhead_w": own.overhead_w,
            "overhead_cv": own.overhead_cv,
            "cv": self.cv[own.accelerator],
            "mean_ms": {model: figures.mean_ms[node] for model, figures in self.latency.items() if node in figures.mean_ms},
        }


def _lognormal_sigma(cv: float) -> float:
    return math.sqrt(math.log1p(cv**2))


def lognormal_factor(sigma: float, noise: Any) -> Any:
    """exp(σz − σ²/2) for standard normal z, a number or an array: a log-normal factor of mean 1."""
    return np.exp(sigma * noise - sigma**2 / 2)


def load_profile(path: Path) -> PerformanceProfile:
    """Read and check a profile.

    Raises:
        UsageError: the file is missing or wrong; the text names the key and its line.
    """
    content, lines = read_yaml(path)
    return validated(PerformanceProfile, content, str(path), lines)


class NodeMeans(NamedTuple):
    """What was measured on one node: request overhead, and mean time of each model; milliseconds."""

    overhead_ms: float
    mean_ms: Mapping[str, float]


def remeasured(
    old: PerformanceProfile,
    measurement: Measurement,
    nodes: Mapping[str, NodeMeans],
    absent: Mapping[str, Collection[str]],
    cv: Mapping[str, float],
) -> PerformanceProfile:
    """The profile with the measured figures in place of the old ones.

    Power stays, and so does everything of nodes and models that were not measured. A model that no node serves any more has
    no row. A figure from emulated nodes is an estimate, whatever was done to get it.

    Args:
        old: the profile before.
        measurement: how it was measured.
        nodes: what was measured, by node; each is in `old`.
        absent: models that nodes were found not to serve, by node, measured or not.
        cv: coefficient of variation by accelerator, of those that get a new one.

    Raises:
        UsageError: a figure is out of the range of a profile.
    """
    content = old.model_dump()
    provenance = "measured" if measurement.cluster == "workers" else "estimated"
    for name, means in nodes.items():
        content["nodes"][name] |= {"request_overhead_ms": _rounded(means.overhead_ms, 5), "overhead_provenance": provenance}
    for model in measurement.models:
        row = content["latency"].setdefault(model, {"provenance": provenance, "mean_ms": {}, "note": ""})
        measured = {name: _rounded(means.mean_ms[model], 5) for name, means in nodes.items() if model in means.mean_ms}
        kept = {name: ms for name, ms in row["mean_ms"].items() if name not in measured and model not in absent.get(name, ())}
        row["mean_ms"] = {name: (kept | measured)[name] for name in old.nodes if name in kept or name in measured}
        if measured:
            row["provenance"] = provenance if not kept or row["provenance"] == provenance else "mixed"
            row["note"] = row["note"] if kept else ""
        if not row["mean_ms"]:
            del content["latency"][model]
    content["cv"] |= {accelerator: _rounded(value, 3) for accelerator, value in cv.items()}
    content["measurements"].append(measurement.model_dump())
    new = validated(PerformanceProfile, content, "what was measured", {})
    for model, row in content["latency"].items():
        of_kept = row["note"].removeprefix(_conditions(old, model) if model in old.latency else "")
        row["note"] = f"{_conditions(new, model)} {of_kept.strip()}".strip()
    return PerformanceProfile.model_validate(content)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _conditions(profile: PerformanceProfile, model: str) -> str:
    """What to mind about the measured figures of a row; it names the nodes unless it holds for all of the row."""
    nodes = profile.latency[model].mean_ms.keys()
    last = {name: how for how in profile.measurements if model in how.models for name in how.nodes if name in nodes}
    minded: dict[str, list[str]] = {}
    for name in (name for name in nodes if name in last):
        for sentence in _sentences(profile, last[name]):
            minded.setdefault(sentence, []).append(name)
    return " ".join(
        f"{sentence[0].upper()}{sentence[1:]}" if len(names) == len(nodes) else f"{', '.join(names)} {sentence}"
        for sentence, names in minded.items()
    )


def _sentences(profile: PerformanceProfile, how: Measurement) -> Iterator[str]:
    """What to mind about the figures of one measurement, without their nodes."""
    if how.cluster == "emulated":
        yield "taken from emulated nodes, which answer with the figures they are given: it says nothing of real nodes."
    if how.order == "grouped":
        yield "measured one model after the other: warm figures, which a load of mixed models does not reach."
    elif not profile.latency.keys() <= set(how.models):
        yield f"measured in a mix of {', '.join(how.models)} only."


def profile_text(profile: PerformanceProfile, comment: Sequence[str]) -> str:
    """The profile as YAML.

    Args:
        profile: the figures.
        comment: lines at the top of the file; what cannot be printed becomes a question mark.
    """
    content = profile.model_dump(exclude_defaults=True)
    table = yaml.dump(content, Dumper=YamlDumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=150)
    printable = ("".join(sign if sign.isprintable() else "?" for sign in line) for line in comment)
    return "".join(f"# {line}\n" for line in printable) + table


def replace_keeping_old(path: Path, text: str) -> Path | None:
    """Write `text` at `path`, whole or not at all; a file that stood there is kept beside it.

    Returns:
        Where the old file is: named after when it was measured, else after when it was last changed; None if there was none.

    Raises:
        OSError: something cannot be written; `path` is then untouched.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_through(temporary, "wb", text.encode())
        kept = _kept_beside(path) if path.exists() else None
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return kept


def _kept_beside(path: Path) -> Path:
    """A copy of the file, under a name that was free."""
    content, dated = path.read_bytes(), f"{path.stem}_{_date_of(path):%Y%m%d_%H%M%S}"
    for number in itertools.count(1):
        kept = path.with_name(f"{dated}{f'_{number}' if number > 1 else ''}{path.suffix}")
        try:
            _write_through(kept, "xb", content)
            break
        except FileExistsError:
            continue
    return kept


def _date_of(path: Path) -> datetime:
    try:
        return load_profile(path).measurements[-1].measured_at
    except (UsageError, IndexError):  # no profile, or one that was not measured by profile_nodes.py
        return datetime.fromtimestamp(path.stat().st_mtime)


def _write_through(path: Path, mode: Literal["wb", "xb"], content: bytes) -> None:
    """Write a file and see it on the disk; what could not be finished is not left behind."""
    with open(path, mode) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
