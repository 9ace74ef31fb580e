"""A strict stand-in for tensorrt and pycuda.driver on one small GPU, with the rules that the real ones have. Valid Python 3.6.

pycuda: 2022.1, src/wrapper/wrap_cudadrv.cpp (exceptions and which error of CUDA becomes which; mem_alloc, copies) and
src/cpp/cuda.hpp (texts of errors, contexts, allocations). TensorRT: the Python bindings of 8.2.1, 8.6.1 and 10.
Copies and inferences take effect when the stream is synchronised, and every call needs a context that is current in its thread.
What the real libraries would answer with a crash when objects are freed is kept in `Gpu.violations`. An engine computes a
linear map of its input, so that its best class depends on every byte and on their order.
"""

import enum
import functools
import gc
import json
import threading
import types
import warnings
import weakref
from typing import Any, Dict, List

import numpy as np

MB = 1 << 20
IMAGE_SHAPE = [1, 224, 224, 3]
BINDINGS, BOTH, TENSORS = "8.2.1.8", "8.6.1.6", "10.3.0.26"
MAGIC = b"PLAN"


def plan(seed=0, version=BINDINGS, size_bytes=MB, activation_bytes=MB, tensors=None, finite=True):
    """The bytes of an engine: inputs and outputs as (name, is input, shape, type), classes weighted by a seed."""
    tensors = tensors or [("image", True, IMAGE_SHAPE, "FLOAT"), ("logits", False, [1, 10], "FLOAT")]
    fields = {"seed": seed, "version": version, "activation_bytes": activation_bytes, "tensors": tensors, "finite": finite}
    return (MAGIC + json.dumps(fields).encode() + b"\n").ljust(size_bytes, b"\0")


@functools.lru_cache(maxsize=None)
def weights(seed, inputs, classes):
    return np.random.RandomState(seed).standard_normal((classes, inputs)).astype(np.float32)


def scores(seed, values, classes=10):
    """What an engine gives for an input, a float32 array."""
    return weights(seed, values.size, classes) @ values.reshape(-1)


class Gpu:
    """The state behind both modules.

    Attributes:
        violations: what the real libraries might have crashed at.
        threads: the threads that called.
        out_of_memory: so many of the next allocations fail though there is memory.
        refuse: the next inference is refused, with this in TensorRT's log.
        lost: every call fails with this from now on: the context is lost.
        lose_at: "launch" or "synchronize" of the next inference loses the context.
        gate: inferences wait for it.
        begun: released when an inference begins.
    """

    def __init__(self, memory_bytes=1024 * MB):
        self.memory_bytes = memory_bytes
        self.used_bytes = 0
        self.allocations = {}
        self.stacks = {}
        self.contexts = 0
        self.streams = {}
        self.initialised = False
        self.device_count = 1
        self.violations = []
        self.threads = set()
        self.out_of_memory = 0
        self.refuse = None
        self.lost = None
        self.lose_at = None
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.deserialised = []
        self.alive = {"engine": 0, "execution context": 0}
        self._next_address = 0x1000

    def stack(self):
        return self.stacks.setdefault(threading.get_ident(), [])

    def enter(self, call, cuda):
        """What precedes every call: a current context that works."""
        self.threads.add(threading.get_ident())
        if not self.stack():
            raise cuda.LogicError(call + " failed: invalid device context")
        if self.lost is not None:
            error = cuda.LaunchError if "launch" in self.lost else cuda.LogicError
            raise error(call + " failed: " + self.lost)

    def take(self, size_bytes):
        """An address, or None if there is no memory."""
        if self.out_of_memory > 0:
            self.out_of_memory -= 1
            return None
        if self.used_bytes + size_bytes > self.memory_bytes:
            return None
        self._next_address += 0x1000
        self.used_bytes += size_bytes
        self.allocations[self._next_address] = size_bytes
        return self._next_address

    def give_back(self, address, what):
        if not self.stack():
            self.violations.append(what + " freed without a current context")
        self.used_bytes -= self.allocations.pop(address)


