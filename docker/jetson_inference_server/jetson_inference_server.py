"""The inference server of a Jetson Nano: TensorRT engines, FP16, on its GPU.

`models.yaml` names the engines that build_engines.sh built on this very node. Besides the variables of every server
(inference_server.main) there are:

| variable | default | meaning |
|---|---|---|
| `GPU_MEMORY_MB` | 1024 | what the loaded engines may take together, in MB of 2^20 bytes |
| `L4T_RELEASE_FILE` | /etc/nv_tegra_release | where the version of Linux for Tegra stands |

Engines beyond `GPU_MEMORY_MB` are loaded when they are asked for, which counts as inference time. The size of an engine is an
estimate from below: its file, its activations and its buffers. What an execution context keeps besides, and what CUDA, cuDNN and
cuBLAS take for themselves, a few hundred MB, comes on top.

An error that costs the CUDA context ends the process with status 71: CUDA works again only in a new one. Before that, what
waits is refused.

Tested on a stand-in for TensorRT and pycuda, not on a board.
"""

import signal
import sys

if __name__ == "__main__":  # until the server has its own handler: a container's first process ignores what it does not handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import logging
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, TypeVar

import numpy as np

from inference_server import AcceleratorGone, Backend, Gauge, ModelFile, ModelFiles, OutOfMemory, UnusableModel
from inference_server.backend import IMAGE_SIDE, let_others_run
from inference_server.main import run_server, whole_number
from jetson_inference_server.engine_pool import MB, EnginePool
from jetson_inference_server.l4t import l4t_version
from jetson_inference_server.tensorrt_engine import Engine, Gpu, lost_context

logger = logging.getLogger(__name__)

DEFAULT_MEMORY_MB = 1024
DEFAULT_RELEASE_FILE = "/etc/nv_tegra_release"
EXIT_CONTEXT_LOST = 71
BUILT_BY = re.compile(r"_trt(\d+(?:\.\d+)+)_")

Result = TypeVar("Result")


class JetsonBackend(Backend):
    """The engines of the models on one GPU.

    Args:
        gpu: open, and closed by `close`.
        files: the engines' plans.
        memory_mb: what the engines may take together, in MB of 2^20 bytes.
        l4t: version of Linux for Tegra.
    """

    accelerator = "jetson"

    def __init__(self, gpu: Gpu, files: ModelFiles, memory_mb: int, l4t: str) -> None:
        self.models: List[str] = []
        self.absent = dict(files.absent)
        self._gpu = gpu
        self._files = {file.name: file for file in files.files}
        self._scales = {file.name: _scale(file) for file in files.files}
        self._states: Dict[str, Tuple[int, int]] = {}
        self._pool = EnginePool(self._load, memory_mb)
        self._memory_mb = memory_mb
        self.details = {"tensorrt": gpu.tensorrt_version, "tensorrt_api": gpu.api.name, "gpu": gpu.name, "l4t": l4t}

    def load(self) -> None:
        """Load each model once; those that cannot be served are absent from then on.

        A model that found no memory is tried again after the others: a process that was just ending may have held it.

        Raises:
            AcceleratorGone: the CUDA context was lost.
        """
        sizes_bytes: Dict[str, int] = {}
        for model in [model for model in self._files if not self._tried(model, sizes_bytes)]:
            self._tried(model, sizes_bytes)
        self.models = [model for model in self._files if model in sizes_bytes]
        self.details["engines"] = _residency(sum(sizes_bytes.values()), self._memory_mb)

    def infer(self, model: str, image: bytes) -> int:
        """Classify one image; see `Backend.infer`.

        Raises:
            AcceleratorGone: the CUDA context was lost.
            OutOfMemory: it does not even fit when no other engine is loaded.
            UnusableModel: TensorRT refused, or gave something other than numbers.
        """
        return self._with_engine(model, lambda engine: self._classify(model, engine, image))

    def gauges(self) -> List[Gauge]:
        """What the engines take now."""
        taken = "Least that the engines loaded now take, from their files, activations and buffers."
        return [
            Gauge("gpu_memory_bytes", taken, self._pool.memory_bytes),
            Gauge("gpu_engines_loaded", "Engines loaded now.", len(self._pool.models)),
        ]

    def close(self) -> None:
        """Release the engines and then the CUDA context."""
        self._pool.close()
        self._gpu.close()

    def _tried(self, model: str, sizes_bytes: Dict[str, int]) -> bool:
        """Load a model for the first time and note what its engine takes, or why it is absent; false for want of memory."""
        let_others_run()  # TensorRT 8.2 makes an execution context with Python's lock held
        try:
            if self._files[model].input_type != "float32":
                raise UnusableModel(f"models.yaml says input_type {self._files[model].input_type}; engines here take float32")
            sizes_bytes[model] = self._with_engine(model, lambda engine: engine.memory_bytes)
        except AcceleratorGone:
            raise
        except Exception as error:  # this model only; the others may be fine
            self.absent[model] = str(error) or type(error).__name__
            return not isinstance(error, OutOfMemory)
        self.absent.pop(model, None)
        return True

    def _with_engine(self, model: str, act: Callable[[Engine], Result]) -> Result:
        """Do something with the engine of a model; where memory is short, other engines go until it is not."""
        while True:
            try:
                return act(self._pool.get(model))
            except OutOfMemory as error:
                logger.warning("out of memory", extra={"model": model, "reason": str(error)})
                if self._pool.unload_oldest(keep=model) is None:
                    raise

    def _load(self, model: str, make_room: Callable[[int], None]) -> Engine:
        path = self._files[model].path
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns)
        if self._states.setdefault(model, state) != state:
            raise UnusableModel(f"{path} has changed since the server checked it: start the server anew")
        try:
            return Engine(self._gpu, path, make_room)
        except UnusableModel as error:
            raise UnusableModel(f"{error}{_rebuild_hint(path.name, self._gpu.tensorrt_version)}") from error

    def _classify(self, model: str, engine: Engine, image: bytes) -> int:
        pixels = np.frombuffer(image, np.uint8).reshape(IMAGE_SIDE, IMAGE_SIDE, 3)
        scale = self._scales[model]
        if scale is None:
            np.copyto(engine.input, pixels)
        else:
            mean, std = scale
            np.subtract(pixels, mean, out=engine.input)
            np.divide(engine.input, std, out=engine.input)
        scores = engine.run()
        top1 = int(np.argmax(scores))
        if not np.isfinite(scores[top1]):  # NumPy takes NaN for the largest
            raise UnusableModel(f"the engine of {model} gave {scores[top1]} for a class, expected finite numbers")
        return top1


