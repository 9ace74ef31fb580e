"""The Hailo backend against a strict stand-in of HailoRT: no chip took part."""

import hashlib
import importlib
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hailo_inference_server import hailo_inference_server as server
from hailo_inference_server import versions
from inference_server import Accelerator, AcceleratorGone, ModelFile, ModelFiles, warmed_up
from inference_server.backend import IMAGE_BYTES
from inference_server.main import InvalidVariable
from inference_server.watchdog import EXIT_HANGS, start_watchdog
from tests.docker import hailo_standin as standin
from tests.docker.hailo_standin import Chip, hef, top1
from tests.docker.servers import PATIENCE_S, opened

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def image(number):
    return np.random.default_rng(number).integers(0, 256, IMAGE_BYTES, dtype=np.uint8).tobytes()


def wait_until(holds):
    """Give way to other threads until something holds."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.fixture
def chip(monkeypatch):
    chip = Chip()
    standin.install(monkeypatch, chip)
    yield chip
    chip.unhang.set()
    standin.forget()


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node whose driver is loaded: a folder with its version and its device."""
    (tmp_path / "driver_version").write_text("4.23.0\n")
    (tmp_path / "hailo0").touch()
    monkeypatch.setattr(server, "DEVICE", tmp_path / "hailo0")
    monkeypatch.setattr(versions, "SYSTEM_VERSION_FILE", tmp_path / "sys")
    return tmp_path


@pytest.fixture
def environment(node):
    return {"HAILO_DRIVER_VERSION_FILE": str(node / "driver_version")}


@pytest.fixture
def model_file(tmp_path):
    def write(name="mobilenet", content=None, input_type="uint8", mean=ZERO, std=ONE):
        path = tmp_path / f"{name}.hef"
        path.write_bytes(hef() if content is None else content)
        return ModelFile(name, path, input_type, mean, std, hashlib.sha256(path.read_bytes()).hexdigest())

    return write


@pytest.fixture
def two_models(model_file):
    files = [model_file("mobilenet"), model_file("resnet50", hef(seed=2, outputs=((1, 1, 1000),)))]
    return ModelFiles(files, {"vgg16": "no HEF for the Hailo-8L"})


@pytest.fixture
def open_chip(chip, environment, two_models):
    """Opens the backend; what a test leaves open is closed."""
    backends = []

    def open_one(files=two_models, **variables):
        backends.append(server.open_backend(files, {**environment, **variables}))
        return backends[-1]

    yield open_one
    for backend in backends:
        backend.close()


@pytest.fixture
def accelerator(open_chip):
    """The shared accelerator on the stand-in, opened again at once when the chip is lost."""
    accelerator = opened(Accelerator(lambda: warmed_up(open_chip()), reopen_s=0.01))
    yield accelerator
    accelerator.close()


def test_module_is_imported_without_hailort():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hailo_platform")
    importlib.reload(server)


def test_finds_the_class_of_each_image_and_changes_models(open_chip):
    backend = open_chip()
    assert backend.models == ["mobilenet", "resnet50"]
    assert backend.absent == {"vgg16": "no HEF for the Hailo-8L"}
    for number in range(5):
        assert backend.infer("mobilenet", image(number)) == top1(image(number))
        assert backend.infer("resnet50", image(number)) == top1(image(number), seed=2)


def test_configures_each_model_once_and_keeps_its_buffers(open_chip, chip):
    backend = open_chip()
    for number in range(50):
        backend.infer(("mobilenet", "resnet50")[number % 2], image(number))
    assert chip.inferences == 50
    assert chip.configured == {"mobilenet.hef": 1, "resnet50.hef": 1}
    assert len(chip.buffers) == 4


def test_scheduler_is_round_robin_and_the_chip_is_its_own(open_chip, chip):
    backend = open_chip()
    (params,) = chip.params
    assert params.scheduling_algorithm == 1
    assert (params.multi_process_service, params.group_id) == (False, "UNIQUE")
    assert backend.details["scheduler"] == "ROUND_ROBIN"


def test_two_models_without_the_scheduler_are_refused_by_the_stand_in(chip, two_models):
    import hailo_platform

    vdevice = hailo_platform.VDevice(hailo_platform.VDevice.create_params())
    first, second = (vdevice.create_infer_model(str(file.path)) for file in two_models.files)
    with first.configure(), pytest.raises(standin.HailoRTInvalidOperationException):
        second.configure()