def pycuda_driver(gpu):
    """A module pycuda.driver for a GPU."""
    cuda: Any = types.ModuleType("pycuda.driver")

    # DECLARE_EXC(NAME, BASE): each descends from Error alone. MemoryError and RuntimeError are not those of Python.
    class Error(Exception):
        pass

    class CudaMemoryError(Error):
        pass

    class LogicError(Error):
        pass

    class LaunchError(Error):
        pass

    class CudaRuntimeError(Error):
        pass

    def init(flags=0):
        if gpu.device_count == 0:
            raise CudaRuntimeError("cuInit failed: no CUDA-capable device is detected")
        gpu.initialised = True

    class Context:
        def __init__(self):
            self.valid = True
            gpu.contexts += 1
            gpu.stack().append(self)

        @staticmethod
        def pop():
            if not gpu.stack():
                gpu.violations.append("context popped that is not current")
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            gpu.stack().pop()

        def push(self):
            gpu.stack().append(self)

        def detach(self):
            if not self.valid:
                raise LogicError("context::detach failed: invalid device context - cannot detach from invalid context")
            if gpu.allocations:
                gpu.violations.append(f"context destroyed while {len(gpu.allocations)} allocations are in use")
            if gpu.streams:
                gpu.violations.append("context destroyed while a stream is in use")
            if self in gpu.stack():
                gpu.stack().remove(self)
            self.valid = False
            gpu.contexts -= 1

        @staticmethod
        def synchronize():
            gpu.enter("cuCtxSynchronize", cuda)

    class Device:
        def __init__(self, number):
            if not gpu.initialised:
                raise LogicError("cuDeviceGet failed: initialization error")
            if number >= gpu.device_count:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        def name(self):
            return "NVIDIA Tegra X1"

        def make_context(self, flags=0):
            return Context()

    class Stream:
        def __init__(self, flags=0):
            gpu.enter("cuStreamCreate", cuda)
            self.handle = 77 + len(gpu.streams)
            self.pending: List[Any] = []
            gpu.streams[self.handle] = self.pending

        def synchronize(self):
            self._work_off()
            del self  # the traceback of an error would keep it; the real one is not written in Python
            gpu.enter("cuStreamSynchronize", cuda)

        def _work_off(self):
            while self.pending:
                step = self.pending.pop(0)
                if gpu.lost is None:
                    step()

        def __del__(self):
            if hasattr(self, "handle"):
                if self.pending and gpu.lost is None:
                    gpu.violations.append("stream destroyed with work in it")
                if not gpu.stack():
                    gpu.violations.append("stream destroyed without a current context")
                del gpu.streams[self.handle]

    class DeviceAllocation:
        def __init__(self, size_bytes):
            gpu.enter("cuMemAlloc", cuda)
            self.address = gpu.take(size_bytes)
            if self.address is None:  # mem_alloc_gc: once more, after a collection of garbage
                gc.collect()
                self.address = gpu.take(size_bytes)
            if self.address is None:
                raise CudaMemoryError("cuMemAlloc failed: out of memory")
            memory[self.address] = np.full(size_bytes, 0xAB, np.uint8)

        def __int__(self):
            return self.address

        def free(self):
            if self.address is None:
                raise LogicError("device_allocation::free failed: invalid resource handle")
            del memory[self.address]
            gpu.give_back(self.address, "device memory")
            self.address = None

        def __del__(self):
            if getattr(self, "address", None) is not None:
                self.free()

    class PagelockedHostAllocation:
        def __init__(self, shape, dtype):
            gpu.enter("cuMemHostAlloc", cuda)
            count = int(np.prod(shape))
            self.address = gpu.take(count * dtype.itemsize)
            if self.address is None:
                raise CudaMemoryError("cuMemHostAlloc failed: out of memory")
            self.memory = np.full(count * dtype.itemsize, 0xAB, np.uint8)
            place = (self.memory.ctypes.data, False)
            self.__array_interface__ = {"shape": tuple(shape), "typestr": dtype.str, "data": place, "version": 3}

        def free(self):
            if self.address is None:
                raise LogicError("pagelocked_host_allocation::free failed: invalid resource handle")
            gpu.give_back(self.address, "page-locked memory")
            self.address = None

        def __del__(self):
            if getattr(self, "address", None) is not None:
                self.free()

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        array = np.asarray(PagelockedHostAllocation(shape, np.dtype(dtype)))
        assert isinstance(array.base, PagelockedHostAllocation)
        return array

    def page_locked(array, call):
        holder = array
        while isinstance(holder, np.ndarray):
            holder = holder.base
        if not isinstance(holder, PagelockedHostAllocation) or holder.address is None:
            raise LogicError(call + " failed: invalid argument (asynchronous copies need page-locked memory)")
        if not array.flags["C_CONTIGUOUS"]:
            raise ValueError("ndarray is not contiguous")
        return array.reshape(-1).view(np.uint8)

    def device_memory(allocation, size_bytes, call):
        held = memory.get(int(allocation))
        if held is None or held.size < size_bytes:
            raise LogicError(call + " failed: invalid argument")
        return held

    def memcpy_htod_async(dest, src, stream=None):
        gpu.enter("cuMemcpyHtoDAsync", cuda)
        source = page_locked(src, "cuMemcpyHtoDAsync")
        target = device_memory(dest, source.size, "cuMemcpyHtoDAsync")
        stream.pending.append(lambda: np.copyto(target[: source.size], source))

    def memcpy_dtoh_async(dest, src, stream=None):
        gpu.enter("cuMemcpyDtoHAsync", cuda)
        target = page_locked(dest, "cuMemcpyDtoHAsync")
        source = device_memory(src, target.size, "cuMemcpyDtoHAsync")
        stream.pending.append(lambda: np.copyto(target, source[: target.size]))

    memory: Dict[int, Any] = {}
    cuda.memory = memory
    cuda.Error, cuda.MemoryError, cuda.LogicError = Error, CudaMemoryError, LogicError
    cuda.LaunchError, cuda.RuntimeError = LaunchError, CudaRuntimeError
    cuda.init, cuda.Context, cuda.Device, cuda.Stream = init, Context, Device, Stream
    cuda.mem_alloc, cuda.pagelocked_empty = DeviceAllocation, pagelocked_empty
    cuda.memcpy_htod_async, cuda.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    return cuda


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        self.constructed = True

    def log(self, severity, msg):
        raise NotImplementedError("ILogger.log is to be overridden")


