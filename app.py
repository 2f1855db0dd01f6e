"""The HTTP API: which outcome is which answer. What an outcome is, submission.py, results.py and health.py know."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from types import FrameType
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from celery_task_app.errors import Expired, IdempotencyError, KeyReused, Overloaded, Unavailable
from celery_task_app.health import readiness
from celery_task_app.idempotency import IdempotencyKeys
from celery_task_app.results import QUEUED, ResultReader, State
from celery_task_app.results import Prediction as Known
from celery_task_app.settings import settings
from celery_task_app.submission import Submissions
from celery_task_app.waiting import Waiting
from models import Customer, Fault, Prediction, Problem, Task

# Every kind of problem: the end of its stable type, /problems/…, with its status and title.
PROBLEMS = {
    "not-json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "bad-header": (HTTPStatus.BAD_REQUEST, "A header makes no sense"),
    "unknown-task": (HTTPStatus.NOT_FOUND, "This id was never issued, or its life is over"),
    "idempotency-key-in-use": (HTTPStatus.CONFLICT, "The first request with this key is still being accepted"),
    "deleted": (HTTPStatus.GONE, "This prediction was deleted"),
    "expired": (HTTPStatus.GONE, "This prediction was not computed within its deadline"),
    "idempotency-key-reused": (HTTPStatus.UNPROCESSABLE_ENTITY, "This key was sent with another body"),
    "invalid-features": (HTTPStatus.UNPROCESSABLE_ENTITY, "These features are not those of a customer"),
    "overloaded": (HTTPStatus.TOO_MANY_REQUESTS, "Too many predictions wait"),
    "prediction-failed": (HTTPStatus.INTERNAL_SERVER_ERROR, "This customer can't be predicted"),
    "internal-error": (HTTPStatus.INTERNAL_SERVER_ERROR, "The service has a defect"),
    "unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "The broker or the result store is away"),
    "not-ready": (HTTPStatus.SERVICE_UNAVAILABLE, "A prediction would not be computed now"),
}
TRY_AGAIN = {HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
RETRY_AFTER_S = "1"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the publisher and the reader with the server; stop them when the last request is answered."""
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
    app.state.submissions = Submissions()
    app.state.results = ResultReader()
    app.state.waiting = Waiting(app.state.results)
    app.state.keys = IdempotencyKeys()
    _on_stop(app.state.waiting.release)
    yield
    await app.state.submissions.close()
    await app.state.waiting.close()
    await app.state.keys.close()
    await app.state.results.close()


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
    """Return a task id as it was issued; one that was not is unknown, whatever it is."""
    try:
        return str(UUID(task_id))
    except ValueError:
        return str(UUID(int=0))  # never issued


TaskId = Annotated[str, AfterValidator(_canonical)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
CancelAfter = Annotated[int | None, Header(ge=1, description="Seconds within which it is computed, or expires.")]


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
    responses={HTTPStatus.OK: {"model": Prediction, "description": "Computed while `Prefer: wait` held the request"}}
    | _documented(
        "not-json",
        "idempotency-key-in-use",
        "expired",
        "invalid-features",
        "overloaded",
        "prediction-failed",
        "unavailable",
    ),
)
async def predict(
    customer: Customer, request: Request, idempotency_key: IdempotencyKey = None, cancel_after: CancelAfter = None
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
    response_model=Prediction,
    responses={HTTPStatus.ACCEPTED: {"model": Task, "description": "Not computed yet"}}
    | _documented("unknown-task", "deleted", "prediction-failed", "unavailable"),
)
async def result(task_id: TaskId, request: Request) -> Response:
    """Fetch the prediction of a task id; with `Prefer: wait=N`, wait for it."""
    return await _answer(request, task_id, await request.app.state.results.fetch(task_id))


@app.delete(
    "/churn/result/{task_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=_documented("unknown-task", "unavailable"),
)
async def delete(task_id: TaskId, request: Request) -> Response:
    """Cancel the prediction if it waits, erase it if it is done; whichever it was, its id answers 410 from then on."""
    if await request.app.state.results.delete(task_id):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return _problem("unknown-task", "There is nothing to delete.")


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


@app.exception_handler(IdempotencyError)
async def _idempotency(_request: Request, error: IdempotencyError) -> Response:
    kind = "idempotency-key-reused" if isinstance(error, KeyReused) else "idempotency-key-in-use"
    return _problem(kind, f"{error}.")


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
    of_headers = any(fault["loc"][0] == "header" for fault in faults)
    return _problem("bad-header" if of_headers else "invalid-features", "See errors.", errors=named)


@app.exception_handler(HTTPException)
async def _framework(_request: Request, error: HTTPException) -> Response:
    """Answer what the framework refuses by itself in the same form; `about:blank` says that the status says it all."""
    title = HTTPStatus(error.status_code).phrase
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": error.detail}
    return JSONResponse(body, error.status_code, error.headers, "application/problem+json")


@app.exception_handler(Exception)
async def _defect(_request: Request, _error: Exception) -> Response:
    return _problem("internal-error", "The log of the API says more.")


async def _answer(request: Request, task_id: str, known: Known | None) -> Response:
    """Answer what is known of a task id, once it has ended or the client wants to wait no longer."""
    headers = {"Cache-Control": "no-store", "Vary": "Prefer"}
    wait_s, waiting = _preferred_wait_s(request), request.app.state.waiting
    if known is not None and known.is_queued and wait_s and not waiting.is_full:
        known = await _held(request, waiting.end_of(task_id, wait_s)) or await request.app.state.results.fetch(task_id)
        headers["Preference-Applied"] = f"wait={wait_s}"
    if known is None:
        return _problem("unknown-task", "Send the customer to POST /churn/predict again.")
    if known.is_queued:
        headers |= {"Location": f"/churn/result/{task_id}", "Retry-After": RETRY_AFTER_S}
        return Response(Task(task_id=task_id).model_dump_json(), HTTPStatus.ACCEPTED, headers, "application/json")
    if known.state is State.REVOKED:
        kind = "expired" if known.error == Expired.__name__ else "deleted"
        return _problem(kind, "Send the customer to POST /churn/predict again.")
    if known.state is State.FAILURE:
        return _problem("prediction-failed", f"The worker gave up: {known.error}.")
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
