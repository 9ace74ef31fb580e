"""Puts docker/ and these tests on the path, also where no settings of pytest do, and serves applications on real sockets.

Valid Python 3.6, as is all that test_other_pythons.py runs there.
"""

import asyncio
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docker")]

from inference_server.serve import AnnouncedServer  # noqa: E402
from tests.docker.servers import PATIENCE_S, Client  # noqa: E402


def _run(server: AnnouncedServer, bound: socket.socket) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(server.serve([bound]))
    loop.close()


@pytest.fixture
def run_app() -> Iterator[Callable[[Any], Client]]:
    """A function that serves an application on a free port and gives a client of it."""
    running = []

    def run(app: Any) -> Client:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        ready = threading.Event()
        server = AnnouncedServer(app, "127.0.0.1", port, ready.set)
        thread = threading.Thread(target=_run, args=(server, bound), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE_S)
        client = Client(port)
        running.append((client, server, thread))
        return client

    yield run
    for client, server, thread in running:
        client.close()
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