def deprecated(name):
    warnings.warn("use the successor of " + name, DeprecationWarning, stacklevel=3)


class EngineBase:
    """What every TensorRT has in common, and what carries an engine here."""

    context_class: Any

    def __init__(self, gpu, cuda, log, size_bytes, fields):
        self._gpu, self._cuda, self._log = gpu, cuda, log
        self._tensors = fields["tensors"]
        self._fields = fields
        self._weights = gpu.take(size_bytes)
        self._contexts = 0
        gpu.alive["engine"] += 1

    def create_execution_context(self):
        self._gpu.enter("cuMemAlloc", self._cuda)
        address = self._gpu.take(self._fields["activation_bytes"])
        if address is None:
            self._log.log(ILogger.ERROR, "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)")
            self._log.log(ILogger.ERROR, "2: [executionContext.cpp::357] Error Code 2: OutOfMemory (no further information)")
            return None
        return self.context_class(self, address)

    def __del__(self):
        if self._contexts:
            self._gpu.violations.append("engine destroyed before its execution context")
        self._gpu.alive["engine"] -= 1
        self._gpu.give_back(self._weights, "engine")


class ContextBase:
    def __init__(self, engine, address):
        # The real one keeps its engine alive; here the order of releasing them is checked.
        self._gpu, self._cuda, self._log = engine._gpu, engine._cuda, engine._log
        self._engine_fields, self._tensors = engine._fields, engine._tensors
        engine._contexts += 1
        self._engine: Any = weakref.ref(engine)
        self._activations = address
        self._addresses = []
        self._gpu.alive["execution context"] += 1

    def _launch(self, addresses, stream_handle):
        gpu = self._gpu
        gpu.enter("cuLaunchKernel", self._cuda)
        refused, gpu.refuse = gpu.refuse, None
        if gpu.lose_at == "launch":
            gpu.lost = refused = "an illegal memory access was encountered"
        if refused is not None:
            self._log.log(ILogger.ERROR, refused)
            return False
        self._addresses = list(addresses)
        buffers = [self._cuda.memory[address] for address in addresses]
        for (name, _, shape, _), buffer in zip(self._tensors, buffers):
            assert buffer.size >= 4 * int(np.prod(shape)), f"the buffer of {name} is too small"
        gpu.streams[stream_handle].append(lambda: self._compute(buffers))
        return True

    def _compute(self, buffers):
        self._gpu.begun.release()
        assert self._gpu.gate.wait(30)
        if self._gpu.lose_at == "synchronize":
            self._gpu.lost = "unspecified launch failure"
            return
        inputs = [buffer for (_, is_input, _, _), buffer in zip(self._tensors, buffers) if is_input]
        outputs = [(shape, buffer) for (_, is_input, shape, _), buffer in zip(self._tensors, buffers) if not is_input]
        values = inputs[0].view(np.float32)
        for shape, buffer in outputs:
            given = scores(self._engine_fields["seed"], values, int(np.prod(shape)))
            if not self._engine_fields["finite"]:
                given[3] = np.nan
            buffer[: 4 * given.size] = given.astype(np.float32).view(np.uint8)

    def __del__(self):
        in_use = [address for address in self._addresses if address in self._gpu.allocations]
        if in_use:
            self._gpu.violations.append("execution context destroyed before its buffers")
        engine = self._engine()
        if engine is not None:
            engine._contexts -= 1
        self._gpu.alive["execution context"] -= 1
        self._gpu.give_back(self._activations, "execution context")


