"""The Jetson server on a strict stand-in for TensorRT and pycuda. Valid Python 3.6.

Nothing here runs on a GPU: it is checked how the server uses the two libraries, not what they do.
"""

import hashlib
import json
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest

from inference_server import Accelerator, AcceleratorGone, OutOfMemory, UnusableModel, create_app, read_model_files, warmed_up
from inference_server.backend import IMAGE_BYTES
from inference_server.main import InvalidVariable
from inference_server.watchdog import start_watchdog
from jetson_inference_server import tensorrt_engine
from jetson_inference_server.jetson_inference_server import EXIT_CONTEXT_LOST, open_backend
from jetson_inference_server.l4t import l4t_version
from tests.docker.servers import PATIENCE_S, opened
from tests.docker.tensorrt_standin import BINDINGS, BOTH, IMAGE_SHAPE, MB, TENSORS, Gpu, plan, pycuda_driver, scores, tensorrt

VERSIONS = (BINDINGS, BOTH, TENSORS)
BUFFERS = 2 * 4 * (IMAGE_BYTES + 10)
LOGITS = ("logits", False, [1, 10], "FLOAT")


@pytest.fixture
def gpu():
    gpu = Gpu()
    yield gpu
    gpu.gate.set()
    assert gpu.violations == []


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def install(gpu, monkeypatch):
    """A function that puts the two modules in their places, TensorRT in some version."""
    monkeypatch.setattr(tensorrt_engine, "_lost_contexts", [])

    def put(version=BINDINGS):
        package: Any = types.ModuleType("pycuda")
        package.driver = pycuda_driver(gpu)
        for name, module in (
            ("pycuda", package),
            ("pycuda.driver", package.driver),
            ("tensorrt", tensorrt(gpu, package.driver, version)),
        ):
            monkeypatch.setitem(sys.modules, name, module)
        return package.driver

    put()
    return put


@pytest.fixture
def model_files(tmp_path):
    """A function that writes plans and their manifest.

    A plan may stand in a pair with further keys of its entry; a text says why the model is absent.
    """

    def write(plans):
        entries = {}
        for name, content in plans.items():
            if isinstance(content, str):
                entries[name] = {"absent": content}
                continue
            content, further = content if isinstance(content, tuple) else (content, {})
            file_name = further.pop("file", name + ".engine")
            (tmp_path / file_name).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            entries[name] = dict({"file": file_name, "input_type": "float32", "sha256": sha256}, **further)
        (tmp_path / "models.yaml").write_text(json.dumps({"models": entries}))
        return read_model_files(tmp_path)

    return write


@pytest.fixture
def open_models(gpu, install, model_files):
    """A function that opens a backend with some plans; it is closed at the end, and must have given everything back then."""
    backends = []

    def open_them(plans, **environment):
        backends.append(open_backend(model_files(plans), environment))
        return backends[-1]

    yield open_them
    for backend in backends:
        backend.close()
    assert_all_given_back(gpu)


def assert_all_given_back(gpu):
    assert gpu.allocations == {}
    assert gpu.used_bytes == 0
    assert gpu.alive == {"engine": 0, "execution context": 0}
    assert gpu.contexts == 0
    assert gpu.streams == {}
    assert not any(gpu.stacks.values())


def random_image(seed=0):
    return np.random.RandomState(seed).bytes(IMAGE_BYTES)


def expected_top1(plan_seed, image, mean=0.0, std=1.0):
    pixels = np.array(list(image), np.float32).reshape(IMAGE_SHAPE)
    return int(np.argmax(scores(plan_seed, (pixels - np.float32(mean)) / np.float32(std))))


def held(backend):
    return {gauge.name: gauge.value for gauge in backend.gauges()}


# What is computed


def test_top1_is_that_of_the_image_with_every_api(version, install, open_models):
    install(version)
    backend = open_models({"mobilenet": plan(1, version), "resnet50": plan(2, version)})
    assert backend.models == ["mobilenet", "resnet50"]
    images = [random_image(seed) for seed in range(6)]
    found = [(backend.infer("mobilenet", image), backend.infer("resnet50", image)) for image in images]
    assert found == [(expected_top1(1, image), expected_top1(2, image)) for image in images]
    assert len(set(found)) > 1


def test_the_api_is_chosen_by_what_tensorrt_has(version, install, open_models):
    install(version)
    backend = open_models({"mobilenet": plan(1, version)})
    assert backend.details["tensorrt_api"] == ("bindings" if version == BINDINGS else "tensors")
    assert backend.details["tensorrt"] == version
    assert backend.details["gpu"] == "NVIDIA Tegra X1"


