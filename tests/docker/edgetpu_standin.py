"""A strict stand-in of tflite_runtime 2.14 and pycoral 2, as far as the Coral server may use them, and of a stick that can fail.

Delegate, load_delegate and Interpreter follow tensorflow/lite/python/interpreter.py of TensorFlow 2.14. What happens when a
delegate is created, and a model prepared or invoked, follows tflite/edgetpu_delegate_for_custom_op_tflite_plugin.cc,
custom_op_direct.cc and custom_op.cc of feranick/libedgetpu 16.0TF2.17.1-1. The helpers follow pycoral/utils/edgetpu.py of 2.0.

A model is a JSON file. The index of its best score is the sum of its input tensor, modulo the number of classes.
"""

import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

OPERATOR = "edgetpu-custom-op"
CLASSES = 1001
VERSION = "BuildLabel(COMPILER=11.4.0), RuntimeVersion(14)"


def write_model(
    path: Path, dtype: str, quantization=(0.0, 0), shape=(1, 224, 224, 3), operator=OPERATOR, inputs=1, others=()
) -> None:
    """Write a model that the stand-in's interpreter can read; `others` are operators that the compiler left outside."""
    model = dict(dtype=dtype, quantization=quantization, shape=shape, operator=operator, inputs=inputs, others=others)
    path.write_text(json.dumps(model))


class Driver:
    """What libedgetpu opens: all delegates that are open at the same time share it."""

    def __init__(self) -> None:
        self.users = 0
        self.broken = False


class Stick:
    """An Edge TPU with its library, seen from the process.

    Attributes:
        load_failures: what the next attempts to load the delegate raise.
        prepare_failures: what libedgetpu finds wrong when it prepares the next models, such as "Internal: USB transfer error 1".
        options: of each delegate that was loaded.
        invoked: path and input tensor of each inference.
        gate: an inference waits until it is set.
        invoking: released when an inference has begun.
    """

    def __init__(self) -> None:
        self.load_failures: list[Exception] = []
        self.prepare_failures: list[str] = []
        self.options: list[dict[str, str]] = []
        self.invoked: list[tuple[str, Any]] = []
        self.in_sight = [{"type": "usb", "path": "/sys/bus/usb/devices/2-1"}]
        self.gate = threading.Event()
        self.gate.set()
        self.invoking = threading.Semaphore(0)
        self._driver: Driver | None = None

    @property
    def users(self) -> int:
        """Delegates that hold the device open."""
        return self._driver.users if self._driver else 0

    def unplug(self) -> None:
        """Every inference fails, until the device was released by all and is opened again."""
        assert self._driver is not None
        self._driver.broken = True

    def open(self) -> Driver:
        if self._driver is None:
            self._driver = Driver()
        self._driver.users += 1
        return self._driver

    def release(self, driver: Driver) -> None:
        assert driver is self._driver and driver.users > 0
        driver.users -= 1
        if not driver.users:
            self._driver = None

    def modules(self, pycoral: bool) -> dict[str, ModuleType | None]:
        """What to put into sys.modules; None makes an import fail."""
        tflite, interpreter = ModuleType("tflite_runtime"), ModuleType("tflite_runtime.interpreter")
        tflite.__dict__.update(__version__="2.14.0", interpreter=interpreter)
        delegate_type, interpreter_type = types_of(self)

        def load_delegate(library, options=None):
            return delegate_type(library, options)

        interpreter.__dict__.update(Delegate=delegate_type, load_delegate=load_delegate, Interpreter=interpreter_type)
        found: dict[str, ModuleType | None] = {"tflite_runtime": tflite, "tflite_runtime.interpreter": interpreter}
        if not pycoral:
            return {**found, "pycoral": None}

        def load_edgetpu_delegate(options=None):
            return load_delegate("libedgetpu.so.1", options or {})

        def make_interpreter(model_path_or_content, device=None, delegate=None):
            delegates = [delegate or load_edgetpu_delegate({"device": device} if device else {})]
            if isinstance(model_path_or_content, bytes):
                return interpreter_type(model_content=model_path_or_content, experimental_delegates=delegates)
            return interpreter_type(model_path=model_path_or_content, experimental_delegates=delegates)

        package, utils, edgetpu = (ModuleType(name) for name in ("pycoral", "pycoral.utils", "pycoral.utils.edgetpu"))
        package.__dict__.update(__version__="2.0.3", utils=utils)
        utils.__dict__.update(edgetpu=edgetpu)
        edgetpu.__dict__.update(
            load_edgetpu_delegate=load_edgetpu_delegate,
            make_interpreter=make_interpreter,
            get_runtime_version=lambda: VERSION,
            list_edge_tpus=lambda: list(self.in_sight),
        )
        return {**found, "pycoral": package, "pycoral.utils": utils, "pycoral.utils.edgetpu": edgetpu}