def test_close_releases_the_models_before_the_chip(open_chip, chip):
    backend = open_chip()
    backend.close()
    assert (chip.live_models, chip.live_devices, chip.released, chip.released_early) == (0, 0, 1, False)
    backend.close()
    assert chip.released == 1


def test_hailort_waits_longer_than_the_watchdog(open_chip, chip):
    backend = open_chip(INFERENCE_TIMEOUT_S="2.5")
    backend.infer("mobilenet", image(0))
    assert min(chip.waits_ms) > 2500


def test_details_tell_versions_and_chip(open_chip):
    details = open_chip().details
    assert details["hailort"] == details["driver"] == details["firmware"] == "4.23.0"
    assert details["architecture"] == "HAILO8L"


def refusal(open_chip, **variables):
    with pytest.raises(AcceleratorGone) as caught:
        open_chip(**variables)
    return str(caught.value)


def test_missing_hailort_is_said(open_chip, chip):
    chip.missing_package = "hailo_platform"
    assert "HailoRT cannot be imported (No module named 'hailo_platform')" in refusal(open_chip)


def test_another_library_than_the_binding_is_said(open_chip, chip):
    chip.library = "4.22.0"
    reason = refusal(open_chip)
    assert "libhailort version (4.22.0) does not match pyhailort version (4.23.0)" in reason
    assert "image" in reason


def test_another_compiled_binding_is_said(open_chip, chip):
    chip.binding = "4.22.0"
    assert "_pyhailort version (4.23.0) does not match pyhailort version (4.22.0)" in refusal(open_chip)


def test_import_is_tried_anew_at_the_next_opening(open_chip, chip):
    chip.library = "4.22.0"
    refusal(open_chip)
    chip.library = "4.23.0"
    assert open_chip().models


def test_another_driver_is_said_before_the_chip_is_touched(open_chip, chip, node):
    (node / "driver_version").write_text("4.20.0\n")
    reason = refusal(open_chip)
    assert "driver 4.20.0, library and Python binding 4.23.0" in reason
    assert "install hailort-pcie-driver 4.23.0" in reason
    assert "HailoRT 4.20.0" in reason
    assert chip.opened == 0


def test_another_firmware_is_said_and_the_chip_released(open_chip, chip):
    chip.firmware = (4, 22, 1)
    assert "driver 4.23.0, library and Python binding 4.23.0, firmware 4.22.1" in refusal(open_chip)
    assert (chip.opened, chip.released, chip.live_devices, chip.released_early) == (1, 1, 0, False)


def test_driver_version_is_found_in_sys_where_it_is_not_mounted(open_chip, node):
    (node / "driver_version").unlink()
    (node / "sys").write_text("4.23.0\n")
    assert open_chip().details["driver"] == "4.23.0"


def test_missing_driver_version_says_where_it_was_looked_for(open_chip, node):
    (node / "driver_version").unlink()
    reason = refusal(open_chip)
    assert str(node / "driver_version") in reason
    assert str(node / "sys") in reason
    assert "hailort-pcie-driver" in reason


@pytest.mark.parametrize("text", ["", "unknown\n", "4.23\n"])
def test_driver_version_that_is_none_is_said(open_chip, node, text):
    (node / "driver_version").write_text(text)
    assert "expected the driver's version such as 4.23.0" in refusal(open_chip)


def test_missing_chip_is_said(open_chip, chip, node):
    chip.present = False
    (node / "hailo0").unlink()
    assert f"{node / 'hailo0'} is missing" in refusal(open_chip)


def test_chip_held_by_another_process_is_said(open_chip, chip):
    chip.held_elsewhere = True
    reason = refusal(open_chip)
    assert "another process holds" in reason
    assert "HAILO_OUT_OF_PHYSICAL_DEVICES" in reason


def test_second_opening_in_this_process_is_refused_and_works_after_close(open_chip):
    first = open_chip()
    assert "another process holds" in refusal(open_chip)
    first.close()
    assert open_chip().infer("mobilenet", image(1)) == top1(image(1))


def absence(open_chip, file, good):
    backend = open_chip(ModelFiles([file, good], {}))
    assert backend.models == [good.name]
    assert backend.infer(good.name, image(3)) == top1(image(3))
    return backend.absent[file.name]


def test_corrupt_hef_is_absent_and_the_others_serve(open_chip, model_file):
    assert "broken.hef is no HEF" in absence(open_chip, model_file("broken", b"\x01\x02HEF"), model_file())


