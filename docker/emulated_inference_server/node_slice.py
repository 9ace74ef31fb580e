"""The slice of the performance profile that one emulated node needs, read and checked."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_QUEUE_CAPACITY = 200
LARGEST_W = 1e5
LARGEST_OVERHEAD_MS = 1000.0
LARGEST_CV = 10.0
SHORTEST_MS, LONGEST_MS = 1e-3, 3.6e6


class InvalidSlice(ValueError):
    """The slice cannot be used; the message says which key, what was found and what was expected, in one line."""


@dataclass(frozen=True, slots=True)
class NodeSlice:
    """What one node is like.

    Attributes:
        node: its name, such as "coral1".
        accelerator: the kind of its device, such as "coral".
        idle_w: power when idle, in watts.
        busy_w: power while an inference runs, in watts.
        request_overhead_ms: what a request takes besides queueing and inference, in milliseconds.
        overhead_w: power above idle that each request draws in that time, in watts.
        overhead_cv: coefficient of variation of the request overhead.
        cv: coefficient of variation of the service time.
        mean_ms: mean service time of each model that is served, in milliseconds.
        queue_capacity: how many requests may wait.
    """

    node: str
    accelerator: str
    idle_w: float
    busy_w: float
    request_overhead_ms: float
    cv: float
    mean_ms: Mapping[str, float]
    queue_capacity: int = DEFAULT_QUEUE_CAPACITY
    overhead_w: float = 0.0
    overhead_cv: float = 0.0

    @classmethod
    def from_json(cls, text: str) -> "NodeSlice":
        """Read and check a slice.

        Raises:
            InvalidSlice: it is not JSON, a key is missing, unknown or of the wrong type, or a value makes no sense.
        """
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidSlice(f"expected a JSON object on the first line, got {_shown(text)}") from error
        if not isinstance(given, dict):
            raise InvalidSlice(f"expected a JSON object on the first line, got {_shown(text)}")
        unknown = sorted(given.keys() - cls.__slots__)
        if unknown:
            raise InvalidSlice(f"unknown key {_shown(unknown[0])}; known are {', '.join(cls.__slots__)}")
        idle_w = _number(given, "idle_w", 0.0, LARGEST_W)
        return cls(
            node=_text(given, "node"),
            accelerator=_text(given, "accelerator"),
            idle_w=idle_w,
            busy_w=_number(given, "busy_w", idle_w, LARGEST_W),
            request_overhead_ms=_number(given, "request_overhead_ms", 0.0, LARGEST_OVERHEAD_MS),
            cv=_number(given, "cv", 0.0, LARGEST_CV),
            mean_ms=_means(given),
            queue_capacity=_capacity(given),
            overhead_w=_number({"overhead_w": 0.0, **given}, "overhead_w", 0.0, LARGEST_W),
            overhead_cv=_number({"overhead_cv": 0.0, **given}, "overhead_cv", 0.0, LARGEST_CV),
        )


def _present(given: Mapping[str, Any], key: str) -> Any:
    if key not in given:
        raise InvalidSlice(f"{key}: missing")
    return given[key]


def _text(given: Mapping[str, Any], key: str) -> str:
    value = _present(given, key)
    if not isinstance(value, str) or not value:
        raise InvalidSlice(f"{key}: expected a text that is not empty, got {_shown(value)}")
    return value


def _number(given: Mapping[str, Any], key: str, least: float, most: float) -> float:
    value = _present(given, key)
    if not _is_finite(value) or value < least:
        raise InvalidSlice(f"{key}: expected a number of at least {least:g}, got {_shown(value)}")
    if value > most:
        raise InvalidSlice(f"{key}: expected a number of at most {most:g}, got {_shown(value)}")
    return float(value)


def _means(given: Mapping[str, Any]) -> dict[str, float]:
    value = _present(given, "mean_ms")
    if not isinstance(value, dict) or not value:
        raise InvalidSlice(f"mean_ms: expected an object of model names and milliseconds, got {_shown(value)}")
    for model, mean in value.items():
        if not model or not _is_finite(mean) or mean <= 0:
            raise InvalidSlice(f"mean_ms: expected milliseconds above 0 for {_shown(model)}, got {_shown(mean)}")
        if not SHORTEST_MS <= mean <= LONGEST_MS:
            raise InvalidSlice(f"mean_ms: expected {SHORTEST_MS:g} to {LONGEST_MS:g} for {_shown(model)}, got {_shown(mean)}")
    return {model: float(mean) for model, mean in value.items()}


def _capacity(given: Mapping[str, Any]) -> int:
    value = given.get("queue_capacity", DEFAULT_QUEUE_CAPACITY)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidSlice(f"queue_capacity: expected a whole number of at least 1, got {_shown(value)}")
    return value


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "..."
