"""The inference server of a Raspberry Pi 5 with a Hailo-8L: HailoRT 4.23 through its InferModel interface.

| variable | default | meaning |
|---|---|---|
| `HAILO_DRIVER_VERSION_FILE` | /host/hailo_driver_version | version of the node's driver; next: /sys/module/hailo_pci/version |
| `HAILORT_SERVICE` | empty | empty: this process holds the chip; `unix:/tmp/hailort_uds.sock`: the node's hailort.service does |
| `HAILO_POWER` | empty | empty: `hailo_power_watts` where the module has a sensor; `off`: never. board.py says what it costs |

The others are those of `inference_server.main`. Every model is configured once, when the server opens, and keeps its bindings and
buffers; HailoRT's round-robin scheduler changes from one to the other, and that change is part of the measured inference.

A HEF holds the normalisation of its network, so images go in as they are and models.yaml says `input_type: uint8` without mean
and std. The scores are asked for as float32: quantised ones may have a scale of their own per class, and then the greatest
number need not be the greatest score.
"""

import signal
import sys

if __name__ == "__main__":  # until the server has its own handler: a container's first process ignores what it does not handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import logging
import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hailo_inference_server.board import NO_CONTROL_DETAIL, Board
from hailo_inference_server.versions import driver_version, imported_hailort, require_one_version
from inference_server.backend import IMAGE_SIDE, AcceleratorGone, Backend, Gauge, UnusableModel, let_others_run
from inference_server.main import InvalidVariable, run_server, settings_from
from inference_server.model_files import ModelFile, ModelFiles

logger = logging.getLogger(__name__)

IMAGE_SHAPE = (IMAGE_SIDE, IMAGE_SIDE, 3)
DEVICE = Path("/dev/hailo0")
SERVICE_ADDRESS = "unix:/tmp/hailort_uds.sock"
SERVICE_GROUP = "SHARED"
WATCHDOG_LEAD_S = 1.0


class Status(IntEnum):
    """The statuses of HailoRT 4.23 that mean something here (hailort/libhailort/include/hailo/hailort.h)."""

    INTERNAL_FAILURE = 8
    OPEN_FILE_FAILURE = 13
    SHUTDOWN_EVENT_SIGNALED = 57
    NETWORK_GROUP_NOT_ACTIVATED = 69
    OUT_OF_FW_MEMORY = 71
    STREAM_NOT_ACTIVATED = 72
    DEVICE_IN_USE = 73
    OUT_OF_PHYSICAL_DEVICES = 74
    INVALID_DRIVER_VERSION = 76
    RPC_FAILED = 77
    INVALID_SERVICE_VERSION = 78
    QUEUE_IS_FULL = 82
    DRIVER_TIMEOUT = 87
    DRIVER_WAIT_CANCELED = 90


STATUS_HINTS = {
    Status.INTERNAL_FAILURE: "HailoRT itself or the firmware failed",
    Status.OPEN_FILE_FAILURE: (
        "a file cannot be opened; if it is /dev/hailo0, the container must be privileged or go through HAILORT_SERVICE"
    ),
    Status.SHUTDOWN_EVENT_SIGNALED: "HailoRT has shut the model down",
    Status.NETWORK_GROUP_NOT_ACTIVATED: "the model is no longer active on the chip",
    Status.OUT_OF_FW_MEMORY: "the chip has no memory for so many models",
    Status.STREAM_NOT_ACTIVATED: "the model is no longer active on the chip",
    Status.INVALID_DRIVER_VERSION: "the node's driver has another version than the library in the image",
    Status.RPC_FAILED: "hailort.service on the node does not answer",
    Status.INVALID_SERVICE_VERSION: "hailort.service on the node has another version than the library in the image",
    Status.QUEUE_IS_FULL: "the chip takes nothing more",
    Status.DRIVER_TIMEOUT: "the chip does not answer its driver; if it stays so, restart the node",
    Status.DRIVER_WAIT_CANCELED: "the driver gave up waiting for the chip",
}
# While a model is loaded, these are the chip's fault and not the model's. INTERNAL_FAILURE and OUT_OF_FW_MEMORY may be either:
# that model is then absent, and where the chip is lost, the first inference of another one shows it.
CHIP_STATUSES = (
    Status.SHUTDOWN_EVENT_SIGNALED,
    Status.NETWORK_GROUP_NOT_ACTIVATED,
    Status.STREAM_NOT_ACTIVATED,
    Status.QUEUE_IS_FULL,
    Status.DRIVER_TIMEOUT,
    Status.DRIVER_WAIT_CANCELED,
)
CHIP_EXCEPTIONS = (  # statuses for which HailoRT's Python has an exception without the number
    "HailoCommunicationClosedException",
    "HailoRTDriverOperationFailedException",
    "HailoRTNetworkGroupNotActivatedException",
    "HailoRTStreamAborted",
    "HailoRTTimeout",
)


