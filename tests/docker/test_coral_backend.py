"""The Coral server's backend against a strict stand-in of tflite_runtime and pycoral; no Edge TPU took part."""

import gc
import logging
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import pytest

from coral_inference_server.coral_inference_server import open_backend
from inference_server import Accelerator, AcceleratorGone, ModelFile, ModelFiles, warmed_up
from inference_server.main import InvalidVariable
from inference_server.watchdog import start_watchdog
from tests.docker.edgetpu_standin import CLASSES, VERSION, Stick, write_model
from tests.docker.servers import PATIENCE_S, opened
from tests.helpers import eventually

SHAPE = (1, 224, 224, 3)
NO_LIBRARY = OSError("libedgetpu.so.1: cannot open shared object file: No such file or directory")
NO_DEVICE = ValueError("Failed to load delegate from libedgetpu.so.1\n")


@pytest.fixture(params=[True, False], ids=["with pycoral", "without pycoral"])
def pycoral(request):
    return request.param


@pytest.fixture
def stick(pycoral, monkeypatch):
    stick = Stick()
    for name, module in stick.modules(pycoral).items():
        monkeypatch.setitem(sys.modules, name, module)
    return stick


@pytest.fixture
def without_collector():
    """What is released must not wait for the garbage collector, which may not come for minutes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Shelf(NamedTuple):
    """A directory of models."""

    path: Path

    def model(self, name="mobilenet", dtype="uint8", mean=0.0, std=1.0, says=None, **properties):
        """Add a model; `says` is the input type of the manifest if it is not the model's."""
        path = self.path / f"{name}.tflite"
        write_model(path, dtype, **properties)
        means, stds = (tuple(np.broadcast_to(value, 3).tolist()) for value in (mean, std))
        return ModelFile(name, path, says or dtype, means, stds, "0" * 64)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def opened_with(*models, sleep=lambda seconds: pytest.fail("it paused"), **environment):
    return open_backend(ModelFiles(list(models), {"vgg16": "not compiled"}), environment, sleep)


def image(*pixels):
    """An image that begins with these pixels, as (R, G, B), and is black otherwise."""
    tensor = np.zeros(SHAPE, np.uint8)
    tensor[0, 0, : len(pixels)] = np.reshape(pixels, (-1, 3))
    return tensor.tobytes()


def tensor_of(stick, backend, pixels, model="mobilenet"):
    """What the model got for an image that begins with these pixels: that many elements of its input tensor."""
    backend.infer(model, image(*pixels))
    path, tensor = stick.invoked[-1]
    assert Path(path).stem == model
    return tensor[0, 0, : len(pixels)]


# Life of the backend.


def test_several_models_share_the_stick_each_with_its_delegate(stick, shelf, pycoral):
    backend = warmed_up(opened_with(shelf.model("mobilenet"), shelf.model("resnet50", quantization=[0.5, 3])))
    assert (backend.accelerator, backend.models, backend.absent) == (
        "coral",
        ["mobilenet", "resnet50"],
        {"vgg16": "not compiled"},
    )
    assert stick.options == [{}, {}]
    assert stick.users == 2
    assert backend.infer("mobilenet", image((1, 2, 3))) == 6
    assert backend.infer("resnet50", bytes([255]) * (224 * 224 * 3)) == 255 * 224 * 224 * 3 % CLASSES
    assert [Path(path).stem for path, _ in stick.invoked[-2:]] == ["mobilenet", "resnet50"]
    details = backend.details
    assert (details["tflite"], details["numpy"], details["delegate"]) == ("2.14.0", np.__version__, "libedgetpu.so.1")
    assert details.get("edgetpu_runtime") == (VERSION if pycoral else None)
    assert details["pycoral"] == "2.0.3" if pycoral else details["pycoral"].startswith("not used: ")


def test_close_releases_the_stick(stick, shelf, without_collector):
    backend = opened_with(shelf.model("mobilenet"), shelf.model("resnet50"))
    backend.infer("mobilenet", image())
    backend.close()
    assert stick.users == 0


def test_chosen_device_reaches_every_delegate(stick, shelf):
    opened_with(shelf.model("mobilenet"), shelf.model("resnet50"), CORAL_DEVICE="usb:1")
    assert stick.options == [{"device": "usb:1"}] * 2


