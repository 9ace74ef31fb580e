"""The tests of what runs in the images once more, under the Python of the image and with its pinned versions."""

from pathlib import Path

import pytest

from tests.docker.environments import CORAL, HERE, JETSON, Recipe, find_python, not_found, run

SHARED = ("test_accelerator.py", "test_inference_server.py", "test_many_clients.py", "test_model_files.py", "test_server_main.py")


@pytest.mark.timeout(1200)  # the first time it installs
@pytest.mark.parametrize(
    "version, recipe, tests",
    [("3.6", JETSON, (*SHARED, "test_jetson_backend.py")), ("3.10", CORAL, SHARED)],
    ids=["3.6", "3.10"],
)
def test_servers_under_the_python_of_their_image(version: str, recipe: Recipe, tests: tuple[str, ...], tmp_path: Path):
    interpreter = find_python(version)
    if interpreter is None:
        pytest.skip(not_found(version))
    settings = tmp_path / "pytest.ini"  # those of the project need what these environments do not have
    settings.write_text("[pytest]\nfaulthandler_timeout = 60\n")
    options: list[str | Path] = ["-c", settings, "--rootdir", HERE, "-p", "no:cacheprovider", "-q"]
    run([recipe.made_with(interpreter), "-m", "pytest", *options, *tests])
