"""The application of an emulated node: the shared one, and a way to tell it how long the local connection takes."""

import json
from typing import Any

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from emulated_inference_server.accelerator import LARGEST_NOISE, EmulatedAccelerator
from inference_server import api_document, create_app

MAX_BODY_BYTES = 1024
LONGEST_ROUND_TRIP_MS = 1000.0

_SERVICE_NOISE = {
    "name": "X-Service-Noise",
    "in": "header",
    "required": False,
    "schema": {"type": "number", "minimum": -LARGEST_NOISE, "maximum": LARGEST_NOISE},
    "description": "The standard normal number that sets the service time; absent: 0.",
}
_OVERHEAD_NOISE = {
    **_SERVICE_NOISE,
    "name": "X-Overhead-Noise",
    "description": "The standard normal number that sets the request overhead; absent: the mean overhead.",
}
_ROUND_TRIP = {
    "type": "object",
    "properties": {
        "local_round_trip_ms": {
            "type": "number",
            "minimum": 0,
            "maximum": LONGEST_ROUND_TRIP_MS,
            "description": "What the local connection takes of the request overhead by itself, in milliseconds.",
        }
    },
    "required": ["local_round_trip_ms"],
}
_CALIBRATED = {
    "type": "object",
    "properties": {
        "local_round_trip_ms": {"type": "number"},
        "hold_ms": {"type": "number", "description": "How long a request is held before the accelerator, and again after."},
    },
    "required": ["local_round_trip_ms", "hold_ms"],
}


def create_emulated_app(node: str, accelerator: EmulatedAccelerator) -> FastAPI:
    """The application of one emulated node, with POST /calibration besides the shared routes."""
    app = create_app(node, accelerator, extra_parameters=[_SERVICE_NOISE, _OVERHEAD_NOISE])

    async def calibration(request: Request) -> Response:
        """Tell the node how long the local round trip takes; it holds requests that much shorter."""
        try:
            round_trip_ms = _round_trip_ms(await _small_body(request))
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, 400)
        return JSONResponse({"local_round_trip_ms": round_trip_ms, "hold_ms": accelerator.calibrate(round_trip_ms)})

    app.add_api_route(
        "/calibration",
        calibration,
        methods=["POST"],
        summary="Set the local round trip",
        response_class=JSONResponse,
        responses={
            200: api_document.answer("Requests received from now on are held this long.", _CALIBRATED),
            400: api_document.error("Malformed: what was expected."),
        },
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _ROUND_TRIP}}}},
    )
    return app


async def _small_body(request: Request) -> bytes:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise ValueError(f"body: expected at most {MAX_BODY_BYTES} bytes, got more")
    except ClientDisconnect as error:
        raise ValueError("the client went away") from error
    return body


def _round_trip_ms(body: bytes) -> float:
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValueError('body: expected a JSON object like {"local_round_trip_ms": 0.7}')
    value = given.get("local_round_trip_ms")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LONGEST_ROUND_TRIP_MS:
        raise ValueError(f"local_round_trip_ms: expected a number from 0 to {LONGEST_ROUND_TRIP_MS:g}, got {ascii(value)[:80]}")
    return float(value)