@pytest.mark.parametrize("variable, value", [("CORAL_DELEGATE", "cpu"), ("CORAL_DEVICE", "usb1"), ("CORAL_DEVICE", "/dev/usb")])
def test_variables_that_make_no_sense_are_refused(shelf, variable, value):
    with pytest.raises(InvalidVariable, match=f"{variable}: expected nothing.*'{value}'"):
        opened_with(shelf.model(), **{variable: value})


def test_cpu_kernels_say_that_they_are_no_edge_tpu(stick, shelf):
    backend = opened_with(shelf.model(operator="CONV_2D"), CORAL_DELEGATE="none")
    assert backend.infer("mobilenet", image((4, 0, 0))) == 4
    assert backend.accelerator == "cpu"
    assert "no Edge TPU" in backend.details["delegate"]
    assert stick.options == []


def test_without_tensorflow_lite_it_says_what_is_missing(monkeypatch, shelf):
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    for delegate in ("", "none"):
        with pytest.raises(AcceleratorGone, match="tflite_runtime cannot be imported.*requirements.txt"):
            opened_with(shelf.model(), CORAL_DELEGATE=delegate)


# A stick that is not there, comes late, is lost or hangs.


def test_delegate_is_tried_again_while_the_stick_comes_back(stick, shelf, caplog):
    stick.load_failures = [NO_LIBRARY, NO_DEVICE]
    pauses: list[float] = []
    backend = opened_with(shelf.model(), sleep=pauses.append)
    assert backend.infer("mobilenet", image((1, 1, 1))) == 3
    assert pauses == [2.0, 2.0]
    first, second = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "attempt 1 of 5: libedgetpu.so.1 cannot be loaded" in first
    assert "attempt 2 of 5: libedgetpu.so.1 found no Edge TPU" in second


@pytest.mark.parametrize(
    "failure, says",
    [
        (NO_LIBRARY, ["cannot open shared object file", "libedgetpu1-std", "CORAL_DELEGATE=none"]),
        (NO_DEVICE, ["ValueError: Failed to load delegate", "1a6e:089a or 18d1:9302", "/dev/bus/usb", "privileged"]),
    ],
)
def test_stick_that_never_comes_says_which_part_is_missing_and_what_to_do(stick, shelf, failure, says, pycoral):
    stick.load_failures = [failure] * 5
    stick.in_sight = []
    pauses: list[float] = []
    with pytest.raises(AcceleratorGone) as gone:
        opened_with(shelf.model(), sleep=pauses.append)
    assert all(part in str(gone.value) for part in [*says, "5 attempts"])
    assert pauses == [2.0] * 4
    assert stick.load_failures == []
    assert ("in sight: none" in str(gone.value)) == (pycoral and failure is NO_DEVICE)


def test_stick_lost_while_models_load_is_released(stick, shelf, without_collector):
    class LostAfterOne(list):
        def __bool__(self):
            return len(stick.options) > 0 and len(self) > 0

    stick.load_failures = LostAfterOne([NO_DEVICE] * 5)
    with pytest.raises(AcceleratorGone, match="found no Edge TPU"):
        opened_with(shelf.model("mobilenet"), shelf.model("resnet50"), sleep=lambda seconds: None)
    assert len(stick.options) == 1
    assert stick.users == 0


def test_stick_lost_during_an_inference_is_released_and_opened_again(stick, shelf, without_collector):
    model = shelf.model()
    accelerator = opened(Accelerator(lambda: warmed_up(opened_with(model)), reopen_s=0.0))
    stick.unplug()
    running = accelerator.submit("mobilenet", image((5, 0, 0)), {})
    with pytest.raises(
        AcceleratorGone, match="Edge TPU failed at an inference of mobilenet: RuntimeError: Failed to execute request."
    ):
        running.result(PATIENCE_S)
    # The exception is still held here, as it may be by whoever answers the request.
    assert eventually(lambda: len(stick.options) == 2 and accelerator.health_problem() is None)
    assert accelerator.submit("mobilenet", image((6, 0, 0)), {}).result(PATIENCE_S).top1 == 6
    accelerator.close()
    assert stick.users == 0


def test_failure_of_the_cpu_kernels_fails_its_request_only(stick, shelf):
    backend = opened_with(shelf.model(operator="broken"), CORAL_DELEGATE="none")
    with pytest.raises(RuntimeError, match="CONV_2D"):
        backend.infer("mobilenet", image())