def test_hef_for_the_other_chip_is_absent_and_the_others_serve(open_chip, chip, model_file):
    reason = absence(open_chip, model_file("big", hef(chip="HAILO8")), model_file())
    assert "was not compiled for this chip" in reason
    assert "HAILO8L" in reason
    assert chip.live_models == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (hef(inputs=((299, 299, 3),)), "(224, 224, 3), found {'net/in0': (299, 299, 3)}"),
        (hef(inputs=((224, 224, 3), (4,))), "one input"),
        (hef(outputs=((1000,), (10,))), "one output"),
        (hef(outputs=((7, 7, 1000),)), "one output"),
        (hef(outputs=((1,),)), "one output"),
        (hef(outputs=((80, 5, 100),), nms=True), "boxes"),
    ],
)
def test_network_that_is_no_such_classifier_is_absent(open_chip, model_file, content, expected):
    assert expected in absence(open_chip, model_file("odd", content), model_file())


@pytest.mark.parametrize(
    "wrong", [{"input_type": "int8"}, {"input_type": "float32"}, {"mean": (127.5,) * 3}, {"std": (2.0,) * 3}]
)
def test_input_that_a_hef_does_not_take_is_absent(open_chip, model_file, wrong):
    assert "a HEF normalises on the chip" in absence(open_chip, model_file("odd", **wrong), model_file())


def test_any_other_failure_to_configure_is_absent_with_its_text(open_chip, chip, model_file):
    chip.fail_at["configure"] = standin.status(81)
    assert "81 (HAILO_OUT_OF_HOST_CMA_MEMORY)" in absence(open_chip, model_file("large"), model_file())


@pytest.mark.parametrize("number", [4, 36, 57, 62, 63, 69, 72, 82, 87, 90])
def test_chip_lost_while_models_are_loaded_is_no_fault_of_the_model(open_chip, chip, number):
    chip.fail_at["configure"] = standin.status(number)
    assert "was lost at loading mobilenet.hef" in refusal(open_chip)
    assert (chip.released, chip.released_early) == (1, False)


@pytest.mark.parametrize("number", [8, 71, 81])
def test_status_that_may_be_the_models_makes_it_absent_and_says_what_it_means(open_chip, chip, model_file, number):
    chip.fail_at["configure"] = standin.status(number)
    reason = absence(open_chip, model_file("large"), model_file())
    assert f"HailoRTException: libhailort failed with error: {number} (HAILO_" in reason


LOST = [
    *(("ready", standin.status(number)) for number in (4, 8, 87)),
    *(("run", standin.status(number)) for number in (2, 6, 8, 18, 36, 57, 61, 62, 63, 69, 71, 72, 82, 87, 90)),
    ("run", standin.HailoRTStreamAbortedByUser("aborted")),
    ("run", standin.HailoStatusInvalidValueException("Value 999 is not a valid status")),
    ("run", standin.HailoRTStatusException("8")),
    *(("completion", standin.status(number)) for number in (8, 63, 71, 87)),
]


@pytest.mark.parametrize(("step", "error"), LOST, ids=lambda value: getattr(value, "__name__", None) or str(value))
def test_lost_chip_fails_the_inference_and_is_opened_again(accelerator, chip, step, error):
    chip.fail_at[step] = error
    with pytest.raises(AcceleratorGone, match="mobilenet"):
        accelerator.submit("mobilenet", image(1), {}).result(PATIENCE_S)
    wait_until(lambda: chip.opened == 2 and accelerator.health_problem() is None)
    assert accelerator.submit("mobilenet", image(2), {}).result(PATIENCE_S).top1 == top1(image(2))
    assert (chip.opened, chip.released, chip.released_early) == (2, 1, False)
    assert chip.configured == {"mobilenet.hef": 2, "resnet50.hef": 2}


def test_failed_job_never_gives_the_answer_of_the_one_before(open_chip, chip):
    backend = open_chip()
    backend.infer("mobilenet", image(1))
    chip.fail_at["completion"] = standin.HailoRTStreamAborted("Stream was aborted")
    with pytest.raises(AcceleratorGone, match="failed to compute mobilenet: HailoRTStreamAborted"):
        backend.infer("mobilenet", image(2))


def test_a_plain_exception_of_hailort_is_told_with_what_its_status_means(open_chip, chip):
    backend = open_chip()
    chip.fail_at["run"] = standin.status(87)
    with pytest.raises(AcceleratorGone, match=r"87 \(HAILO_DRIVER_TIMEOUT\) \(the chip does not answer its driver"):
        backend.infer("mobilenet", image(1))


