"""Command line of the power agent: `python -m power_agent --help`."""

import argparse
import asyncio
import logging
import os
import platform
import sys
from pathlib import Path

from power_agent.agent import run
from power_agent.meter import BluetoothHangs
from power_agent.rows import InvalidRows, load_rows
from power_agent.set_up import print_meters, print_readings

DEFAULT_ROWS = "/etc/power-agent/rows.yaml"
DEFAULT_PORT = 9101
FAILED = 1
BAD_USAGE = 2


def main() -> int:
    """Do what the options say; the exit status."""
    options = _options()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        if options.scan:
            return 0 if asyncio.run(print_meters()) else FAILED
        rows = load_rows(options.rows, options.host)
        if options.once:
            return 0 if asyncio.run(print_readings(rows, options.sysfs, options.timeout)) else FAILED
        listen = None if options.textfile else (options.listen, options.port)
        asyncio.run(run(rows, options.sysfs, listen, options.textfile))
    except InvalidRows as error:
        print(f"power_agent: {error}", file=sys.stderr)
        return BAD_USAGE
    except BluetoothHangs as error:
        print(
            f"power_agent: {error}; ending, to be started anew (if that does not help: systemctl restart bluetooth)",
            file=sys.stderr,
        )
        return FAILED
    except OSError as error:
        print(f"power_agent: {options.textfile or f'{options.listen}:{options.port}'}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="power_agent", description="Reads the power meters of nodes and exposes watts and joules to Prometheus."
    )
    parser.add_argument("--rows", type=Path, default=DEFAULT_ROWS, help="YAML file: which node, which sensor (%(default)s)")
    parser.add_argument(
        "--host",
        default=os.environ.get("NODE_NAME") or platform.node(),
        help="Kubernetes name of this host, whose rows are read ($NODE_NAME, else the host's name)",
    )
    parser.add_argument("--listen", default="0.0.0.0", help="address that serves /metrics (%(default)s)")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="its port; 0: any free one (%(default)s)")
    parser.add_argument(
        "--textfile",
        type=Path,
        metavar="DIR",
        help="instead of serving, write DIR/power_agent.prom each second for node-exporter's textfile collector",
    )
    parser.add_argument("--sysfs", type=Path, default="/sys", help="where the host's sysfs is mounted (%(default)s)")
    parser.add_argument("--once", action="store_true", help="print one reading of each row and end; status 1 if one is missing")
    parser.add_argument("--timeout", type=_seconds, default=60.0, help="seconds that --once waits (%(default)g)")
    parser.add_argument("--scan", action="store_true", help="print the ATORCH meters in range and end; status 1 if there is none")
    return parser.parse_args()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {ascii(text)}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {ascii(text)}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
