"""Puts docker/ and the helpers of these tests on the path, and serves applications on real sockets.

Valid Python 3.6, as are servers.py, test_accelerator.py and test_inference_server.py: test_py36.py runs them there.
"""

import socket
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "docker"), str(HERE)]

from servers import PATIENCE_S, Client  # noqa: E402

from inference_server.serve import AnnouncedServer  # noqa: E402


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
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
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