def test_inference_that_hangs_ends_the_process(stick, shelf, caplog):
    model = shelf.model()
    accelerator = opened(Accelerator(lambda: opened_with(model)))
    stick.gate.clear()
    running = accelerator.submit("mobilenet", image(), {})
    assert stick.invoking.acquire(timeout=PATIENCE_S)
    statuses: SimpleQueue[int] = SimpleQueue()
    start_watchdog(accelerator, 0.0, 3600.0, end_process=statuses.put)
    assert statuses.get(timeout=PATIENCE_S) == 70
    assert "an inference has taken" in caplog.text
    stick.gate.set()
    assert running.result(PATIENCE_S).top1 == 0
    accelerator.close()


@pytest.mark.parametrize(
    "failure", ["Internal: USB transfer error 1 [LibUsbDataOutCallback]", "Failed precondition: Unexpected state 5.", ""]
)
def test_stick_that_does_not_take_a_model_is_at_fault_and_not_the_model(stick, shelf, without_collector, failure):
    stick.prepare_failures = [failure]
    with pytest.raises(AcceleratorGone, match="Edge TPU failed at loading mobilenet: RuntimeError: Failed to prepare for TPU"):
        opened_with(shelf.model("mobilenet"), shelf.model("resnet50"))
    assert stick.users == 0
    assert opened_with(shelf.model("mobilenet"), shelf.model("resnet50")).models == ["mobilenet", "resnet50"]


@pytest.mark.parametrize(
    "failure",
    [
        "Internal: Package verification failed.",
        "Failed precondition: Package requires runtime version (15), which is newer than this runtime version (14).",
        "Invalid argument: Executable verification failed.",
        "Unimplemented: Multiple executables custom op is not supported.",
        "Failed precondition: Missing raw model data.",
    ],
)
def test_model_that_libedgetpu_refuses_is_absent_and_the_others_serve(stick, shelf, failure):
    stick.prepare_failures = [failure]
    assert failure in absent_reason(shelf, shelf.model("resnet50"))


def test_missing_library_and_missing_stick_leave_no_noise_of_a_delegate(stick, shelf, without_collector):
    """Delegate.__del__ after a failed __init__ would be an error of pytest's here, and lines in the log of a server."""
    stick.load_failures = [OSError(str(NO_LIBRARY)), ValueError(str(NO_DEVICE))]
    backend = opened_with(shelf.model(), sleep=lambda seconds: None)
    backend.close()
    assert stick.users == 0


# Models that are served partly by the CPU.


def test_models_that_are_partly_mapped_are_named_with_their_operators(stick, shelf):
    whole, partly = shelf.model("mobilenet"), shelf.model("resnet50", others=["QUANTIZE", "SOFTMAX", "QUANTIZE"])
    backend = warmed_up(opened_with(whole, partly))
    assert backend.details["outside_edge_tpu"] == "resnet50: 3 operators on the CPU (2 QUANTIZE, 1 SOFTMAX)"
    assert opened_with(whole).details["outside_edge_tpu"] == "no operator of any model"
    assert "outside_edge_tpu" not in opened_with(shelf.model(operator="CONV_2D"), CORAL_DELEGATE="none").details


# Models that cannot be served, while the others are.


def absent_reason(shelf, broken, **environment):
    """Why the broken model is absent beside one that serves."""
    operator = "CONV_2D" if environment else "edgetpu-custom-op"
    backend = opened_with(broken, shelf.model("mobilenet", operator=operator), **environment)
    assert backend.models == ["mobilenet"]
    assert backend.infer("mobilenet", image((7, 0, 0))) == 7
    return backend.absent["resnet50"]


@pytest.mark.parametrize(
    "content, says", [(b"edgetpu-custom-op garbage", "should be 'TFL3'"), (b"", "empty file"), (None, "No such file")]
)
def test_corrupt_model_is_absent(stick, shelf, content, says):
    broken = shelf.model("resnet50")
    broken.path.unlink()
    if content is not None:
        broken.path.write_bytes(content)
    reason = absent_reason(shelf, broken)
    assert "resnet50.tflite cannot be loaded: " in reason
    assert says in reason


def test_model_with_another_input_than_the_manifest_says_is_absent(stick, shelf):
    reason = absent_reason(shelf, shelf.model("resnet50", dtype="int8", says="uint8"))
    assert "takes int8 input, models.yaml says input_type: uint8" in reason