@pytest.mark.parametrize(("mean", "std"), [(127.5, 127.5), ([10.0, 100.0, 200.0], [20.0, 60.0, 180.0])])
def test_mean_and_std_of_the_manifest_are_applied_per_channel(mean, std, open_models):
    backend = open_models({"mobilenet": (plan(1), {"mean": mean, "std": std})})
    images = [random_image(seed) for seed in range(6)]
    expected = [expected_top1(1, image, mean, std) for image in images]
    assert [backend.infer("mobilenet", image) for image in images] == expected
    assert expected != [expected_top1(1, image) for image in images]


def test_an_output_that_is_not_finite_is_an_error_and_not_a_class(gpu, open_models):
    backend = warmed_up(open_models({"mobilenet": plan(1), "vgg16": plan(2, finite=False)}))
    assert backend.models == ["mobilenet"]
    assert "gave nan for a class" in backend.absent["vgg16"]


# Which engines are served


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([("image", True, [-1, 224, 224, 3], "FLOAT"), LOGITS], "tensor image of shape [-1, 224, 224, 3] is dynamic"),
        ([("image", True, [1, 3, 224, 224], "FLOAT"), LOGITS], "input is [1, 3, 224, 224], expected [1, 224, 224, 3]"),
        ([("image", True, [1, 299, 299, 3], "FLOAT"), LOGITS], "input is [1, 299, 299, 3], expected [1, 224, 224, 3]"),
        ([("image", True, IMAGE_SHAPE, "HALF"), LOGITS], "is DataType.HALF, expected float32"),
        ([("image", True, IMAGE_SHAPE, "FLOAT"), ("logits", False, [1, 10], "INT32")], "is DataType.INT32, expected float32"),
        ([("image", True, IMAGE_SHAPE, "FLOAT"), ("logits", False, [1, 1], "FLOAT")], "output is [1, 1], expected one value per"),
        ([("image", True, IMAGE_SHAPE, "FLOAT"), ("map", False, [1, 7, 7, 10], "FLOAT")], "output is [1, 7, 7, 10]"),
        ([("image", True, IMAGE_SHAPE, "FLOAT"), LOGITS, LOGITS], "1 inputs and 2 outputs"),
    ],
)
def test_an_engine_that_classifies_no_such_image_is_absent(version, tensors, reason, install, open_models):
    install(version)
    backend = open_models({"mobilenet": plan(1, version), "vgg16": plan(2, version, tensors=tensors)})
    assert backend.models == ["mobilenet"]
    assert reason in backend.absent["vgg16"]


def test_a_corrupt_plan_is_absent_and_says_what_tensorrt_said(open_models):
    backend = open_models({"mobilenet": plan(1), "vgg16": b"\0" * MB})
    assert backend.models == ["mobilenet"]
    assert "TensorRT 8.2.1.8 cannot load vgg16.engine" in backend.absent["vgg16"]
    assert "Magic tag does not match" in backend.absent["vgg16"]
    assert "run build_engines.sh on this node" in backend.absent["vgg16"]


def test_a_plan_of_another_tensorrt_is_absent_and_its_name_tells_by_which_it_was_built(install, open_models):
    install(BOTH)
    name = "vgg16_trt8.2.1_jetson-nano_0123456789ab.engine"
    backend = open_models({"mobilenet": plan(1, BOTH), "vgg16": (plan(2, BINDINGS), {"file": name})})
    assert backend.models == ["mobilenet"]
    assert "Version tag does not match" in backend.absent["vgg16"]
    assert "TensorRT 8.2.1 built it and this is 8.6.1.6: run build_engines.sh on this node" in backend.absent["vgg16"]


def test_a_manifest_that_promises_another_input_type_makes_the_model_absent(open_models):
    backend = open_models({"mobilenet": plan(1), "vgg16": (plan(2), {"input_type": "uint8"})})
    assert backend.models == ["mobilenet"]
    assert "input_type uint8" in backend.absent["vgg16"]


def test_what_the_manifest_calls_absent_stays_so(open_models):
    backend = open_models({"mobilenet": plan(1), "vgg16": "was not built"})
    assert backend.absent == {"vgg16": "was not built"}


# Memory


