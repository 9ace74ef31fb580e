"""The pages, figures and tables of a run or a comparison, from the files in its folder.

Matplotlib is loaded here as no environment of the user can change or break it: without a notebook's MPLBACKEND, and without its
messages on where it keeps its fonts. `reporting.style` takes no setting from the user's matplotlibrc either.
"""

import logging
import os

from utils import HarnessError

logging.getLogger("matplotlib").setLevel(logging.ERROR)
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib.figure  # noqa: F401 - loaded here for all modules of this package
except OSError as error:
    raise HarnessError(f"no report: matplotlib finds no folder that it can write: {error}; set MPLCONFIGDIR") from error
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