def _scale(file: ModelFile) -> Optional[Tuple[Any, Any]]:
    """Mean and standard deviation for an image of float32, or None where pixel values go in as they are."""
    if file.mean == (0.0, 0.0, 0.0) and file.std == (1.0, 1.0, 1.0):
        return None
    return np.array(file.mean, np.float32), np.array(file.std, np.float32)


def _rebuild_hint(file_name: str, tensorrt_version: str) -> str:
    """What to do about an engine of another TensorRT, as far as its file's name tells."""
    found = BUILT_BY.search(file_name)
    if found is None or tensorrt_version.split(".")[:3] == found.group(1).split(".")[:3]:
        return "" if found else "; if another TensorRT or GPU built it, run build_engines.sh on this node"
    return f"; TensorRT {found.group(1)} built it and this is {tensorrt_version}: run build_engines.sh on this node"


def _residency(needed_bytes: int, memory_mb: int) -> str:
    """Whether all engines stay loaded, for people who read latencies."""
    sizes = f"{needed_bytes / MB:.0f} MB of GPU_MEMORY_MB {memory_mb}"
    if needed_bytes <= memory_mb * MB:
        return f"all stay loaded, {sizes}"
    return f"loaded on demand, which counts as inference time: {sizes}"


def open_backend(
    files: ModelFiles, environment: Mapping[str, str], end_process: Callable[[int], None] = os._exit
) -> JetsonBackend:
    """Open the GPU and load the engines.

    Args:
        files: the engines' plans.
        environment: the variables.
        end_process: called with an exit status when CUDA can no longer work in this process.

    Raises:
        AcceleratorGone: there is no GPU that can be used; the message says why.
        InvalidVariable: a variable makes no sense.
    """
    memory_mb = whole_number(environment, "GPU_MEMORY_MB", DEFAULT_MEMORY_MB, 1, 1 << 20)
    lost = lost_context()
    if lost is not None:
        logger.critical("the CUDA context was lost and only a new process can use CUDA again: this one ends (%s)", lost)
        end_process(EXIT_CONTEXT_LOST)
        raise AcceleratorGone(f"CUDA works again only in a new process ({lost})")
    try:
        import pycuda.driver as cuda
        import tensorrt as trt
    except (ImportError, OSError) as error:
        raise AcceleratorGone(
            f"TensorRT or pycuda cannot be imported ({error}): on a Jetson, a pod needs runtimeClassName nvidia for them"
        ) from error
    release_file = Path(environment.get("L4T_RELEASE_FILE") or DEFAULT_RELEASE_FILE)
    backend = JetsonBackend(Gpu(trt, cuda), files, memory_mb, l4t_version(release_file))
    try:
        backend.load()
    except BaseException:
        backend.close()
        raise
    return backend


if __name__ == "__main__":
    run_server(open_backend)
