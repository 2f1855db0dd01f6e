"""The HTTP API: which outcome is which answer. What an outcome is, submission.py, results.py and health.py know."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from types import FrameType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from celery_task_app.access import Id, KeyRequired, describe, digests, new_id, own_key
from celery_task_app.answers import NOT_STORED, later, later_at
from celery_task_app.batch_routes import add_batches
from celery_task_app.batches import BatchReader
from celery_task_app.bodies import JSONRoute
from celery_task_app.docs import add_docs
from celery_task_app.errors import ArtifactMissing, Expired, ResultStoreUnavailable
from celery_task_app.headers import CANCEL_AFTER, EXPLAIN, IDEMPOTENCY_KEY, PREFER, parameters, preferred_wait_s
from celery_task_app.heads import limit_heads
from celery_task_app.health import readiness
from celery_task_app.idempotency import IdempotencyKeys
from celery_task_app.intake import Intake
from celery_task_app.ml.manifest import read_manifest
from celery_task_app.problems import add_problems, correct, documented, problem
from celery_task_app.results import QUEUED, ResultReader, State
from celery_task_app.results import Prediction as Known
from celery_task_app.settings import settings
from celery_task_app.submission import WITH_REASONS, Submissions
from celery_task_app.waiting import Ended, Waiting
from models import Alive, Customer, ModelCard, Prediction, Ready, Task

_LOOK_EVERY_S = 5  # whether a client that waits is still there

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
        "not-explainable",
        "idempotency-key-reused",
        "overloaded",
        "prediction-failed",
        "internal-error",
        "unavailable",
    ),
    openapi_extra=parameters(EXPLAIN, IDEMPOTENCY_KEY, CANCEL_AFTER, PREFER),
)
async def predict(customer: Customer, request: Request) -> Response:
    """Queue a customer's prediction, and answer with its task id once the queue has confirmed that it keeps it."""
    parts, features = request.app.state, customer.model_dump()
    idempotency_key, cancel_after = IDEMPOTENCY_KEY.of(request), CANCEL_AFTER.of(request)
    if EXPLAIN.of(request) == "true":
        if not _explains():
            return problem("not-explainable", "Send the customer without `explain`.")
        features[WITH_REASONS] = True

    async def submit(task_id: str) -> Known:
        await parts.submissions.submit(task_id, features, cancel_after)
        return QUEUED

    task_id = new_id()
    if idempotency_key is None:
        return await _answer(request, task_id, submit)
    body = customer.model_dump_json().encode() + (b"?explain" if WITH_REASONS in features else b"")
    task_id = await parts.keys.once(own_key(idempotency_key), body, task_id, submit)
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


async def _accepted(_task_id: str) -> Known:
    return QUEUED


def _explains() -> bool:
    """Return whether the model's manifest says that it can give reasons."""
    try:
        return read_manifest(settings.model_path).get("explains") is True
    except ArtifactMissing:
        return False


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
                try:
                    known = await _held(request, ended, wait_s) or await parts.results.fetch(task_id)
                except ResultStoreUnavailable:
                    if known is not QUEUED:  # this very request was accepted, and the client has no id yet
                        raise
                headers["Preference-Applied"] = f"wait={wait_s}"
    if known is None:
        return problem("unknown-task", "Send the customer to POST /churn/predict again.")
    if known.is_queued:
        headers |= later_at(f"/churn/result/{task_id}")
        return Response(Task(task_id=task_id).model_dump_json(), HTTPStatus.ACCEPTED, headers, "application/json")
    if known.state is State.REVOKED:
        kind = "expired" if known.error == Expired.__name__ else "deleted"
        return problem(kind, "Send the customer to POST /churn/predict again.")
    if known.state is State.FAILURE:
        return problem("prediction-failed", f"The worker gave up: {known.error}.")
    prediction = Prediction.model_validate(
        {
            "task_id": task_id,
            "probability": known.probability,
            "model_version": known.model_version,
            "reasons": known.reasons,
        }
    )
    return Response(prediction.model_dump_json(exclude_none=True), HTTPStatus.OK, headers, "application/json")


async def _held(request: Request, ended: Ended, within_s: int) -> Known | None:
    """Await the end; None if there is none in time, or the client has gone."""
    for elapsed_s in range(0, within_s, _LOOK_EVERY_S):
        await asyncio.wait({ended}, timeout=min(_LOOK_EVERY_S, within_s - elapsed_s))
        if ended.done():
            return ended.result()
        if await request.is_disconnected():
            break
    return None


add_batches(app)
describe(app.openapi())
correct(app.openapi())
