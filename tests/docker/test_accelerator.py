"""The queue in front of an accelerator. Valid Python 3.6."""

import threading
import time
from concurrent.futures import CancelledError
from typing import List

import pytest
from prometheus_client import CollectorRegistry

from inference_server import Accelerator, AcceleratorGone, Gauge, QueueFull, warmed_up
from inference_server.watchdog import start_watchdog
from tests.docker.servers import PATIENCE_S, FakeBackend, opened


def wait_until(holds):
    """Give way to other threads until something holds."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def accelerator(backend):
    accelerator = opened(Accelerator(lambda: backend, queue_capacity=2))
    yield accelerator
    backend.gate.set()
    accelerator.close()


def test_computes_in_the_order_of_submission_one_at_a_time(accelerator, backend):
    backend.gate.clear()
    futures = [accelerator.submit("resnet50", bytes([1]), {})]
    assert backend.begun.acquire(timeout=PATIENCE_S)
    futures += [accelerator.submit("mobilenet", bytes([n]), {}) for n in (2, 3)]
    assert backend.calls == [("resnet50", 1)]
    backend.gate.set()
    assert [future.result(PATIENCE_S).top1 for future in futures] == [1, 2, 3]
    assert backend.calls == [("resnet50", 1), ("mobilenet", 2), ("mobilenet", 3)]


def test_times_are_causal(accelerator):
    before = time.time()
    result = accelerator.submit("resnet50", b"\1", {}).result(PATIENCE_S)
    assert before <= result.start_time <= result.end_time
    assert result.queue_time >= 0
    assert result.inference_time >= 0
    assert result.end_time - result.start_time == pytest.approx(result.inference_time, abs=1e-5)


def test_waiting_counts_as_queue_time_and_not_as_inference(accelerator, backend):
    backend.gate.clear()
    accelerator.submit("resnet50", b"\1", {})
    waiting = accelerator.submit("resnet50", b"\2", {})
    submitted_s = time.monotonic()
    assert backend.begun.acquire(timeout=PATIENCE_S)
    opened_s = time.monotonic()
    backend.gate.set()
    result = waiting.result(PATIENCE_S)
    assert result.queue_time >= opened_s - submitted_s
    assert result.inference_time <= time.monotonic() - opened_s


def test_as_many_wait_as_may_wait_besides_the_one_computed(accelerator, backend):
    backend.gate.clear()
    for _ in range(3):
        accelerator.submit("resnet50", b"\1", {})
    with pytest.raises(QueueFull, match="2 requests"):
        accelerator.submit("resnet50", b"\1", {})
    assert backend.begun.acquire(timeout=PATIENCE_S)
    assert accelerator.queue_depth == 2


def test_what_is_cancelled_before_it_began_is_not_computed_and_leaves_its_place(accelerator, backend):
    backend.gate.clear()
    accelerator.submit("resnet50", bytes([1]), {})
    assert backend.begun.acquire(timeout=PATIENCE_S)
    cancelled, _ = (accelerator.submit("resnet50", bytes([n]), {}) for n in (2, 3))
    assert cancelled.cancel()
    assert accelerator.queue_depth == 1
    last = accelerator.submit("resnet50", bytes([4]), {})
    backend.gate.set()
    assert last.result(PATIENCE_S).top1 == 4
    assert [first_byte for _, first_byte in backend.calls] == [1, 3, 4]
    with pytest.raises(CancelledError):
        cancelled.result()


def test_age_of_the_inference_that_runs(accelerator, backend):
    assert accelerator.oldest_inference_age_s() == 0
    backend.gate.clear()
    future = accelerator.submit("resnet50", b"\1", {})
    assert backend.begun.acquire(timeout=PATIENCE_S)
    younger = accelerator.oldest_inference_age_s()
    assert 0 < younger < accelerator.oldest_inference_age_s()
    backend.gate.set()
    future.result(PATIENCE_S)
    accelerator.close()
    assert accelerator.oldest_inference_age_s() == 0


def test_failed_inference_fails_its_request_only(accelerator, backend):
    backend.failure = RuntimeError("bad tensor")
    with pytest.raises(RuntimeError, match="bad tensor"):
        accelerator.submit("resnet50", b"\1", {}).result(PATIENCE_S)
    assert accelerator.submit("resnet50", b"\2", {}).result(PATIENCE_S).top1 == 2
    assert accelerator.health_problem() is None


def test_close_finishes_what_is_queued_and_takes_nothing_more(accelerator, backend):
    backend.gate.clear()
    futures = [accelerator.submit("resnet50", bytes([n]), {}) for n in (1, 2)]
    closing = threading.Thread(target=accelerator.close)
    closing.start()
    backend.gate.set()
    closing.join(PATIENCE_S)
    assert [future.result(0).top1 for future in futures] == [1, 2]
    with pytest.raises(AcceleratorGone, match="shutting down"):
        accelerator.submit("resnet50", b"\1", {})


def test_backend_is_made_and_closed_by_the_thread_that_uses_it():
    made = []

    def make():
        made.append(FakeBackend())
        return made[0]

    opened(Accelerator(make)).close()
    assert made[0].made_in is made[0].closed_in is not threading.current_thread()


def test_device_that_cannot_be_opened_says_why_until_it_is_there():
    may_return = threading.Event()
    attempts: List[None] = []

    def make():
        attempts.append(None)
        if len(attempts) < 3:
            raise OSError(f"no device {len(attempts)}")
        assert may_return.wait(PATIENCE_S)
        return FakeBackend()

    accelerator = Accelerator(make, reopen_s=0.0)
    wait_until(lambda: len(attempts) == 3)
    assert accelerator.health_problem() == "the accelerator cannot be opened: OSError: no device 2"
    assert accelerator.upkeep_age_s() > 0
    with pytest.raises(AcceleratorGone, match="no device"):
        accelerator.submit("resnet50", b"\1", {})
    may_return.set()
    assert opened(accelerator).health_problem() is None
    assert accelerator.submit("resnet50", b"\1", {}).result(PATIENCE_S).top1 == 1
    accelerator.close()


def test_closing_before_the_device_is_there_ends_the_worker():
    def make():
        raise OSError("no device")

    accelerator = Accelerator(make, reopen_s=3600.0)
    wait_until(lambda: "no device" in (accelerator.health_problem() or ""))
    accelerator.close()
    assert not accelerator._worker.is_alive()


def test_what_the_device_says_of_itself(accelerator):
    assert accelerator.accelerator == "fake"
    assert accelerator.models == ["resnet50", "mobilenet"]
    assert accelerator.absent == {"vgg16": "no file for this device"}
    assert accelerator.details == {"driver": "1.2.3"}


def test_a_change_of_model_is_told(accelerator):
    models = ["resnet50", "resnet50", "mobilenet", "resnet50"]
    results = [accelerator.submit(model, b"\1", {}).result(PATIENCE_S) for model in models]
    assert [result.model_switched for result in results] == [False, False, True, True]


def test_gauges_follow_the_device_and_go_away_with_it():
    class Metered(FakeBackend):
        broken = False

        def gauges(self):
            self.asked_in = threading.current_thread()
            if self.broken:
                raise OSError("no reading")
            return [Gauge("fake_power_watts", "Power of the chip.", 2.5)]

    backends = [Metered()]
    may_return = threading.Event()

    def make():
        if backends:
            return backends.pop()
        assert may_return.wait(PATIENCE_S)
        return Metered()

    device = backends[0]
    accelerator = opened(Accelerator(make, reopen_s=0.0))
    registry = CollectorRegistry()
    accelerator.register_metrics(registry)
    wait_until(lambda: registry.get_sample_value("fake_power_watts") == 2.5)
    device.broken = True
    wait_until(lambda: registry.get_sample_value("fake_power_watts") is None)
    device.broken = False
    wait_until(lambda: registry.get_sample_value("fake_power_watts") == 2.5)
    assert device.asked_in is accelerator._worker
    device.failure = AcceleratorGone("unplugged")
    with pytest.raises(AcceleratorGone):
        accelerator.submit("resnet50", b"\1", {}).result(PATIENCE_S)
    wait_until(lambda: registry.get_sample_value("fake_power_watts") is None)
    may_return.set()
    accelerator.close()


def test_the_warm_up_is_an_inference_before(backend):
    accelerator = opened(Accelerator(lambda: warmed_up(backend)))
    results = [accelerator.submit(model, b"\1", {}).result(PATIENCE_S) for model in ("mobilenet", "resnet50")]
    assert [result.model_switched for result in results] == [False, True]  # mobilenet was warmed up last
    accelerator.close()


def test_class_that_is_no_number_fails_its_request_only(accelerator, backend):
    backend.infer = lambda model, image: float("nan") if image[0] else 0
    with pytest.raises(ValueError, match="NaN"):
        accelerator.submit("resnet50", b"\1", {}).result(PATIENCE_S)
    assert accelerator.submit("resnet50", b"\0", {}).result(PATIENCE_S).top1 == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_watchdog_ends_a_process_whose_accelerator_thread_has_ended(accelerator, backend, monkeypatch, caplog):
    ended, statuses = threading.Event(), []

    def end_process(status):
        statuses.append(status)
        ended.set()

    def broken(*arguments):
        raise SystemExit

    start_watchdog(accelerator, 3600.0, 3600.0, end_process)
    monkeypatch.setattr(backend, "infer", broken)
    accelerator.submit("resnet50", b"\1", {})
    assert ended.wait(PATIENCE_S)
    assert (statuses, accelerator.health_problem()) == ([70], "the accelerator thread has ended")
    assert "thread has ended: the process ends" in caplog.text


def test_warm_up_leaves_out_the_models_that_fail():
    class OneBroken(FakeBackend):
        def infer(self, model, image):
            if model == "resnet50":
                raise RuntimeError("bad tensor")
            return super().infer(model, image)

    backend = OneBroken()
    assert warmed_up(backend) is backend
    assert backend.models == ["mobilenet"]
    assert backend.absent["resnet50"] == "its first inference failed: RuntimeError: bad tensor"
    assert backend.calls == [("mobilenet", 0)]
    assert backend.closed_in is None


@pytest.mark.parametrize("failure", [RuntimeError("bad tensor"), AcceleratorGone("unplugged")])
def test_warm_up_that_leaves_no_model_closes_the_device(failure):
    class Broken(FakeBackend):
        def infer(self, model, image):
            raise failure

    backend = Broken()
    with pytest.raises(AcceleratorGone, match=str(failure)):
        warmed_up(backend)
    assert backend.closed_in is threading.current_thread()


@pytest.mark.parametrize("hangs_in", ["inference", "opening"])
def test_watchdog_ends_the_process_when_the_device_hangs(hangs_in, caplog):
    backend, may_open = FakeBackend(), threading.Event()

    def make():
        assert may_open.wait(PATIENCE_S)
        return backend

    def end_process(status):
        statuses.append(status)
        ended.set()

    accelerator, ended = Accelerator(make), threading.Event()
    statuses: List[int] = []
    if hangs_in == "inference":
        may_open.set()
        opened(accelerator)
        backend.gate.clear()
        accelerator.submit("resnet50", b"\1", {})
        assert backend.begun.acquire(timeout=PATIENCE_S)
    limits = (0.0, 3600.0) if hangs_in == "inference" else (3600.0, 0.0)
    start_watchdog(accelerator, *limits, end_process=end_process)
    assert ended.wait(PATIENCE_S)
    assert statuses == [70]
    assert hangs_in in caplog.text
    backend.gate.set()
    may_open.set()
    accelerator.close()


def test_lost_device_refuses_all_that_wait_and_comes_back():
    lost, regained = FakeBackend(), FakeBackend()
    may_return, attempts = threading.Event(), []

    def make():
        attempts.append(threading.current_thread())
        if len(attempts) == 1:
            return lost
        if len(attempts) == 2:
            raise OSError("still unplugged")
        assert may_return.wait(PATIENCE_S)
        return regained

    accelerator = opened(Accelerator(make, reopen_s=0.0))
    lost.gate.clear()
    lost.failure = AcceleratorGone("unplugged")
    running = accelerator.submit("resnet50", b"\1", {})
    waiting = accelerator.submit("resnet50", b"\2", {})
    lost.gate.set()
    for future in (running, waiting):
        with pytest.raises(AcceleratorGone, match="unplugged"):
            future.result(PATIENCE_S)
    reason = "the accelerator is gone: unplugged; opening it again failed: OSError: still unplugged"
    wait_until(lambda: accelerator.health_problem() == reason)
    with pytest.raises(AcceleratorGone, match="unplugged"):
        accelerator.submit("resnet50", b"\3", {})
    may_return.set()
    wait_until(lambda: accelerator.health_problem() is None)
    assert accelerator.submit("resnet50", b"\4", {}).result(PATIENCE_S).top1 == 4
    accelerator.close()
    assert len(attempts) == 3
    assert {lost.closed_in, regained.closed_in} == set(attempts)


def test_capacity_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="queue_capacity"):
        Accelerator(FakeBackend, queue_capacity=0)
