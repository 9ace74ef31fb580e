"""Typed settings of an experiment: config/experiment.yaml holds every default, a user's file changes some of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from utils import PROJECT_ROOT, Flag, Positive, Share, StrictModel, UsageError, read_yaml, validated

DEFAULT_CONFIG = PROJECT_ROOT / "config" / "experiment.yaml"

LONGEST_RUN_S = 1e6
"""Greatest length of a run, seconds: eleven days. Everything that takes virtual time, or memory for it, is bounded by it."""
FASTEST_MPS = 1e4
"""Greatest speed of a device; faster is a mistake."""

Seed = Annotated[int, Field(ge=0, lt=2**64, strict=True)]
Factor = Annotated[float, Field(ge=1, le=1000, strict=True)]
Count = Annotated[int, Field(ge=1, le=10**6, strict=True)]
Metres = Annotated[float, Field(ge=1e-3, le=1e7, strict=True)]
Speed = Annotated[float, Field(ge=0, le=FASTEST_MPS, strict=True)]
Rate = Annotated[float, Field(ge=0, le=1e4, strict=True)]
Deadline = Annotated[float, Field(ge=1e-6, le=LONGEST_RUN_S, strict=True)]
Timeout = Annotated[float, Field(ge=1e-3, le=3600, strict=True)]
Interval = Annotated[float, Field(ge=0.01, le=3600, strict=True)]
Pause = Annotated[float, Field(ge=0, le=3600, strict=True)]
Weight = Annotated[float, Field(ge=0, le=1e6, strict=True)]
Load = Annotated[float, Field(gt=0, le=1e4, strict=True)]
Duration = Annotated[float, Field(gt=0, le=LONGEST_RUN_S, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def _require_range(name: str, low_high: tuple[float, float]) -> None:
    if low_high[0] > low_high[1]:
        raise ValueError(f"{name} must be [low, high], found {list(low_high)}")


def _require_shares_add_up(name: str, shares: Iterable[float]) -> None:
    total = sum(shares)
    if abs(total - 1) > 1e-9:
        raise ValueError(f"the shares of {name} must add up to 1, found {total:g}")


class DeviceType(StrictModel):
    """One kind of device: share of all devices, speed range, chance of a new heading per second, Poisson task rate."""

    share: Share
    speed_mps: tuple[Speed, Speed]
    turn_probability: Share
    tasks_per_s: Rate

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _require_range("speed_mps", self.speed_mps)
        return self


class DeviceSettings(StrictModel):
    """The population of devices, the square area they move in and the radio cell at its centre."""

    count: Count
    placement: Literal["cell", "area"]
    area_side_m: Metres
    cell_radius_m: Metres
    types: dict[Name, DeviceType] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_shares_add_up("devices.types", (kind.share for kind in self.types.values()))
        if self.cell_radius_m > self.area_side_m / 2:
            raise ValueError(f"cell_radius_m {self.cell_radius_m:g} must not exceed half of area_side_m {self.area_side_m:g}")
        return self


class SloClass(StrictModel):
    """One deadline class: share of the tasks, range of the base deadline, how far adaptation may stretch it."""

    share: Share
    base_deadline_s: tuple[Deadline, Deadline]
    extension_factor: Factor

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _require_range("base_deadline_s", self.base_deadline_s)
        return self


class RequestSettings(StrictModel):
    """How the master talks to the nodes; times in seconds."""

    connections_per_node: Annotated[int, Field(ge=1, le=64, strict=True)]
    max_attempts: Count
    connect_timeout_s: Timeout
    request_timeout_s: Timeout
    drain_timeout_s: Annotated[float, Field(ge=0, le=86400, strict=True)]
    health_interval_s: Timeout


MetricName = Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$", strict=True)]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", strict=True)]


class PowerMetrics(StrictModel):
    """How Prometheus names power and nodes: several names of one quantity, since exporters differ from node to node.

    Args:
        power_w: gauges of a node's power.
        energy_j: counters of its energy.
        measured_s: counters of the seconds that the joules were counted over.
        label: label whose value says which node it is.
        nodes: that value by node, for nodes whose value is not their name.
    """

    power_w: list[MetricName]
    energy_j: list[MetricName]
    measured_s: list[MetricName]
    label: LabelName
    nodes: dict[str, Annotated[str, Field(min_length=1, strict=True)]]

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if not self.power_w and not self.energy_j:
            raise ValueError("power_w and energy_j are both empty: at least one metric is needed")
        names = [*self.power_w, *self.energy_j, *self.measured_s]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} stands twice; a metric has one meaning")
        values = list(self.nodes.values())
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise ValueError(f"nodes: {twice[0]} stands for two nodes")
        return self


class PowerSettings(StrictModel):
    """How power is measured; times in seconds."""

    poll_interval_s: Annotated[float, Field(ge=0.01, le=60, strict=True)]
    max_age_s: Interval
    idle_baseline_s: Pause
    host_metrics: Flag
    power_delay_s: Pause
    plausible_factor: Factor
    metrics: PowerMetrics

    @model_validator(mode="after")
    def _samples_live_long_enough(self) -> Self:
        for name, least_s in (("poll_interval_s", self.poll_interval_s), ("power_delay_s", self.power_delay_s)):
            if least_s > self.max_age_s:
                raise ValueError(
                    f"max_age_s {self.max_age_s:g} is below {name} {least_s:g}: no sample would be young enough to be used; "
                    f"raise max_age_s or lower {name}"
                )
        return self


class TopsisWeights(StrictModel):
    """Weights of the four criteria; only their ratios matter."""

    slack: Weight
    performance: Weight
    power: Weight
    load: Weight

    @model_validator(mode="after")
    def _not_all_zero(self) -> Self:
        if sum(self.as_tuple()) == 0:
            raise ValueError("at least one weight must be above 0")
        return self

    def as_tuple(self) -> tuple[float, float, float, float]:
        """The weights in the order of the decision matrix's columns."""
        return (self.slack, self.performance, self.power, self.load)


