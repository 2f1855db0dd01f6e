"""The HTTP API: which outcome is which answer. What an outcome is, submission.py, results.py and health.py know."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from types import FrameType
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel
from starlette.requests import ClientDisconnect

from celery_task_app.access import KeyRequired, describe, digests, new_id, own_id, own_key
from celery_task_app.batches import BatchReader
from celery_task_app.bodies import JSONRoute
from celery_task_app.docs import add_docs
from celery_task_app.errors import ArtifactMissing, Expired, RowsRefused
from celery_task_app.headers import CANCEL_AFTER, IDEMPOTENCY_KEY, PREFER, parameters, preferred_wait_s
from celery_task_app.heads import limit_heads
from celery_task_app.health import readiness
from celery_task_app.idempotency import IdempotencyKeys
from celery_task_app.intake import Intake
from celery_task_app.ml.manifest import read_manifest
from celery_task_app.problems import (
    HEADERS,
    RETRY_AFTER_S,
    Answers,
    Fault,
    add_problems,
    correct,
    documented,
    problem,
)
from celery_task_app.results import QUEUED, ResultReader, State
from celery_task_app.results import Prediction as Known
from celery_task_app.rows import CSV, JSON, NDJSON, Refused, end, written
from celery_task_app.settings import settings
from celery_task_app.submission import Submissions
from celery_task_app.waiting import Ended, Waiting
from models import AcceptedBatch, Alive, Batch, Customer, ModelCard, Prediction, Ready, RefusedRow, Task

_LOOK_EVERY_S = 5  # whether a client that waits is still there

NOT_STORED: Answers = {HTTPStatus.OK: {"headers": {"Cache-Control": HEADERS["Cache-Control"]}}}


def later(model: type[BaseModel], description: str) -> Answers:
    """Return an answer that says where to ask again, for OpenAPI."""
    return {HTTPStatus.ACCEPTED: {"model": model, "description": description, "headers": HEADERS}}


PROCESSING = later(Task, "Not computed yet")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the routes need with the server; stop it when the last request is answered."""
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
    parts = app.state
    parts.submissions, parts.results, parts.keys = Submissions(), ResultReader(), IdempotencyKeys()
    parts.waiting = Waiting(parts.results, parts.submissions.hear)
    parts.intake, parts.batches = Intake(Customer), BatchReader()
    _on_stop(parts.waiting.release)
    gc.collect()
    gc.freeze()  # what is there now stays; to look through it again and again takes a fifth of the time of a request
    yield
    for part in (parts.submissions, parts.intake, parts.waiting, parts.keys, parts.results, parts.batches):
        await part.close()


def _on_stop(release: Callable[[], None]) -> None:
    """Let those go who wait as soon as the server is told to stop: it first answers every request that it holds.

    The server is told of a SIGTERM as of a Ctrl-C, which it takes for a stop that was wanted and exits with 0; of a
    SIGTERM it would die itself, once it is done, and its exit code would be that of a failure. As PID 1, 0 anyway.
    """
    loop, is_told = asyncio.get_running_loop(), False
    for number in (signal.SIGINT, signal.SIGTERM):
        servers_own = signal.getsignal(number)

        def stop(number: int, frame: FrameType | None, then: Any = servers_own) -> None:
            nonlocal is_told
            loop.call_soon_threadsafe(release)
            if number == signal.SIGINT or not is_told:  # a second Ctrl-C, and only that, cuts short what it holds
                is_told = True
                then(signal.SIGINT, frame)

        signal.signal(number, stop)


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Return whether a line of uvicorn's access log is about anything but a health probe."""
    return not (isinstance(record.args, tuple) and record.args[2] in {"/livez", "/readyz"})


Id = Annotated[str, AfterValidator(own_id)]