def test_the_least_recently_used_engine_makes_room(gpu, open_models):
    # Each engine takes 11.15 MB with its buffers: three fit into 34 MB.
    plans = {name: plan(seed, size_bytes=6 * MB, activation_bytes=4 * MB) for seed, name in enumerate("abcd")}
    backend = open_models(plans, GPU_MEMORY_MB="34")
    assert backend.models == ["a", "b", "c", "d"]
    assert backend._pool.models == ["b", "c", "d"]
    gpu.deserialised.clear()
    image = random_image()
    for model in "bcadabc":
        assert backend.infer(model, image) == expected_top1("abcd".index(model), image)
        assert held(backend)["gpu_memory_bytes"] == gpu.used_bytes <= 34 * MB
    # b and c are there; a drives d out; d drives b out; a is there; b drives c out; c drives d out.
    assert gpu.deserialised == ["abcd".index(model) for model in "adbc"]
    assert backend._pool.models == ["a", "b", "c"]
    assert "loaded on demand, which counts as inference time: 45 MB of GPU_MEMORY_MB 34" in backend.details["engines"]


def test_engines_that_fit_are_loaded_once(gpu, open_models):
    backend = open_models({"mobilenet": plan(1), "resnet50": plan(2)})
    for model in ("mobilenet", "resnet50", "mobilenet"):
        backend.infer(model, random_image())
    assert gpu.deserialised == [1, 2]
    assert held(backend) == {"gpu_memory_bytes": 2 * (2 * MB + BUFFERS), "gpu_engines_loaded": 2}
    assert backend.details["engines"].startswith("all stay loaded")


@pytest.mark.parametrize(("size_mb", "activation_mb", "needed_mb"), [(25, 1, 25), (10, 15, 27)])
def test_an_engine_beyond_the_whole_budget_is_absent(size_mb, activation_mb, needed_mb, gpu, open_models):
    large = plan(2, size_bytes=size_mb * MB, activation_bytes=activation_mb * MB)
    backend = open_models({"mobilenet": plan(1), "vgg16": large}, GPU_MEMORY_MB="20")
    assert backend.models == ["mobilenet"]
    assert f"its engine takes {needed_mb} MB and GPU_MEMORY_MB is 20" in backend.absent["vgg16"]
    assert backend._pool.models == ["mobilenet"]


def test_where_the_gpu_has_less_memory_than_the_budget_others_are_unloaded_until_it_fits(gpu, open_models):
    gpu.memory_bytes = 25 * MB
    sizes = {"a": 4, "b": 4, "c": 4, "d": 16}
    plans = {name: plan(seed, size_bytes=sizes[name] * MB) for seed, name in enumerate("abcd")}
    backend = open_models(plans)
    assert backend.models == ["a", "b", "c", "d"]
    assert backend._pool.models == ["c", "d"]
    assert backend.infer("a", random_image()) == expected_top1(0, random_image())


def test_out_of_memory_with_nothing_left_to_unload_leaves_the_backend_usable(gpu, open_models):
    backend = open_models({"mobilenet": plan(1), "resnet50": plan(2)})
    backend._pool.close()
    gpu.out_of_memory = 1
    with pytest.raises(OutOfMemory, match="out of memory"):
        backend.infer("mobilenet", random_image())
    assert held(backend)["gpu_memory_bytes"] == gpu.used_bytes == 0
    assert backend.infer("mobilenet", random_image()) == expected_top1(1, random_image())


@pytest.mark.parametrize("failing", range(6))
def test_whichever_allocation_of_a_load_fails_what_was_taken_is_given_back(failing, gpu, open_models, monkeypatch):
    # Of an engine, in this order: weights, activations, and a buffer here and on the GPU for the input and for the output.
    backend = open_models({"mobilenet": plan(1), "resnet50": plan(2)})
    backend._pool.close()
    backend.infer("resnet50", random_image())
    taken = []
    take = gpu.take

    def limited(size_bytes):
        taken.append(size_bytes)
        refusals = 2 if failing in (3, 5) else 1  # mem_alloc tries twice
        return None if failing < len(taken) <= failing + refusals else take(size_bytes)

    if failing == 0:
        gpu.out_of_memory = 1
    else:
        monkeypatch.setattr(gpu, "take", limited)
    assert backend.infer("mobilenet", random_image()) == expected_top1(1, random_image())
    assert backend._pool.models == ["mobilenet"]
    assert held(backend)["gpu_memory_bytes"] == gpu.used_bytes


