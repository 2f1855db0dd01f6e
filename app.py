"""The HTTP API: which outcome is which answer. What an outcome is, submission.py, results.py and health.py know."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from celery_task_app.batches import BatchReader
from celery_task_app.errors import (
    BatchError,
    BatchTooLarge,
    Overloaded,
    RowsRefused,
    Unavailable,
)
from celery_task_app.health import readiness
from celery_task_app.intake import Intake
from celery_task_app.results import ResultReader, State
from celery_task_app.rows import CSV, JSON, NDJSON, Refused, end, written
from celery_task_app.submission import Submissions
from models import AcceptedBatch, Batch, Customer, Fault, Prediction, Problem, RefusedRow, Task

# Every kind of problem: the end of its stable type, /problems/…, with its status and title.
PROBLEMS = {
    "not-json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "unknown-task": (HTTPStatus.NOT_FOUND, "This id was never issued, or its life is over"),
    "malformed-batch": (HTTPStatus.BAD_REQUEST, "The body is not a batch"),
    "unknown-batch": (HTTPStatus.NOT_FOUND, "This batch was never accepted, or its life is over"),
    "not-acceptable": (HTTPStatus.NOT_ACCEPTABLE, "Results are written as NDJSON, JSON or CSV"),
    "batch-deleted": (HTTPStatus.GONE, "This batch was deleted"),
    "batch-too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "A batch may not be that large"),
    "unsupported-media-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A batch is CSV or JSON"),
    "invalid-rows": (HTTPStatus.UNPROCESSABLE_ENTITY, "Rows of this batch are not customers"),
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
    app.state.intake = Intake(Customer)
    app.state.batches = BatchReader()
    yield
    await app.state.intake.close()
    await app.state.batches.close()
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


@app.post(
    "/churn/batches",
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedBatch,
    responses=_documented(
        "malformed-batch", "batch-too-large", "unsupported-media-type", "invalid-rows", "overloaded", "unavailable"
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                CSV: {"schema": {"type": "string"}},
                JSON: {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Customer"}}},
            },
        }
    },
)
async def accept_batch(request: Request, on_error: Literal["skip", "reject"] = "skip") -> Response:
    """Queue many customers: CSV with a header row, or a JSON array.

    Rows that are not customers are named and left out, or with `on_error=reject` the whole is refused.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (CSV, JSON):
        return _problem("unsupported-media-type", f"Send {CSV} or {JSON}.")
    taken = await request.app.state.intake.take(request.stream(), media_type, all_or_none=on_error == "reject")
    body = AcceptedBatch(
        batch_id=taken.batch_id, total=taken.total, refused=taken.refused, rows=[_refused(row) for row in taken.listed]
    )
    headers = _later(f"/churn/batches/{taken.batch_id}")
    return Response(body.model_dump_json(exclude_none=True), HTTPStatus.ACCEPTED, headers, "application/json")


@app.get(
    "/churn/batches/{batch_id}",
    response_model=Batch,
    responses={HTTPStatus.ACCEPTED: {"model": Batch, "description": "Not computed yet"}}
    | _documented("unknown-batch", "batch-deleted", "unavailable"),
)
async def batch(batch_id: str, request: Request) -> Response:
    """Say how far a batch is."""
    known = await request.app.state.batches.find(_uuid(batch_id))
    if known is None or known.deleted:
        return _no_batch(known)
    body = Batch(
        batch_id=_uuid(batch_id),
        status="Success" if known.ended else "Processing",
        total=known.total,
        done=known.done,
        failed=known.failed,
        model_version=known.model_version,
    ).model_dump_json()
    if known.ended:
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
    return Response(body, HTTPStatus.ACCEPTED, _later(f"/churn/batches/{_uuid(batch_id)}"), "application/json")


_RESULTS: dict[str, Any] = {media_type: {"schema": {"type": "string"}} for media_type in (NDJSON, CSV)} | {
    JSON: {"schema": {"type": "array", "items": {"type": "object"}}}
}