class LoadedModel(NamedTuple):
    """One model that is configured on the chip, with the buffers of its only inference at a time."""

    configured: Any
    bindings: Any
    pixels: NDArray[np.uint8]
    scores: NDArray[np.float32]


class HailoBackend(Backend):
    """The models of one Hailo chip.

    Args:
        loaded: the models, by name.
        absent: why the other models are not served.
        details: what `/health` says of the chip.
        board: readings of the chip, or None where it cannot be asked.
        wait_ms: how long HailoRT may take for one inference, in milliseconds.
        resources: holds everything that is open; closed last to first.
    """

    accelerator = "hailo"

    def __init__(
        self,
        loaded: dict[str, LoadedModel],
        absent: dict[str, str],
        details: dict[str, str],
        board: Board | None,
        wait_ms: int,
        resources: ExitStack,
    ) -> None:
        self.models = list(loaded)
        self.absent = absent
        self.details = details
        self._loaded = loaded
        self._board = board
        self._wait_ms = wait_ms
        self._resources = resources

    def infer(self, model: str, image: bytes) -> int:
        """Classify one image; see `Backend.infer`. Other requests are answered meanwhile: HailoRT waits without Python's lock."""
        loaded = self._loaded[model]
        loaded.pixels[:] = np.frombuffer(image, dtype=np.uint8).reshape(IMAGE_SHAPE)
        failures: list[Exception] = []

        def completed(completion_info: Any) -> None:
            if completion_info.exception is not None:
                failures.append(completion_info.exception)

        try:
            loaded.configured.wait_for_async_ready(timeout_ms=self._wait_ms)
            loaded.configured.run_async([loaded.bindings], completed).wait(self._wait_ms)
        except Exception as error:  # of whatever kind: where run_async fails, HailoRT shuts the model down, for good
            raise AcceleratorGone(f"the Hailo chip was lost while it computed {model}: {_explained(error)}") from error
        if failures:  # wait() itself succeeds after an inference that failed, and HailoRT has shut the model down by then
            raise AcceleratorGone(f"the Hailo chip failed to compute {model}: {_explained(failures[0])}") from failures[0]
        return int(loaded.scores.argmax())

    def gauges(self) -> list[Gauge]:
        """Temperatures, and power where it is measured; see `Board.gauges`."""
        return [] if self._board is None else self._board.gauges()

    def close(self) -> None:
        """Release the models, then the chip."""
        self._loaded.clear()
        self._resources.close()