class TopsisSettings(StrictModel):
    """Settings of the `topsis` policy."""

    weights: TopsisWeights


class PowerAwareTopsisSettings(StrictModel):
    """Settings of the `power_aware_topsis` policy."""

    weights_calm: TopsisWeights
    weights_busy: TopsisWeights
    busy_window_s: Interval
    power_budget_w: Positive | None


class Settings(StrictModel):
    """All settings of one experiment; config/experiment.yaml explains each key."""

    seed: Seed
    duration_s: Duration
    scheduler: Name
    queue_discipline: Literal["fifo", "edf"]
    performance_profile: Path
    devices: DeviceSettings
    load: Load
    models: list[Name] = Field(min_length=1, max_length=1000)
    slo_classes: dict[Name, SloClass] = Field(min_length=1, max_length=1000)
    deadline_adaptation: Flag
    exit_safety: Annotated[float, Field(gt=0, le=1, strict=True)]
    safety_margin: Annotated[float, Field(ge=0, le=1000, strict=True)]
    requests: RequestSettings
    power: PowerSettings
    topsis: TopsisSettings
    power_aware_topsis: PowerAwareTopsisSettings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_shares_add_up("slo_classes", (slo.share for slo in self.slo_classes.values()))
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"models holds a name twice: {self.models}")
        return self

    def replace(self, **changes: Any) -> "Settings":
        """These settings with some top-level keys changed, checked again.

        Raises:
            UsageError: a value is refused.
        """
        return validated(Settings, {**self.model_dump(), **changes}, "options", {})


def load_settings(path: Path | None = None) -> Settings:
    """The default settings, changed by the keys that the file at `path` holds.

    Mappings are merged key by key; lists and values are replaced. A relative `performance_profile` is looked up beside the
    file that names it.

    Raises:
        UsageError: a file is missing or wrong; the text names the key and its line.
    """
    content, lines = read_yaml(DEFAULT_CONFIG)
    content["performance_profile"] = DEFAULT_CONFIG.parent / content["performance_profile"]
    if path is None:
        return validated(Settings, content, str(DEFAULT_CONFIG), lines)
    changes, lines = read_yaml(path)
    if isinstance(profile := changes.get("performance_profile"), str):
        changes["performance_profile"] = path.parent / profile
    return validated(Settings, _merged(content, changes), str(path), lines)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_mappings = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both_mappings else value
    return merged


def require_known_models(settings: Settings, known: Iterable[str]) -> None:
    """Refuse a model that the profile does not know.

    Raises:
        UsageError: naming the first such model and the known ones.
    """
    known = list(known)
    for model in settings.models:
        if model not in known:
            raise UsageError(f"models: {model} is not in the performance profile, which knows {', '.join(known)}")