@pytest.mark.parametrize("step, number, left", [("run", 2, 63), ("run", 82, 63), ("completion", 8, 8)])
def test_stand_in_takes_no_inference_after_one_that_failed(chip, two_models, step, number, left):
    import hailo_platform

    params = hailo_platform.VDevice.create_params()
    params.scheduling_algorithm = hailo_platform.HailoSchedulingAlgorithm.ROUND_ROBIN
    infer_model = hailo_platform.VDevice(params).create_infer_model(str(two_models.files[0].path))
    with infer_model.configure() as configured:
        bindings = configured.create_bindings(
            {"net/in0": np.zeros((224, 224, 3), np.uint8)}, {"net/out0": np.zeros(1000, np.uint8)}
        )
        configured.run_async([bindings]).wait(1000)
        chip.fail_at[step] = standin.status(number)
        if step == "run":
            with pytest.raises(type(standin.status(number))):
                configured.run_async([bindings])
        else:
            configured.run_async([bindings]).wait(1000)
        configured.wait_for_async_ready()
        for expected in (left, 63):
            with pytest.raises(type(standin.status(expected)), match=re.escape(str(standin.status(expected)))):
                configured.run_async([bindings])


def test_stand_in_looks_at_sizes_only_when_an_inference_is_launched(chip, two_models):
    import hailo_platform

    infer_model = hailo_platform.VDevice().create_infer_model(str(two_models.files[0].path))
    with infer_model.configure() as configured:
        bindings = configured.create_bindings({"net/in0": np.zeros(7, np.uint8)}, {"net/out0": np.zeros(1000, np.uint8)})
        with pytest.raises(standin.HailoRTInvalidOperationException):
            configured.run_async([bindings])


def test_everything_is_called_from_one_thread_and_released_in_the_end(accelerator, chip):
    for number in range(10):
        result = accelerator.submit(("mobilenet", "resnet50")[number % 2], image(number), {}).result(PATIENCE_S)
        assert result.top1 == top1(image(number), seed=1 + number % 2)
        assert result.model_switched  # resnet50 was warmed up last
    accelerator.close()
    assert len(chip.threads) == 1
    assert threading.get_ident() not in chip.threads
    assert (chip.live_models, chip.live_devices, chip.released, chip.released_early) == (0, 0, 1, False)


def test_chip_that_hangs_ends_the_process(accelerator, chip):
    ends: list[int] = []
    chip.hang = True
    start_watchdog(accelerator, 0.05, 300.0, ends.append)
    hanging = accelerator.submit("mobilenet", image(1), {})
    assert chip.hung.wait(PATIENCE_S)
    wait_until(lambda: ends)
    assert ends == [EXIT_HANGS]
    assert not hanging.done()
    chip.unhang.set()
    assert hanging.result(PATIENCE_S).top1 == top1(image(1))


def test_chip_that_hangs_past_hailorts_own_limit_is_lost(open_chip, chip, monkeypatch):
    monkeypatch.setattr(server, "WATCHDOG_LEAD_S", 0.01)
    backend = open_chip(INFERENCE_TIMEOUT_S="0.01")
    chip.hang = True
    with pytest.raises(AcceleratorGone, match="HailoRTTimeout"):
        backend.infer("mobilenet", image(1))


def readings(backend):
    return {gauge.name: gauge.value for gauge in backend.gauges()}


TEMPERATURES = {"hailo_temperature_ts0_celsius": 48.5, "hailo_temperature_ts1_celsius": 49.25}


def test_board_without_a_sensor_reports_no_power_and_says_so(open_chip, chip, caplog):
    backend = open_chip()
    assert backend.details["power"] == "this board does not report its power: use the external meter"
    assert readings(backend) == TEMPERATURES
    assert not chip.measuring
    assert not caplog.records


def test_board_with_a_sensor_reports_its_mean_power_until_it_is_closed(open_chip, chip):
    chip.monitors_current = True
    backend = open_chip()
    assert backend.details["power"].startswith("measured by the board")
    assert readings(backend) == {**TEMPERATURES, "hailo_power_watts": 1.25}
    chip.power_w = 2.5
    assert readings(backend)["hailo_power_watts"] == 2.5
    backend.close()
    assert not chip.measuring


