"""Latency and power of every node and model: what a scheduler may expect, and what an emulated node answers with."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from utils import NonNegative, Positive, StrictModel, read_yaml, validated

Provenance = Literal["measured", "published", "estimated", "mixed"]


class NodeFigures(StrictModel):
    """Power of one node, watts at its supply, and what one HTTP request costs beside the inference, milliseconds."""

    accelerator: str
    idle_w: NonNegative
    busy_w: Positive
    power_provenance: Provenance
    request_overhead_ms: Annotated[float, Field(ge=0, le=1000, strict=True)]
    overhead_provenance: Provenance

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
    mean_ms: dict[str, Positive]
    note: str = ""


class PerformanceProfile(StrictModel):
    """The table of config/performance_profile.yaml.

    Args:
        nodes: figures by node name.
        latency: figures by model name; a node without an entry does not serve that model.
        cv: coefficient of variation (std / mean) of the accelerator time, by accelerator.
    """

    nodes: dict[str, NodeFigures] = Field(min_length=1)
    latency: dict[str, ModelFigures] = Field(min_length=1)
    cv: dict[str, NonNegative]

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for name, node in self.nodes.items():
            if node.accelerator not in self.cv:
                raise ValueError(f"node {name}: cv has no entry for its accelerator {node.accelerator}")
        for model, figures in self.latency.items():
            for name in figures.mean_ms:
                if name not in self.nodes:
                    raise ValueError(f"latency of {model}: {name} is not among the nodes {', '.join(self.nodes)}")
        return self

    def service_time_s(self, node: str) -> dict[str, float]:
        """Mean accelerator time in seconds by model, for the models that `node` serves."""
        return {model: figures.mean_ms[node] / 1e3 for model, figures in self.latency.items() if node in figures.mean_ms}

    def overhead_s(self, node: str) -> float:
        """Request overhead of `node` in seconds: round trip minus accelerator time."""
        return self.nodes[node].request_overhead_ms / 1e3

    def sigma(self, node: str) -> float:
        """Shape of the log-normal service time of `node`: σ² = ln(1 + cv²)."""
        return math.sqrt(math.log1p(self.cv[self.nodes[node].accelerator] ** 2))

    def emulation_slice(self, node: str) -> dict[str, Any]:
        """What an emulated inference server must know of itself, as JSON-able values."""
        own = self.nodes[node]
        return {
            "node": node,
            "accelerator": own.accelerator,
            "idle_w": own.idle_w,
            "busy_w": own.busy_w,
            "request_overhead_ms": own.request_overhead_ms,
            "cv": self.cv[own.accelerator],
            "mean_ms": {model: figures.mean_ms[node] for model, figures in self.latency.items() if node in figures.mean_ms},
        }


def load_profile(path: Path) -> PerformanceProfile:
    """Read and check a profile.

    Raises:
        UsageError: the file is missing or wrong; the text names the key and its line.
    """
    content, lines = read_yaml(path)
    return validated(PerformanceProfile, content, str(path), lines)