def types_of(stick: Stick) -> tuple[type, type]:
    """The classes Delegate and Interpreter of one stick."""

    class Delegate:
        def __init__(self, library, options=None):
            if library != "libedgetpu.so.1":
                raise OSError(f"{library}: cannot open shared object file: No such file or directory")
            if stick.load_failures and isinstance(stick.load_failures[0], OSError):
                raise stick.load_failures.pop(0)
            self._library = library
            assert set(options or {}) <= {"device"}, options
            self.driver = None
            if stick.load_failures:  # tflite_plugin_create_delegate gave NULL
                raise stick.load_failures.pop(0)
            self.used = False
            stick.options.append(options)
            self.driver = stick.open()

        def __del__(self):
            if self._library is not None:
                if self.driver is not None:
                    stick.release(self.driver)
                self._library = None

    class Interpreter:
        def __init__(
            self,
            model_path=None,
            model_content=None,
            experimental_delegates=None,
            num_threads=None,
            experimental_op_resolver_type=0,
            experimental_preserve_all_tensors=False,
            experimental_disable_delegate_clustering=False,
        ):
            if not isinstance(model_path, str) or model_content is not None:
                raise TypeError("CreateWrapperFromFile(): incompatible function arguments")
            self._path = model_path
            self._thread = threading.current_thread()
            self._allocated = False
            self._tensor = self._scores = None
            try:
                self._model = json.loads(Path(model_path).read_bytes())
            except ValueError:
                raise ValueError("Model provided has model identifier 'oops', should be 'TFL3'") from None
            self._delegates = experimental_delegates or []
            for delegate in self._delegates:
                assert isinstance(delegate, Delegate) and not delegate.used, "a delegate belongs to one interpreter"
                delegate.used = True
            self._operators = [self._model["operator"], *self._model["others"]]
            if (
                self._delegates
            ):  # ReplaceNodeSubsetsWithDelegateKernels: a node for each of the compiler's, which stays in the list
                self._operators += ["EdgeTpuDelegateForCustomOp"] * self._operators.count(OPERATOR)

        def _get_ops_details(self):
            return [{"index": index, "op_name": name} for index, name in enumerate(self._operators)]

        def allocate_tensors(self):
            self._check_thread()
            if self._model["operator"] == OPERATOR and not self._delegates:
                raise RuntimeError(f"Encountered unresolved custom op: {OPERATOR}.")
            if self._delegates and stick.prepare_failures:
                failure = stick.prepare_failures.pop(0)
                raise RuntimeError(
                    f"Failed to prepare for TPU. {failure}Node number 1 (EdgeTpuDelegateForCustomOp) failed to prepare."
                )
            self._allocated = True
            self._operators.append("TfLiteXNNPackDelegate")  # applied when tensors are allocated

        def get_input_details(self):
            detail = {
                "name": "image",
                "index": 7,
                "shape": np.array(self._model["shape"], np.int32),
                "dtype": getattr(np, self._model["dtype"]),
                "quantization": tuple(self._model["quantization"]),
            }
            return [dict(detail) for _ in range(self._model["inputs"])]

        def get_output_details(self):
            return [{"name": "scores", "index": 9, "shape": np.array([1, CLASSES], np.int32), "dtype": np.uint8}]

        def set_tensor(self, tensor_index, value):
            self._check_thread()
            if not self._allocated:
                raise ValueError("Cannot set tensor: Tensor is unallocated. Try calling allocate_tensors() first")
            assert tensor_index == 7
            expected = np.dtype(self._model["dtype"])
            if value.dtype != expected:
                raise ValueError(f"Cannot set tensor: Got value of type {value.dtype} but expected type {expected} for input 7")
            if list(value.shape) != list(self._model["shape"]):
                raise ValueError("Cannot set tensor: Dimension mismatch.")
            self._tensor = np.array(value)

        def invoke(self):
            self._check_thread()
            if not self._allocated:
                raise RuntimeError("Invoke called on model that is not ready.")
            assert self._tensor is not None, "invoke without an input"
            stick.invoked.append((self._path, self._tensor))
            stick.invoking.release()
            assert stick.gate.wait(30)
            if any(delegate.driver.broken for delegate in self._delegates):
                raise RuntimeError("Failed to execute request.\nNode number 0 (EdgeTpuDelegateForCustomOp) failed to invoke.")
            if self._model["operator"] == "broken":
                raise RuntimeError("Node number 0 (CONV_2D) failed to invoke.")
            self._scores = np.zeros((1, CLASSES), np.uint8)
            self._scores[0, int(self._tensor.sum(dtype=np.float64)) % CLASSES] = 200

        def get_tensor(self, tensor_index, subgraph_index=0):
            self._check_thread()
            if not self._allocated:
                raise ValueError("Tensor data is null. Run allocate_tensors() first")
            assert tensor_index == 9 and self._scores is not None
            return self._scores.copy()

        def _check_thread(self):
            assert threading.current_thread() is self._thread, "an interpreter belongs to one thread"

    return Delegate, Interpreter
