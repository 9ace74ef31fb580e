"""Workers: that no backend changes a result, and what ends a sweep."""

import warnings
from dataclasses import replace

import pytest

from comparison.workers import Workers, require_backend
from terminal.options import StopSignal
from utils import HarnessError, UsageError

from .few_cells import cell, plan


def swept(jobs, backend, address=None):
    cells = plan(seeds=[3], bounds=False, ablation=False).cells()
    with Workers(jobs, backend, address, StopSignal()) as workers:
        return {one.key: result for one, result in workers.results(cells)}


@pytest.mark.parametrize(("jobs", "backend"), [(2, "loky"), (2, "threading")])
def test_results_are_the_same_on_every_backend_and_number_of_jobs(jobs, backend):
    assert swept(jobs, backend) == swept(1, "loky")


def test_results_are_the_same_on_a_running_dask_cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what distributed leaves open or deprecated is not ours
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            on_dask = swept(1, "dask", cluster.scheduler_address)
    assert on_dask == swept(1, "loky")


def test_dask_scheduler_that_cannot_be_reached_is_refused(monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(address, timeout):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(UsageError, match="--dask-scheduler: tcp://nowhere:1 cannot be reached"):
        Workers(1, "dask", "tcp://nowhere:1", StopSignal()).__enter__()


@pytest.mark.parametrize(("jobs", "backend"), [(1, "loky"), (2, "loky"), (2, "threading")])
def test_cell_that_fails_ends_the_sweep_with_a_line_that_names_it(jobs, backend):
    broken = replace(cell(load=0.2), code="of another time")
    cells = [cell(load=0.2), broken, *(cell(load=0.2, seed=seed) for seed in range(20, 26))]
    line = "cell earliest_completion, fifo, load 0.2, seed 7: the source code"
    with Workers(jobs, backend, None, StopSignal()) as workers, pytest.raises(HarnessError, match=line) as told:
        list(workers.results(cells))
    assert "\n" not in str(told.value)


def test_wish_to_stop_ends_the_wait_for_the_next_cell():
    stop = StopSignal()
    with Workers(1, "loky", None, stop) as workers:
        results = workers.results([cell(load=0.2, seed=seed) for seed in range(3)])
        next(results)
        stop._on_signal(2, None)
        with pytest.raises(KeyboardInterrupt):
            next(results)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loki", "did you mean loky"),
        ("multiprocessing", "only when all are there"),
        ("", "joblib knows no ''"),
    ],
)
def test_backend_that_cannot_be_used_is_refused(name, told):
    with pytest.raises(UsageError, match=told):
        require_backend(name)


@pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_backend_whose_package_is_missing_is_refused_with_what_to_install(monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"--backend {name}: the package {package} is missing; install it"):
        require_backend(name)
