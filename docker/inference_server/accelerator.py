"""The queue in front of one accelerator: one inference at a time, first come first served.

`Backend` is what a device's server implements, `BaseAccelerator` what the HTTP application asks of an accelerator,
`Accelerator` the real one: a worker thread that owns a backend.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from typing import Callable, Deque, List, Mapping, NamedTuple, Optional

from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many requests wait as may wait; the client should try another node."""


class AcceleratorGone(Exception):
    """The device is lost, or the server is closing; the message says which."""


class InvalidRequest(ValueError):
    """The accelerator cannot take this request; the message says what was found and what was expected."""


class InferenceResult(NamedTuple):
    """What one inference gave.

    Attributes:
        start_time: when the inference began, Unix seconds, informative.
        end_time: when it ended, Unix seconds, informative.
        queue_time: seconds between receipt and begin, on a monotonic clock.
        inference_time: seconds between begin and end, on a monotonic clock.
        top1: index of the most likely class.
    """

    start_time: float
    end_time: float
    queue_time: float
    inference_time: float
    top1: int


class Backend(ABC):
    """One device with its models loaded. Made, used and closed by one and the same thread.

    Attributes:
        accelerator: the kind of device, such as "coral".
        models: names of the models that are really loaded.
    """

    accelerator: str
    models: List[str]

    @abstractmethod
    def infer(self, model: str, image: bytes) -> int:
        """Classify one image.

        Args:
            model: one of `models`.
            image: exactly 224 * 224 * 3 uint8, row by row, RGB.

        Returns:
            Index of the most likely class.

        Raises:
            AcceleratorGone: the device is lost.
        """

    def close(self) -> None:  # noqa: B027 -- not every device needs closing
        """Release the device."""


class BaseAccelerator(ABC):
    """What the HTTP application asks of an accelerator; every method returns at once.

    Attributes:
        accelerator: the kind of device, such as "coral".
        models: names of the models that can be asked for.
    """

    accelerator: str
    models: List[str]

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

    A lost device is closed and opened again every `reopen_s` until it is back; meanwhile requests are refused.

    Args:
        open_backend: makes the backend; called in the worker thread, because a CUDA context belongs to its thread.
        queue_capacity: how many requests may wait, besides the one that is computed.
        reopen_s: pause between two attempts to open a lost device, in seconds.

    Raises:
        ValueError: the capacity is not positive.
        Exception: whatever `open_backend` raised.
    """

    def __init__(self, open_backend: Callable[[], Backend], queue_capacity: int = 64, reopen_s: float = 5.0) -> None:
        if queue_capacity < 1:
            raise ValueError(f"queue_capacity must be at least 1, got {queue_capacity}")
        self._open_backend = open_backend
        self._capacity = queue_capacity
        self._reopen_s = reopen_s
        self._changed = threading.Condition()
        self._waiting: Deque[_Job] = deque()
        self._running_since_s: Optional[float] = None
        self._gone: Optional[str] = None
        self._closing = False
        opened: Future[None] = Future()
        self._worker = threading.Thread(target=self._work, args=(opened,), name="accelerator", daemon=True)
        self._worker.start()
        opened.result()

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
        since_s = self._running_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def health_problem(self) -> Optional[str]:
        """Why no inference can be served now, or None."""
        if self._closing:
            return "the server is shutting down"
        if self._gone is not None:
            return f"the accelerator is gone: {self._gone}"
        if not self._worker.is_alive():
            return "the accelerator thread has ended"
        return None

    def close(self, timeout_s: float = 20.0) -> None:
        """Take nothing more, finish what is queued, release the device; give up after `timeout_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join(timeout_s)
        if self._worker.is_alive():
            logger.warning("the accelerator did not finish within %.0f s, left as it is", timeout_s)

    def _work(self, opened: "Future[None]") -> None:
        try:
            backend: Optional[Backend] = self._opened()
        except Exception as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        while backend is not None:
            job = self._next_job()
            if job is None:
                backend.close()
                return
            try:
                self._compute(backend, job)
            except AcceleratorGone as gone:
                backend = self._replaced(backend, str(gone))

    def _opened(self) -> Backend:
        backend = self._open_backend()
        self.accelerator = backend.accelerator
        self.models = list(backend.models)
        return backend

    def _next_job(self) -> Optional[_Job]:
        """The next job whose client still waits; None when closing and nothing is left."""
        with self._changed:
            self._running_since_s = None
            while True:
                while not self._waiting:
                    if self._closing:
                        return None
                    self._changed.wait()
                job = self._waiting.popleft()
                if job.future.set_running_or_notify_cancel():
                    self._running_since_s = time.monotonic()
                    return job

    def _compute(self, backend: Backend, job: _Job) -> None:
        start_time = time.time()
        start_s = time.monotonic()
        try:
            top1 = backend.infer(job.model, job.image)
        except AcceleratorGone as gone:
            job.future.set_exception(gone)
            raise
        except Exception as error:  # the request fails, with a log entry by the application; the next one is tried
            job.future.set_exception(error)
            return
        inference_s = time.monotonic() - start_s
        job.future.set_result(
            InferenceResult(start_time, start_time + inference_s, start_s - job.received_s, inference_s, int(top1))
        )

    def _replaced(self, lost: Backend, reason: str) -> Optional[Backend]:
        """Refuse all that wait, then open the device until it is back; None if the server closes first."""
        logger.error("the accelerator is gone: %s", reason)
        with self._changed:
            self._running_since_s = None
            self._gone = reason
            refused, self._waiting = self._waiting, deque()
        for job in refused:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(AcceleratorGone(f"the accelerator is gone: {reason}"))
        try:
            lost.close()
        except Exception:
            logger.exception("closing the lost accelerator failed, going on")
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, self._reopen_s):
                    return None
            try:
                backend = self._opened()
            except Exception as error:
                logger.warning("the accelerator is still gone: %s", error)
                continue
            logger.warning("the accelerator is back")
            self._gone = None
            return backend