def open_backend(files: ModelFiles, environment: Mapping[str, str]) -> Backend:
    """Check the versions, open the chip and configure every model once.

    Args:
        files: the models.
        environment: the variables at the top of this module, and `INFERENCE_TIMEOUT_S`.

    Raises:
        AcceleratorGone: HailoRT cannot be imported, its parts have different versions, or the chip cannot be opened.
        InvalidVariable: a variable makes no sense.
    """
    # HailoRT waits longer than the watchdog, so that a chip that hangs ends the process: closing and opening it again would not
    # be safe while HailoRT may still write into the buffers.
    wait_ms = math.ceil((settings_from(environment).inference_timeout_s + WATCHDOG_LEAD_S) * 1000)
    through_service = _one_of(environment, "HAILORT_SERVICE", SERVICE_ADDRESS)
    measure_power = not _one_of(environment, "HAILO_POWER", "off")
    hailort, version = imported_hailort()
    driver = driver_version(environment)
    require_one_version(driver, version)
    with ExitStack() as resources:
        vdevice = _opened(hailort, through_service)
        resources.callback(vdevice.release)
        details = {"hailort": version, "driver": driver, "scheduler": "ROUND_ROBIN"}
        board = _board(hailort, vdevice, through_service, measure_power, details)
        if board is not None:
            resources.callback(board.close)
            require_one_version(driver, version, board.firmware_version)
        loaded: dict[str, LoadedModel] = {}
        absent = dict(files.absent)
        for file in files.files:
            let_others_run()  # HailoRT opens the chip and configures a model with Python's lock held
            try:
                loaded[file.name] = _load(hailort, vdevice, file, resources)
            except Exception as error:
                if _is_chip_lost(error):
                    raise AcceleratorGone(f"the Hailo chip was lost at loading {file.path.name}: {_explained(error)}") from error
                # This model only; the others may be fine.
                absent[file.name] = str(error) if isinstance(error, UnusableModel) else f"{file.path.name}: {_explained(error)}"
        return HailoBackend(loaded, absent, details, board, wait_ms, resources.pop_all())


def _one_of(environment: Mapping[str, str], name: str, value: str) -> bool:
    """Whether a variable has its only value; False if it is empty.

    Raises:
        InvalidVariable: it has another one.
    """
    found = environment.get(name) or ""
    if found not in ("", value):
        raise InvalidVariable(f"{name}: expected nothing or {value!r}, got {found!r}")
    return found == value


def _opened(hailort: ModuleType, through_service: bool) -> Any:
    """A VDevice with the round-robin scheduler.

    Raises:
        AcceleratorGone: there is no chip, or it cannot be opened.
    """
    socket = Path(SERVICE_ADDRESS.partition(":")[2])
    if through_service and not socket.exists():
        raise AcceleratorGone(f"{socket} is missing: start hailort.service on the node and mount its socket there")
    params = hailort.VDevice.create_params()
    params.scheduling_algorithm = hailort.HailoSchedulingAlgorithm.ROUND_ROBIN  # in Python it is off unless asked for
    if through_service:
        params.multi_process_service = True
        params.group_id = SERVICE_GROUP
    try:
        # A second argument, device_ids, would make HailoRT forget the parameters.
        return hailort.VDevice(params)
    except Exception as error:
        raise AcceleratorGone(f"the Hailo chip cannot be opened: {_why_not_opened(error, through_service)}") from error


def _why_not_opened(error: Exception, through_service: bool) -> str:
    taken = _status(error) in (Status.DEVICE_IN_USE, Status.OUT_OF_PHYSICAL_DEVICES)
    if taken and through_service:
        return f"{error}: hailort.service has no free chip"
    if not through_service and not DEVICE.exists():
        return f"{error}: {DEVICE} is missing; look for the chip with 'lspci -d 1e60:', for its driver with 'dmesg | grep hailo'"
    if taken:
        return f"{error}: another process holds {DEVICE}; end it ('lsof {DEVICE}' on the node), one chip serves one process"
    return _explained(error)


def _board(
    hailort: ModuleType, vdevice: Any, through_service: bool, measure_power: bool, details: dict[str, str]
) -> Board | None:
    """Readings of the chip, with what they say added to `details`; None where the chip cannot be asked, which it says then."""
    reason = "it is held by hailort.service"
    if not through_service:
        try:
            board = Board(vdevice.get_physical_devices()[0], measure_power)
        except hailort.HailoRTException as error:
            reason = _explained(error)
        except hailort._pyhailort.HailoRTStatusException as error:  # from opening it, which leaves a bare number untranslated
            reason = f"{hailort.get_status_message(int(str(error)))} ({error})"
        else:
            details.update(board.details)
            return board
        logger.warning("the Hailo chip cannot be asked for firmware, temperature and power: %s", reason)
    details.update(firmware=f"not checked: {reason}", power=NO_CONTROL_DETAIL.format(reason))
    return None


