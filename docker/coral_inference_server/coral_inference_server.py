"""The inference server of a Coral USB Edge TPU: TensorFlow Lite models on libedgetpu, or on the CPU for trying it out.

| variable | default | meaning |
|---|---|---|
| `CORAL_DELEGATE` | empty | empty: the Edge TPU; `none`: TensorFlow Lite's CPU kernels, no Edge TPU |
| `CORAL_DEVICE` | empty | which Edge TPU: empty (any), `usb`, `pci`, or one of several: `:0`, `usb:0`, `pci:1` |

The others are those of `inference_server.main`. An image becomes the input tensor as follows.

- float32: (pixel - mean) / std, with the manifest's mean and std.
- int8: (pixel - mean) / std, then quantised with the tensor's scale and zero point.
- uint8: the pixels as they are when the manifest gives neither mean nor std, which is what quantised image classifiers are made
  for; with them, quantised as for int8.

Where pycoral is installed its helpers make the interpreters and tell the runtime's version and the devices in sight; without it
TensorFlow Lite loads the same library. pycoral's `set_input` and `get_classes` are not used: the one casts without a check (200
becomes -56 in an int8 tensor), the other dequantises and sorts all scores, which changes neither the best one nor its place.

The Edge TPU's compiler leaves what it cannot map to TensorFlow Lite, which computes it on the CPU. Such a model is served;
`outside_edge_tpu` in the details of `/health` names it and the operators.
"""

import signal
import sys

if __name__ == "__main__":  # until the server has its own handler: a container's first process ignores what it does not handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import importlib
import logging
import mmap
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from coral_inference_server.image_conversion import INPUT_SHAPE, ImageConversion
from inference_server.backend import AcceleratorGone, Backend, UnusableModel, let_others_run
from inference_server.main import InvalidVariable, run_server
from inference_server.model_files import ModelFile, ModelFiles

logger = logging.getLogger(__name__)

LIBRARY = "libedgetpu.so.1"
EDGE_TPU_OPERATOR = b"edgetpu-custom-op"
ON_THE_EDGE_TPU = (
    EDGE_TPU_OPERATOR.decode(),
    "EdgeTpuDelegateForCustomOp",
)  # as compiled, and what the delegate puts in its place
NOT_PREPARED = re.compile(r"Failed to prepare for TPU|Failed to retrieve TPU context")  # libedgetpu, tflite/custom_op_direct.cc
MODEL_IS_WRONG = re.compile(r"package|executable|model data|layer", re.IGNORECASE)  # what libedgetpu finds wrong with a model
ATTEMPTS = 5
PAUSE_S = 2.0  # a stick that has just got its firmware comes back under another number

Sleep = Callable[[float], object]


class Runtime(Protocol):
    """Where models run: an Edge TPU or the CPU."""

    accelerator: str
    details: dict[str, str]
    on_edge_tpu: bool

    def interpreter(self, path: Path) -> Any:
        """An interpreter of a model, not yet allocated.

        Raises:
            AcceleratorGone: the device cannot be opened.
            Exception: whatever TensorFlow Lite finds wrong with the model.
        """


class CpuKernels:
    """TensorFlow Lite's own kernels, with its default number of threads. It is no Coral, and so does not call itself one."""

    accelerator = "cpu"
    on_edge_tpu = False

    def __init__(self) -> None:
        self._tflite, self.details = _tensorflow_lite()
        self.details["delegate"] = "none: CPU kernels, no Edge TPU"

    def interpreter(self, path: Path) -> Any:
        """An interpreter of a model; see `Runtime.interpreter`."""
        return self._tflite.Interpreter(model_path=str(path))