def test_power_can_be_turned_off_since_it_costs_protection(open_chip, chip, caplog):
    chip.monitors_current = True
    assert "overcurrent protection is off meanwhile, HAILO_POWER=off" in open_chip().details["power"]
    assert "overcurrent protection" in caplog.text


def test_power_that_is_turned_off_is_not_measured(open_chip, chip):
    chip.monitors_current = True
    backend = open_chip(HAILO_POWER="off")
    assert backend.details["power"] == "the board could report its power, but HAILO_POWER=off"
    assert readings(backend) == TEMPERATURES
    assert not chip.measuring


def test_no_new_value_of_the_sensor_is_no_power_and_not_0_watts(open_chip, chip):
    chip.monitors_current, chip.new_power_values = True, 0
    assert readings(open_chip()) == TEMPERATURES


def test_power_that_cannot_be_started_costs_nothing_else(open_chip, chip):
    chip.monitors_current = chip.power_fails = True
    backend = open_chip()
    assert backend.details["power"] == "not measured: libhailort control operation failed"
    assert readings(backend) == TEMPERATURES
    assert backend.infer("mobilenet", image(1)) == top1(image(1))


def test_power_that_fails_later_goes_away_is_logged_once_and_comes_back(open_chip, chip, caplog):
    chip.monitors_current = True
    backend = open_chip()
    chip.power_fails = True
    for _ in range(3):
        assert readings(backend) == TEMPERATURES
    assert [record.message for record in caplog.records if "reading" in record.message] == [
        "reading the power of the Hailo chip failed: libhailort control operation failed"
    ]
    chip.power_fails = False
    assert readings(backend) == {**TEMPERATURES, "hailo_power_watts": 1.25}


def test_temperature_that_fails_leaves_the_power(open_chip, chip):
    chip.monitors_current = chip.temperature_fails = True
    assert readings(open_chip()) == {"hailo_power_watts": 1.25}


def test_power_that_cannot_be_stopped_keeps_nothing_from_being_released(open_chip, chip, caplog):
    chip.monitors_current = True
    backend = open_chip()
    chip.power_fails = True
    backend.close()
    assert (chip.live_models, chip.live_devices, chip.released, chip.released_early) == (0, 0, 1, False)
    assert "protection may still be off" in caplog.text


def test_chip_that_cannot_be_asked_serves_and_says_what_was_not_checked(open_chip, chip):
    chip.controllable = False
    backend = open_chip()
    assert backend.details["firmware"] == "not checked: HAILO_DRIVER_OPERATION_FAILED (36)"
    assert "cannot be asked" in backend.details["power"]
    assert readings(backend) == {}
    assert backend.infer("mobilenet", image(1)) == top1(image(1))


@pytest.fixture
def service(node, monkeypatch):
    """The address of a service whose socket is there."""
    (node / "uds.sock").touch()
    monkeypatch.setattr(server, "SERVICE_ADDRESS", f"unix:{node / 'uds.sock'}")
    return f"unix:{node / 'uds.sock'}"


def test_service_shares_the_chip_which_is_then_not_asked_itself(open_chip, chip, service):
    chip.present = False  # the container has no /dev/hailo0
    backend = open_chip(HAILORT_SERVICE=service)
    (params,) = chip.params
    assert (params.multi_process_service, params.group_id, params.scheduling_algorithm) == (True, "SHARED", 1)
    assert backend.details["firmware"] == "not checked: it is held by hailort.service"
    assert readings(backend) == {}
    assert backend.infer("mobilenet", image(1)) == top1(image(1))


def test_service_that_does_not_answer_is_said(open_chip, chip, service):
    chip.service_runs = False
    assert "hailort.service on the node does not answer" in refusal(open_chip, HAILORT_SERVICE=service)


def test_missing_socket_of_the_service_is_said(open_chip, service):
    Path(service.partition(":")[2]).unlink()
    assert "uds.sock is missing: start hailort.service" in refusal(open_chip, HAILORT_SERVICE=service)


@pytest.mark.parametrize("address", ["1", "unix:///tmp/hailort_uds.sock", "/tmp/hailort_uds.sock"])
def test_other_address_of_the_service_is_refused(open_chip, address):
    with pytest.raises(InvalidVariable, match="expected nothing or 'unix:/tmp/hailort_uds.sock'"):
        open_chip(HAILORT_SERVICE=address)


def test_other_power_mode_is_refused(open_chip):
    with pytest.raises(InvalidVariable, match="HAILO_POWER"):
        open_chip(HAILO_POWER="sample")
