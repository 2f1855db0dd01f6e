"""The routes of single predictions."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from api.completion import Completion
from api.group_commit import Publication
from api.http.auth import PathId, issue_id, scoped_key
from api.http.json_route import StrictJSONRoute
from api.http.parameters import CANCEL_AFTER, EXPLAIN, IDEMPOTENCY_KEY, PREFER, openapi_parameters, preferred_wait_s
from api.http.paths import public_path
from api.http.problems import ProblemType, problem, problem_responses
from api.http.request_log import add_log_fields
from api.http.responses import NO_STORE, accepted_headers, accepted_responses, model_response
from api.services import Services, get_services
from celery_task_app.errors import Expired, ResultStoreUnavailable
from celery_task_app.messaging.messages import PredictionRequest
from celery_task_app.store.predictions import QUEUED, State, StoredPrediction, WorkerTimes
from models import Customer, Prediction, Task

router = APIRouter(
    route_class=StrictJSONRoute, tags=["predictions"], responses=problem_responses(ProblemType.INTERNAL_ERROR)
)

_WATCH_CLIENT_AFTER_S = 1  # most predictions complete within milliseconds: they need no task that watches the client

_PROCESSING = accepted_responses(Task, "Not computed yet")


@router.post(
    "/churn/predict",
    operation_id="predict_churn",
    summary="Predict one customer",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Task,
    responses={HTTPStatus.OK: {"model": Prediction, "description": "Computed while the request waited"}}
    | _PROCESSING
    | problem_responses(
        ProblemType.NOT_JSON,
        ProblemType.BAD_HEADER,
        ProblemType.BODY_TIMEOUT,
        ProblemType.IDEMPOTENCY_KEY_IN_USE,
        ProblemType.DELETED,
        ProblemType.EXPIRED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_ENCODING,
        ProblemType.NOT_JSON_TYPE,
        ProblemType.BAD_PARAMETER,
        ProblemType.INVALID_FEATURES,
        ProblemType.NOT_EXPLAINABLE,
        ProblemType.IDEMPOTENCY_KEY_REUSED,
        ProblemType.OVERLOADED,
        ProblemType.PREDICTION_FAILED,
        ProblemType.INTERNAL_ERROR,
        ProblemType.UNAVAILABLE,
    ),
    openapi_extra=openapi_parameters(EXPLAIN, IDEMPOTENCY_KEY, CANCEL_AFTER, PREFER),
)
async def predict(customer: Customer, request: Request) -> Response:
    """Queue the prediction of a customer; answer with its task id once the queue has confirmed it."""
    services = get_services(request)
    idempotency_key, cancel_after = IDEMPOTENCY_KEY.read(request), CANCEL_AFTER.read(request)
    wait_s = preferred_wait_s(request, services.max_wait_s)
    explain = EXPLAIN.read(request) == "true"
    if explain and not await services.worker_models.may_explain():
        return problem(ProblemType.NOT_EXPLAINABLE, "Send the customer without `explain`.")
    accepted = PredictionRequest(customer.model_dump(), explain)

    publication: Publication | None = None

    async def submit(task_id: str) -> Publication:
        nonlocal publication
        add_log_fields(request, task_id=task_id, customers=1)
        publication = await services.group_commit.submit(task_id, accepted, cancel_after)
        add_log_fields(request, message_id=publication.message_id)
        return publication

    task_id = issue_id()
    if idempotency_key is None:
        with _waiter(services, task_id, wait_s) as completion:  # before the submission: no completion is missed
            return await _respond(request, task_id, QUEUED, completion, wait_s, publication=await submit(task_id))
    # A request for reasons is another request. Version 0.1.0 stored the same fingerprint for it.
    content = customer.model_dump_json().encode() + (b"?explain" if explain else b"")
    task_id = await services.idempotency_keys.accept_once(scoped_key(idempotency_key), content, task_id, submit)
    add_log_fields(request, task_id=task_id)  # perhaps of an earlier request with this key
    if not wait_s:
        return await _respond(request, task_id, QUEUED, None, wait_s)
    return await _fetch_and_respond(request, task_id, wait_s, publication)  # that request may have ended


@router.get(
    "/churn/result/{task_id}",
    operation_id="get_churn_result",
    summary="Fetch a prediction by its task id",
    response_model=Prediction,
    response_description="Computed",
    responses=NO_STORE
    | _PROCESSING
    | problem_responses(
        ProblemType.UNKNOWN_TASK,
        ProblemType.DELETED,
        ProblemType.EXPIRED,
        ProblemType.PREDICTION_FAILED,
        ProblemType.INTERNAL_ERROR,
        ProblemType.UNAVAILABLE,
    ),
    openapi_extra=openapi_parameters(PREFER),
)
async def get_result(task_id: PathId, request: Request) -> Response:
    """Fetch the prediction of a task id; with `Prefer: wait=N`, wait for it."""
    return await _fetch_and_respond(request, task_id, preferred_wait_s(request, get_services(request).max_wait_s))


@router.delete(
    "/churn/result/{task_id}",
    operation_id="delete_churn_result",
    summary="Cancel or erase a prediction",
    status_code=HTTPStatus.NO_CONTENT,
    response_description="Deleted",
    responses=problem_responses(ProblemType.UNKNOWN_TASK, ProblemType.UNAVAILABLE),
)
async def delete_result(task_id: PathId, request: Request) -> Response:
    """Cancel the prediction if it is not computed yet, erase its result if it is; its id answers 410 from then on."""
    if await get_services(request).predictions.delete(task_id):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return problem(ProblemType.UNKNOWN_TASK, "There is nothing to delete.")


async def _fetch_and_respond(
    request: Request, task_id: str, wait_s: int, publication: Publication | None = None
) -> Response:
    services = get_services(request)
    with _waiter(services, task_id, wait_s) as completion:
        stored = await services.predictions.fetch(task_id)
        return await _respond(request, task_id, stored, completion, wait_s, publication=publication)


@contextmanager
def _waiter(services: Services, task_id: str, wait_s: int) -> Iterator[Completion | None]:
    """Register a waiter, if the client wants to wait and the limit of waiters is not reached."""
    if not wait_s or services.completions.is_full:
        yield None
    else:
        with services.completions.subscribe(task_id) as completion:
            yield completion


async def _respond(  # noqa: PLR0913 - the request, and the state of its prediction
    request: Request,
    task_id: str,
    stored: StoredPrediction | None,
    completion: Completion | None,
    wait_s: int,
    *,
    publication: Publication | None = None,
) -> Response:
    """Answer with the state of a prediction; if it is queued and has a waiter, with its state after the wait.

    Args:
        request: of the client.
        task_id: of the prediction.
        stored: its state; None if the id is unknown.
        completion: of its waiter, if there is one.
        wait_s: longest wait, in seconds.
        publication: if this request submitted it, so that the client does not know the id yet.
    """
    headers = {"Cache-Control": "no-store", "Vary": "Prefer"}
    if completion is not None and stored is not None and stored.is_queued:
        try:
            # The worker's scripts/finish.lua publishes the completion, and api/completion.py resolves the waiter.
            stored = await _wait(request, completion, wait_s) or await get_services(request).predictions.fetch(task_id)
        except ResultStoreUnavailable:
            if publication is None:
                raise
        headers["Preference-Applied"] = f"wait={wait_s}"
        if publication and stored and stored.times:
            headers["Server-Timing"] = _server_timing(request.scope["started"], publication.marked_at, stored.times)
    return _prediction_response(request, task_id, stored, headers)


def _server_timing(started: float, marked_at: float, times: WorkerTimes) -> str:
    """Return the milliseconds of each stage of a prediction that ended now; together they are those of the request.

    Args:
        started: the start of the request, on the clock of `time.perf_counter`, in seconds.
        marked_at: the write of the QUEUED marker, on the same clock.
        times: of the worker.
    """
    store_s = max(0.0, time.perf_counter() - marked_at - times.queue_s - times.predict_s)  # and the way back
    return (
        f"accept;dur={(marked_at - started) * 1000:.1f}, queue;dur={times.queue_s * 1000:.1f}, "
        f"predict;dur={times.predict_s * 1000:.1f}, store;dur={store_s * 1000:.1f}"
    )


async def _wait(request: Request, completion: Completion, wait_s: int) -> StoredPrediction | None:
    """Wait for a completion; return None if there is none in time, or as soon as the client disconnects."""
    first_s = min(_WATCH_CLIENT_AFTER_S, wait_s)
    await asyncio.wait({completion}, timeout=first_s)
    if not completion.done() and wait_s > first_s:
        disconnected = asyncio.create_task(_await_disconnect(request))
        completion.add_done_callback(lambda _: disconnected.cancel())
        await asyncio.wait({disconnected}, timeout=wait_s - first_s)
        disconnected.cancel()
    return completion.result() if completion.done() else None


async def _await_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":  # a request without a body has an empty first part
        pass


def _prediction_response(
    request: Request, task_id: str, stored: StoredPrediction | None, headers: dict[str, str]
) -> Response:
    if stored is None:
        return problem(ProblemType.UNKNOWN_TASK, "Send the customer to POST /churn/predict again.")
    match stored.state:
        case State.QUEUED:
            location = public_path(request.scope, f"/churn/result/{task_id}")
            headers |= accepted_headers(location, get_services(request).queue.retry_after_s)
            return model_response(Task(task_id=task_id), HTTPStatus.ACCEPTED, headers)
        case State.REVOKED:
            kind = ProblemType.EXPIRED if stored.error == Expired.__name__ else ProblemType.DELETED
            return problem(kind, "Send the customer to POST /churn/predict again.")
        case State.FAILURE:
            return problem(ProblemType.PREDICTION_FAILED, f"The worker could not predict the customer: {stored.error}.")
        case State.SUCCESS:
            prediction = Prediction.model_validate(
                {
                    "task_id": task_id,
                    "probability": stored.probability,
                    "model_version": stored.model_version,
                    "reasons": stored.reasons,
                }
            )
            return model_response(prediction, HTTPStatus.OK, headers, exclude_none=True)
