"""Every way in which the API refuses (RFC 9457): the kinds, how each is answered and how OpenAPI describes it."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match

from celery_task_app.answers import HEADERS, RETRY_AFTER_S, Answers
from celery_task_app.errors import (
    BadBody,
    BatchError,
    BatchTooLarge,
    BodyTooLarge,
    ChurnServiceError,
    IdempotencyError,
    KeyReused,
    NotJSONType,
    Overloaded,
    Unavailable,
)

# The end of each stable type, /problems/…, with its status and title.
PROBLEMS = {
    "not-json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "malformed-batch": (HTTPStatus.BAD_REQUEST, "The body is not a batch"),
    "unauthorized": (HTTPStatus.UNAUTHORIZED, "This needs an API key"),
    "bad-header": (HTTPStatus.BAD_REQUEST, "A header makes no sense"),
    "unknown-task": (HTTPStatus.NOT_FOUND, "This id was never issued, or its life is over"),
    "unknown-batch": (HTTPStatus.NOT_FOUND, "This batch was never accepted, or its life is over"),
    "not-acceptable": (HTTPStatus.NOT_ACCEPTABLE, "Results are written as NDJSON, JSON or CSV"),
    "no-manifest": (HTTPStatus.NOT_FOUND, "Nothing is known of the model but its predictions"),
    "idempotency-key-in-use": (HTTPStatus.CONFLICT, "The first request with this key is still being accepted"),
    "deleted": (HTTPStatus.GONE, "This prediction was deleted"),
    "expired": (HTTPStatus.GONE, "This prediction was not computed within its deadline"),
    "batch-deleted": (HTTPStatus.GONE, "This batch was deleted"),
    "batch-too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "A batch may not be that large"),
    "too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "not-json-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is not said to be JSON"),
    "unsupported-media-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A batch is CSV or JSON"),
    "invalid-rows": (HTTPStatus.UNPROCESSABLE_ENTITY, "Rows of this batch are not customers"),
    "invalid-features": (HTTPStatus.UNPROCESSABLE_ENTITY, "These features are not those of a customer"),
    "not-explainable": (HTTPStatus.UNPROCESSABLE_ENTITY, "This model gives no reasons"),
    "idempotency-key-reused": (HTTPStatus.UNPROCESSABLE_ENTITY, "This key was sent with another body"),
    "overloaded": (HTTPStatus.TOO_MANY_REQUESTS, "Too many predictions wait"),
    "prediction-failed": (HTTPStatus.INTERNAL_SERVER_ERROR, "This customer can't be predicted"),
    "internal-error": (HTTPStatus.INTERNAL_SERVER_ERROR, "The service has a defect"),
    "unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "The broker or the result store is away"),
    "not-ready": (HTTPStatus.SERVICE_UNAVAILABLE, "A prediction would not be computed now"),
}
_TRY_AGAIN = {HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_MEDIA_TYPE = "application/problem+json"


class Fault(BaseModel):
    """One thing that is wrong with a request; the value itself is never repeated."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """Where, as a JSON pointer (RFC 6901)."""
    code: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """Which kind, as a stable URI reference; the README describes each."""
    title: str
    status: int
    detail: str
    errors: list[Fault] | None = None
    """Every fault of the request."""


def problem(kind: str, detail: str, retry_after_s: int | str = RETRY_AFTER_S, **more: object) -> Response:
    """Return the answer for a kind of problem, with what this occurrence is about."""
    status, title = PROBLEMS[kind]
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": str(retry_after_s)} if status in _TRY_AGAIN else {})
    body = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, _MEDIA_TYPE)


def documented(*kinds: str) -> Answers:
    """Return the problems that a route may answer, for OpenAPI: by status, with an example of each kind."""
    answers: Answers = {}
    for kind in kinds:
        status, title = PROBLEMS[kind]
        fresh = {
            "description": title,
            "headers": {"Cache-Control": HEADERS["Cache-Control"]},
            "content": {_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        answer = answers.setdefault(status, fresh)
        if title not in answer["description"]:
            answer["description"] += f"; or: {title}"
        if status in _TRY_AGAIN:
            answer["headers"]["Retry-After"] = HEADERS["Retry-After"]
        example = Problem(type=f"/problems/{kind}", title=title, status=status, detail=f"{title}.")
        if kind == "invalid-features":
            message = "Input should be greater than or equal to 16"
            example.errors = [Fault(pointer="#/Customer_Age", code="greater_than_equal", message=message)]
        examples = answer["content"][_MEDIA_TYPE].setdefault("examples", {})
        examples[kind] = {"value": example.model_dump(mode="json", exclude_none=True)}
    return answers


def correct(openapi: dict[str, Any]) -> None:
    """Put in the schema of a problem, which no route returns; take out what the framework adds and nothing answers.

    That is its own 422, and the null of a header that may be missing.
    """
    schemas = openapi["components"]["schemas"]
    schemas |= models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")[1]["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in openapi["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                schema |= next((kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}), {})


def add_problems(app: FastAPI) -> None:
    """Let the app answer whatever is raised as a problem."""
    app.add_exception_handler(ChurnServiceError, _expected)  # type: ignore[arg-type]  # they take their own errors
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _framework)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _defect)


async def _expected(_request: Request, error: ChurnServiceError) -> Response:
    kinds: tuple[tuple[type[ChurnServiceError], str], ...] = (
        (Overloaded, "overloaded"),
        (Unavailable, "unavailable"),
        (KeyReused, "idempotency-key-reused"),
        (IdempotencyError, "idempotency-key-in-use"),
        (BodyTooLarge, "too-large"),
        (NotJSONType, "not-json-type"),
        (BadBody, "not-json"),
        (BatchTooLarge, "batch-too-large"),
        (BatchError, "malformed-batch"),
    )
    for type_, kind in kinds:
        if isinstance(error, type_):
            return problem(kind, f"{error}.", getattr(error, "retry_after_s", RETRY_AFTER_S))
    raise error


async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    """Name every fault, and repeat no value: they are a customer's, and NaN could not even be encoded."""
    faults = error.errors()
    named = [
        Fault(pointer="/".join(["#", *map(str, fault["loc"][1:])]), code=fault["type"], message=fault["msg"])
        for fault in faults
    ]
    kind = "bad-header" if any(fault["loc"][0] == "header" for fault in faults) else "invalid-features"
    return problem(kind, "See errors.", errors=[fault.model_dump() for fault in named])


async def _framework(request: Request, error: HTTPException) -> Response:
    """Answer what the framework refuses by itself in the same form; `about:blank` says that the status says it all."""
    title = HTTPStatus(error.status_code).phrase
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": error.detail}
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the framework names those of the first route only
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = {method for route in routes for method in getattr(route, "methods", ())}
        headers["Allow"] = ", ".join(sorted(methods or {"GET", "HEAD"}))  # no route: one of the files of /docs
    return JSONResponse(body, error.status_code, headers, _MEDIA_TYPE)


async def _defect(_request: Request, _error: Exception) -> Response:
    return problem("internal-error", "The log of the API says more.")
