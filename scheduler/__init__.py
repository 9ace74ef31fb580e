"""Scheduling policies, by the names used on the command line, and the way to a policy of one's own."""

import importlib
import sys
from pathlib import Path

import numpy as np

from scheduler.base_scheduler import BaseScheduler, Node, Task
from scheduler.baseline_schedulers import (
    EarliestCompletionScheduler,
    FastestNodeScheduler,
    LowestPowerScheduler,
    MinimumEnergyScheduler,
    RandomScheduler,
    RoundRobinScheduler,
    ShortestQueueScheduler,
)
from scheduler.power_aware_topsis_scheduler import PowerAwareTopsisScheduler
from scheduler.topsis_scheduler import TopsisScheduler
from settings import Settings
from utils import StopRequested, UsageError, did_you_mean, text_of

__all__ = ["SCHEDULERS", "BaseScheduler", "Node", "Task", "create_scheduler"]

SCHEDULERS: dict[str, type[BaseScheduler]] = {
    "topsis": TopsisScheduler,
    "power_aware_topsis": PowerAwareTopsisScheduler,
    "random": RandomScheduler,
    "round_robin": RoundRobinScheduler,
    "shortest_queue": ShortestQueueScheduler,
    "fastest_node": FastestNodeScheduler,
    "lowest_power": LowestPowerScheduler,
    "earliest_completion": EarliestCompletionScheduler,
    "minimum_energy": MinimumEnergyScheduler,
}


def create_scheduler(name: str, settings: Settings, rng: np.random.Generator) -> BaseScheduler:
    """The policy called `name`, or the user's class at `package.module:Class`, looked up from the current folder too.

    Raises:
        UsageError: no such policy, module or class, the class is no BaseScheduler, or it cannot be made.
    """
    settings = settings.model_copy(deep=True)  # what a policy writes there stays with the policy
    if ":" not in name:
        if name not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            nearest = did_you_mean(name, SCHEDULERS)
            raise UsageError(f"--scheduler: no policy {name!r}{nearest}; known: {known}, or your own as package.module:Class")
        return SCHEDULERS[name](settings, rng)
    policy = _own_class(name)
    try:
        return policy(settings, rng)
    except StopRequested:
        raise
    except BaseException as error:  # the user's code may raise anything; it becomes one line that names the class
        raise UsageError(f"--scheduler: {name} cannot be made: {type(error).__name__}: {text_of(error)}") from error


def _own_class(path: str) -> type[BaseScheduler]:
    module_name, _, class_name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except StopRequested:
        raise
    except BaseException as error:  # as above: importing runs the user's code
        cause = f"{type(error).__name__}: {text_of(error)}"
        raise UsageError(f"--scheduler: module {module_name!r} cannot be imported: {cause}") from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, BaseScheduler)]
        raise UsageError(f"--scheduler: {module_name} has no class {class_name!r}{did_you_mean(class_name, classes)}")
    if not (isinstance(found, type) and issubclass(found, BaseScheduler)):
        raise UsageError(f"--scheduler: {path} must be a class derived from scheduler.BaseScheduler, found {found!r}")
    return found
