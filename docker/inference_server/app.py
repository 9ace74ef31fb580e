"""The HTTP interface of an inference server: /infer, /health, /livez and /metrics.

Handlers run on the event loop and never block it, so that /health answers while an inference runs.
"""

import asyncio
import logging
from typing import Optional, Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from inference_server import api_document
from inference_server.accelerator import BaseAccelerator, InferenceResult
from inference_server.backend import AcceleratorGone, InvalidRequest, OutOfMemory, QueueFull
from inference_server.inference_call import RETRY_AFTER_S, BodyBudget, Refusal, quoted, read_call
from inference_server.metrics import CONTENT_TYPE, UNKNOWN_MODEL, ServerMetrics

logger = logging.getLogger(__name__)


def create_app(
    server_name: str,
    accelerator: BaseAccelerator,
    watchdog_s: float = 30.0,
    extra_parameters: Sequence[api_document.Document] = (),
) -> FastAPI:
    """The application of one server.

    Args:
        server_name: what the server calls itself in its answers.
        accelerator: serves the inferences; it also stands in `app.state.accelerator`.
        watchdog_s: an inference older than this, in seconds, counts as stuck.
        extra_parameters: OpenAPI parameters of /infer that this accelerator understands besides.
    """
    app = FastAPI(title=f"Inference server {server_name}", docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    app.state.accelerator = accelerator
    routes = _Routes(server_name, accelerator, watchdog_s)
    app.add_api_route(
        "/infer",
        routes.infer,
        methods=["POST"],
        summary="Classify an image",
        response_class=JSONResponse,
        responses=api_document.INFER_RESPONSES,
        openapi_extra=api_document.infer_request(extra_parameters),
    )
    app.add_api_route(
        "/health",
        routes.health,
        methods=["GET"],
        summary="Readiness",
        response_class=JSONResponse,
        responses=api_document.HEALTH_RESPONSES,
    )
    app.add_api_route(
        "/livez",
        routes.livez,
        methods=["GET"],
        summary="Liveness",
        response_class=JSONResponse,
        responses=api_document.LIVEZ_RESPONSES,
    )
    app.add_api_route(
        "/metrics",
        routes.metrics,
        methods=["GET"],
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        responses=api_document.METRICS_RESPONSES,
    )
    app.add_exception_handler(Exception, _internal_error)
    return app


async def _internal_error(request: Request, error: Exception) -> Response:
    """The answer when a handler itself fails; the HTTP server logs the traceback."""
    return JSONResponse({"detail": f"internal error: {type(error).__name__}"}, 500)


class _Routes:
    def __init__(self, server_name: str, accelerator: BaseAccelerator, watchdog_s: float) -> None:
        self._server_name = server_name
        self._accelerator = accelerator
        self._watchdog_s = watchdog_s
        self._metrics = ServerMetrics(accelerator)
        self._bodies = BodyBudget()

    async def infer(self, request: Request) -> Response:
        """Classify one image of 224 x 224 RGB pixels, sent in base64 in JSON or as raw bytes."""
        model = UNKNOWN_MODEL
        try:
            call = await read_call(request, self._bodies)
            self._require_served(call.model)
            model = call.model
            image = call.image()
            del call  # the text of an image need not wait with it
            result = await self._result(request, model, image)
        except Refusal as refusal:
            self._metrics.request_answered(model, refusal.status)
            return JSONResponse({"detail": refusal.detail}, refusal.status, headers=refusal.headers())
        self._metrics.request_answered(model, 200)
        self._metrics.inference_done(model, result)
        answer = {
            "server": self._server_name,
            "model": model,
            "start_time": result.start_time,
            "end_time": result.end_time,
            "inference_time": result.inference_time,
            "queue_time": result.queue_time,
            "result": "done",
            "top1": result.top1,
        }
        if result.model_switched is not None:
            answer["model_switched"] = result.model_switched
        logger.debug("inference", extra=answer)
        return JSONResponse(answer)

    async def health(self) -> Response:
        """Whether an inference would be served now."""
        problem = self._accelerator.health_problem() or self._stuck()
        if problem is not None:
            return JSONResponse({"detail": problem}, 503)
        return JSONResponse(
            {
                "status": "ok",
                "server": self._server_name,
                "accelerator": self._accelerator.accelerator,
                "models": self._accelerator.models,
                "binary": True,
                "absent": self._accelerator.absent,
                "details": self._accelerator.details,
            }
        )

    async def livez(self) -> Response:
        """Whether the process is worth keeping."""
        stuck = self._stuck()
        return JSONResponse({"status": "ok"}) if stuck is None else JSONResponse({"detail": stuck}, 503)

    async def metrics(self) -> Response:
        """Everything Prometheus wants to know."""
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    def _require_served(self, model: str) -> None:
        accelerator = self._accelerator
        if model in accelerator.models:
            return
        problem = accelerator.health_problem()
        if problem is not None:  # which models there are is not known yet
            raise Refusal(503, problem, RETRY_AFTER_S)
        known = ", ".join(accelerator.models)
        why = f": {accelerator.absent[model]}" if model in accelerator.absent else ""
        raise Refusal(404, f"model: expected one of {known}, got {quoted(model)}{why}")

    async def _result(self, request: Request, model: str, image: bytes) -> InferenceResult:
        """Wait for the inference; one whose client goes away before it began is withdrawn.

        Raises:
            Refusal: it was not or could not be served.
        """
        try:
            future = self._accelerator.submit(model, image, request.headers)
        except InvalidRequest as error:
            raise Refusal(400, str(error)) from error
        except QueueFull as error:
            self._metrics.queue_was_full()
            raise Refusal(503, str(error), RETRY_AFTER_S) from error
        except AcceleratorGone as error:
            raise Refusal(503, str(error), RETRY_AFTER_S) from error
        client_gone = asyncio.get_event_loop().create_task(_disconnected(request))
        client_gone.add_done_callback(lambda _: future.cancel())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            if client_gone.done():
                raise Refusal(499, "the client went away") from error
            raise
        except (AcceleratorGone, OutOfMemory) as error:
            raise Refusal(503, str(error), RETRY_AFTER_S) from error
        except Exception as error:
            logger.exception("inference of %s failed", model)
            raise Refusal(500, f"inference failed: {type(error).__name__}") from error
        finally:
            client_gone.cancel()

    def _stuck(self) -> Optional[str]:
        age_s = self._accelerator.oldest_inference_age_s()
        if age_s <= self._watchdog_s:
            return None
        return f"an inference has been running for {age_s:.1f} s, longer than the watchdog's {self._watchdog_s:g} s"


async def _disconnected(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
