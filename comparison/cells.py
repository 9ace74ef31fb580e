"""What a cell of a comparison is.

A cell is one job in virtual time: a run of a policy, a run of a TOPSIS policy without one criterion, a run that only asks
whether a load is still borne, or the clairvoyant bound of a scenario. Its result is a function of its settings, the profile and
the source code; the hash of these is its key.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from performance_profile import PerformanceProfile
from settings import Settings
from utils import PROJECT_ROOT

Kind = Literal["run", "ablation", "bound", "limit"]
Result = dict[str, Any]
"""What a cell came to, as JSON-able values."""

SOURCES = (
    "cluster/*.py",
    "comparison/*.py",
    "measurement/*.py",
    "mobility/*.py",
    "scheduler/*.py",
    "deadline_adapter.py",
    "experiment.py",
    "metric_collector.py",
    "performance_profile.py",
    "scenario.py",
    "settings.py",
    "slo_monitor.py",
    "task.py",
    "task_generator.py",
    "utils.py",
)
"""Files that affect the result of a cell: whole packages, so that none is forgotten."""
PACKAGES = ("numpy", "scipy")
"""Packages that bear on it."""


def canonical(content: Any) -> str:
    """JSON text that is equal for equal content in equal order: ties go by the order of nodes, draws by that of classes."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str | bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


@lru_cache(maxsize=1)
def source_hashes() -> Mapping[str, str]:
    """SHA-256 of every file of SOURCES, by its path in the checkout."""
    paths = sorted(path for pattern in SOURCES for path in PROJECT_ROOT.glob(pattern))
    return {path.relative_to(PROJECT_ROOT).as_posix(): sha256(path.read_bytes()) for path in paths}


@lru_cache(maxsize=1)
def package_versions() -> Mapping[str, str]:
    """Version of every package of PACKAGES."""
    return {name: version(name) for name in PACKAGES}


@lru_cache
def policy_hash(scheduler: str) -> str | None:
    """SHA-256 of the file of a user's own policy; None for one of this project's, which is among the sources."""
    module_name, colon, _ = scheduler.partition(":")
    if not colon:
        return None
    file = importlib.import_module(module_name).__file__
    return sha256(Path(file).read_bytes()) if file else None


@lru_cache
def code_hash(scheduler: str) -> str:
    """Hash of all code that bears on a cell of this policy."""
    return sha256(canonical([dict(source_hashes()), dict(package_versions()), policy_hash(scheduler)]))


@dataclass(frozen=True)
class Cell:
    """One job of a comparison; it can be sent to any worker.

    Attributes:
        kind: what is asked of it.
        settings: everything that is run, load, seed, policy and queue discipline included.
        profile: figures of the nodes.
        code: `code_hash()` of the policy where the sweep was planned.
        without: the criterion that an ablation leaves out.
    """

    kind: Kind
    settings: Settings
    profile: PerformanceProfile
    code: str
    without: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from the other cells of its sweep."""
        return {
            "kind": self.kind,
            "scheduler": self.settings.scheduler,
            "queue_discipline": self.settings.queue_discipline,
            "load": self.settings.load,
            "seed": self.settings.seed,
            "without": self.without,
        }

    @property
    def name(self) -> str:
        """The same for a person."""
        of = f"bound of load {self.settings.load:g}" if self.kind == "bound" else f"{self._policy}, load {self.settings.load:g}"
        return f"{of}, seed {self.settings.seed}"

    @property
    def _policy(self) -> str:
        without = f" without {self.without}" if self.without else ""
        return f"{self.settings.scheduler}{without}, {self.settings.queue_discipline}"

    @cached_property
    def settings_sha256(self) -> str:
        """Hash of the settings; where the profile's file stands does not bear on them, its content does."""
        return sha256(canonical([plain_settings(self.settings), self.profile.model_dump(mode="json")]))

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits that only an equal cell has."""
        return sha256(canonical([self.identity, self.settings_sha256, self.code]))[:32]


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON-able values, without the place of the profile's file."""
    return settings.model_dump(mode="json", exclude={"performance_profile"})