app = FastAPI(
    title="Churn predictions",
    description="Takes a bank customer's 19 features, answers at once with a task id, computes the probability of "
    "churn and keeps it until it is fetched.",
    lifespan=lifespan,
    redirect_slashes=False,
    docs_url=None,  # see docs.py
    redoc_url=None,
    responses=documented("internal-error"),
    # Its records of refused bodies would repeat them, and asking at each request whether it is configured takes 3 µs.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JSONRoute
add_problems(app)
add_docs(app)
limit_heads()
if known := digests():
    app.add_middleware(KeyRequired, digests=known)


@app.post(
    "/churn/predict",
    operation_id="predict_churn",
    tags=["predictions"],
    status_code=HTTPStatus.ACCEPTED,
    response_model=Task,
    responses={HTTPStatus.OK: {"model": Prediction, "description": "Computed while the request was held"}}
    | PROCESSING
    | documented(
        "not-json",
        "bad-header",
        "idempotency-key-in-use",
        "deleted",
        "expired",
        "too-large",
        "not-json-type",
        "invalid-features",
        "idempotency-key-reused",
        "overloaded",
        "prediction-failed",
        "internal-error",
        "unavailable",
    ),
    openapi_extra=parameters(IDEMPOTENCY_KEY, CANCEL_AFTER, PREFER),
)
async def predict(customer: Customer, request: Request) -> Response:
    """Queue a customer's prediction, and answer with its task id once the queue has confirmed that it keeps it."""
    parts, features = request.app.state, customer.model_dump()
    idempotency_key, cancel_after = IDEMPOTENCY_KEY.of(request), CANCEL_AFTER.of(request)

    async def submit(task_id: str) -> Known:
        await parts.submissions.submit(task_id, features, cancel_after)
        return QUEUED

    task_id = new_id()
    if idempotency_key is None:
        return await _answer(request, task_id, submit)
    task_id = await parts.keys.once(own_key(idempotency_key), customer.model_dump_json().encode(), task_id, submit)
    return await _answer(request, task_id, parts.results.fetch if preferred_wait_s(request) else _accepted)


@app.get(
    "/churn/result/{task_id}",
    operation_id="get_churn_result",
    tags=["predictions"],
    response_model=Prediction,
    response_description="Computed",
    responses=NOT_STORED
    | PROCESSING
    | documented("unknown-task", "deleted", "expired", "prediction-failed", "internal-error", "unavailable"),
    openapi_extra=parameters(PREFER),
)
async def result(task_id: Id, request: Request) -> Response:
    """Fetch the prediction of a task id; with `Prefer: wait=N`, wait for it."""
    return await _answer(request, task_id, request.app.state.results.fetch)


@app.delete(
    "/churn/result/{task_id}",
    operation_id="delete_churn_result",
    tags=["predictions"],
    status_code=HTTPStatus.NO_CONTENT,
    response_description="Deleted",
    responses=documented("unknown-task", "unavailable"),
)
async def delete(task_id: Id, request: Request) -> Response:
    """Cancel the prediction if it waits, erase it if it is done; whichever it was, its id answers 410 from then on."""
    if await request.app.state.results.delete(task_id):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return problem("unknown-task", "There is nothing to delete.")


@app.get(
    "/churn/model",
    operation_id="get_churn_model",
    tags=["model"],
    response_model=ModelCard,
    response_model_exclude_none=True,
    response_description="What its manifest says",
    responses=documented("no-manifest"),
)
def model() -> Any:  # reads a file, so it gets a thread
    """Describe the model that predicts: its version, its features as the training data has them, and its scores."""
    try:
        return read_manifest(settings.model_path)
    except ArtifactMissing:
        return problem("no-manifest", "There is no manifest beside the model file.")


@app.post(
    "/churn/batches",
    operation_id="create_batch",
    tags=["batches"],
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedBatch,
    responses=later(AcceptedBatch, "Accepted")
    | documented(
        "malformed-batch",
        "batch-too-large",
        "unsupported-media-type",
        "invalid-rows",
        "overloaded",
        "internal-error",
        "unavailable",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                CSV: {"schema": {"type": "string"}},
                JSON: {"schema": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Customer"}}},
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
        return problem("unsupported-media-type", f"Send {CSV} or {JSON}.")
    all_or_none = on_error == "reject"
    taken = await request.app.state.intake.take(new_id(), request.stream(), media_type, all_or_none=all_or_none)
    body = AcceptedBatch(
        batch_id=taken.batch_id, total=taken.total, refused=taken.refused, rows=[_refused(row) for row in taken.listed]
    )
    headers = _later(f"/churn/batches/{taken.batch_id}")
    return Response(body.model_dump_json(exclude_none=True), HTTPStatus.ACCEPTED, headers, "application/json")


@app.get(
    "/churn/batches/{batch_id}",
    operation_id="get_batch",
    tags=["batches"],
    response_model=Batch,
    responses=NOT_STORED
    | later(Batch, "Not all computed yet")
    | documented("unknown-batch", "batch-deleted", "unavailable"),
)
async def batch(batch_id: Id, request: Request) -> Response:
    """Say how far a batch is."""
    known = await request.app.state.batches.find(batch_id)
    if known is None or known.deleted:
        return _no_batch(known)
    body = Batch(
        batch_id=batch_id,
        status="Success" if known.ended else "Processing",
        total=known.total,
        done=known.done,
        failed=known.failed,
        model_version=known.model_version,
    ).model_dump_json()
    if known.ended:
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
    return Response(body, HTTPStatus.ACCEPTED, _later(f"/churn/batches/{batch_id}"), "application/json")


_RESULTS: dict[str, Any] = {media_type: {"schema": {"type": "string"}} for media_type in (NDJSON, CSV)} | {
    JSON: {
        "schema": {
            "type": "array",
            "items": {"type": "object"},
            "examples": [[{"row": 0, "probability": 0.0003718108139585349}]],
        }
    }
}


@app.get(
    "/churn/batches/{batch_id}/results",
    operation_id="get_batch_results",
    tags=["batches"],
    response_class=Response,
    responses={
        HTTPStatus.OK: {"content": _RESULTS, "description": "Every row, in the order sent"},
        HTTPStatus.ACCEPTED: {"content": _RESULTS, "description": "The rows that are there"},
    }
    | documented("unknown-batch", "not-acceptable", "batch-deleted", "unavailable"),
)
async def batch_results(batch_id: Id, request: Request) -> Response:
    """Fetch a batch's results in the order sent, as NDJSON, JSON or CSV (`Accept`); those that are there so far."""
    media_type = _best(request.headers.get("accept") or "*/*", (NDJSON, JSON, CSV))
    if media_type is None:
        return problem("not-acceptable", f"Accept {NDJSON}, {JSON} or {CSV}.")
    known = await request.app.state.batches.find(batch_id)
    if known is None or known.deleted:
        return _no_batch(known)

    async def body() -> AsyncIterator[bytes]:
        first = True
        async for scored in request.app.state.batches.results(batch_id, known):
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
    operation_id="delete_batch",
    tags=["batches"],
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented("unknown-batch", "unavailable"),
)
async def delete_batch(batch_id: Id, request: Request) -> Response:
    """Cancel what a batch still waits for, and erase its results."""
    if not await request.app.state.batches.delete(batch_id):
        return _no_batch(None)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _no_batch(known: object) -> Response:
    if known is None:
        return problem("unknown-batch", "A batch's id is a UUID, as POST /churn/batches answers it.")
    return problem("batch-deleted", "Its rows are not computed, and its results are erased.")


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
    responses=NOT_STORED | documented("not-ready"),
)
async def readyz() -> Response:
    """Say whether a prediction that is accepted now would be computed, and the state of each part."""
    parts = await readiness()
    if not parts.ready:
        return problem("not-ready", "See broker, result_store and workers.", **asdict(parts))
    return JSONResponse({"status": "ready", **asdict(parts)}, headers={"Cache-Control": "no-store"})


@app.exception_handler(RowsRefused)
async def _rows_refused(_request: Request, error: RowsRefused) -> Response:
    rows = [_refused(row).model_dump(exclude_none=True) for row in error.listed if isinstance(row, Refused)]
    return problem("invalid-rows", f"{error}.", refused=error.count, rows=rows)


@app.exception_handler(ClientDisconnect)
async def _incomplete(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody hears it: the client went before its batch had ended


def _later(location: str) -> dict[str, str]:
    return {"Location": location, "Retry-After": RETRY_AFTER_S, "Cache-Control": "no-store"}


async def _accepted(_task_id: str) -> Known:
    return QUEUED


async def _answer(request: Request, task_id: str, learn: Callable[[str], Awaitable[Known | None]]) -> Response:
    """Answer what is known of a task id, once it has ended or the client wants to wait no longer.

    Args:
        request: what is answered.
        task_id: of the prediction.
        learn: submits the prediction, or reads it; its end is listened for before.
    """
    headers = {"Cache-Control": "no-store", "Vary": "Prefer"}
    wait_s, parts = preferred_wait_s(request), request.app.state
    if not wait_s or parts.waiting.is_full:
        known = await learn(task_id)
    else:
        with parts.waiting.end_of(task_id) as ended:
            known = await learn(task_id)
            if known is not None and known.is_queued:
                known = await _held(request, ended, wait_s) or await parts.results.fetch(task_id)
                headers["Preference-Applied"] = f"wait={wait_s}"
    if known is None:
        return problem("unknown-task", "Send the customer to POST /churn/predict again.")
    if known.is_queued:
        headers |= _later(f"/churn/result/{task_id}")
        return Response(Task(task_id=task_id).model_dump_json(), HTTPStatus.ACCEPTED, headers, "application/json")
    if known.state is State.REVOKED:
        kind = "expired" if known.error == Expired.__name__ else "deleted"
        return problem(kind, "Send the customer to POST /churn/predict again.")
    if known.state is State.FAILURE:
        return problem("prediction-failed", f"The worker gave up: {known.error}.")
    prediction = Prediction.model_validate(
        {"task_id": task_id, "probability": known.probability, "model_version": known.model_version}
    )
    return Response(prediction.model_dump_json(), HTTPStatus.OK, headers, "application/json")


async def _held(request: Request, ended: Ended, within_s: int) -> Known | None:
    """Await the end; None if there is none in time, or the client has gone."""
    for elapsed_s in range(0, within_s, _LOOK_EVERY_S):
        await asyncio.wait({ended}, timeout=min(_LOOK_EVERY_S, within_s - elapsed_s))
        if ended.done():
            return ended.result()
        if await request.is_disconnected():
            break
    return None


describe(app.openapi())
correct(app.openapi())
