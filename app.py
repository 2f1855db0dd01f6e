"""The HTTP API: which outcome is which answer. What an outcome is, submission.py, results.py and health.py know."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match

from bodies import JSONRoute
from celery_task_app.errors import ArtifactMissing, BadBody, BodyTooLarge, NotJSONType, Overloaded, Unavailable
from celery_task_app.health import readiness
from celery_task_app.ml.manifest import read_manifest
from celery_task_app.results import ResultReader, State
from celery_task_app.settings import settings
from celery_task_app.submission import Submissions
from docs import add_docs
from models import Alive, Customer, Fault, ModelCard, Prediction, Problem, Ready, Task

# Every kind of problem: the end of its stable type, /problems/…, with its status and title.
PROBLEMS = {
    "not-json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "not-json-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is not said to be JSON"),
    "unknown-task": (HTTPStatus.NOT_FOUND, "This id was never issued, or its life is over"),
    "no-manifest": (HTTPStatus.NOT_FOUND, "Nothing is known of the model but its predictions"),
    "invalid-features": (HTTPStatus.UNPROCESSABLE_ENTITY, "These features are not those of a customer"),
    "overloaded": (HTTPStatus.TOO_MANY_REQUESTS, "Too many predictions wait"),
    "prediction-failed": (HTTPStatus.INTERNAL_SERVER_ERROR, "This customer can't be predicted"),
    "internal-error": (HTTPStatus.INTERNAL_SERVER_ERROR, "The service has a defect"),
    "unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "The broker or the result store is away"),
    "not-ready": (HTTPStatus.SERVICE_UNAVAILABLE, "A prediction would not be computed now"),
}
PROBLEM = "application/problem+json"
TRY_AGAIN = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
RETRY_AFTER_S = "1"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the publisher and the reader with the server; stop them when the last request is answered."""
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
    app.state.submissions = Submissions()
    app.state.results = ResultReader()
    yield
    await app.state.submissions.close()
    await app.state.results.close()


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Return whether a line of uvicorn's access log is about anything but a health probe."""
    return not (isinstance(record.args, tuple) and record.args[2] in {"/livez", "/readyz"})


Answers = dict[int | str, dict[str, Any]]  # as FastAPI wants them described for OpenAPI, by status
HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "Where to ask for the prediction.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before the next request.", "schema": {"type": "integer"}},
    "Cache-Control": {"description": "No answer is to be kept by a cache.", "schema": {"const": "no-store"}},
}
NOT_STORED: Answers = {HTTPStatus.OK: {"headers": {"Cache-Control": HEADERS["Cache-Control"]}}}
PROCESSING: Answers = {HTTPStatus.ACCEPTED: {"model": Task, "description": "Not computed yet", "headers": HEADERS}}


def _documented(*kinds: str) -> Answers:
    """Return the problems that a route may answer, for OpenAPI: by status, with an example of each kind."""
    answers: Answers = {}
    for kind in kinds:
        status, title = PROBLEMS[kind]
        schema = {"$ref": "#/components/schemas/Problem"}
        fresh = {
            "description": title,
            "headers": dict(NOT_STORED[200]["headers"]),
            "content": {PROBLEM: {"schema": schema}},
        }
        answer = answers.setdefault(status, fresh)
        if title not in answer["description"]:
            answer["description"] += f"; or: {title}"
        if status in TRY_AGAIN:
            answer["headers"]["Retry-After"] = HEADERS["Retry-After"]
        example = Problem(type=f"/problems/{kind}", title=title, status=status, detail=f"{title}.")
        if kind == "invalid-features":
            message = "Input should be greater than or equal to 16"
            example.errors = [Fault(pointer="#/Customer_Age", code="greater_than_equal", message=message)]
        examples = answer["content"][PROBLEM].setdefault("examples", {})
        examples[kind] = {"value": example.model_dump(mode="json", exclude_none=True)}
    return answers


