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

from celery_task_app.errors import Overloaded, Unavailable
from celery_task_app.health import readiness
from celery_task_app.results import ResultReader, State
from celery_task_app.submission import Submissions
from models import Customer, Fault, Prediction, Problem, Task

# Every kind of problem: the end of its stable type, /problems/…, with its status and title.
PROBLEMS = {
    "not-json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "unknown-task": (HTTPStatus.NOT_FOUND, "This id was never issued, or its life is over"),
    "invalid-features": (HTTPStatus.UNPROCESSABLE_ENTITY, "These features are not those of a customer"),
    "overloaded": (HTTPStatus.TOO_MANY_REQUESTS, "Too many predictions wait"),
    "prediction-failed": (HTTPStatus.INTERNAL_SERVER_ERROR, "This customer can't be predicted"),
    "internal-error": (HTTPStatus.INTERNAL_SERVER_ERROR, "The service has a defect"),
    "unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "The broker or the result store is away"),
    "not-ready": (HTTPStatus.SERVICE_UNAVAILABLE, "A prediction would not be computed now"),
}
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


def _documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the problems that a route may answer, for OpenAPI."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {PROBLEMS[kind][0]: {"description": PROBLEMS[kind][1], "content": content} for kind in kinds}


app = FastAPI(
    title="Churn predictions",
    description="Takes a bank customer's 19 features, answers at once with a task id, computes the probability of "
    "churn and keeps it until it is fetched.",
    lifespan=lifespan,
    redirect_slashes=False,
)


@app.post(
    "/churn/predict",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Task,
    responses=_documented("not-json", "invalid-features", "overloaded", "unavailable"),
)
async def predict(customer: Customer, request: Request) -> Response:
    """Queue a customer's prediction, and answer with its task id once the queue has confirmed that it keeps it."""
    return _processing(await request.app.state.submissions.submit(customer.model_dump()))


@app.get(
    "/churn/result/{task_id}",
    response_model=Prediction,
    responses={HTTPStatus.ACCEPTED: {"model": Task, "description": "Not computed yet"}}
    | _documented("unknown-task", "prediction-failed", "unavailable"),
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


@app.get("/livez")
async def livez() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "alive"}


@app.get("/readyz", responses=_documented("not-ready"))
async def readyz() -> Response:
    """Say whether a prediction that is accepted now would be computed, and the state of each part."""
    parts = await readiness()
    if not parts.ready:
        return _problem("not-ready", "See broker, result_store and workers.", **asdict(parts))
    return JSONResponse({"status": "ready", **asdict(parts)}, headers={"Cache-Control": "no-store"})


@app.exception_handler(Unavailable)
async def _unavailable(_request: Request, error: Unavailable) -> Response:
    return _problem("overloaded" if isinstance(error, Overloaded) else "unavailable", f"{error}.")


@app.exception_handler(RequestValidationError)
async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    """Name every fault, and repeat no value: they are a customer's, and NaN could not even be encoded."""
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return _problem("not-json", f"{faults[0]['ctx']['error']} at character {faults[0]['loc'][-1]}.")
    named = [
        Fault(
            pointer="/".join(["#", *map(str, fault["loc"][1:])]), code=fault["type"], message=fault["msg"]
        ).model_dump()
        for fault in faults
    ]
    return _problem("invalid-features", "See errors.", errors=named)


@app.exception_handler(HTTPException)
async def _framework(_request: Request, error: HTTPException) -> Response:
    """Answer what the framework refuses by itself in the same form; `about:blank` says that the status says it all."""
    title = HTTPStatus(error.status_code).phrase
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": error.detail}
    return JSONResponse(body, error.status_code, error.headers, "application/problem+json")


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
    return JSONResponse(body, status, headers, "application/problem+json")


# No route returns a Problem, so OpenAPI does not come to know its schema by itself.
app.openapi()["components"]["schemas"] |= models_json_schema(
    [(Problem, "serialization")], ref_template="#/components/schemas/{model}"
)[1]["$defs"]
