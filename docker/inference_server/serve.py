"""Runs an application with uvicorn: one process, quiet, graceful when told to end."""

import signal
import socket
import sys
from types import FrameType
from typing import Any, Callable, List, Optional

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse

KEEP_ALIVE_S = 75  # longer than the pauses of any client that keeps its connections
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # there is no httptools for Python 3.6; h11 limits the head by itself
    HTTP: Any = "h11"
else:

    class BoundedHttpTools(HttpToolsProtocol):
        """Reads requests with httptools, which by itself would take a head without an end."""

        _head_open = False
        _head_bytes = 0

        def data_received(self, data: bytes) -> None:
            """Take what has come, unless it only makes a long head longer."""
            if self._head_open:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.send_400_response("request line and headers are longer than 64 KiB")
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            """A request begins."""
            self._head_open, self._head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            """Its head has ended."""
            self._head_open = False
            super().on_headers_complete()

    HTTP = BoundedHttpTools


class BoundedHeads:
    """An ASGI application that refuses requests whose head is too long.

    The classes that read HTTP limit only a head that is still open, and one of up to 256 KiB may come whole in a single piece.

    Args:
        app: the application that gets the others.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with 400, or hand over."""
        problem = _head_problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"detail": problem}, 400, headers={"Connection": "close"})(scope, receive, send)


def _head_problem(scope: Any) -> Optional[str]:
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        return f"headers: expected at most {MAX_HEADERS}, got {len(headers)}"
    size_bytes = len(scope["path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers)
    if size_bytes > MAX_HEAD_BYTES:
        return f"request line and headers: expected at most {MAX_HEAD_BYTES} bytes, got {size_bytes}"
    return None


class AnnouncedServer(uvicorn.Server):
    """A uvicorn server that says when it really accepts connections.

    Args:
        app: the application.
        on_ready: called once, on the event loop, when connections are accepted.
    """

    def __init__(self, app: FastAPI, host: str, port: int, on_ready: Optional[Callable[[], None]] = None) -> None:
        super().__init__(
            uvicorn.Config(
                BoundedHeads(app),
                host=host,
                port=port,
                http=HTTP,
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        """Open the sockets, then say so."""
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()


def serve(
    app: FastAPI,
    host: str = "0.0.0.0",
    port: int = 8080,
    bound_socket: Optional[socket.socket] = None,
    on_ready: Optional[Callable[[], None]] = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish the requests that run, close the accelerator and return or exit with 0.

    Args:
        app: made by `create_app`.
        host: address to listen on.
        port: port to listen on.
        bound_socket: an already bound socket, instead of host and port.
        on_ready: called once, on the event loop, when connections are accepted.

    Raises:
        SystemExit: with 0 after SIGTERM; with another status if the server could not start.
    """
    signal.signal(signal.SIGTERM, _exit_quietly)
    if bound_socket is not None:  # without it a small answer may wait 40 ms for the client's delayed acknowledgement
        bound_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = AnnouncedServer(app, host, port, on_ready)
    try:
        server.run(sockets=None if bound_socket is None else [bound_socket])
    except KeyboardInterrupt:
        return
    finally:
        app.state.accelerator.close()


def _exit_quietly(signum: int, frame: Optional[FrameType]) -> None:
    """Newer versions of uvicorn raise the signal again when they are done; it then ends here."""
    sys.exit(0)
