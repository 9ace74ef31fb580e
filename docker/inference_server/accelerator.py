"""The queue in front of one accelerator: one inference at a time, first come first served.

`BaseAccelerator` is what the HTTP application asks of an accelerator, `Accelerator` the real one: a worker thread that owns a
`Backend`.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Callable, Deque, Dict, Iterator, List, Mapping, NamedTuple, Optional

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from inference_server.backend import AcceleratorGone, Backend, Gauge, QueueFull, described
from inference_server.watchdog import ended_after

logger = logging.getLogger(__name__)

GAUGES_EVERY_S = 1.0


class InferenceResult(NamedTuple):
    """What one inference gave.

    Attributes:
        start_time: when the inference began, Unix seconds, informative.
        end_time: when it ended, Unix seconds, informative.
        queue_time: seconds between receipt and begin, on a monotonic clock.
        inference_time: seconds between begin and end, on a monotonic clock.
        top1: index of the most likely class.
        model_switched: the inference before was of another model; None where that makes no difference.
    """

    start_time: float
    end_time: float
    queue_time: float
    inference_time: float
    top1: int
    model_switched: Optional[bool] = None


class BaseAccelerator(ABC):
    """What the HTTP application asks of an accelerator; every method returns at once.

    Attributes:
        accelerator: the kind of device, such as "coral".
        models: names of the models that can be asked for.
        absent: why each of the other models is not served, by its name.
        details: what else `/health` says of the device, such as versions.
    """

    accelerator: str
    models: List[str]
    absent: Dict[str, str]
    details: Dict[str, str]

    @abstractmethod
    def submit(self, model: str, image: bytes, headers: Mapping[str, str]) -> "Future[InferenceResult]":
        """Queue one inference.

        Args:
            model: one of `models`.
            image: exactly 224 * 224 * 3 uint8.
            headers: the headers of the request, looked up in lower case.

        Returns:
            A future of the result. Cancelled before the inference began, the inference does not take place.

        Raises:
            QueueFull: no further request may wait.
            AcceleratorGone: the device is lost.
            InvalidRequest: a header does not make sense.
        """

    @property
    @abstractmethod
    def queue_depth(self) -> int:
        """Requests that wait, without the one that is computed."""

    @abstractmethod
    def oldest_inference_age_s(self) -> float:
        """Seconds since the inference that runs now began; 0 if none runs."""

    def upkeep_age_s(self) -> float:
        """Seconds since the device began to be opened, closed or asked for its gauges; 0 if none goes on."""
        return 0.0

    def defect(self) -> Optional[str]:
        """Why no inference will ever be served again, so that the process had better end; or None."""
        return None

    @abstractmethod
    def health_problem(self) -> Optional[str]:
        """Why no inference can be served now, or None."""

    @abstractmethod
    def close(self) -> None:
        """Take nothing more, finish what is queued, release the device. May be called twice."""

    def register_metrics(self, registry: CollectorRegistry) -> None:  # noqa: B027 -- most have none
        """Add this accelerator's own metrics to those of the server."""


class _Job(NamedTuple):
    model: str
    image: bytes
    received_s: float
    future: "Future[InferenceResult]"


