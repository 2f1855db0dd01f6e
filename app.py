"""The HTTP API: which outcome is which answer. What an outcome is, submission.py, results.py and health.py know."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from types import FrameType
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator

from celery_task_app.bodies import JSONRoute
from celery_task_app.docs import add_docs
from celery_task_app.errors import ArtifactMissing, Expired
from celery_task_app.health import readiness
from celery_task_app.idempotency import IdempotencyKeys
from celery_task_app.ml.manifest import read_manifest
from celery_task_app.problems import HEADERS, RETRY_AFTER_S, Answers, add_problems, correct, documented, problem
from celery_task_app.results import QUEUED, ResultReader, State
from celery_task_app.results import Prediction as Known
from celery_task_app.settings import settings
from celery_task_app.submission import Submissions
from celery_task_app.waiting import Waiting
from models import Alive, Customer, ModelCard, Prediction, Ready, Task

NOT_STORED: Answers = {HTTPStatus.OK: {"headers": {"Cache-Control": HEADERS["Cache-Control"]}}}
PROCESSING: Answers = {HTTPStatus.ACCEPTED: {"model": Task, "description": "Not computed yet", "headers": HEADERS}}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the routes need with the server; stop it when the last request is answered."""
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
    parts = app.state
    parts.submissions, parts.results, parts.keys = Submissions(), ResultReader(), IdempotencyKeys()
    parts.waiting = Waiting(parts.results)
    _on_stop(parts.waiting.release)
    yield
    for part in (parts.submissions, parts.waiting, parts.keys, parts.results):
        await part.close()


def _on_stop(release: Callable[[], None]) -> None:
    """Let those go who wait as soon as the server is told to stop: it first answers every request that it holds."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        servers_own = signal.getsignal(number)

        def stop(number: int, frame: FrameType | None, then: Any = servers_own) -> None:
            loop.call_soon_threadsafe(release)
            then(number, frame)

        signal.signal(number, stop)


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Return whether a line of uvicorn's access log is about anything but a health probe."""
    return not (isinstance(record.args, tuple) and record.args[2] in {"/livez", "/readyz"})


def _canonical(task_id: str) -> str:
    """Return a task id as it was issued; whatever is none gets the id that never was."""
    try:
        return str(UUID(task_id))
    except ValueError:
        return str(UUID(int=0))


TaskId = Annotated[str, AfterValidator(_canonical)]
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="The same key and body, the same prediction.")
]
CancelAfter = Annotated[int | None, Header(ge=1, description="Seconds within which it is computed, or expires.")]
Prefer = Annotated[
    str | None,
    Header(description="`wait=N`: answer when it has ended, or in N seconds (RFC 7240).", examples=["wait=5"]),
]

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
)
async def predict(
    customer: Customer,
    request: Request,
    idempotency_key: IdempotencyKey = None,
    cancel_after: CancelAfter = None,
    prefer: Prefer = None,  # noqa: ARG001 - for OpenAPI; there may be more than one
) -> Response:
    """Queue a customer's prediction, and answer with its task id once the queue has confirmed that it keeps it."""
    parts, features = request.app.state, customer.model_dump()

    async def submit(task_id: str) -> None:
        await parts.submissions.submit(task_id, features, cancel_after)

    task_id = str(uuid4())
    if idempotency_key is None:
        await submit(task_id)
    else:
        task_id = await parts.keys.once(idempotency_key, customer.model_dump_json().encode(), task_id, submit)
    return await _answer(request, task_id, QUEUED)


@app.get(
    "/churn/result/{task_id}",
    operation_id="get_churn_result",
    tags=["predictions"],
    response_model=Prediction,
    response_description="Computed",
    responses=NOT_STORED
    | PROCESSING
    | documented("unknown-task", "deleted", "expired", "prediction-failed", "internal-error", "unavailable"),
)
async def result(task_id: TaskId, request: Request, prefer: Prefer = None) -> Response:  # noqa: ARG001 - as above
    """Fetch the prediction of a task id; with `Prefer: wait=N`, wait for it."""
    return await _answer(request, task_id, await request.app.state.results.fetch(task_id))


@app.delete(
    "/churn/result/{task_id}",
    operation_id="delete_churn_result",
    tags=["predictions"],
    status_code=HTTPStatus.NO_CONTENT,
    response_description="Deleted",
    responses=documented("unknown-task", "unavailable"),
)
async def delete(task_id: TaskId, request: Request) -> Response:
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


async def _answer(request: Request, task_id: str, known: Known | None) -> Response:
    """Answer what is known of a task id, once it has ended or the client wants to wait no longer."""
    headers = {"Cache-Control": "no-store", "Vary": "Prefer"}
    wait_s, waiting = _preferred_wait_s(request), request.app.state.waiting
    if known is not None and known.is_queued and wait_s and not waiting.is_full:
        known = await _held(request, waiting.end_of(task_id, wait_s)) or await request.app.state.results.fetch(task_id)
        headers["Preference-Applied"] = f"wait={wait_s}"
    if known is None:
        return problem("unknown-task", "Send the customer to POST /churn/predict again.")
    if known.is_queued:
        headers |= {"Location": f"/churn/result/{task_id}", "Retry-After": RETRY_AFTER_S}
        return Response(Task(task_id=task_id).model_dump_json(), HTTPStatus.ACCEPTED, headers, "application/json")
    if known.state is State.REVOKED:
        kind = "expired" if known.error == Expired.__name__ else "deleted"
        return problem(kind, "Send the customer to POST /churn/predict again.")
    if known.state is State.FAILURE:
        return problem("prediction-failed", f"The worker gave up: {known.error}.")
    prediction = Prediction.model_validate({"task_id": task_id, **asdict(known)})
    return Response(prediction.model_dump_json(), HTTPStatus.OK, headers, "application/json")


def _preferred_wait_s(request: Request) -> int:
    """Return how long the client wants to wait (`Prefer: wait=N`, RFC 7240), at most MAX_WAIT_S; 0 if it does not."""
    for header in request.headers.getlist("prefer"):
        for preference in header.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdecimal():
                return min(int(value[:9]), settings.max_wait_s)
    return 0


async def _held(request: Request, end: Coroutine[Any, Any, Known | None]) -> Known | None:
    """Await the end, unless the client goes away."""
    waiting, gone = asyncio.create_task(end), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


correct(app.openapi())