def test_buffers_that_do_not_fit_are_out_of_memory_too_and_others_make_room(gpu, open_models):
    # pycuda raises its own MemoryError for them. Two plans with their activations fit, their buffers do not.
    gpu.memory_bytes = 2 * 11 * MB + BUFFERS
    backend = open_models({name: plan(seed, size_bytes=10 * MB) for seed, name in enumerate("ab")})
    assert (backend.models, backend.absent) == (["a", "b"], {})
    assert backend._pool.models == ["b"]
    assert backend.infer("a", random_image()) == expected_top1(0, random_image())
    gpu.memory_bytes = 11 * MB
    backend._pool.close()
    with pytest.raises(OutOfMemory, match="loading b.engine: cuMem(Host)?Alloc failed: out of memory"):
        backend.infer("b", random_image())
    assert gpu.used_bytes == 0


def test_memory_that_was_short_while_the_first_model_loaded_does_not_cost_it_for_good(gpu, open_models):
    gpu.out_of_memory = 1
    backend = open_models({"mobilenet": plan(1), "resnet50": plan(2)})
    assert (backend.models, backend.absent) == (["mobilenet", "resnet50"], {})
    assert gpu.deserialised == [2, 1]


def test_a_model_that_never_finds_memory_is_absent_and_the_others_serve(gpu, open_models):
    gpu.memory_bytes = 10 * MB
    backend = open_models({"mobilenet": plan(1), "vgg16": plan(2, size_bytes=20 * MB)})
    assert backend.models == ["mobilenet"]
    assert "out of memory" in backend.absent["vgg16"]


def test_an_inference_that_runs_out_of_memory_is_tried_again_without_the_others(gpu, open_models):
    backend = open_models({"mobilenet": plan(1), "resnet50": plan(2)})
    gpu.refuse = "2: [convolutionRunner.cpp::enqueue] Error Code 2: OutOfMemory (no further information)"
    assert backend.infer("resnet50", random_image()) == expected_top1(2, random_image())
    assert backend._pool.models == ["resnet50"]


def test_an_engine_whose_file_changed_is_not_loaded_again(open_models, tmp_path):
    plans = {name: plan(seed, size_bytes=10 * MB) for seed, name in enumerate("ab")}
    backend = open_models(plans, GPU_MEMORY_MB="15")
    (tmp_path / "a.engine").write_bytes(plan(7, size_bytes=10 * MB + 1))
    with pytest.raises(UnusableModel, match="has changed"):
        backend.infer("a", random_image())


@pytest.mark.parametrize("text", ["0", "-1", "1 GB", "1.5"])
def test_a_budget_that_makes_no_sense_is_refused(text, model_files):
    with pytest.raises(InvalidVariable, match="GPU_MEMORY_MB"):
        open_backend(model_files({"mobilenet": plan(1)}), {"GPU_MEMORY_MB": text})


# What can go wrong with the device