class Accelerator(BaseAccelerator):
    """A worker thread that owns a backend, and the bounded queue before it.

    The thread opens the device. A device that cannot be opened, or is lost, is tried again every `reopen_s` until it is
    there; meanwhile requests are refused and `health_problem` says why.

    Args:
        open_backend: makes the backend; called in the worker thread, because a CUDA context belongs to its thread.
        queue_capacity: how many requests may wait, besides the one that is computed.
        reopen_s: pause between two attempts to open the device, in seconds.
        inference_timeout_s: an inference that takes longer, in seconds, ends the process (`watchdog.ended_after`); None: never.
        open_timeout_s: the same for opening the device with its models, closing it and asking for its gauges.

    Attributes:
        opened: set when the device was opened for the first time.

    Raises:
        ValueError: the capacity is not positive.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        queue_capacity: int = 64,
        reopen_s: float = 5.0,
        inference_timeout_s: Optional[float] = None,
        open_timeout_s: Optional[float] = None,
    ) -> None:
        if queue_capacity < 1:
            raise ValueError(f"queue_capacity must be at least 1, got {queue_capacity}")
        self.accelerator = ""
        self.models = []
        self.absent = {}
        self.details = {}
        self.opened = threading.Event()
        self._open_backend = open_backend
        self._capacity = queue_capacity
        self._reopen_s = reopen_s
        self._inference_timeout_s = inference_timeout_s
        self._open_timeout_s = open_timeout_s
        self._changed = threading.Condition()
        self._waiting: Deque[_Job] = deque()
        self._running_since_s: Optional[float] = None
        self._upkeep_since_s: Optional[float] = None
        self._problem: Optional[str] = "the accelerator is being opened"
        self._closing = False
        self._last_model: Optional[str] = None
        self._gauges: List[Gauge] = []
        self._gauges_due_s = 0.0
        self._worker = threading.Thread(target=self._work, name="accelerator", daemon=True)
        self._worker.start()

    def submit(self, model: str, image: bytes, headers: Mapping[str, str]) -> "Future[InferenceResult]":
        """Queue one inference; see `BaseAccelerator.submit`. Headers are ignored."""
        job = _Job(model, image, time.monotonic(), Future())
        with self._changed:
            problem = self.health_problem()
            if problem is not None:
                raise AcceleratorGone(problem)
            may_stand = self._capacity + (1 if self._running_since_s is None else 0)
            if len(self._waiting) >= may_stand:
                self._waiting = deque(other for other in self._waiting if not other.future.cancelled())
            if len(self._waiting) >= may_stand:
                raise QueueFull(f"{self._capacity} requests are waiting already")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    @property
    def queue_depth(self) -> int:
        """Requests that wait, without the one that is computed and without those whose client went away."""
        with self._changed:
            return sum(not job.future.cancelled() for job in self._waiting)

    def oldest_inference_age_s(self) -> float:
        """Seconds since the inference that runs now began; 0 if none runs."""
        return _age_s(self._running_since_s)

    def upkeep_age_s(self) -> float:
        """Seconds since the device began to be opened, closed or asked for its gauges; 0 if none goes on."""
        return _age_s(self._upkeep_since_s)

    def defect(self) -> Optional[str]:
        """Whether the worker thread has ended though nobody closed the server."""
        return None if self._closing or self._worker.is_alive() else "the accelerator thread has ended"

    def health_problem(self) -> Optional[str]:
        """Why no inference can be served now, or None."""
        return "the server is shutting down" if self._closing else self.defect() or self._problem

    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Add what the device reports of itself."""
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What the device last reported of itself, for the registry; nothing while it is gone."""
        for gauge in self._gauges:
            yield GaugeMetricFamily(gauge.name, gauge.documentation, value=gauge.value)

    def close(self, timeout_s: float = 20.0) -> None:
        """Take nothing more, finish what is queued, release the device; give up after `timeout_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join(timeout_s)
        if self._worker.is_alive():
            logger.warning("the accelerator did not finish within %.0f s, left as it is", timeout_s)

    def _work(self) -> None:
        """Life of the worker thread."""
        while True:
            backend = self._until_opened()
            if backend is None:
                return
            reason = self._serve(backend)
            if reason is not None:
                self._refuse(reason)
            self._close_backend(backend)
            if reason is None:
                return
            self._pause()

    def _until_opened(self) -> Optional[Backend]:
        """The backend, however long it takes; None if the server closes first."""
        lost = self._problem if self.opened.is_set() else None
        while not self._closing:
            try:
                with self._upkeep():
                    backend = self._open_backend()
            except Exception as error:  # whatever it is, the server goes on saying so
                why = described(error)
                reason = f"{lost}; opening it again failed: {why}" if lost else f"the accelerator cannot be opened: {why}"
                if reason != self._problem:
                    logger.error("%s", reason, exc_info=not isinstance(error, AcceleratorGone))
                self._problem = reason
            else:
                self._publish(backend)
                return backend
            self._pause()
        return None

    def _pause(self) -> None:
        """Leave the device alone for a while, unless the server closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._reopen_s)

    def _publish(self, backend: Backend) -> None:
        self.accelerator = backend.accelerator
        self.models, self.absent, self.details = list(backend.models), dict(backend.absent), dict(backend.details)
        self._last_model = backend.last_model
        self._problem = None
        logger.info("accelerator ready", extra=dict(self.details, models=self.models, absent=sorted(self.absent)))
        self.opened.set()

    def _serve(self, backend: Backend) -> Optional[str]:
        """Compute what comes; the reason why the device is lost, or None when closing and nothing is left."""
        while True:
            job = self._next_job(backend)
            if job is None:
                return None
            try:
                with ended_after(self._inference_timeout_s):
                    self._compute(backend, job)
            except AcceleratorGone as gone:
                return str(gone)

    def _next_job(self, backend: Backend) -> Optional[_Job]:
        """The next job whose client still waits; None when closing and nothing is left."""
        self._running_since_s = None
        while True:
            if time.monotonic() >= self._gauges_due_s:
                self._read_gauges(backend)
            with self._changed:
                while self._waiting:
                    job = self._waiting.popleft()
                    if job.future.set_running_or_notify_cancel():
                        self._running_since_s = time.monotonic()
                        return job
                if self._closing:
                    return None
                self._changed.wait(max(0.0, self._gauges_due_s - time.monotonic()))

    def _read_gauges(self, backend: Backend) -> None:
        try:
            with self._upkeep():
                self._gauges = backend.gauges()
        except Exception:  # a failed reading must not cost an inference; the values go away instead of freezing
            logger.exception("reading the device's gauges failed")
            self._gauges = []
        self._gauges_due_s = time.monotonic() + GAUGES_EVERY_S

    def _compute(self, backend: Backend, job: _Job) -> None:
        switched, self._last_model = self._last_model not in (None, job.model), job.model
        start_time = time.time()
        start_s = time.monotonic()
        try:
            top1 = int(backend.infer(job.model, job.image))
        except AcceleratorGone as gone:
            job.future.set_exception(gone)
            raise
        except Exception as error:  # the request fails, with a log entry by the application; the next one is tried
            job.future.set_exception(error)
            return
        inference_s = time.monotonic() - start_s
        job.future.set_result(
            InferenceResult(start_time, start_time + inference_s, start_s - job.received_s, inference_s, top1, switched)
        )

    def _refuse(self, reason: str) -> None:
        """The device is lost: refuse all that wait."""
        logger.error("the accelerator is gone: %s", reason)
        with self._changed:
            self._running_since_s = None
            self._gauges = []
            self._problem = f"the accelerator is gone: {reason}"
            refused, self._waiting = self._waiting, deque()
        for job in refused:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(AcceleratorGone(f"the accelerator is gone: {reason}"))

    def _close_backend(self, backend: Backend) -> None:
        try:
            with self._upkeep():
                backend.close()
        except Exception:  # there is nothing else to do with it
            logger.exception("closing the accelerator failed, going on")

    @contextmanager
    def _upkeep(self) -> Iterator[None]:
        self._upkeep_since_s = time.monotonic()
        try:
            with ended_after(self._open_timeout_s):
                yield
        finally:
            self._upkeep_since_s = None


def _age_s(since_s: Optional[float]) -> float:
    return 0.0 if since_s is None else time.monotonic() - since_s
