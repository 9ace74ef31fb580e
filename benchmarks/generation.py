"""How long trace and mobility take to make, and how much memory."""

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.figures import Figure, median_figure
from utils import PROJECT_ROOT

_SCRIPT = """
import resource, sys, time
from settings import load_settings
from mobility.mobility_manager import MobilityManager
from task_generator import generate_trace
settings = load_settings()
devices = settings.devices.model_copy(update={"count": int(sys.argv[1])})
settings = settings.replace(devices=devices, duration_s=float(sys.argv[2]))
start = time.perf_counter()
generate_trace(settings, MobilityManager(settings.devices, settings.seed))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def generation(repeats: int) -> list[Figure]:
    """Three populations, each in processes of its own."""
    small, large = _measured(100, 600, repeats), _measured(10_000, 600, repeats)
    largest = _measured(100_000, 60, repeats)
    return [
        median_figure("trace and mobility, 100 devices × 600 s", [seconds for seconds, _ in small], "s", 0.5),
        median_figure("trace and mobility, 10,000 devices × 600 s", [seconds for seconds, _ in large], "s", 10.0),
        median_figure("trace and mobility, 100,000 devices × 60 s", [seconds for seconds, _ in largest], "s"),
        median_figure(
            "memory of trace and mobility, 100,000 devices × 60 s", [megabytes for _, megabytes in largest], "MB", 2000.0
        ),
    ]


def _measured(devices: int, seconds: float, repeats: int) -> Sequence[tuple[float, float]]:
    command = [sys.executable, "-c", _SCRIPT, str(devices), str(seconds)]
    outputs = [subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True) for _ in range(repeats)]
    return [(float(output.stdout.split()[0]), float(output.stdout.split()[1])) for output in outputs]