class BindingEngine(EngineBase):
    """ICudaEngine as far as 8.2 has it."""

    old = True

    def _warn(self, name):
        if not self.old:
            deprecated(name)

    @property
    def num_bindings(self):
        self._warn("num_bindings")
        return len(self._tensors)

    def get_binding_name(self, index):
        self._warn("get_binding_name")
        return self._tensors[index][0]

    def binding_is_input(self, index):
        self._warn("binding_is_input")
        return self._tensors[index][1]

    def get_binding_shape(self, index):
        self._warn("get_binding_shape")
        return Dims(self._tensors[index][2])

    def get_binding_dtype(self, index):
        self._warn("get_binding_dtype")
        return DataType[self._tensors[index][3]]

    @property
    def device_memory_size(self):
        return self._fields["activation_bytes"]


class NamedTensors:
    """What 8.5 added to ICudaEngine."""

    _tensors: Any

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return self._tensors[index][0]

    def _named(self, name):
        return next(tensor for tensor in self._tensors if tensor[0] == name)

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if self._named(name)[1] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return Dims(self._named(name)[2])

    def get_tensor_dtype(self, name):
        return DataType[self._named(name)[3]]


class BothEngine(NamedTensors, BindingEngine):
    old = False


class TensorEngine(NamedTensors, EngineBase):
    """ICudaEngine of 10: nothing by number."""

    @property
    def device_memory_size(self):
        deprecated("device_memory_size")
        return self._fields["activation_bytes"]

    @property
    def device_memory_size_v2(self):
        return self._fields["activation_bytes"]


