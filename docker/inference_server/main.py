"""The main program that every real server shares: environment variables in, a server that runs until it is told to end.

| variable | default | meaning |
|---|---|---|
| `NODE_NAME` | the host's name | what the server calls itself |
| `HOST`, `PORT` | 0.0.0.0, 8080 | where it listens |
| `MODEL_DIR` | /app/model | where `models.yaml` and the files are |
| `QUEUE_CAPACITY` | 64 | requests that may wait, besides the one that is computed |
| `INFERENCE_TIMEOUT_S` | 10 | an inference that takes longer ends the process |
| `OPEN_TIMEOUT_S` | 300 | the same for opening the device with its models |
| `LOG_LEVEL` | INFO | DEBUG logs every inference |

A device that takes too long ends the process with status 70, or with status 1 and "Timeout" in the log where its driver keeps
Python from running meanwhile.
"""

import faulthandler
import logging
import math
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Callable, Mapping, NamedTuple

from pythonjsonlogger.jsonlogger import JsonFormatter

from inference_server.accelerator import Accelerator
from inference_server.app import create_app
from inference_server.backend import AcceleratorGone, Backend, warmed_up
from inference_server.model_files import InvalidManifest, ModelFiles, read_model_files
from inference_server.serve import serve
from inference_server.watchdog import start_watchdog

EXIT_FAILED = 1
EXIT_USAGE = 2
LONGEST_S = 86400
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

OpenBackend = Callable[[ModelFiles, Mapping[str, str]], Backend]
"""Opens the device and loads the models; gets the checked files and the environment."""


class InvalidVariable(Exception):
    """An environment variable has a value that it cannot have; the message says which and what was expected."""


class ServerSettings(NamedTuple):
    """What the environment says; see the top of this module."""

    node_name: str
    host: str
    port: int
    model_dir: Path
    queue_capacity: int
    inference_timeout_s: float
    open_timeout_s: float
    log_level: str


def settings_from(environment: Mapping[str, str]) -> ServerSettings:
    """The settings of a server; an empty variable counts as absent.

    Raises:
        InvalidVariable: one of them makes no sense.
    """
    log_level = (environment.get("LOG_LEVEL") or "INFO").upper()
    if log_level not in LOG_LEVELS:
        raise InvalidVariable(f"LOG_LEVEL: expected one of {', '.join(LOG_LEVELS)}, got {log_level!r}")
    return ServerSettings(
        node_name=environment.get("NODE_NAME") or platform.node(),
        host=environment.get("HOST") or "0.0.0.0",
        port=whole_number(environment, "PORT", 8080, 0, 65535),
        model_dir=Path(environment.get("MODEL_DIR") or "/app/model"),
        queue_capacity=whole_number(environment, "QUEUE_CAPACITY", 64, 1, 100000),
        inference_timeout_s=_seconds(environment, "INFERENCE_TIMEOUT_S", 10.0),
        open_timeout_s=_seconds(environment, "OPEN_TIMEOUT_S", 300.0),
        log_level=log_level,
    )


def whole_number(environment: Mapping[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    """A variable that holds a whole number.

    Raises:
        InvalidVariable: it holds something else.
    """
    text = environment.get(name) or str(default)
    if not text.isdecimal() or len(text) > 12 or not lowest <= int(text) <= highest:
        raise InvalidVariable(f"{name}: expected a whole number from {lowest} to {highest}, got {text!r}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_S:
        raise InvalidVariable(f"{name}: expected seconds above 0, at most {LONGEST_S}, got {text!r}")
    return value


def log_as_json(node_name: str, level: str) -> None:
    """Log one JSON object per line to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(  # type: ignore[no-untyped-call]  # its package says it is typed and is not
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"node": node_name},
            timestamp=True,
        )
    )
    logging.basicConfig(level=level, handlers=[handler])


def run_server(open_backend: OpenBackend, environment: Mapping[str, str] = os.environ) -> None:
    """Run one inference server until SIGTERM or SIGINT.

    HTTP is served at once; `/health` says why while the device is not open or no model can be served.

    Args:
        open_backend: opens the device.
        environment: the variables.

    Raises:
        SystemExit: with 0 after SIGTERM, with 2 if a variable makes no sense, with 1 if nobody may listen there.
    """
    try:
        settings = settings_from(environment)
    except InvalidVariable as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_USAGE)
    faulthandler.enable()  # where a library crashes or aborts, the log says in which call
    log_as_json(settings.node_name, settings.log_level)
    logging.getLogger(__name__).info("starting", extra={"settings": {k: str(v) for k, v in settings._asdict().items()}})

    try:  # before the device is opened: a server that is already there must not lose its own to a second one
        bound = _bound_socket(settings.host, settings.port)
    except OSError as error:
        print(f"HOST, PORT: cannot listen on {settings.host}:{settings.port}: {error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)

    def opened() -> Backend:
        try:
            return warmed_up(open_backend(read_model_files(settings.model_dir), environment))
        except (InvalidManifest, InvalidVariable) as error:
            raise AcceleratorGone(str(error)) from error

    accelerator = Accelerator(
        opened,
        settings.queue_capacity,
        inference_timeout_s=settings.inference_timeout_s,
        open_timeout_s=settings.open_timeout_s,
    )
    start_watchdog(accelerator, settings.inference_timeout_s, settings.open_timeout_s)
    app = create_app(settings.node_name, accelerator, settings.inference_timeout_s)
    serve(app, bound_socket=bound)


def _bound_socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen()  # only then is it certain that nobody else does
    except OSError:
        bound.close()
        raise
    return bound