@pytest.mark.parametrize("shape", [(1, 299, 299, 3), (1, 3, 224, 224), (4, 224, 224, 3)])
def test_model_for_another_image_size_is_absent(stick, shelf, shape):
    assert f"takes an input of shape {shape}, expected {SHAPE}" in absent_reason(shelf, shelf.model("resnet50", shape=shape))


def test_model_with_two_inputs_is_absent(stick, shelf):
    assert "has 2 inputs, expected one image" in absent_reason(shelf, shelf.model("resnet50", inputs=2))


def test_model_for_the_edge_tpu_is_absent_on_the_cpu(stick, shelf):
    assert "is compiled for the Edge TPU" in absent_reason(shelf, shelf.model("resnet50"), CORAL_DELEGATE="none")


def test_model_not_compiled_for_the_edge_tpu_is_absent_there_instead_of_running_on_the_cpu(stick, shelf):
    reason = absent_reason(shelf, shelf.model("resnet50", operator="CONV_2D"))
    assert "would run on the CPU; put it through edgetpu_compiler" in reason


def test_integer_input_without_quantisation_is_absent(stick, shelf):
    assert "int8 input has no quantisation" in absent_reason(shelf, shelf.model("resnet50", dtype="int8"))


def test_forgotten_mean_and_std_leave_the_model_out_instead_of_a_white_image(stick, shelf):
    reason = absent_reason(shelf, shelf.model("resnet50", dtype="int8", quantization=[1 / 127.5, -1]))
    assert "254 of the 256 pixel values lie outside" in reason
    assert "mean and std in models.yaml" in reason


# From pixels to the input tensor.


def test_uint8_model_gets_the_pixels_as_they_are(stick, shelf):
    backend = opened_with(shelf.model(quantization=[1 / 128, 128]))
    pixels = [[0, 1, 2], [127, 128, 255]]
    tensor = tensor_of(stick, backend, pixels)
    assert tensor.dtype == np.uint8
    assert tensor.tolist() == pixels


def test_uint8_model_with_mean_and_std_is_quantised(stick, shelf):
    backend = opened_with(shelf.model(quantization=[1 / 128, 128], mean=127.5, std=127.5))
    tensor = tensor_of(stick, backend, [[0, 127, 128], [254, 255, 64]])
    assert tensor.dtype == np.uint8
    assert tensor.tolist() == [[0, 127, 129], [255, 255, 64]]  # 255 stands for 256, clipped


def test_int8_input_is_quantised_and_not_shifted(stick, shelf):
    backend = opened_with(shelf.model(dtype="int8", quantization=[0.02, -10], mean=127.5, std=100.0))
    tensor = tensor_of(stick, backend, [[0, 127, 128], [200, 254, 255]])
    assert tensor.dtype == np.int8
    assert tensor.tolist() == [[-74, -10, -10], [26, 53, 54]]


def test_int8_values_out_of_range_are_clipped_channel_by_channel(stick, shelf):
    backend = opened_with(shelf.model(dtype="int8", quantization=[0.01, 0], mean=[0.0, 255.0, 127.5], std=[100.0, 100.0, 50.0]))
    tensor = tensor_of(stick, backend, [[0, 0, 0], [100, 127, 63], [127, 128, 64], [128, 155, 191], [255, 255, 255]])
    assert tensor.tolist() == [[0, -128, -128], [100, -128, -128], [127, -127, -127], [127, -100, 127], [127, 0, 127]]


def test_int8_halves_go_away_from_zero(stick, shelf):
    backend = opened_with(shelf.model(dtype="int8", quantization=[1.0, 0], mean=4.0, std=2.0))
    assert tensor_of(stick, backend, [[1, 3, 4], [5, 7, 9]]).tolist() == [[-2, -1, 0], [1, 2, 3]]


def test_int8_model_trained_on_raw_pixels_gets_the_plain_shift(stick, shelf):
    backend = opened_with(shelf.model(dtype="int8", quantization=[1.0, -128]))
    every = [[value] * 3 for value in range(224)]
    assert tensor_of(stick, backend, every).tolist() == [[value - 128] * 3 for value in range(224)]


def test_float32_input_is_normalised(stick, shelf):
    backend = opened_with(shelf.model(dtype="float32", mean=[127.5, 0.0, 255.0], std=[127.5, 1.0, 2.0]))
    tensor = tensor_of(stick, backend, [[0, 0, 0], [255, 255, 255]])
    assert tensor.dtype == np.float32
    assert tensor.tolist() == [[-1.0, 0.0, -127.5], [1.0, 255.0, 0.0]]
