"""Reports: one self-contained HTML page for a run or for a comparison, with its figures and tables as files for papers.

    python3 report.py results/20261123_160325

It reads what the run or the comparison left in its folder and writes `report.html`, `figures/` and `tables/` there. Importing
this module is cheap: `reporting/`, and with it pandas, matplotlib and Jinja2, is loaded when a report is made.
"""

import os
import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out

from collections.abc import Sequence
from pathlib import Path

from terminal.options import OptionParser, StopSignal, interruptible, stoppable
from utils import UsageError


def write_run_report(folder: Path, output: Path | None = None, png: bool = False) -> Path:
    """Make the report of one run.

    Args:
        folder: the run's folder, with its experiment_summary_<id>.json and its CSV files.
        output: where `report.html`, `figures/` and `tables/` go; default: beside the run's files.
        png: whether the figures are written as PNG too.

    Returns:
        The path of the page.

    Raises:
        UsageError: the folder holds no readable summary, or the output cannot be written.
        HarnessError: the disk is full.
    """
    from reporting.run_report import write_page

    return write_page(folder, output or folder, png)


def write_comparison_report(folder: Path, output: Path | None = None, png: bool = True, mixed_profiles: bool = False) -> Path:
    """Make the report of a comparison.

    Args:
        folder: the sweep's folder, with its comparison.json and its CSV files.
        output: where `report.html`, `figures/` and `tables/` go; default: beside those files.
        png: whether the figures are written as PNG too.
        mixed_profiles: whether its runs may have been made with different performance profiles.

    Returns:
        The path of the page.

    Raises:
        UsageError: the folder holds no readable comparison.json, its runs had different performance profiles, or the output
            cannot be written.
        HarnessError: the disk is full.
    """
    from reporting.comparison_report import write_page

    return write_page(folder, output or folder, png, mixed_profiles)


def write_report(folder: Path, output: Path | None = None, png: bool | None = None, mixed_profiles: bool = False) -> Path:
    """Make the report of whatever `folder` holds, a run or a comparison.

    Args:
        folder: of the run or of the comparison.
        output: where `report.html`, `figures/` and `tables/` go; default: `folder`.
        png: whether the figures are written as PNG too; default: those of a comparison are, those of a run are not.
        mixed_profiles: whether the runs of a comparison may have been made with different performance profiles.

    Returns:
        The path of the page.

    Raises:
        UsageError: it holds neither.
        HarnessError: the disk is full.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: expected the folder of a run or of a comparison, found {'a file' if folder.exists() else 'nothing'}"
        )
    if (folder / "comparison.json").exists():
        return write_comparison_report(folder, output, True if png is None else png, mixed_profiles)
    return write_run_report(folder, output, bool(png))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = OptionParser("report.py", "Make the report of a run or of a comparison again.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a run or of a comparison")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (FOLDER)")
    parser.add_argument(
        "--png", action="store_true", default=None, help="write the figures as PNG of 300 dpi too, as a comparison does anyway"
    )
    parser.add_argument(
        "--mixed-profiles",
        action="store_true",
        help="also of a comparison whose runs had different performance profiles",
    )

    def run(stop: StopSignal) -> int:
        options = parser.parse_args(arguments)
        with interruptible(stop):
            print(write_report(options.folder, options.output, options.png, options.mixed_profiles))
        return 0

    return stoppable("report.py", run)


if __name__ == "__main__":
    sys.exit(main())
