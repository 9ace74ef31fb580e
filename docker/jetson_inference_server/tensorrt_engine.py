"""TensorRT engines on one GPU, the same from outside whichever Python API the installed TensorRT has.

Until 8.4 TensorRT numbers the inputs and outputs of an engine ("bindings"), since 8.5 it names them ("tensors"), and 10 has
only the names. Everything here must be made, used and released by one thread: the CUDA context belongs to it.
"""

import logging
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Deque, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from inference_server import AcceleratorGone, OutOfMemory, UnusableModel
from inference_server.backend import IMAGE_SIDE

logger = logging.getLogger(__name__)

INPUT_SHAPE = (1, IMAGE_SIDE, IMAGE_SIDE, 3)
FLOAT_BYTES = 4
KEPT_ERRORS = 20

_lost_contexts: List[str] = []


def lost_context() -> Optional[str]:
    """Why CUDA no longer works in this process, or None. After such an error it works again only in a new process."""
    return _lost_contexts[0] if _lost_contexts else None


class Tensor(NamedTuple):
    """An input or output of an engine, as TensorRT describes it."""

    name: str
    is_input: bool
    shape: Tuple[int, ...]
    dtype: Any


class BindingApi:
    """Inputs and outputs by number: TensorRT until 8.4."""

    name = "bindings"

    def tensors(self, trt: Any, engine: Any) -> List[Tensor]:
        """What goes into an engine and comes out, in the order of its bindings."""
        return [
            Tensor(
                engine.get_binding_name(index),
                engine.binding_is_input(index),
                tuple(engine.get_binding_shape(index)),
                engine.get_binding_dtype(index),
            )
            for index in range(engine.num_bindings)
        ]

    def launcher(self, context: Any, tensors: List[Tensor], addresses: List[int]) -> Callable[[int], bool]:
        """A function that starts an inference on a stream, given its handle; False if TensorRT refuses, its log tells why."""
        return lambda stream: bool(context.execute_async_v2(bindings=addresses, stream_handle=stream))


