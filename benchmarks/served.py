"""Servers that the benchmarks measure, each a process of its own: `python -m benchmarks.served shared|plain [SECONDS]`.

`shared` is the application of docker/inference_server before a device that takes so many seconds for an inference. `plain` is
what one writes first: image in base64 in JSON, inference inside the handler. Both say their port when they accept connections.
"""

import base64
import socket
import sys
import time

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from inference_server import Accelerator, Backend, create_app
from inference_server.serve import AnnouncedServer, serve

QUEUE_CAPACITY = 200


class TimedBackend(Backend):
    """A device that only waits."""

    accelerator = "timed"

    def __init__(self, inference_s: float) -> None:
        self.models = ["mobilenet"]
        self.absent = {}
        self.details = {}
        self._inference_s = inference_s

    def infer(self, model: str, image: bytes) -> int:
        """Wait, if there is something to wait for."""
        if self._inference_s:
            time.sleep(self._inference_s)
        return image[0]


class PlainRequest(BaseModel):
    """The request in JSON."""

    model: str
    input: str


def plain_app() -> FastAPI:
    """The first application that one writes."""
    app = FastAPI()

    @app.post("/infer")
    async def infer(request: PlainRequest) -> dict[str, object]:
        image = base64.b64decode(request.input)
        start_s = time.monotonic()
        top1 = image[0]
        return {"model": request.model, "inference_time": time.monotonic() - start_s, "queue_time": 0.0, "top1": top1}

    return app


def main() -> None:
    """Serve until SIGTERM."""
    kind, inference_s = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    bound = socket.socket()
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # for both, lest one wait for delayed acknowledgements
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]

    def announce() -> None:
        print(port, flush=True)

    if kind == "shared":
        accelerator = Accelerator(lambda: TimedBackend(inference_s), QUEUE_CAPACITY)
        accelerator.opened.wait()
        serve(create_app("timed1", accelerator), bound_socket=bound, on_ready=announce)
    else:
        server: uvicorn.Server = AnnouncedServer(plain_app(), "127.0.0.1", port, announce)
        server.run(sockets=[bound])


if __name__ == "__main__":
    main()
