"""A stand-in of HailoRT's Python package, as strict as the real one or stricter.

It follows HailoRT v4.23.0 below hailort/libhailort: exceptions, signatures and defaults are those of
bindings/python/platform/hailo_platform/pyhailort/pyhailort.py, statuses those of include/hailo/hailort.h, and when an inference
fails and what it leaves behind is as in src/net_flow/pipeline/infer_model.cpp (`ConfiguredInferModel::run_async`) and
async_infer_runner.cpp (`AsyncPipeline::shutdown`, `AsyncInferRunnerImpl::run`). Nothing else of a chip is modelled.
A "HEF" is JSON that `hef` writes. Its network really depends on every byte of the image: see `top1`.
"""

import importlib.abc
import importlib.machinery
import json
import math
import os
import sys
import threading
import zlib
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

MODULES = (
    "hailo_platform",
    "hailo_platform.pyhailort",
    "hailo_platform.pyhailort._pyhailort",
    "hailo_platform.pyhailort.pyhailort",
)


class FormatType(IntEnum):
    AUTO = 0
    UINT8 = 1
    UINT16 = 2
    FLOAT32 = 3


DTYPES = {FormatType.AUTO: np.uint8, FormatType.UINT8: np.uint8, FormatType.UINT16: np.uint16, FormatType.FLOAT32: np.float32}


class HailoSchedulingAlgorithm(IntEnum):
    NONE = 0
    ROUND_ROBIN = 1


class HailoRTStatusException(Exception):
    """_pyhailort's: its text is the status as a number."""


class HailoStatusInvalidValueException(Exception):
    pass


class HailoRTException(Exception):
    pass


class UdpRecvError(HailoRTException):
    pass


class InvalidProtocolVersionException(HailoRTException):
    pass


class HailoRTFirmwareControlFailedException(HailoRTException):
    pass


class HailoRTInvalidFrameException(HailoRTException):
    pass


class HailoRTUnsupportedOpcodeException(HailoRTException):
    pass


class HailoRTTimeout(HailoRTException):
    pass


class HailoRTStreamAborted(HailoRTException):
    pass


class HailoRTStreamAbortedByUser(HailoRTException):
    pass


class HailoRTInvalidOperationException(HailoRTException):
    pass


class HailoRTInvalidArgumentException(HailoRTException):
    pass


class HailoRTNotFoundException(HailoRTException):
    pass


class HailoRTInvalidHEFException(HailoRTException):
    pass


class HailoRTHEFNotCompatibleWithDevice(HailoRTException):
    pass


class HailoRTEthException(HailoRTException):
    pass


class HailoRTDriverOperationFailedException(HailoRTException):
    pass


class HailoRTNetworkGroupNotActivatedException(HailoRTException):
    pass


class HailoCommunicationClosedException(HailoRTException):
    pass


STATUSES = {
    2: "HAILO_INVALID_ARGUMENT",
    3: "HAILO_OUT_OF_HOST_MEMORY",
    4: "HAILO_TIMEOUT",
    6: "HAILO_INVALID_OPERATION",
    8: "HAILO_INTERNAL_FAILURE",
    18: "HAILO_FW_CONTROL_FAILURE",
    26: "HAILO_INVALID_HEF",
    36: "HAILO_DRIVER_OPERATION_FAILED",
    57: "HAILO_SHUTDOWN_EVENT_SIGNALED",
    61: "HAILO_NOT_FOUND",
    62: "HAILO_COMMUNICATION_CLOSED",
    63: "HAILO_STREAM_ABORT",
    69: "HAILO_NETWORK_GROUP_NOT_ACTIVATED",
    71: "HAILO_OUT_OF_FW_MEMORY",
    72: "HAILO_STREAM_NOT_ACTIVATED",
    74: "HAILO_OUT_OF_PHYSICAL_DEVICES",
    77: "HAILO_RPC_FAILED",
    81: "HAILO_OUT_OF_HOST_CMA_MEMORY",
    82: "HAILO_QUEUE_IS_FULL",
    87: "HAILO_DRIVER_TIMEOUT",
    90: "HAILO_DRIVER_WAIT_CANCELED",
    93: "HAILO_HEF_NOT_COMPATIBLE_WITH_DEVICE",
}
INDICATIVE = {
    2: (HailoRTInvalidArgumentException, "Invalid argument. See hailort.log for more information"),
    4: (HailoRTTimeout, "Received a timeout - hailort has failed because a timeout had occurred"),
    6: (HailoRTInvalidOperationException, "Invalid operation. See hailort.log for more information"),
    18: (HailoRTFirmwareControlFailedException, "libhailort control operation failed"),
    26: (HailoRTInvalidHEFException, "Invalid HEF. See hailort.log for more information"),
    36: (
        HailoRTDriverOperationFailedException,
        "Failure in hailort driver ioctl. run 'dmesg | grep hailo' for more information",
    ),
    61: (HailoRTNotFoundException, "Item not found. See hailort.log for more information"),
    62: (HailoCommunicationClosedException, "Communication closed failure. Check server-client connection"),
    63: (HailoRTStreamAborted, "Stream was aborted"),
    69: (HailoRTNetworkGroupNotActivatedException, "Network group is not activated"),
    93: (
        HailoRTHEFNotCompatibleWithDevice,
        "HEF file is not compatible with device. See hailort.log for more information",
    ),
}


