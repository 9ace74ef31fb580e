"""An accelerator that computes nothing but when it would be done, and answers at that instant; served in the order of receipt.

The service time of a request is mean * exp(sigma * z - sigma^2 / 2), sigma^2 = ln(1 + cv^2): log-normal with the mean and the
coefficient of variation of the profile. z is a standard normal that the task owns and that the header X-Service-Noise brings,
so that every policy meets the same one. The request overhead varies in the same way with the header X-Overhead-Noise; without
that header it is the profile's. The class in the answer is synthetic: CRC-32 of the image modulo 1000.
"""

import math
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram

from emulated_inference_server.node_slice import NodeSlice
from emulated_inference_server.power import PowerCollector, PowerMeter
from emulated_inference_server.timeline import Slot, Timeline
from inference_server import AcceleratorGone, BaseAccelerator, InferenceResult, InvalidRequest

NOISE_HEADER = "X-Service-Noise"
OVERHEAD_NOISE_HEADER = "X-Overhead-Noise"
LARGEST_NOISE = 10.0
SPIN_S = 0.0003  # a sleep wakes up to about this much too late, so the last stretch is spun
LATENESS_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)


class _Answer(Future[InferenceResult]):
    """An answer to come that, as on a real accelerator, cannot be cancelled once its service has begun."""

    def __init__(self, withdraw: Callable[[], bool]) -> None:
        super().__init__()
        self._withdraw = withdraw

    def cancel(self) -> bool:
        """Withdraw the request; False if it is being served, or has been."""
        return self.cancelled() or (self._withdraw() and super().cancel())


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    slot: Slot
    top1: int
    future: "Future[InferenceResult]"


