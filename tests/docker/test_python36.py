"""The tests of the shared application once more, under a real Python 3.6 with the versions that run there."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PINS = ROOT / "docker" / "inference_server" / "requirements-py36.txt"
VENV = ROOT / ".cache" / "py36"
SHARED_TESTS = ("test_accelerator.py", "test_inference_server.py")
TEST_TOOLS = ("pytest==7.0.1",)
INSTALLER = "pip==21.3.1"  # the last one for Python 3.6


def python36() -> str | None:
    """A Python 3.6: $PYTHON36, or one on the PATH or of pyenv that really runs."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.6.*/bin/python"))
    candidates = [shutil.which("python3.6"), *map(str, reversed(pyenv))]
    return os.environ.get("PYTHON36") or next((path for path in candidates if path and is_python36(path)), None)


def is_python36(path: str) -> bool:
    """False too for the stand-in that pyenv puts on the PATH when no 3.6 is chosen."""
    question = [path, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 6))"]
    return subprocess.run(question, capture_output=True, env=clean_environment()).returncode == 0


def environment(interpreter: str) -> Path:
    """A virtual environment with the pins, made once and again when they change."""
    wanted = "\n".join([interpreter, INSTALLER, *TEST_TOOLS, PINS.read_text()])
    made = VENV / "made-of.txt"
    VENV.parent.mkdir(exist_ok=True)
    with (VENV.parent / "py36.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists() or made.read_text() != wanted:
            shutil.rmtree(VENV, ignore_errors=True)
            run([interpreter, "-m", "venv", VENV])
            run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", INSTALLER])
            run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", *TEST_TOOLS, "-r", PINS])
            made.write_text(wanted)
    return VENV / "bin" / "python"


def run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=clean_environment(), timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"


def clean_environment() -> dict[str, str]:
    """Ours without what would reach into the other interpreter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV", "VIRTUAL"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.timeout(900)  # the first time it installs
def test_shared_application_under_python_3_6(tmp_path):
    interpreter = python36()
    if interpreter is None:
        pytest.skip("no Python 3.6 found ($PYTHON36, python3.6 on PATH, ~/.pyenv/versions/3.6.*)")
    settings = tmp_path / "pytest.ini"  # those of the project need a newer pytest
    settings.write_text("[pytest]\nfaulthandler_timeout = 60\n")
    options = ["-c", settings, "--rootdir", HERE, "-p", "no:cacheprovider", "-q"]
    run([environment(interpreter), "-m", "pytest", *options, *SHARED_TESTS])