def get_status_message(status_code):
    if status_code not in STATUSES:
        raise HailoStatusInvalidValueException(f"Value {status_code} is not a valid status")
    return STATUSES[status_code]


def status(number):
    """`ExceptionWrapper.create_exception_from_status`."""
    name = get_status_message(number)
    if number in INDICATIVE:
        kind, text = INDICATIVE[number]
        return kind(text)
    return HailoRTException(f"libhailort failed with error: {number} ({name})")


def hef(chip="HAILO8L", inputs=((224, 224, 3),), outputs=((1000,),), seed=1, nms=False):
    """The bytes of a model file."""
    return json.dumps({"chip": chip, "inputs": inputs, "outputs": outputs, "seed": seed, "nms": nms}).encode()


def top1(image, classes=1000, seed=1):
    """The class that the network of `hef(seed=seed)` finds in an image."""
    return zlib.crc32(bytes(image), seed) % classes


def quantised(image, classes, seed):
    """What the chip itself gives: a byte per class, with a scale of its own for each, and those scales."""
    best = top1(image, classes, seed)
    real = np.linspace(0.1, 0.4, classes, dtype=np.float32)
    real[best] = 0.5
    scales = np.full(classes, 0.5 / 100, dtype=np.float32)
    scales[(best + 1) % classes] = 0.5 / 1000  # its byte is the greatest, its score is not
    return np.clip(np.round(real / scales), 0, 255).astype(np.uint8), scales