class EdgeTpu:
    """The Edge TPU behind libedgetpu; the models share the one device, each through a delegate of its own.

    Args:
        device: which one, in pycoral's notation; empty for any.
        sleep: pauses for so many seconds.

    Raises:
        AcceleratorGone: TensorFlow Lite is not installed.
    """

    accelerator = "coral"
    on_edge_tpu = True

    def __init__(self, device: str, sleep: Sleep) -> None:
        self._options = {"device": device} if device else {}
        self._sleep = sleep
        self._tflite, self.details = _tensorflow_lite()
        if hasattr(self._tflite, "Delegate"):  # where its library is missing, Delegate.__del__ looks for what was never set
            self._tflite.Delegate._library = None
        self._pycoral, version = _pycoral()
        self.details.update(delegate=LIBRARY, pycoral=version, device=device or "any")
        if self._pycoral is not None:
            self.details["edgetpu_runtime"] = str(self._pycoral.get_runtime_version())

    def interpreter(self, path: Path) -> Any:
        """An interpreter of a model; see `Runtime.interpreter`."""
        delegate = self._delegate()
        if self._pycoral is not None:
            return self._pycoral.make_interpreter(str(path), delegate=delegate)
        return self._tflite.Interpreter(model_path=str(path), experimental_delegates=[delegate])

    def _delegate(self) -> Any:
        """The library with the device open.

        Raises:
            AcceleratorGone: it was not to be had in any of the attempts.
        """
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                logger.warning("attempt %d of %d: %s", attempt, ATTEMPTS, problem)
                self._sleep(PAUSE_S)
            try:
                if self._pycoral is not None:
                    return self._pycoral.load_edgetpu_delegate(self._options)
                return self._tflite.load_delegate(LIBRARY, self._options)
            except OSError as error:
                problem = (
                    f"{LIBRARY} cannot be loaded: {error}; expected the Edge TPU runtime for this processor in the image"
                    " (package libedgetpu1-std). Without an Edge TPU set CORAL_DELEGATE=none"
                )
            except ValueError as error:
                problem = (
                    f"{LIBRARY} found no Edge TPU it could open: {_one_line(error)}{self._in_sight()};"
                    " expected a Coral stick that lsusb shows as 1a6e:089a or 18d1:9302, /dev/bus/usb in the container, the right"
                    " to use it (privileged), and no other process that does. If it stays so, plug the stick in again"
                )
        raise AcceleratorGone(f"{problem} ({ATTEMPTS} attempts)")

    def _in_sight(self) -> str:
        if self._pycoral is None:
            return ""
        devices = ", ".join(f"{device['type']} {device['path']}" for device in self._pycoral.list_edge_tpus())
        return f" (in sight: {devices or 'none'})"


class LoadedModel:
    """One model, ready to run.

    Args:
        file: the model.
        runtime: where it runs.

    Attributes:
        outside_edge_tpu: how many of its operators the Edge TPU does not compute, and which; empty if there are none.

    Raises:
        AcceleratorGone: the device cannot be opened, or does not take the model.
        UnusableModel: the file is not such a model as the manifest says, or not for this runtime.
    """

    def __init__(self, file: ModelFile, runtime: Runtime) -> None:
        self._name = file.name
        self._on_edge_tpu = runtime.on_edge_tpu
        try:
            _require_compiled_for(runtime.on_edge_tpu, file.path)
            self._interpreter = runtime.interpreter(file.path)
            self.outside_edge_tpu = _outside_edge_tpu(self._interpreter)
            failure = self._allocate()
            if failure is not None:
                self.release()
                raise AcceleratorGone(f"the Edge TPU failed at loading {file.name}: {failure}")
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except (AcceleratorGone, UnusableModel):
            raise
        except Exception as error:  # TensorFlow Lite raises ValueError, RuntimeError and SystemError
            raise UnusableModel(f"{file.path} cannot be loaded: {_one_line(error)}") from error
        _require_one_image(file, inputs)
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        self._tensor_of = ImageConversion(file, *inputs[0]["quantization"])

    def top1(self, image: bytes) -> int:
        """Index of the greatest element of the model's first output.

        Raises:
            AcceleratorGone: the Edge TPU failed.
        """
        self._interpreter.set_tensor(self._input, self._tensor_of(image))
        failure = self._invoke()
        if failure is not None:
            raise AcceleratorGone(f"the Edge TPU failed at an inference of {self._name}: {failure}")
        return int(np.argmax(self._interpreter.get_tensor(self._output)))

    def release(self) -> None:
        """Give up the interpreter and its hold on the device; the model cannot be used afterwards."""
        self._interpreter = None

    def _allocate(self) -> str | None:
        """Have the interpreter prepare the model; what the Edge TPU said if it failed, as a text: see `_invoke`."""
        try:
            self._interpreter.allocate_tensors()
        except RuntimeError as error:
            if not self._on_edge_tpu or not NOT_PREPARED.search(str(error)) or MODEL_IS_WRONG.search(str(error)):
                raise
            return _one_line(error)
        return None

    def _invoke(self) -> str | None:
        """Run the interpreter; what the Edge TPU said if it failed.

        A text, because an exception would keep the interpreter, and with it the lost device, for as long as someone keeps the
        exception.
        """
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            if not self._on_edge_tpu:
                raise
            return _one_line(error)
        return None


class CoralBackend(Backend):
    """The models of one Edge TPU, or of the CPU.

    Args:
        files: the models.
        runtime: where they run.

    Raises:
        AcceleratorGone: the device cannot be opened.
    """

    def __init__(self, files: ModelFiles, runtime: Runtime) -> None:
        self.accelerator = runtime.accelerator
        self.absent = dict(files.absent)
        self.details = dict(runtime.details)
        self._loaded: dict[str, LoadedModel] = {}
        for file in files.files:
            let_others_run()  # tflite_runtime opens a delegate with Python's lock held (ctypes.PyDLL)
            try:
                self._loaded[file.name] = LoadedModel(file, runtime)
            except UnusableModel as error:
                self.absent[file.name] = str(error)
            except AcceleratorGone:
                self.close()
                raise
        self.models = list(self._loaded)
        if runtime.on_edge_tpu:
            partly = [f"{name}: {model.outside_edge_tpu}" for name, model in self._loaded.items() if model.outside_edge_tpu]
            self.details["outside_edge_tpu"] = "; ".join(partly) or "no operator of any model"

    def infer(self, model: str, image: bytes) -> int:
        """Classify one image; see `Backend.infer`."""
        return self._loaded[model].top1(image)

    def close(self) -> None:
        """Release the device: libedgetpu closes it with the last interpreter that uses it."""
        for model in self._loaded.values():
            model.release()
        self._loaded.clear()