def _is_chip_lost(error: Exception) -> bool:
    """Whether loading a model failed because driver, service or firmware do not reach the chip."""
    name = type(error).__name__
    return name in CHIP_EXCEPTIONS or (name == "HailoRTException" and _status(error) in CHIP_STATUSES)


def _load(hailort: ModuleType, vdevice: Any, file: ModelFile, resources: ExitStack) -> LoadedModel:
    """Configure one model, with buffers for one image, and have `resources` release it.

    Raises:
        UnusableModel: it cannot be served.
        Exception: whatever else HailoRT finds wrong with it.
    """
    name = file.path.name
    if file.input_type != "uint8" or set(file.mean) != {0.0} or set(file.std) != {1.0}:
        raise UnusableModel(
            f"{name}: expected input_type: uint8 without mean and std in models.yaml, because a HEF normalises on the chip; "
            f"found {file.input_type}, mean {file.mean}, std {file.std}"
        )
    try:
        infer_model = vdevice.create_infer_model(str(file.path))
    except hailort.HailoRTInvalidHEFException as error:
        raise UnusableModel(f"{name} is no HEF that this HailoRT can read: {error}") from error
    classes = _checked_shapes(name, infer_model)
    infer_model.set_batch_size(1)
    infer_model.input().set_format_type(hailort.FormatType.UINT8)
    infer_model.output().set_format_type(hailort.FormatType.FLOAT32)
    pixels = np.zeros(IMAGE_SHAPE, dtype=np.uint8)
    scores = np.zeros(classes, dtype=np.float32)
    with ExitStack() as entered:
        try:
            configured = entered.enter_context(infer_model.configure())
        except (hailort.HailoRTHEFNotCompatibleWithDevice, hailort.HailoRTInvalidHEFException) as error:
            raise UnusableModel(
                f"{name} was not compiled for this chip (a HEF for the HAILO8 does not run on a HAILO8L: take the one in "
                f"hailo8l/ of the Model Zoo), or not for this HailoRT: {error}"
            ) from error
        bindings = configured.create_bindings()
        bindings.input().set_buffer(pixels)
        bindings.output().set_buffer(scores)
        resources.enter_context(entered.pop_all())
    return LoadedModel(configured, bindings, pixels, scores.reshape(-1))


def _checked_shapes(name: str, infer_model: Any) -> tuple[int, ...]:
    """Shape of a classifier's only output, where all classes lie along the last axis.

    Raises:
        UnusableModel: it takes no such image, or gives something else than scores.
    """
    inputs = {stream.name: tuple(stream.shape) for stream in infer_model.inputs}
    if list(inputs.values()) != [IMAGE_SHAPE]:
        raise UnusableModel(f"{name}: expected one input of {IMAGE_SHAPE}, found {inputs}")
    if any(stream.is_nms for stream in infer_model.outputs):
        raise UnusableModel(f"{name}: expected the scores of a classifier, found a detector's boxes")
    outputs = {stream.name: tuple(stream.shape) for stream in infer_model.outputs}
    shape = next(iter(outputs.values()), ())
    if len(outputs) != 1 or not shape or shape[-1] < 2 or math.prod(shape) != shape[-1]:
        raise UnusableModel(f"{name}: expected one output with a score per class, found {outputs}")
    return shape


def _status(error: Exception) -> int | None:
    """HailoRT's status number, where the text of an exception holds one."""
    found = re.search(r"\b\d+\b", str(error))
    return int(found.group()) if found else None


def _explained(error: Exception) -> str:
    """An exception with its kind, as HailoRT's texts often say little, and with what the status means."""
    status = _status(error)
    hint = f" ({STATUS_HINTS[Status(status)]})" if status in STATUS_HINTS else ""
    return f"{type(error).__name__}: {error}{hint}"


if __name__ == "__main__":
    run_server(open_backend, os.environ)