class TensorApi:
    """Inputs and outputs by name: TensorRT since 8.5."""

    name = "tensors"

    def tensors(self, trt: Any, engine: Any) -> List[Tensor]:
        """What goes into an engine and comes out."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            Tensor(
                name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_dtype(name),
            )
            for name in names
        ]

    def launcher(self, context: Any, tensors: List[Tensor], addresses: List[int]) -> Callable[[int], bool]:
        """A function that starts an inference on a stream, given its handle; False if TensorRT refuses, its log tells why."""
        taken = [context.set_tensor_address(tensor.name, address) for tensor, address in zip(tensors, addresses)]
        return lambda stream: all(taken) and bool(context.execute_async_v3(stream_handle=stream))


class Gpu:
    """The first GPU with a CUDA context, current in this thread until `close`, a stream and TensorRT's runtime.

    Args:
        trt: the module tensorrt.
        cuda: the module pycuda.driver.

    Attributes:
        name: what CUDA calls the GPU.
        tensorrt_version: such as "8.2.1.8".
        api: how engines are run.
        stream: where copies and inferences are queued.

    Raises:
        AcceleratorGone: there is no GPU that can be used.
    """

    def __init__(self, trt: Any, cuda: Any) -> None:
        self.trt = trt
        self.cuda = cuda
        self.tensorrt_version = str(trt.__version__)
        self.api = TensorApi() if hasattr(trt.ICudaEngine, "num_io_tensors") else BindingApi()
        self.stream: Any = None
        self.runtime: Any = None
        self._errors: Deque[str] = deque(maxlen=KEPT_ERRORS)
        self._log: Any = None
        self._context: Any = None
        try:
            cuda.init()
            device = cuda.Device(0)
            self.name = str(device.name())
            self._context = device.make_context()
            self.stream = cuda.Stream()
            self._log = _tensorrt_log(trt, self._errors)
            self.runtime = trt.Runtime(self._log)
        except BaseException as error:
            self.close()
            if isinstance(error, (cuda.Error, MemoryError)):
                raise AcceleratorGone(f"the GPU cannot be used: {error}") from error
            raise

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turn the errors of CUDA into those of a backend.

        Raises:
            OutOfMemory: the GPU or the host has none left.
            AcceleratorGone: the context is lost.
        """
        self._errors.clear()
        try:
            yield
        except (MemoryError, self.cuda.MemoryError) as error:  # two: pycuda's does not descend from Python's
            raise OutOfMemory(f"{what}: {error or 'no memory left'}") from error
        except self.cuda.Error as error:
            self.require_alive(f"{what}: {error}")
            raise

    def require_alive(self, what: str) -> None:
        """Find out whether the context outlived an error: one that is lost answers every call with an error.

        Raises:
            AcceleratorGone: it did not.
        """
        try:
            self.cuda.Context.synchronize()
        except self.cuda.Error as error:
            _lost_contexts.append(str(error))
            raise AcceleratorGone(f"the CUDA context is lost ({what}; then {error})") from error

    def failure(self, what: str) -> Exception:
        """The error for something that TensorRT refused without an exception; its log tells why.

        Raises:
            AcceleratorGone: the context is lost.
        """
        said = "; ".join(self._errors) or "TensorRT gave no reason"
        self.require_alive(f"{what}: {said}")
        if "outofmemory" in said.lower().replace(" ", ""):
            return OutOfMemory(f"{what}: {said}")
        return UnusableModel(f"{what}: {said}")

    def close(self) -> None:
        """Release everything; all engines must have been released before."""
        self.runtime = None
        self._log = None
        self.stream = None
        context, self._context = self._context, None
        if context is not None:
            for step in (context.pop, context.detach):
                try:
                    step()
                except self.cuda.Error:
                    logger.warning("releasing the CUDA context failed", exc_info=True)


class Engine:
    """A model on the GPU: deserialised plan, execution context and buffers for one image.

    Args:
        gpu: where it runs.
        path: its plan.
        make_room: called with what the engine needs, in bytes, before that is taken: first with the least that it can be,
            then with all of it. What it raises ends the loading.

    Attributes:
        memory_bytes: what it takes at least: the plan, which is almost all weights, the activations as TensorRT tells them, and
            the buffers here and on the GPU, which share one memory on a Jetson.
        input: the image goes here, float32 [1, 224, 224, 3].

    Raises:
        UnusableModel: it is no engine for this TensorRT, or none that classifies such an image.
        OutOfMemory: it does not fit now.
        AcceleratorGone: the context is lost.
        OSError: the plan cannot be read.
    """

    def __init__(self, gpu: Gpu, path: Path, make_room: Callable[[int], None]) -> None:
        self._gpu = gpu
        self._engine: Any = None
        self._context: Any = None
        self._launch: Optional[Callable[[int], bool]] = None
        self._device_buffers: List[Any] = []
        self._host_buffers: List[Any] = []
        try:
            self._load(path, make_room)
        except BaseException:
            self.release()
            raise

    def _load(self, path: Path, make_room: Callable[[int], None]) -> None:
        gpu = self._gpu
        with gpu.doing(f"loading {path.name}"):
            plan = path.read_bytes()
            make_room(len(plan))
            self._engine = gpu.runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise gpu.failure(f"TensorRT {gpu.tensorrt_version} cannot load {path.name}")
            tensors = gpu.api.tensors(gpu.trt, self._engine)
            taken, given = classifier_tensors(gpu.trt, tensors)
            values = [_volume(tensor.shape) for tensor in tensors]
            self.memory_bytes = len(plan) + _activation_bytes(self._engine) + 2 * FLOAT_BYTES * sum(values)
            make_room(self.memory_bytes)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise gpu.failure(f"TensorRT cannot make an execution context for {path.name}")
            for tensor in tensors:
                self._host_buffers.append(gpu.cuda.pagelocked_empty(tensor.shape, np.float32))
                self._device_buffers.append(gpu.cuda.mem_alloc(FLOAT_BYTES * _volume(tensor.shape)))
            self._launch = gpu.api.launcher(self._context, tensors, [int(buffer) for buffer in self._device_buffers])
        self._input, self._output = tensors.index(taken), tensors.index(given)

    @property
    def input(self) -> Any:
        """Where the image goes."""
        return self._host_buffers[self._input]

    def run(self) -> Any:
        """Compute what `input` holds, to the end.

        Returns:
            One float32 per class, valid until the next run.

        Raises:
            OutOfMemory: there is none left now.
            AcceleratorGone: the context is lost.
            UnusableModel: TensorRT refused.
        """
        assert self._launch is not None
        gpu = self._gpu
        with gpu.doing("the inference"):
            gpu.cuda.memcpy_htod_async(self._device_buffers[self._input], self._host_buffers[self._input], gpu.stream)
            launched = self._launch(gpu.stream.handle)
            if launched:
                gpu.cuda.memcpy_dtoh_async(self._host_buffers[self._output], self._device_buffers[self._output], gpu.stream)
            gpu.stream.synchronize()
        if not launched:
            raise gpu.failure("TensorRT refused the inference")
        return self._host_buffers[self._output].reshape(-1)

    def release(self) -> None:
        """Free the buffers, then the execution context, then the engine; what is still in use elsewhere is no longer valid."""
        for buffer in self._device_buffers + [array.base for array in self._host_buffers]:
            try:
                buffer.free()
            except self._gpu.cuda.Error:
                logger.warning("freeing a buffer failed", exc_info=True)
        self._device_buffers, self._host_buffers = [], []
        self._launch = None
        self._context = None
        self._engine = None


