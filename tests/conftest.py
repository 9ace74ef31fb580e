"""What holds for all tests: their emulated nodes are no business of a local Prometheus that happens to run (`make monitor`)."""

import os

os.environ["MONITOR_TARGETS"] = ""
