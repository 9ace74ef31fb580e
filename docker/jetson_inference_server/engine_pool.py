"""The engines that are loaded, kept within a budget of memory: the least recently used goes first."""

import logging
import math
import time
from collections import OrderedDict
from typing import Callable, List, Optional

from inference_server import UnusableModel
from jetson_inference_server.tensorrt_engine import Engine

logger = logging.getLogger(__name__)

MB = 1 << 20

Load = Callable[[str, Callable[[int], None]], Engine]
"""Loads the engine of a model; calls the function it is given with what the engine needs, in bytes, before taking it."""


class EnginePool:
    """Engines by model, loaded when they are needed.

    Args:
        load: loads one.
        budget_mb: what all together may take, in MB of 2^20 bytes.
    """

    def __init__(self, load: Load, budget_mb: int) -> None:
        self._load = load
        self._budget_mb = budget_mb
        self._engines: OrderedDict[str, Engine] = OrderedDict()

    @property
    def models(self) -> List[str]:
        """The models whose engines are loaded, the least recently used first."""
        return list(self._engines)

    @property
    def memory_bytes(self) -> int:
        """What the loaded engines take."""
        return sum(engine.memory_bytes for engine in self._engines.values())

    def get(self, model: str) -> Engine:
        """The engine of a model, loaded if it is not; it is the most recently used then.

        Raises:
            UnusableModel: it takes more than the whole budget, or cannot be loaded.
            OutOfMemory: it fits the budget and not the GPU.
            AcceleratorGone: the device is lost.
        """
        if model not in self._engines:
            began_s = time.monotonic()
            self._engines[model] = engine = self._load(model, self._make_room)
            seconds = round(time.monotonic() - began_s, 4)
            logger.info("engine loaded", extra={"model": model, "load_s": seconds, "engine_bytes": engine.memory_bytes})
        self._engines.move_to_end(model)
        return self._engines[model]

    def unload_oldest(self, keep: Optional[str] = None) -> Optional[str]:
        """Unload the least recently used engine other than that of `keep`.

        Returns:
            Its model, or None if there is no other.
        """
        oldest = next((model for model in self._engines if model != keep), None)
        if oldest is not None:
            self._engines.pop(oldest).release()
            logger.info("engine unloaded", extra={"model": oldest})
        return oldest

    def close(self) -> None:
        """Unload all."""
        while self.unload_oldest() is not None:
            pass

    def _make_room(self, needed_bytes: int) -> None:
        if needed_bytes > self._budget_mb * MB:
            needed_mb = math.ceil(needed_bytes / MB)
            raise UnusableModel(f"its engine takes {needed_mb} MB and GPU_MEMORY_MB is {self._budget_mb}")
        while self.memory_bytes + needed_bytes > self._budget_mb * MB:
            self.unload_oldest()