app = FastAPI(
    title="Churn predictions",
    description="Takes a bank customer's 19 features, answers at once with a task id, computes the probability of "
    "churn and keeps it until it is fetched.",
    lifespan=lifespan,
    redirect_slashes=False,
    docs_url=None,  # see docs.py
    redoc_url=None,
    responses=_documented("internal-error"),
    # Its records of refused bodies would repeat them, and asking at each request whether it is configured takes 3 µs.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JSONRoute
add_docs(app)


@app.post(
    "/churn/predict",
    operation_id="predict_churn",
    tags=["predictions"],
    status_code=HTTPStatus.ACCEPTED,
    response_model=Task,
    responses=PROCESSING
    | _documented("not-json", "too-large", "not-json-type", "invalid-features", "overloaded", "unavailable"),
)
async def predict(customer: Customer, request: Request) -> Response:
    """Queue a customer's prediction, and answer with its task id once the queue has confirmed that it keeps it."""
    return _processing(await request.app.state.submissions.submit(customer.model_dump()))


@app.get(
    "/churn/result/{task_id}",
    operation_id="get_churn_result",
    tags=["predictions"],
    response_model=Prediction,
    response_description="Computed",
    responses=NOT_STORED
    | PROCESSING
    | _documented("unknown-task", "prediction-failed", "internal-error", "unavailable"),
)
async def result(task_id: str, request: Request) -> Response:
    """Fetch the prediction of a task id."""
    try:
        task_id = str(UUID(task_id))
    except ValueError:
        return _problem("unknown-task", "A task id is a UUID, as POST /churn/predict answers it.")
    known = await request.app.state.results.fetch(task_id)
    if known is None:
        return _problem("unknown-task", "Send the customer to POST /churn/predict again.")
    if known.state is State.QUEUED:
        return _processing(task_id)
    if known.state is State.FAILURE:
        return _problem("prediction-failed", f"The worker gave up: {known.error}.")
    prediction = Prediction(task_id=task_id, probability=known.probability, model_version=known.model_version)
    return Response(prediction.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})


@app.get(
    "/churn/model",
    operation_id="get_churn_model",
    tags=["model"],
    response_model=ModelCard,
    response_model_exclude_none=True,
    response_description="What its manifest says",
    responses=_documented("no-manifest"),
)
def model() -> Any:  # reads a file, so it gets a thread
    """Describe the model that predicts: its version, its features as the training data has them, and its scores."""
    try:
        return read_manifest(settings.model_path)
    except ArtifactMissing:
        return _problem("no-manifest", "There is no manifest beside the model file.")


@app.get("/livez", operation_id="get_liveness", tags=["operations"], response_description="Alive")
async def livez() -> Alive:
    """Say that this process answers."""
    return Alive()


@app.get(
    "/readyz",
    operation_id="get_readiness",
    tags=["operations"],
    response_model=Ready,
    response_description="Ready",
    responses=NOT_STORED | _documented("not-ready"),
)
async def readyz() -> Response:
    """Say whether a prediction that is accepted now would be computed, and the state of each part."""
    parts = await readiness()
    if not parts.ready:
        return _problem("not-ready", "See broker, result_store and workers.", **asdict(parts))
    return JSONResponse({"status": "ready", **asdict(parts)}, headers={"Cache-Control": "no-store"})


@app.exception_handler(Unavailable)
async def _unavailable(_request: Request, error: Unavailable) -> Response:
    return _problem("overloaded" if isinstance(error, Overloaded) else "unavailable", f"{error}.")


@app.exception_handler(BadBody)
async def _bad_body(_request: Request, error: BadBody) -> Response:
    kinds: dict[type, str] = {BodyTooLarge: "too-large", NotJSONType: "not-json-type"}
    return _problem(kinds.get(type(error), "not-json"), f"{error}.")


@app.exception_handler(RequestValidationError)
async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    """Name every fault, and repeat no value: they are a customer's, and NaN could not even be encoded."""
    named = [
        Fault(
            pointer="/".join(["#", *map(str, fault["loc"][1:])]), code=fault["type"], message=fault["msg"]
        ).model_dump()
        for fault in error.errors()
    ]
    return _problem("invalid-features", "See errors.", errors=named)


@app.exception_handler(HTTPException)
async def _framework(request: Request, error: HTTPException) -> Response:
    """Answer what the framework refuses by itself in the same form; `about:blank` says that the status says it all."""
    title = HTTPStatus(error.status_code).phrase
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": error.detail}
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the framework names those of the first route only
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = {method for route in routes for method in getattr(route, "methods", ())}
        headers["Allow"] = ", ".join(sorted(methods or {"GET", "HEAD"}))  # no route: one of the files of /docs
    return JSONResponse(body, error.status_code, headers, PROBLEM)


@app.exception_handler(Exception)
async def _defect(_request: Request, _error: Exception) -> Response:
    return _problem("internal-error", "The log of the API says more.")


def _processing(task_id: str) -> Response:
    headers = {"Location": f"/churn/result/{task_id}", "Retry-After": RETRY_AFTER_S, "Cache-Control": "no-store"}
    body = Task(task_id=task_id).model_dump_json()
    return Response(body, HTTPStatus.ACCEPTED, headers, "application/json")


def _problem(kind: str, detail: str, **more: object) -> Response:
    status, title = PROBLEMS[kind]
    headers: Mapping[str, str] = {"Cache-Control": "no-store"}
    if status in TRY_AGAIN:
        headers = {**headers, "Retry-After": RETRY_AFTER_S}
    body = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, PROBLEM)


def _correct(openapi: dict[str, Any]) -> None:
    """Put in the schema of a problem, which no route returns; take out the framework's 422, which none answers."""
    schemas = openapi["components"]["schemas"]
    schemas |= models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")[1]["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in openapi["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]


_correct(app.openapi())
