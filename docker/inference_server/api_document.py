"""What the OpenAPI document says of the inference server: request bodies and answers, as JSON schemas."""

from typing import Any, Dict, List, Optional, Sequence, Union

from inference_server.backend import IMAGE_BYTES
from inference_server.inference_call import BINARY_TYPE, JSON_TYPE, MAX_BODY_BYTES

Document = Dict[str, Any]
Responses = Dict[Union[int, str], Document]

BASE64_CHARACTERS = IMAGE_BYTES * 4 // 3

_ERROR: Document = {
    "type": "object",
    "properties": {"detail": {"type": "string"}},
    "required": ["detail"],
}


def _object(optional: Optional[Document] = None, **required: Document) -> Document:
    return {"type": "object", "properties": dict(required, **(optional or {})), "required": list(required)}


def answer(description: str, schema: Document) -> Document:
    """One documented answer whose body is JSON."""
    return {"description": description, "content": {JSON_TYPE: {"schema": schema}}}


def error(description: str) -> Document:
    """One documented error; its body is `{"detail": ...}`."""
    return answer(description, _ERROR)


def retry_later(description: str) -> Document:
    """One documented error that passes: it has a `Retry-After` header."""
    return dict(
        error(description),
        headers={"Retry-After": {"description": "Seconds until a new attempt.", "schema": {"type": "integer"}}},
    )


INFER_RESPONSES: Responses = {
    200: answer(
        "The image was classified.",
        _object(
            {"model_switched": {"type": "boolean", "description": "The inference before was of another model."}},
            server={"type": "string"},
            model={"type": "string"},
            start_time={"type": "number", "description": "Unix seconds, informative."},
            end_time={"type": "number", "description": "Unix seconds, informative."},
            inference_time={"type": "number", "description": "Seconds on the accelerator."},
            queue_time={"type": "number", "description": "Seconds waited for the accelerator."},
            result={"type": "string", "enum": ["done"]},
            top1={"type": "integer", "description": "Index of the most likely class."},
        ),
    ),
    400: error("Malformed: which field, and what was expected."),
    404: error("No such model here; the known ones are listed."),
    408: error("The body did not end in time."),
    413: error(f"The body is larger than {MAX_BODY_BYTES >> 10} KiB."),
    500: error("The inference failed; the server's log says more."),
    503: retry_later("The queue or the memory for bodies is full, or the accelerator is gone."),
}

HEALTH_RESPONSES: Responses = {
    200: answer(
        "Ready to serve.",
        _object(
            status={"type": "string", "enum": ["ok"]},
            server={"type": "string"},
            accelerator={"type": "string"},
            models={"type": "array", "items": {"type": "string"}},
            binary={"type": "boolean", "description": "POST /infer takes raw bytes too."},
            absent={"type": "object", "description": "Why each of the other models is not served, by its name."},
            details={"type": "object", "description": "Versions and the like."},
        ),
    ),
    503: error("Not ready, and why."),
}

LIVEZ_RESPONSES: Responses = {
    200: answer("Alive.", _object(status={"type": "string", "enum": ["ok"]})),
    503: error("An inference runs longer than the watchdog allows."),
}

METRICS_RESPONSES: Responses = {
    200: {"description": "Prometheus metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
}


def infer_request(extra_parameters: Sequence[Document]) -> Document:
    """The request of POST /infer in both of its forms.

    Args:
        extra_parameters: further OpenAPI parameter objects, such as headers of an emulated node.
    """
    model: Document = {"type": "string", "description": "One of the models that /health lists.", "example": "mobilenet"}
    image: Document = {
        "type": "string",
        "format": "byte",
        "minLength": BASE64_CHARACTERS,
        "maxLength": BASE64_CHARACTERS,
        "pattern": "^[A-Za-z0-9+/]*$",
        "description": "Base64 of 224 x 224 x 3 uint8, row by row, RGB.",
    }
    parameters: List[Document] = [
        {
            "name": "model",
            "in": "query",
            "required": False,
            "schema": model,
            "description": f"Needed with {BINARY_TYPE}; with {JSON_TYPE} the body says it.",
        }
    ]
    return {
        "parameters": parameters + list(extra_parameters),
        "requestBody": {
            "required": True,
            "content": {
                JSON_TYPE: {"schema": _object(model=model, input=image)},
                BINARY_TYPE: {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": f"The image, exactly {IMAGE_BYTES} bytes.",
                    }
                },
            },
        },
    }