def test_missing_libraries_are_named(install, model_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(AcceleratorGone, match="tensorrt.*runtimeClassName nvidia"):
        open_backend(model_files({"mobilenet": plan(1)}), {})


def test_no_gpu_is_said_and_tried_again(gpu, install, model_files):
    files = model_files({"mobilenet": plan(1)})
    gpu.device_count = 0
    with pytest.raises(AcceleratorGone, match="no CUDA-capable device"):
        open_backend(files, {})
    gpu.device_count = 1
    open_backend(files, {}).close()
    assert_all_given_back(gpu)


def test_a_refused_inference_fails_alone(version, gpu, install, open_models):
    install(version)
    backend = open_models({"mobilenet": plan(1, version)})
    gpu.refuse = "3: [executionContext.cpp::enqueue] Error Code 3: API Usage Error"
    with pytest.raises(UnusableModel, match="API Usage Error"):
        backend.infer("mobilenet", random_image())
    assert backend.infer("mobilenet", random_image()) == expected_top1(1, random_image())


@pytest.mark.parametrize(
    ("moment", "reason"), [("launch", "illegal memory access"), ("synchronize", "unspecified launch failure")]
)
def test_a_lost_context_is_told_from_a_failed_inference(moment, reason, version, gpu, install, open_models):
    install(version)
    backend = open_models({"mobilenet": plan(1, version), "resnet50": plan(2, version)})
    gpu.lose_at = moment
    with pytest.raises(AcceleratorGone, match=reason):
        backend.infer("mobilenet", random_image())


def test_a_context_lost_while_loading_releases_everything(gpu, install, model_files, monkeypatch):
    files = model_files({"mobilenet": plan(1), "resnet50": plan(2)})
    cuda = install()
    allocate = cuda.mem_alloc

    def lose(size_bytes):
        if len(gpu.deserialised) == 2:
            gpu.lost = "an illegal memory access was encountered"
        return allocate(size_bytes)

    monkeypatch.setattr(cuda, "mem_alloc", lose)
    with pytest.raises(AcceleratorGone, match="illegal memory access"):
        open_backend(files, {})
    assert_all_given_back(gpu)


# Under the queue of the shared application


def unexpected_end(status):
    raise AssertionError(f"the process would have ended with {status}")


@pytest.fixture
def served(gpu, install, model_files):
    """A function that serves plans through the queue; it is closed at the end."""
    accelerators = []

    def serve(plans, end_process=None, **environment):
        files = model_files(plans)

        def opener():
            return warmed_up(open_backend(files, environment, end_process or unexpected_end))

        accelerators.append(Accelerator(opener, queue_capacity=8, reopen_s=0.01))
        return opened(accelerators[-1])

    yield serve
    gpu.gate.set()
    for accelerator in accelerators:
        accelerator.close()


def test_one_thread_owns_the_gpu_from_opening_to_closing(version, gpu, install, served):
    install(version)
    accelerator = served({"mobilenet": plan(1, version), "resnet50": plan(2, version)})
    image = random_image()
    futures = [accelerator.submit(model, image, {}) for model in ("mobilenet", "resnet50") * 3]
    expected = [expected_top1(seed, image) for seed in (1, 2)] * 3
    assert [future.result(PATIENCE_S).top1 for future in futures] == expected
    accelerator.close()
    assert len(gpu.threads) == 1
    assert threading.get_ident() not in gpu.threads
    assert_all_given_back(gpu)


def test_the_time_of_an_inference_lasts_until_the_gpu_is_done(gpu, served):
    accelerator = served({"mobilenet": plan(1)})
    assert gpu.begun.acquire(timeout=PATIENCE_S)  # the first one, that warms up
    gpu.gate.clear()
    future = accelerator.submit("mobilenet", random_image(), {})
    assert gpu.begun.acquire(timeout=PATIENCE_S)
    assert not future.done()
    age_s = accelerator.oldest_inference_age_s()
    gpu.gate.set()
    assert future.result(PATIENCE_S).inference_time >= age_s


def test_a_lost_context_refuses_what_waits_and_ends_the_process(gpu, served):
    ended = threading.Event()
    statuses = []

    def end_process(status):
        statuses.append(status)
        ended.set()

    accelerator = served({"mobilenet": plan(1)}, end_process)
    gpu.lose_at = "synchronize"
    gpu.gate.clear()
    futures = [accelerator.submit("mobilenet", random_image(), {}) for _ in range(3)]
    gpu.gate.set()
    for future in futures:
        with pytest.raises(AcceleratorGone, match="unspecified launch failure"):
            future.result(PATIENCE_S)
    assert ended.wait(PATIENCE_S)
    assert statuses[0] == EXIT_CONTEXT_LOST
    assert "unspecified launch failure" in accelerator.health_problem()
    accelerator.close()
    assert_all_given_back(gpu)


def test_an_inference_that_hangs_ends_the_process(gpu, served):
    accelerator = served({"mobilenet": plan(1)})
    gpu.gate.clear()
    ended = threading.Event()
    statuses = []

    def end_process(status):
        statuses.append(status)
        ended.set()

    start_watchdog(accelerator, 0.05, 300.0, end_process)
    accelerator.submit("mobilenet", random_image(), {})
    assert ended.wait(PATIENCE_S)
    assert statuses == [70]


def test_a_request_whose_buffers_find_no_memory_may_come_again(gpu, served, run_app):
    plans = {name: plan(seed, size_bytes=10 * MB) for seed, name in enumerate("ab")}
    client = run_app(create_app("jetson1", served(plans, GPU_MEMORY_MB="15")))
    gpu.memory_bytes = 11 * MB + BUFFERS // 2
    refused = client.infer(random_image(), "a")  # b is loaded, a is not
    assert (refused.status, "out of memory" in refused.json["detail"]) == (503, True)
    assert refused.headers["Retry-After"]
    gpu.memory_bytes = 1024 * MB
    assert client.infer(random_image(), "a").json["top1"] == expected_top1(0, random_image())


def test_over_http(gpu, served, run_app, tmp_path):
    release = tmp_path / "nv_tegra_release"
    release.write_text(
        "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: Sat Feb 19 17:05:08 UTC 2022\n"
    )
    plans = {"mobilenet": plan(1), "resnet50": b"\0" * MB}
    accelerator = served(plans, L4T_RELEASE_FILE=str(release))
    client = run_app(create_app("jetson1", accelerator))
    health = client.get("/health").json
    assert (health["accelerator"], health["models"], list(health["absent"])) == ("jetson", ["mobilenet"], ["resnet50"])
    assert health["details"]["l4t"] == "R32.7.1 (JetPack 4.6.1)"
    assert health["details"]["tensorrt"] == "8.2.1.8"
    assert client.infer(random_image(), "mobilenet").json["top1"] == expected_top1(1, random_image())
    gpu.refuse = "2: Error Code 2: OutOfMemory (no further information)"
    refused = client.infer(random_image(), "mobilenet")
    assert refused.status == 503
    assert refused.headers["Retry-After"]
    gpu.refuse = "3: Error Code 3: API Usage Error"
    assert client.infer(random_image(), "mobilenet").status == 500
    assert client.infer(random_image(), "mobilenet").status == 200
    metrics = client.get("/metrics").text.splitlines()
    sample = next(line for line in metrics if line.startswith("gpu_memory_bytes "))
    assert float(sample.split()[1]) == 2 * MB + BUFFERS


# Linux for Tegra


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", "R32.7.1 (JetPack 4.6.1)"),
        ("# R32 (release), REVISION: 6.1, GCID: 27863751, BOARD: t210ref", "R32.6.1 (JetPack 4.6)"),
        ("# R32 (release), REVISION: 99.1, GCID: 1", "R32.99.1"),
        ("something else", "unknown: "),
    ],
)
def test_version_of_linux_for_tegra(text, version, tmp_path):
    path = tmp_path / "nv_tegra_release"
    path.write_text(text)
    found = l4t_version(path)
    assert found == version or (version == "unknown: " and found.startswith(version))


