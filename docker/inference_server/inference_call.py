"""Reads the two forms of an inference request, JSON and raw bytes, and says precisely what is wrong with one."""

import asyncio
import base64
import json
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

from starlette.requests import ClientDisconnect, Request

from inference_server.backend import IMAGE_BYTES

MAX_BODY_BYTES = 320 * 1024  # an image takes 147 KiB, and 196 KiB in base64
MAX_BODIES_BYTES = 32 * 1024 * 1024  # of all requests together while they are received; the queue bounds what comes after
BODY_TIMEOUT_S = 10.0
RETRY_AFTER_S = 1
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
LONGEST_QUOTE = 80


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status code.
        detail: what is wrong and what was expected.
        retry_after_s: when the client may come again, in seconds; None if that would not help.
    """

    def __init__(self, status: int, detail: str, retry_after_s: Optional[int] = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s

    def headers(self) -> Dict[str, str]:
        """Headers of the answer."""
        if self.status == 408:
            return {"Connection": "close"}  # else the rest of the body would be read for ever
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class InferenceCall(NamedTuple):
    """A request whose form is right; model and image are still to be checked.

    Attributes:
        model: the model that is asked for.
        raw: the image as bytes, or None.
        encoded: the image in base64, or None; exactly one of both is there.
    """

    model: str
    raw: Optional[bytes]
    encoded: Optional[str]

    def image(self) -> bytes:
        """The image, decoded.

        Raises:
            Refusal: 400, it is not base64 or has a wrong size.
        """
        if self.raw is not None:
            return _require_image_size("body", self.raw)
        try:
            decoded = base64.b64decode(self.encoded or "", validate=True)
        except ValueError as error:
            raise Refusal(400, f"input: expected standard base64, got something else ({error})") from error
        return _require_image_size("input", decoded)


class BodyBudget:
    """Memory for the bodies that are being received, shared by all requests of one event loop."""

    def __init__(self) -> None:
        self._held_bytes = 0

    @contextmanager
    def part(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many bytes more; all are given back when the block ends.

        Raises:
            Refusal: 503, the function was asked for more than is left.
        """
        taken_bytes = 0

        def take(size_bytes: int) -> None:
            nonlocal taken_bytes
            if self._held_bytes + size_bytes > MAX_BODIES_BYTES:
                reason = f"the bodies that are being received hold {MAX_BODIES_BYTES >> 20} MiB, no more can be taken"
                raise Refusal(503, reason, RETRY_AFTER_S)
            self._held_bytes += size_bytes
            taken_bytes += size_bytes

        try:
            yield take
        finally:
            self._held_bytes -= taken_bytes


async def read_call(request: Request, budget: BodyBudget) -> InferenceCall:
    """Read a request to /infer, never holding more than `MAX_BODY_BYTES` and a chunk of its body.

    Raises:
        Refusal: 400 malformed, 408 not ended in time, 413 too large, 499 the client went away meanwhile, 503 no memory now.
    """
    content_type = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if content_type not in (JSON_TYPE, BINARY_TYPE):
        found = quoted(content_type) if content_type else "none"
        raise Refusal(400, f"Content-Type: expected {JSON_TYPE} or {BINARY_TYPE}, got {found}")
    try:
        body = await asyncio.wait_for(_read_body(request, budget), BODY_TIMEOUT_S)
    except asyncio.TimeoutError as error:  # it would hold its memory, and keep the server from ending
        raise Refusal(408, f"body: expected within {BODY_TIMEOUT_S:g} s, it has not ended yet") from error
    if content_type == JSON_TYPE:
        return _from_json(body)
    model = request.query_params.get("model")
    if not model:
        raise Refusal(400, "model: expected in the query, as in /infer?model=resnet50, got none")
    return InferenceCall(model, body, None)


def quoted(text: str) -> str:
    """A client's text as it may stand in an answer: ASCII, in quotes, cut when long."""
    return ascii(text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "...")


async def _read_body(request: Request, budget: BodyBudget) -> bytes:
    announced = request.headers.get("content-length")
    if announced is not None:
        if not announced.isdigit():
            raise Refusal(400, f"Content-Length: expected a number of bytes, got {quoted(announced)}")
        if len(announced) > 12 or int(announced) > MAX_BODY_BYTES:
            raise Refusal(413, f"body: expected at most {MAX_BODY_BYTES} bytes, got {quoted(announced)}")
    chunks: List[bytes] = []
    size = 0
    try:
        with budget.part() as take:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise Refusal(413, f"body: expected at most {MAX_BODY_BYTES} bytes, got more")
                take(len(chunk))
                chunks.append(chunk)
            return b"".join(chunks)
    except ClientDisconnect as error:
        raise Refusal(499, "the client went away") from error


def _from_json(body: bytes) -> InferenceCall:
    try:
        fields = json.loads(body, parse_int=float)  # Python 3.6 takes seconds for an integer of a million digits
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"body: expected JSON, got something else ({quoted(str(error))})") from error
    if not isinstance(fields, dict):
        raise Refusal(400, f"body: expected a JSON object, got {_json_kind(fields)}")
    for name, expected in (("model", "the name of a model"), ("input", "the image in base64")):
        if name not in fields:
            raise Refusal(400, f"{name}: expected {expected}, got none")
        if not isinstance(fields[name], str):
            raise Refusal(400, f"{name}: expected {expected} as a string, got {_json_kind(fields[name])}")
    return InferenceCall(fields["model"], None, fields["input"])


def _require_image_size(field: str, image: bytes) -> bytes:
    if len(image) != IMAGE_BYTES:
        raise Refusal(400, f"{field}: expected {IMAGE_BYTES} bytes (224 x 224 x 3, uint8), got {len(image)}")
    return image


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), ((int, float), "a number"), (str, "a string"), (list, "an array"), (dict, "an object"))
    return next(name for kind, name in kinds if isinstance(value, kind))