class EmulatedAccelerator(BaseAccelerator):
    """The accelerator of one emulated node.

    All is decided by arithmetic when a request is received; one thread then sleeps to the instant of each answer.

    Args:
        node: what the node is like.
        clock: monotonic seconds.
    """

    def __init__(self, node: NodeSlice, clock: Callable[[], float] = time.monotonic) -> None:
        self.accelerator = node.accelerator
        self.models = list(node.mean_ms)
        self.absent: dict[str, str] = {}
        self.details = {"emulated": "service times are drawn, no model is computed"}
        self._node = node
        self._clock = clock
        self._sigma = math.sqrt(math.log1p(node.cv**2))
        self._overhead_sigma = math.sqrt(math.log1p(node.overhead_cv**2))
        self._local_round_trip_ms = 0.0
        self._changed = threading.Condition(threading.Lock())
        self._jobs: deque[_Job] = deque()
        self._closing = False
        started_s = clock()
        self._timeline = Timeline(started_s, node.queue_capacity)
        second_s = started_s - time.time() % 1.0
        self._meter = PowerMeter(node.idle_w, node.busy_w, started_s, second_s, node.overhead_w)
        self._lateness = Histogram(
            "emulated_wake_lateness_seconds",
            "How late the thread woke for an answer.",
            buckets=LATENESS_BUCKETS_S,
            registry=None,
        )
        self._answerer = threading.Thread(target=self._answer_all, name="answers", daemon=True)
        self._answerer.start()

    def calibrate(self, local_round_trip_ms: float) -> float:
        """Say how much of the request overhead the local connection takes by itself.

        Args:
            local_round_trip_ms: the round trip between client and this server, in milliseconds.

        Returns:
            How long requests received from now on are held before the accelerator, and again after it, in milliseconds.

        Raises:
            ValueError: the time is negative or not finite.
        """
        if not math.isfinite(local_round_trip_ms) or local_round_trip_ms < 0:
            raise ValueError(f"expected milliseconds of at least 0, got {local_round_trip_ms:g}")
        self._local_round_trip_ms = local_round_trip_ms
        return self._hold_ms(self._node.request_overhead_ms)

    def submit(self, model: str, image: bytes, headers: Mapping[str, str]) -> "Future[InferenceResult]":
        """Plan one inference; see `BaseAccelerator.submit`."""
        received_s = self._clock()
        service_s = self._node.mean_ms[model] / 1000 * _lognormal(self._sigma, _noise(headers, NOISE_HEADER) or 0.0)
        overhead_ms, overhead_noise = self._node.request_overhead_ms, _noise(headers, OVERHEAD_NOISE_HEADER)
        if overhead_noise is not None:
            overhead_ms *= _lognormal(self._overhead_sigma, overhead_noise)
        top1 = zlib.crc32(image) % 1000
        with self._changed:
            if self._closing:
                raise AcceleratorGone("the server is shutting down")
            slot = self._timeline.reserve(received_s, service_s, self._hold_ms(overhead_ms) / 1000, overhead_ms / 2000)
            job = _Job(slot, top1, _Answer(lambda: self._withdraw(job)))
            self._jobs.append(job)
            if self._next_answer() is job:
                self._changed.notify()
        return job.future

    @property
    def queue_depth(self) -> int:
        """Requests received whose service has not begun."""
        with self._changed:
            return self._timeline.waiting(self._clock())

    def oldest_inference_age_s(self) -> float:
        """Seconds since the oldest inference that is not answered began; 0 if there is none."""
        with self._changed:
            return max(0.0, self._clock() - self._jobs[0].slot.start_s) if self._jobs else 0.0

    def health_problem(self) -> str | None:
        """Why no inference can be served now, or None."""
        if self._closing:
            return "the server is shutting down"
        return None if self._answerer.is_alive() else "the thread that answers has ended"

    def energy_j(self) -> float:
        """Energy the node has used since its start, in joules, exactly."""
        with self._changed:
            return self._meter.energy_j(self._clock(), self._timeline)

    def power_w(self) -> float:
        """Mean power of the node over the last whole second of its clock, in watts."""
        with self._changed:
            return self._meter.power_w(self._clock(), self._timeline)

    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Add energy, power and the lateness of answers."""
        registry.register(self._lateness)
        registry.register(PowerCollector(self._node.node, self.accelerator, self.energy_j, self.power_w))

    def close(self) -> None:
        """Take nothing more and answer what is planned, each at its instant."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._answerer.join()

    def _hold_ms(self, overhead_ms: float) -> float:
        """How long a request with this overhead is held before the accelerator, and again after it."""
        return max(0.0, overhead_ms - self._local_round_trip_ms) / 2

    def _next_answer(self) -> _Job:
        return min(self._jobs, key=lambda job: job.slot.answer_s)

    def _withdraw(self, job: _Job) -> bool:
        """The client went away: free its slot, if its service has not begun; whether that was so."""
        with self._changed:
            if not self._timeline.withdraw(job.slot, self._clock()):
                return False
            self._jobs = deque(other for other in self._jobs if other is not job)
            self._changed.notify()
            return True

    def _answer_all(self) -> None:
        while (job := self._next_due()) is not None:
            answer_s = job.slot.answer_s
            while (now_s := self._clock()) < answer_s:
                time.sleep(0)  # lets the event loop run
            self._lateness.observe(now_s - answer_s)
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(self._result(job))

    def _next_due(self) -> _Job | None:
        """Sleep until just before the next answer; None when closing and nothing is left."""
        with self._changed:
            while True:
                if not self._jobs:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                job = self._next_answer()
                remaining_s = job.slot.answer_s - self._clock()
                if remaining_s <= SPIN_S:
                    self._jobs.remove(job)
                    return job
                self._changed.wait(remaining_s - SPIN_S)

    def _result(self, job: _Job) -> InferenceResult:
        slot = job.slot
        unix_s = time.time() - self._clock()
        return InferenceResult(
            start_time=unix_s + slot.start_s,
            end_time=unix_s + slot.end_s,
            queue_time=slot.start_s - slot.ready_s,
            inference_time=slot.service_s,
            top1=job.top1,
        )


def _lognormal(sigma: float, noise: float) -> float:
    return math.exp(sigma * noise - sigma**2 / 2)


def _noise(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name.lower())
    if text is None:
        return None
    try:
        noise = float(text)
    except ValueError:
        noise = math.nan
    if not abs(noise) <= LARGEST_NOISE:
        raise InvalidRequest(f"{name}: expected a number from -10 to 10, got {ascii(text[:80])}")
    return noise