class Dims(tuple):
    """trt.Dims: it can be iterated over, and is no list."""


class BindingContext(ContextBase):
    def execute_async_v2(self, bindings, stream_handle, input_consumed=None):
        if not isinstance(bindings, list) or len(bindings) != len(self._tensors):
            raise TypeError(f"execute_async_v2(): expected a list of {len(self._tensors)} addresses, got {bindings!r}")
        assert all(type(address) is int for address in bindings)
        return self._launch(bindings, stream_handle)


class TensorContext(ContextBase):
    def __init__(self, engine, address):
        super().__init__(engine, address)
        self._by_name = {}

    def set_tensor_address(self, name, memory):
        assert type(memory) is int
        if name not in [tensor[0] for tensor in self._tensors]:
            self._log.log(ILogger.ERROR, "3: [executionContext.cpp::setTensorAddress] Error Code 3: API Usage Error")
            return False
        self._by_name[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        if set(self._by_name) != {tensor[0] for tensor in self._tensors}:
            self._log.log(
                ILogger.ERROR, "3: [executionContext.cpp::enqueueV3] Error Code 3: API Usage Error (address is not set)"
            )
            return False
        return self._launch([self._by_name[tensor[0]] for tensor in self._tensors], stream_handle)


class BothContext(TensorContext, BindingContext):
    pass


ENGINES = {BINDINGS: (BindingEngine, BindingContext), BOTH: (BothEngine, BothContext), TENSORS: (TensorEngine, TensorContext)}


def tensorrt(gpu, cuda, version=BINDINGS):
    """A module tensorrt of a version for a GPU."""
    trt: Any = types.ModuleType("tensorrt")
    base: Any = ENGINES[version][0]

    class ICudaEngine(base):  # type: ignore[misc]
        context_class = ENGINES[version][1]

    class Runtime:
        def __init__(self, log):
            if not isinstance(log, ILogger) or not hasattr(log, "constructed"):
                raise TypeError("Runtime(): expected an ILogger whose __init__ was called")
            self._log = log
            gpu.enter("cuCtxGetDevice", cuda)

        def deserialize_cuda_engine(self, serialized_engine):
            memoryview(serialized_engine)
            try:
                gpu.enter("cuMemAlloc", cuda)
            except cuda.LogicError as error:
                self._log.log(ILogger.ERROR, f"1: [defaultAllocator.cpp::allocate::19] Cuda Runtime ({error})")
                return None
            header = bytes(serialized_engine)[: serialized_engine.find(b"\n")]
            if not header.startswith(MAGIC):
                self._log.log(
                    ILogger.ERROR, "1: [stdArchiveReader.cpp::35] Error Code 1: Serialization (Magic tag does not match)"
                )
                return None
            fields = json.loads(header[len(MAGIC) :].decode())
            if fields["version"] != version:
                self._log.log(
                    ILogger.ERROR, "1: [stdArchiveReader.cpp::35] Error Code 1: Serialization (Version tag does not match)"
                )
                self._log.log(ILogger.ERROR, "4: [runtime.cpp::50] Error Code 4: Internal Error (Engine deserialization failed.)")
                return None
            if gpu.out_of_memory or gpu.used_bytes + len(serialized_engine) > gpu.memory_bytes:
                gpu.out_of_memory = max(0, gpu.out_of_memory - 1)
                self._log.log(ILogger.ERROR, "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)")
                return None
            gpu.deserialised.append(fields["seed"])
            self._log.log(ILogger.INFO, f"Loaded engine size: {len(serialized_engine) // MB} MiB")
            return ICudaEngine(gpu, cuda, self._log, len(serialized_engine), fields)

    trt.__version__ = version
    trt.ILogger, trt.Runtime, trt.ICudaEngine, trt.DataType = ILogger, Runtime, ICudaEngine, DataType
    if version != BINDINGS:
        trt.TensorIOMode = TensorIOMode
    return trt
