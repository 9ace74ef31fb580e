"""Many cells at once, on the cores of this machine or wherever another backend of joblib takes them."""

import importlib
import importlib.util
import logging
import signal
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any, Self

import joblib

from comparison.cells import Cell, Result
from comparison.computation import Ended, run_cell
from terminal.options import StopSignal, interruptible, uninterruptible
from utils import HarnessError, UsageError, did_you_mean

_DASK_PATIENCE_S = 10
_PACKAGE_OF = {"dask": "distributed", "ray": "ray"}


class Workers:
    """Runs cells on the cores of this machine, or wherever another backend of joblib takes them.

    Args:
        jobs: how many cells are run at once; a cluster that runs already has its own number.
        backend: loky, threading, or another that joblib knows or that a package brings.
        dask_scheduler: address of a running Dask cluster; None: `dask` starts local workers.
        stop: the wish to stop, looked at while waiting for a cell.

    Raises:
        UsageError: there is no such backend, its package is not installed, or the Dask scheduler cannot be reached.
    """

    def __init__(self, jobs: int, backend: str, dask_scheduler: str | None, stop: StopSignal) -> None:
        require_backend(backend)
        self._jobs = jobs
        self._backend = backend
        self._dask_scheduler = dask_scheduler
        self._stop = stop
        self._parameters: dict[str, Any] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with _deaf_to_ctrl_c():
            if self._backend == "dask":
                self._parameters["client"] = self._dask_client()
            elif self._backend == "loky":
                self._opened.callback(lambda: joblib.externals.loky.get_reusable_executor().shutdown())
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def results(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Each cell with its result, as they are finished.

        Raises:
            HarnessError: a cell could not be run, or the workers are lost.
            StopRequested: the wish to stop came; cells that were running are lost.
        """
        by_key = {cell.key: cell for cell in cells}
        with ExitStack() as begun:
            with uninterruptible(self._stop):
                ended = self._begin(cells)
                begun.callback(_close, ended)
            while one := self._next(ended):
                if one.result is None:
                    raise HarnessError(one.error or "")
                yield by_key[one.key], one.result

    def _begin(self, cells: Sequence[Cell]) -> Generator[Ended, None, None]:
        with _deaf_to_ctrl_c(), joblib.parallel_config(backend=self._backend, n_jobs=self._jobs, **self._parameters):
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs", max_nbytes=None)
            ended: Generator[Ended, None, None] = parallel(joblib.delayed(run_cell)(cell) for cell in cells)
        return ended

    def _next(self, ended: Iterator[Ended]) -> Ended | None:
        try:
            with interruptible(self._stop):
                return next(ended, None)
        except Exception as error:  # a lost worker looks different on every backend; finished cells are kept whatever it was
            raise HarnessError(f"the workers of --backend {self._backend} are lost: {type(error).__name__}: {error}") from error

    def _dask_client(self) -> Any:
        distributed = importlib.import_module("distributed")
        logging.getLogger("distributed").setLevel(logging.ERROR)
        if self._dask_scheduler is None:
            local = distributed.LocalCluster(
                n_workers=self._jobs, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
            )
            self._opened.enter_context(local)
            return self._opened.enter_context(distributed.Client(local))
        try:
            client = self._opened.enter_context(distributed.Client(self._dask_scheduler, timeout=_DASK_PATIENCE_S))
            client.wait_for_workers(1, timeout=_DASK_PATIENCE_S)
        except (OSError, ValueError, TimeoutError) as error:
            self._opened.close()
            raise UsageError(f"--dask-scheduler: {self._dask_scheduler} cannot be reached, or has no worker: {error}") from None
        # A lambda travels as it is, without this module. Where comparison cannot be imported, joblib would wait for ever.
        found = {
            "the scheduler": client.run_on_scheduler(lambda: importlib.util.find_spec("comparison") is not None),
            **client.run(lambda: importlib.util.find_spec("comparison") is not None),
        }
        for place in (place for place, there in found.items() if not there):
            self._opened.close()
            raise UsageError(f"--dask-scheduler: {place} cannot import comparison: start it in the checkout, with PYTHONPATH=.")
        return client


def _close(ended: Generator[Ended, None, None]) -> None:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # joblib's, of cells that are given up
        ended.close()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Threads and processes started inside never see Ctrl-C: this process ends them without their tracebacks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # it unblocks the signal when it starts; from here on it runs
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_backend(name: str) -> None:
    """Refuse a backend that cannot be used.

    Raises:
        UsageError: it is unknown, with the nearest known one, its package is missing, or it hands results over only when all
            are there, so that an interrupted sweep would keep nothing.
    """
    known = list(dict.fromkeys([*joblib.parallel.BACKENDS, *joblib.parallel.EXTERNAL_BACKENDS, *_PACKAGE_OF]))
    if name not in known:
        raise UsageError(f"--backend: joblib knows no {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    package = _PACKAGE_OF.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise UsageError(f"--backend {name}: the package {package} is missing; install it with: python3 -m pip install {package}")
    if name == "ray":
        importlib.import_module("ray.util.joblib").register_ray()
    if name in joblib.parallel.BACKENDS and not joblib.parallel.BACKENDS[name].supports_return_generator:
        raise UsageError(
            f"--backend {name}: joblib gets results from it only when all are there; expected loky, threading or dask"
        )