def test_a_missing_release_file_is_said(tmp_path):
    assert "No such file" in l4t_version(tmp_path / "nothing")


# The stand-in itself


def test_stand_in_has_pycudas_own_errors(install):
    cuda = install()
    for error in (cuda.MemoryError, cuda.LogicError, cuda.LaunchError, cuda.RuntimeError):
        assert error.__mro__ == (error, cuda.Error, Exception, BaseException, object)


@pytest.fixture
def session(gpu, install):
    """pycuda.driver with a context that is current here."""
    cuda = install()
    cuda.init()
    context = cuda.Device(0).make_context()
    yield cuda
    context.pop()
    context.detach()


def test_stand_in_wants_the_context_of_its_thread(gpu, session):
    failures = []

    def elsewhere():
        try:
            session.mem_alloc(16)
        except session.LogicError as error:
            failures.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failures == ["cuMemAlloc failed: invalid device context"]


def test_stand_in_copies_only_page_locked_memory_and_only_when_synchronised(session):
    stream = session.Stream()
    host, device = session.pagelocked_empty((4,), np.float32), session.mem_alloc(16)
    back = session.pagelocked_empty((4,), np.float32)
    with pytest.raises(session.LogicError, match="page-locked"):
        session.memcpy_htod_async(device, np.zeros(4, np.float32), stream)
    with pytest.raises(session.LogicError, match="invalid argument"):
        session.memcpy_htod_async(device, session.pagelocked_empty((5,), np.float32), stream)
    host[...] = range(4)
    session.memcpy_htod_async(device, host, stream)
    session.memcpy_dtoh_async(back, device, stream)
    assert list(back) != [0, 1, 2, 3]
    stream.synchronize()
    assert list(back) == [0, 1, 2, 3]


def test_stand_in_notices_a_wrong_order_of_releasing(gpu, install):
    cuda = install()
    cuda.init()
    context = cuda.Device(0).make_context()
    buffer = cuda.mem_alloc(16)
    context.pop()
    context.detach()
    buffer.free()
    found, gpu.violations = gpu.violations, []
    assert found == ["context destroyed while 1 allocations are in use", "device memory freed without a current context"]


def test_stand_in_notices_an_engine_released_before_its_context(gpu, session):
    log = tensorrt(gpu, session).ILogger()
    log.log = lambda severity, message: None
    engine = tensorrt(gpu, session).Runtime(log).deserialize_cuda_engine(plan(1))
    context = engine.create_execution_context()
    del engine
    del context
    found, gpu.violations = gpu.violations, []
    assert found == ["engine destroyed before its execution context"]
