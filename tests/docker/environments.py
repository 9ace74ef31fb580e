"""Virtual environments of the Pythons that the images run, with the images' pins; made under .cache when these have changed."""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache"
INSTALL_TIMEOUT_S = 600
TORCH_FOR_CPUS = "https://download.pytorch.org/whl/cpu"


class Recipe(NamedTuple):
    """What an environment is made of.

    Attributes:
        name: of its directory.
        pins: the image's requirements.
        tools: what the tests need besides.
        pip: the version that installs them; empty for the one that comes with the interpreter.
    """

    name: str
    pins: Path
    tools: Sequence[str]
    pip: str = ""

    def made_with(self, interpreter: str) -> Path:
        """The Python of the environment; made now unless it exists."""
        wanted = "\n".join([interpreter, self.pip, *self.tools, self.pins.read_text()])
        folder = CACHE / self.name
        python, made = folder / "bin" / "python", folder / "made-of.txt"
        CACHE.mkdir(exist_ok=True)
        with (CACHE / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists() or made.read_text() != wanted:
                shutil.rmtree(folder, ignore_errors=True)
                run([interpreter, "-m", "venv", folder])
                install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                if self.pip:
                    run([*install, f"pip=={self.pip}"])
                run([*install, *self.index_options(python), "-r", self.pins])
                run([*install, *self.tools])
                made.write_text(wanted)
        return python

    def index_options(self, python: str | Path) -> list[str]:
        """What pip needs to take a torch for the CPU, where torch is pinned: PyPI's for Linux brings several GB of CUDA.

        An index that is out of reach keeps pip trying for long, so PyTorch's is named only where pip knows no such torch without.

        Args:
            python: interpreter whose pip is asked.
        """
        pinned = re.search(r"^torch==[\d.]+", self.pins.read_text(), re.MULTILINE)
        if not pinned:
            return []
        question = [python, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", f"{pinned[0]}+cpu"]
        known = subprocess.run(question, capture_output=True, env=clean_environment(), timeout=INSTALL_TIMEOUT_S).returncode == 0
        return [] if known else ["--extra-index-url", TORCH_FOR_CPUS]


JETSON = Recipe("jetson", ROOT / "docker/jetson_inference_server/requirements.txt", ("pytest==7.0.1",), pip="21.3.1")
"""Python 3.6, with the last pip that installs there."""
CORAL = Recipe("coral", ROOT / "docker/coral_inference_server/requirements.txt", ("pytest==9.2.0",))
"""Python 3.10."""


def find_python(version: str) -> str | None:
    """A Python such as "3.6" that really runs: of its variable ($PYTHON36), the PATH or pyenv."""
    given = os.environ.get(_variable(version))
    if given:
        return given
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, reversed(pyenv))]
    return next((path for path in candidates if path and _is_python(path, version)), None)


def not_found(version: str) -> str:
    """That there is no such Python, and where it was looked for."""
    return f"no Python {version} found (${_variable(version)}, python{version} on PATH, ~/.pyenv/versions/{version}.*)"


def run(command: Sequence[str | Path], timeout_s: float = INSTALL_TIMEOUT_S) -> str:
    """What a command printed; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=clean_environment(), timeout=timeout_s)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Ours without what would reach into another interpreter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV", "VIRTUAL"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}


def _variable(version: str) -> str:
    return "PYTHON" + version.replace(".", "")


def _is_python(path: str, version: str) -> bool:
    """False too for the stand-in that pyenv puts on the PATH when no such version is chosen."""
    question = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    done = subprocess.run(question, capture_output=True, text=True, env=clean_environment())
    return done.returncode == 0 and done.stdout.strip() == version
