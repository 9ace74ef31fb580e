"""The queue in front of an accelerator. Valid Python 3.6."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from inference_server import Accelerator, AcceleratorGone, QueueFull
from tests.docker.servers import PATIENCE_S, FakeBackend


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def accelerator(backend):
    accelerator = Accelerator(lambda: backend, queue_capacity=2)
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

    Accelerator(make).close()
    assert made[0].made_in is made[0].closed_in is not threading.current_thread()


def test_backend_that_cannot_be_made_is_an_error_at_once():
    def make():
        raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        Accelerator(make)


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

    accelerator = Accelerator(make, reopen_s=0.0)
    lost.gate.clear()
    lost.failure = AcceleratorGone("unplugged")
    running = accelerator.submit("resnet50", b"\1", {})
    waiting = accelerator.submit("resnet50", b"\2", {})
    lost.gate.set()
    for future in (running, waiting):
        with pytest.raises(AcceleratorGone, match="unplugged"):
            future.result(PATIENCE_S)
    assert "unplugged" in (accelerator.health_problem() or "")
    with pytest.raises(AcceleratorGone, match="unplugged"):
        accelerator.submit("resnet50", b"\3", {})
    may_return.set()
    deadline = time.monotonic() + PATIENCE_S
    while accelerator.health_problem() is not None:
        assert time.monotonic() < deadline
    assert accelerator.submit("resnet50", b"\4", {}).result(PATIENCE_S).top1 == 4
    accelerator.close()
    assert len(attempts) == 3
    assert {lost.closed_in, regained.closed_in} == set(attempts)


def test_capacity_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="queue_capacity"):
        Accelerator(FakeBackend, queue_capacity=0)