def open_backend(files: ModelFiles, environment: Mapping[str, str], sleep: Sleep = time.sleep) -> Backend:
    """Open the Edge TPU, or what CORAL_DELEGATE asks for instead, and load the models.

    Args:
        files: the models.
        environment: see the top of this module.
        sleep: pauses for so many seconds.

    Raises:
        AcceleratorGone: the device or its software is missing.
        InvalidVariable: a variable makes no sense.
    """
    delegate, device = environment.get("CORAL_DELEGATE", ""), environment.get("CORAL_DEVICE", "")
    if delegate not in ("", "none"):
        raise InvalidVariable(f"CORAL_DELEGATE: expected nothing (the Edge TPU) or none (CPU kernels), got {delegate!r}")
    if not re.fullmatch(r"(usb|pci)?(:[0-9]{1,2})?", device):
        raise InvalidVariable(f"CORAL_DEVICE: expected nothing, usb, pci, or one of several such as :0 or usb:1, got {device!r}")
    return CoralBackend(files, CpuKernels() if delegate == "none" else EdgeTpu(device, sleep))


def _tensorflow_lite() -> tuple[ModuleType, dict[str, str]]:
    """TensorFlow Lite's interpreter module, and the versions that matter."""
    try:
        tflite = importlib.import_module("tflite_runtime.interpreter")
        version = importlib.import_module("tflite_runtime").__version__
    except ImportError as error:
        raise AcceleratorGone(f"tflite_runtime cannot be imported: {error}; expected what requirements.txt names") from error
    return tflite, {"tflite": str(version), "numpy": np.__version__}


def _pycoral() -> tuple[ModuleType | None, str]:
    """The helpers of pycoral, None where they are not usable, and its version or why they are not."""
    try:
        helpers = importlib.import_module("pycoral.utils.edgetpu")
        return helpers, str(getattr(importlib.import_module("pycoral"), "__version__", "version unknown"))
    except ImportError as error:  # not installed, the package of this name on PyPI, or its library is missing
        return None, f"not used: {error}"


def _require_compiled_for(on_edge_tpu: bool, path: Path) -> None:
    """The Edge TPU's compiler leaves an operator of its own; without it TensorFlow Lite would run on the CPU and say nothing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        compiled = content.find(EDGE_TPU_OPERATOR) >= 0
    if compiled and not on_edge_tpu:
        raise UnusableModel(f"{path} is compiled for the Edge TPU, and CORAL_DELEGATE=none has only CPU kernels")
    if on_edge_tpu and not compiled:
        raise UnusableModel(f"{path} is not compiled for the Edge TPU and would run on the CPU; put it through edgetpu_compiler")


def _outside_edge_tpu(interpreter: Any) -> str:
    """The operators of a model, before its tensors are allocated, that the Edge TPU does not compute; empty if there are none."""
    try:
        names = [operator["op_name"] for operator in interpreter._get_ops_details()]
    except (AttributeError, ValueError) as error:  # TensorFlow Lite has no public way to ask
        return f"not known ({error})"
    outside = [name for name in names if name not in ON_THE_EDGE_TPU]
    kinds = ", ".join(f"{count} {name}" for name, count in Counter(outside).items())
    return f"{len(outside)} operators on the CPU ({kinds})" if outside else ""


def _require_one_image(file: ModelFile, inputs: list[dict[str, Any]]) -> None:
    if len(inputs) != 1:
        raise UnusableModel(f"{file.path} has {len(inputs)} inputs, expected one image")
    shape, dtype = tuple(int(length) for length in inputs[0]["shape"]), np.dtype(inputs[0]["dtype"])
    if shape != INPUT_SHAPE:
        raise UnusableModel(f"{file.path} takes an input of shape {shape}, expected {INPUT_SHAPE}")
    if dtype != np.dtype(file.input_type):
        raise UnusableModel(f"{file.path} takes {dtype.name} input, models.yaml says input_type: {file.input_type}")


def _one_line(error: Exception) -> str:
    """Kind and text of an error; TensorFlow Lite has no text for a file that is no model at all."""
    return " ".join([f"{type(error).__name__}:", *(str(error).split() or ["no reason given"])])


if __name__ == "__main__":
    run_server(open_backend)
