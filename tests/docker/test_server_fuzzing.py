"""schemathesis throws requests made from the OpenAPI document, and broken ones, at a server: no 500, no hang, as documented."""

import base64

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from inference_server import Accelerator, create_app
from inference_server.backend import IMAGE_BYTES
from tests.docker.servers import FakeBackend, opened

ANSWER_TIMEOUT_S = 10
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
IMAGE = bytes(range(256)) * (IMAGE_BYTES // 256)


@pytest.fixture
def schema(run_app):
    accelerator = opened(Accelerator(FakeBackend))
    client = run_app(create_app("fake1", accelerator))
    document = client.get("/openapi.json").json
    body = document["paths"]["/infer"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for length in ("minLength", "maxLength"):  # hypothesis draws no strings of 200,000 characters; whole images come below
        del body["properties"]["input"][length]
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://127.0.0.1:{client.port}")
    yield schema
    accelerator.close()


def answers(schema, method, path, mode, change=None):
    """Status codes of the answers to what schemathesis makes of one operation, each answer as the document says."""
    answered = []

    with requests.Session() as session:

        @EXAMPLES
        @given(data=st.data())
        def check(data):
            case = data.draw(schema[path][method].as_strategy(generation_mode=mode))
            if change is not None:
                change(case, data.draw)
            response = case.call(session=session, timeout=ANSWER_TIMEOUT_S)
            case.validate_response(response, checks=CHECKS)
            answered.append(response.status_code)

        check()
    return set(answered)


@pytest.mark.parametrize("path", ["/health", "/livez", "/metrics"])
def test_what_is_asked_without_a_body(schema, path):
    assert answers(schema, "GET", path, GenerationMode.POSITIVE) == {200}


@pytest.mark.parametrize("mode", GenerationMode)
def test_bodies_of_any_shape(schema, mode):
    assert answers(schema, "POST", "/infer", mode) <= {400, 404}


@pytest.mark.parametrize("media_type", ["application/json", "application/octet-stream"])
def test_images_whole_and_nearly_whole(schema, media_type):
    models = st.sampled_from(["resnet50", "mobilenet", "vgg16"]) | st.text(max_size=20)
    lengths = st.sampled_from([0, IMAGE_BYTES - 1, IMAGE_BYTES, IMAGE_BYTES + 1, 320 * 1024 + 1])

    def change(case, draw):
        model, image = draw(models), (IMAGE * 28)[: draw(lengths)]
        case.media_type = media_type
        if media_type == "application/json":
            case.body = {"model": model, "input": base64.b64encode(image).decode()}
        else:
            case.query, case.body = {"model": model}, image

    assert answers(schema, "POST", "/infer", GenerationMode.POSITIVE, change) == {200, 400, 404, 413}