@dataclass
class Chip:
    """The state of the one chip, what is to go wrong, and a journal of what was done with it."""

    binding: str = "4.23.0"
    compiled_binding: str = "4.23.0"
    library: str = "4.23.0"
    firmware: tuple = (4, 23, 0)
    missing_package: str = ""
    present: bool = True
    held_elsewhere: bool = False
    service_runs: bool = True
    architecture: str = "HAILO8L"
    monitors_current: bool = False
    controllable: bool = True
    temperature_fails: bool = False
    power_fails: bool = False
    new_power_values: int = 2
    power_w: float = 1.25
    fail_at: dict = field(default_factory=dict)  # step ("configure", "ready", "run", "completion") -> exception, once
    hang: bool = False

    open: bool = False
    measuring: bool = False
    opened: int = 0
    released: int = 0
    inferences: int = 0
    configured: Counter = field(default_factory=Counter)
    live_models: int = 0
    live_devices: int = 0
    params: list = field(default_factory=list)
    threads: set = field(default_factory=set)
    buffers: set = field(default_factory=set)
    waits_ms: list = field(default_factory=list)
    released_early: bool = False

    def __post_init__(self):
        self.unhang = threading.Event()
        self.hung = threading.Event()

    def called(self):
        self.threads.add(threading.get_ident())

    def step(self, name):
        self.called()
        error = self.fail_at.pop(name, None)
        if error is not None:
            raise error


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package with the version checks that the real one makes at its import."""

    def __init__(self, chip):
        self.chip = chip
        self.names = sdk(chip)

    def find_spec(self, name, path=None, target=None):
        if name == self.chip.missing_package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name in MODULES else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__
        if name == "hailo_platform":
            from hailo_platform.pyhailort import _pyhailort

            if _pyhailort.__version__ != self.chip.binding:
                raise ImportError(
                    f"_pyhailort version ({_pyhailort.__version__}) does not match pyhailort version ({self.chip.binding})"
                )
            module.__version__ = self.chip.binding
            exported = [
                *("VDevice", "Device", "FormatType", "HailoSchedulingAlgorithm", "HailoRTException"),
                *("HailoRTStreamAbortedByUser", "HailoCommunicationClosedException"),
            ]
            for exported_name in exported:
                setattr(module, exported_name, self.names[exported_name])
        elif name.endswith("._pyhailort"):
            if self.chip.library != self.chip.compiled_binding:
                raise ImportError(
                    f"libhailort version ({self.chip.library}) does not match pyhailort version ({self.chip.compiled_binding})"
                )
            module.__version__ = self.chip.compiled_binding
            module.HailoRTStatusException = HailoRTStatusException
        elif name.endswith(".pyhailort.pyhailort"):
            from hailo_platform.pyhailort import _pyhailort

            vars(module).update(self.names, _pyhailort=_pyhailort)


def install(monkeypatch, chip):
    """Make `import hailo_platform` find this stand-in until the test ends."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(chip), *sys.meta_path])


def forget():
    """Undo the imports of a test."""
    for name in MODULES:
        sys.modules.pop(name, None)


