"""Command line of an emulated node.

Reads its slice of the profile from the first line of standard input, says its port on standard output when it accepts
connections, and serves until standard input ends (whoever started it is gone), or until SIGTERM or SIGINT.
"""

import argparse
import gc
import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType

from emulated_inference_server.accelerator import EmulatedAccelerator
from emulated_inference_server.app import create_emulated_app
from emulated_inference_server.node_slice import InvalidSlice, NodeSlice
from inference_server import serve

BAD_USAGE = 2
SWITCH_INTERVAL_S = 0.0005  # the longest the thread that answers waits for the interpreter
HOST = "127.0.0.1"


def main() -> None:
    """Run one emulated node until it is told to end; leaves the process."""
    _end_on_signal()
    arguments = _arguments()
    try:
        node = NodeSlice.from_json(sys.stdin.buffer.readline().decode("utf-8", "replace"))
    except InvalidSlice as error:
        print(f"emulated_inference_server: {error}", file=sys.stderr)
        sys.exit(BAD_USAGE)
    threading.Thread(target=_end_with_input, name="parent", daemon=True).start()

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    bound = _bound_socket(arguments.port)
    app = create_emulated_app(node.node, EmulatedAccelerator(node))

    def announce() -> None:
        _end_on_signal()  # at once, instead of the graceful end that the HTTP server prepares
        gc.collect()
        gc.freeze()
        print(json.dumps({"node": node.node, "port": bound.getsockname()[1]}), flush=True)

    serve(app, bound_socket=bound, on_ready=announce)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="emulated_inference_server", description="One emulated inference node.")
    parser.add_argument("--port", type=_port, default=0, help="port to listen on; taken or 0: any free one")
    return parser.parse_args()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {ascii(text)}")
    return int(text)


def _bound_socket(port: int) -> socket.socket:
    """A socket on the wanted port of this machine, or on any free one."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with suppress(OSError):
        bound.bind((HOST, port))
        return bound
    bound.bind((HOST, 0))
    return bound


def _end_on_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(0)


def _end_with_input() -> None:
    """Leave the process when the input ends, which it does even if the parent was killed."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
