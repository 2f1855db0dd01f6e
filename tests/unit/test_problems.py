"""Problems (RFC 9457): one enum that statuses, titles, exception handlers and OpenAPI derive from."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError

from api.http.exception_handlers import add_exception_handlers
from api.http.problems import ProblemType, problem, problem_responses
from api.http.request_middleware import RequestMiddleware
from celery_task_app import errors
from models import Problem
from tests.unit.asgi import ASGIResponse, call

RETRIABLE = {HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


def subclasses(kind: type[errors.ChurnServiceError]) -> Iterator[type[errors.ChurnServiceError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def instance(kind: type[errors.ChurnServiceError]) -> errors.ChurnServiceError:
    return kind("a reason", 1, []) if issubclass(kind, errors.RowsRefused) else kind("a reason")


def response_to(error: Exception) -> ASGIResponse:
    """Return the response of an app whose only route raises this error."""
    app = FastAPI()
    add_exception_handlers(app)

    @app.get("/")
    async def route(_request: Request) -> None:
        raise error

    return call(app, "GET", "/")


def test_every_problem_has_a_type_of_its_own() -> None:
    slugs = [kind.slug for kind in ProblemType]
    assert len(set(slugs)) == len(slugs) == len(ProblemType.__members__)
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", slug) for slug in slugs)


@pytest.mark.parametrize("kind", ProblemType)
def test_a_problem_is_named_as_its_type_and_documented(kind: ProblemType) -> None:
    assert kind.name == kind.slug.upper().replace("-", "_")
    assert kind.type == f"/problems/{kind.slug}"
    assert 400 <= kind.status < 600
    assert kind.title
    assert kind.when


def test_an_error_class_stands_for_one_problem() -> None:
    counts = Counter(kind.error for kind in ProblemType if kind.error)
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("kind", [kind for kind in ProblemType if kind.error], ids=lambda kind: kind.slug)
def test_an_error_gets_the_problem_of_its_class(kind: ProblemType) -> None:
    assert kind.error is not None
    assert ProblemType.of(instance(kind.error)) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.NotJSON("x"), ProblemType.NOT_JSON),
        (errors.NotJSONType("x"), ProblemType.NOT_JSON_TYPE),
        (errors.BodyTooLarge("x"), ProblemType.TOO_LARGE),
        (errors.KeyReused("x"), ProblemType.IDEMPOTENCY_KEY_REUSED),
        (errors.KeyInUse("x"), ProblemType.IDEMPOTENCY_KEY_IN_USE),
        (errors.MalformedBatch("x"), ProblemType.MALFORMED_BATCH),
        (errors.BatchTooLarge("x"), ProblemType.BATCH_TOO_LARGE),
        (errors.RowsRefused("x", 1, []), ProblemType.INVALID_ROWS),
        (errors.Overloaded("x"), ProblemType.OVERLOADED),
        (errors.BrokerUnavailable("x"), ProblemType.UNAVAILABLE),
        (errors.ResultStoreUnavailable("x"), ProblemType.UNAVAILABLE),
        (errors.ArtifactCorrupt("x"), ProblemType.INTERNAL_ERROR),
        (errors.MalformedMessage("x"), ProblemType.INTERNAL_ERROR),
    ],
    ids=str,
)
def test_an_error_without_a_problem_of_its_own_gets_that_of_the_nearest_class(
    error: errors.ChurnServiceError, kind: ProblemType
) -> None:
    assert ProblemType.of(error) is kind


@pytest.mark.parametrize("kind", list(subclasses(errors.ChurnServiceError)))
def test_every_error_of_the_service_has_a_problem(kind: type[errors.ChurnServiceError]) -> None:
    assert isinstance(ProblemType.of(instance(kind)), ProblemType)


@pytest.mark.parametrize("kind", ProblemType)
def test_the_body_and_headers_of_a_problem(kind: ProblemType) -> None:
    response = problem(kind, "a detail", 7, refused=3)
    assert response.status_code == kind.status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers.get("retry-after") == ("7" if kind.status in RETRIABLE else None)
    assert json.loads(bytes(response.body)) == {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": "a detail",
        "refused": 3,
    }


@pytest.mark.parametrize("kind", ProblemType)
def test_openapi_has_a_valid_example_of_a_problem(kind: ProblemType) -> None:
    ((status, response),) = problem_responses(kind).items()
    assert status == kind.status
    assert response["description"] == kind.title
    assert ("Retry-After" in response["headers"]) == (kind.status in RETRIABLE)
    (example,) = response["content"]["application/problem+json"]["examples"].values()
    assert Problem.model_validate(example["value"]).type == kind.type


def test_problems_of_one_status_are_one_response_of_openapi() -> None:
    responses = problem_responses(ProblemType.DELETED, ProblemType.EXPIRED, ProblemType.UNKNOWN_TASK)
    assert set(responses) == {404, 410}
    assert responses[410]["description"] == f"{ProblemType.DELETED.title}; or: {ProblemType.EXPIRED.title}"
    assert set(responses[410]["content"]["application/problem+json"]["examples"]) == {"deleted", "expired"}


def test_an_error_is_answered_with_its_problem_and_its_message() -> None:
    response = response_to(errors.KeyReused("this key was sent with another body"))
    assert response.status == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/idempotency-key-reused"
    assert response.json()["detail"] == "this key was sent with another body."


def test_an_overload_is_answered_with_its_own_retry_after() -> None:
    response = response_to(errors.Overloaded("too many customers wait", 42))
    assert (response.status, response.headers["retry-after"]) == (429, "42")


def test_a_validation_error_names_every_fault_as_a_json_pointer_and_repeats_no_value() -> None:
    faults = [
        {"type": "missing", "loc": ("body", "Gender"), "msg": "Field required", "input": {"secret": 1}},
        {"type": "int_type", "loc": ("body", "a", 0), "msg": "Input should be a valid integer", "input": "secret"},
    ]
    response = response_to(RequestValidationError(faults))
    assert response.json()["type"] == "/problems/invalid-features"
    assert response.json()["errors"] == [
        {"pointer": "#/Gender", "code": "missing", "message": "Field required"},
        {"pointer": "#/a/0", "code": "int_type", "message": "Input should be a valid integer"},
    ]
    assert b"secret" not in response.body


def test_a_validation_error_of_a_header_is_an_invalid_header() -> None:
    fault = {"type": "int_parsing", "loc": ("header", "Cancel-After"), "msg": "Input should be a valid integer"}
    response = response_to(RequestValidationError([fault]))
    assert (response.status, response.json()["type"]) == (400, "/problems/bad-header")


def test_a_refusal_of_the_framework_is_a_problem_without_a_type_of_its_own() -> None:
    response = response_to(HTTPException(404, "nothing here"))
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "nothing here"}


@pytest.mark.parametrize("error", [errors.ArtifactCorrupt("no manifest"), RuntimeError("a secret")])
def test_a_defect_is_an_internal_error_and_its_type_and_places_are_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    add_exception_handlers(app)
    app.add_middleware(RequestMiddleware, recorders=[])

    @app.get("/")
    async def route(_request: Request) -> None:
        raise error

    response = call(app, "GET", "/", headers={"X-Request-ID": "mine"})
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        f"request failed request_id=mine type={type(error).__name__} stack=http/request_middleware.py:"
    )
    assert ">unit/test_problems.py:" in line
    assert str(error) not in caplog.text
    assert response.headers["x-request-id"] == "mine"
    assert (response.status, response.json()["type"]) == (500, "/problems/internal-error")
    assert str(error).encode() not in response.body