def sdk(chip):
    """The names of hailo_platform.pyhailort.pyhailort, for one chip."""

    class VDeviceParams:
        __slots__ = ("_algorithm", "device_count", "group_id", "multi_process_service")

        def __init__(self):
            self._algorithm = HailoSchedulingAlgorithm.NONE
            self.device_count, self.group_id, self.multi_process_service = 1, "UNIQUE", False

        @property
        def scheduling_algorithm(self):
            return int(self._algorithm)

        @scheduling_algorithm.setter
        def scheduling_algorithm(self, value):
            if not isinstance(value, HailoSchedulingAlgorithm):
                raise TypeError("incompatible function arguments")
            self._algorithm = value

    class VDevice:
        def __init__(self, params=None, *, device_ids=None):
            chip.called()
            self._alive = False
            params = params or VDevice.create_params()
            if not isinstance(params, VDeviceParams):
                raise TypeError("incompatible function arguments")
            if device_ids:
                params = VDevice.create_params()  # as the real one does: the parameters are lost
            if params.multi_process_service:
                if not chip.service_runs:
                    raise status(77)
                if not params.scheduling_algorithm:
                    raise status(2)
            elif not chip.present or chip.held_elsewhere or chip.open:
                raise status(74)
            chip.params.append(params)
            self.params, self._pid = params, os.getpid()
            self._alive = chip.open = True
            chip.opened += 1

        @staticmethod
        def create_params():
            return VDeviceParams()

        def usable(self):
            chip.called()
            if not self._alive:
                raise AttributeError("'NoneType' object has no attribute of a released VDevice")

        def get_physical_devices(self):
            self.usable()
            return [Device("0001:01:00.0")]

        def create_infer_model(self, hef_source, name=""):
            self.usable()
            if os.getpid() != self._pid:
                raise HailoRTException("InferModel can be created only from the process VDevice was created in.")
            if not isinstance(hef_source, (str, bytes)):
                raise TypeError("incompatible function arguments")
            content = hef_source
            if isinstance(hef_source, str):
                with open(hef_source, "rb") as file:
                    content = file.read()
            try:
                network = json.loads(content)
            except ValueError:
                raise status(26) from None
            return InferModel(self, str(hef_source), network)

        def release(self):
            chip.called()
            if self._alive:
                chip.released_early |= chip.live_models > 0 or chip.live_devices > 0
                self._alive = chip.open = False
                chip.released += 1

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.release()
            return False

    class Stream:
        def __init__(self, name, shape, nms):
            self.name, self.shape, self.is_nms = name, list(shape), nms
            self.format_type = FormatType.AUTO

        def set_format_type(self, type):  # noqa: A002 -- the real name
            if not isinstance(type, FormatType):
                raise TypeError("incompatible function arguments")
            self.format_type = type

    class InferModel:
        def __init__(self, vdevice, path, network):
            self.vdevice, self.path, self.network = vdevice, path, network
            self.inputs = [Stream(f"net/in{n}", shape, False) for n, shape in enumerate(network["inputs"])]
            self.outputs = [Stream(f"net/out{n}", shape, network["nms"]) for n, shape in enumerate(network["outputs"])]
            self.input_names = [stream.name for stream in self.inputs]
            self.output_names = [stream.name for stream in self.outputs]
            self.batch_size = None

        def input(self, name=""):
            return one_of(self.inputs, name)

        def output(self, name=""):
            return one_of(self.outputs, name)

        def set_batch_size(self, batch_size):
            self.batch_size = batch_size

        def configure(self):
            self.vdevice.usable()
            chip.step("configure")
            if self.network["chip"] != chip.architecture:
                raise status(93)
            if chip.live_models and not self.vdevice.params.scheduling_algorithm:
                raise status(6)
            chip.configured[os.path.basename(self.path)] += 1
            return ConfiguredInferModel(self)

    def one_of(streams, name):
        found = [stream for stream in streams if name in ("", stream.name)]
        if len(found) != 1:
            raise status(61)
        return found[0]

    class BoundStream:
        def __init__(self, stream):
            self._stream, self.buffer = stream, None

        def set_buffer(self, buffer):
            """Only what lies in one piece is taken; whether the size is right is looked at when an inference is launched."""
            if not buffer.flags.c_contiguous:
                raise HailoRTException("Buffer must be C_CONTIGUOUS")
            if not buffer.flags.writeable:
                raise ValueError("array is not writeable")
            self.buffer = buffer

        def require_fit(self):
            """`ConfiguredInferModelImpl::validate_bindings`."""
            if self.buffer is None:
                raise status(61)
            if self.buffer.nbytes != math.prod(self._stream.shape) * np.dtype(DTYPES[self._stream.format_type]).itemsize:
                raise status(6)

        def get_buffer(self, tf_format=False):
            return self.buffer

    class Bindings:
        def __init__(self, infer_model):
            self._inputs = {stream.name: BoundStream(stream) for stream in infer_model.inputs}
            self._outputs = {stream.name: BoundStream(stream) for stream in infer_model.outputs}

        def input(self, name=""):
            return self._inputs[name or next(iter(self._inputs))]

        def output(self, name=""):
            return self._outputs[name or next(iter(self._outputs))]

    class ConfiguredInferModel:
        def __init__(self, infer_model):
            self._infer_model, self._state = infer_model, "new"
            self._pipeline_status = None  # what a shutdown left there: no further inference is taken

        def __enter__(self):
            assert self._state == "new"
            self._state = "entered"
            chip.live_models += 1
            return self

        def __exit__(self, exc_type, exc_value, traceback):
            self.usable()
            self._state = "left"
            chip.live_models -= 1

        def usable(self):
            self._infer_model.vdevice.usable()
            if self._state != "entered":
                raise AttributeError("'NoneType' object has no attribute of a configured model that is left or not entered")

        def create_bindings(self, input_buffers=None, output_buffers=None):
            self.usable()
            bindings = Bindings(self._infer_model)
            for name, buffer in (input_buffers or {}).items():
                bindings.input(name).set_buffer(buffer)
            for name, buffer in (output_buffers or {}).items():
                bindings.output(name).set_buffer(buffer)
            return bindings

        def wait_for_async_ready(self, timeout_ms=1000, frames_count=1):
            """Looks at the queues alone, and so succeeds on a model that is shut down."""
            self.usable()
            chip.step("ready")

        def run_async(self, bindings, callback=None):
            self.usable()
            try:
                return self._launched(bindings, callback)
            except Exception:
                self.shutdown()
                raise

        def shutdown(self):
            self._pipeline_status = status(63)

        def _launched(self, bindings, callback):
            (binding,) = bindings
            binding.input().require_fit()
            binding.output().require_fit()
            if self._pipeline_status is not None:
                raise self._pipeline_status
            chip.step("run")
            pixels, scores = binding.input().buffer, binding.output().buffer
            chip.buffers |= {id(pixels), id(scores)}
            failure = chip.fail_at.pop("completion", None)
            done = threading.Event()

            def compute():
                if chip.hang:
                    chip.hung.set()
                    chip.unhang.wait(60)
                if failure is None:
                    codes, scales = quantised(pixels.tobytes(), scores.size, self._infer_model.network["seed"])
                    exact = scores.dtype == np.float32
                    scores.reshape(-1)[:] = codes * scales if exact else codes
                else:  # AsyncPipeline::shutdown, with the status of the failure
                    self._pipeline_status = failure
                if callback is not None:
                    callback(completion_info=SimpleNamespace(exception=failure))
                done.set()

            chip.inferences += 1
            threading.Thread(target=compute, daemon=True).start()
            return AsyncInferJob(done)

        def run(self, bindings, timeout):
            self.run_async(bindings).wait(timeout)

    class AsyncInferJob:
        def __init__(self, done):
            self._done = done

        def wait(self, timeout_ms):
            """Succeeds when the job is done, whether or not it failed: the real one does, too."""
            if not isinstance(timeout_ms, int):
                raise TypeError("timeout_ms is whole milliseconds")
            chip.waits_ms.append(timeout_ms)
            if not self._done.wait(timeout_ms / 1000):
                raise status(4)

    class Device:
        def __init__(self, device_id=None):
            chip.called()
            if not chip.controllable:
                raise HailoRTStatusException("36")
            self._alive = True
            self.control = Control(self)
            chip.live_devices += 1

        def release(self):
            chip.called()
            if self._alive:
                self._alive = False
                chip.live_devices -= 1

    class Control:
        def __init__(self, device):
            self.__device = device

        def _usable(self):
            chip.called()
            if not self.__device._alive:
                raise HailoRTInvalidOperationException("The device in use has been released.")

        def identify(self):
            self._usable()
            major, minor, revision = chip.firmware
            version = SimpleNamespace(major=major, minor=minor, revision=revision)
            return SimpleNamespace(firmware_version=version, device_architecture=chip.architecture)

        def get_extended_device_information(self):
            self._usable()
            features = SimpleNamespace(ethernet=False, pcie=True, current_monitoring=chip.monitors_current, mdio=False)
            return SimpleNamespace(supported_features=features)

        def get_chip_temperature(self):
            self._usable()
            if chip.temperature_fails:
                raise status(18)
            return SimpleNamespace(ts0_temperature=48.5, ts1_temperature=49.25, sample_count=7)

        def set_power_measurement(self, buffer_index=0, dvm="AUTO", measurement_type="AUTO"):
            self._usable()
            if not chip.monitors_current or chip.power_fails:
                raise status(18)
            self._is_set = True

        def start_power_measurement(self, averaging_factor=256, sampling_period=1100):
            self._usable()
            if not getattr(self, "_is_set", False):
                raise HailoRTFirmwareControlFailedException("started before set")
            chip.measuring = True

        def get_power_measurement(self, buffer_index=0, should_clear=True):
            self._usable()
            if not chip.measuring or chip.power_fails:
                raise status(18)
            return SimpleNamespace(average_value=chip.power_w, total_number_of_samples=chip.new_power_values)

        def stop_power_measurement(self):
            self._usable()
            if chip.power_fails:
                raise status(18)
            chip.measuring = False

    exceptions = {name: value for name, value in globals().items() if isinstance(value, type) and issubclass(value, Exception)}
    return {
        **exceptions,
        "get_status_message": get_status_message,
        "FormatType": FormatType,
        "HailoSchedulingAlgorithm": HailoSchedulingAlgorithm,
        "VDevice": VDevice,
        "Device": Device,
    }