def classifier_tensors(trt: Any, tensors: List[Tensor]) -> Tuple[Tensor, Tensor]:
    """The input and the output of an engine that classifies one image.

    Raises:
        UnusableModel: the engine takes or gives something else.
    """
    inputs = [tensor for tensor in tensors if tensor.is_input]
    outputs = [tensor for tensor in tensors if not tensor.is_input]
    if len(inputs) != 1 or len(outputs) != 1:
        found = f"{len(inputs)} inputs and {len(outputs)} outputs"
        raise UnusableModel(f"the engine has {found}, expected one of each: build it from what export_onnx.py writes")
    for tensor in tensors:
        where = f"tensor {tensor.name} of shape {list(tensor.shape)}"
        if any(size < 1 for size in tensor.shape):
            raise UnusableModel(f"{where} is dynamic, expected fixed sizes: export the ONNX graph for one image")
        if tensor.dtype != trt.DataType.FLOAT:
            raise UnusableModel(f"{where} is {tensor.dtype}, expected float32: FP16 engines keep float32 inputs and outputs")
    taken, given = inputs[0], outputs[0]
    if taken.shape != INPUT_SHAPE:
        found = f"the input is {list(taken.shape)}, expected {list(INPUT_SHAPE)}"
        raise UnusableModel(f"{found}: build it from what export_onnx.py writes")
    if _volume(given.shape) < 2 or _volume(given.shape) != max(given.shape):
        raise UnusableModel(f"the output is {list(given.shape)}, expected one value per class and at least two classes")
    return taken, given


def _volume(shape: Tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _activation_bytes(engine: Any) -> int:
    """What TensorRT takes for the activations; since 10.1 the first of the two names is the right one."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def _tensorrt_log(trt: Any, errors: Deque[str]) -> Any:
    """TensorRT's log, written to ours; the errors are kept as well, since TensorRT gives reasons nowhere else."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(msg)
                logger.error("TensorRT: %s", msg)
            elif severity == trt.ILogger.WARNING:
                logger.warning("TensorRT: %s", msg)

    return Log()