@app.get(
    "/churn/batches/{batch_id}/results",
    response_class=Response,
    responses={
        HTTPStatus.OK: {"content": _RESULTS, "description": "Every row, in the order sent"},
        HTTPStatus.ACCEPTED: {"content": _RESULTS, "description": "The rows that are there"},
    }
    | _documented("unknown-batch", "not-acceptable", "batch-deleted", "unavailable"),
)
async def batch_results(batch_id: str, request: Request) -> Response:
    """Fetch a batch's results in the order sent, as NDJSON, JSON or CSV (`Accept`); those that are there so far."""
    media_type = _best(request.headers.get("accept") or "*/*", (NDJSON, JSON, CSV))
    if media_type is None:
        return _problem("not-acceptable", f"Accept {NDJSON}, {JSON} or {CSV}.")
    known = await request.app.state.batches.find(_uuid(batch_id))
    if known is None or known.deleted:
        return _no_batch(known)

    async def body() -> AsyncIterator[bytes]:
        first = True
        async for scored in request.app.state.batches.results(_uuid(batch_id), known):
            yield written(scored, media_type, first=first)
            first = False
        if first:
            yield written([], media_type, first=True)
        yield end(media_type)

    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if not known.ended:
        headers["Retry-After"] = RETRY_AFTER_S
    return StreamingResponse(body(), HTTPStatus.OK if known.ended else HTTPStatus.ACCEPTED, headers, media_type)


@app.delete(
    "/churn/batches/{batch_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=_documented("unknown-batch", "unavailable"),
)
async def delete_batch(batch_id: str, request: Request) -> Response:
    """Cancel what a batch still waits for, and erase its results."""
    if not await request.app.state.batches.delete(_uuid(batch_id)):
        return _no_batch(None)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _uuid(text: str) -> str:
    """Return an id as it is kept; nothing is kept under what is not a UUID."""
    try:
        return str(UUID(text))
    except ValueError:
        return ""


def _no_batch(known: object) -> Response:
    if known is None:
        return _problem("unknown-batch", "A batch's id is a UUID, as POST /churn/batches answers it.")
    return _problem("batch-deleted", "Its rows are not computed, and its results are erased.")


def _refused(row: Refused) -> RefusedRow:
    """Name each fault of a row, and repeat no value."""
    faults = [
        Fault(pointer="/".join(["#", str(row.row), *filter(None, [place])]), code=code, message=message)
        for place, code, message in row.faults
    ]
    return RefusedRow(row=row.row, line=row.line, errors=faults)


def _best(accept: str, offered: Sequence[str]) -> str | None:
    """Return which of the media types the client likes best; None if it takes none (RFC 9110, 12.5.1)."""
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            wanted[name] = float(quality)
        except ValueError:
            wanted[name] = 0.0

    def liked(media_type: str) -> float:
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        return next((wanted[name] for name in ranges if name in wanted), 0.0)

    best = max(offered, key=liked)
    return best if liked(best) > 0 else None


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


@app.exception_handler(BatchError)
async def _no_such_batch(_request: Request, error: BatchError) -> Response:
    match error:
        case BatchTooLarge():
            return _problem("batch-too-large", f"{error}.")
        case RowsRefused():
            rows = [_refused(row).model_dump(exclude_none=True) for row in error.listed if isinstance(row, Refused)]
            return _problem("invalid-rows", f"{error}.", refused=error.count, rows=rows)
    return _problem("malformed-batch", f"{error}.")


@app.exception_handler(ClientDisconnect)
async def _gone(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody hears it: the client went before its batch had ended


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


def _later(location: str) -> dict[str, str]:
    return {"Location": location, "Retry-After": RETRY_AFTER_S, "Cache-Control": "no-store"}


def _processing(task_id: str) -> Response:
    body = Task(task_id=task_id).model_dump_json()
    return Response(body, HTTPStatus.ACCEPTED, _later(f"/churn/result/{task_id}"), "application/json")


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
