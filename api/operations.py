"""The routes for operators: the model, liveness and readiness."""

from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from api.http.parameters import WITHOUT, openapi_parameters
from api.http.problems import ProblemType, problem, problem_responses
from api.http.responses import NO_STORE, model_response
from api.services import get_services
from api.worker_models import ModelInUse
from celery_task_app.store.counts import Counts
from models import Alive, ModelCard, Queue, Ready

router = APIRouter(responses=problem_responses(ProblemType.INTERNAL_ERROR))


@router.get(
    "/churn/model",
    operation_id="get_churn_model",
    summary="Describe the model",
    tags=["model"],
    response_model=ModelCard,
    response_description="The content of its manifest",
    responses=problem_responses(ProblemType.NO_MODEL, ProblemType.UNAVAILABLE),
)
async def get_model(request: Request) -> Response:
    """Describe the model that most workers have, and count the workers by version."""
    worker_models = get_services(request).worker_models
    in_use = await worker_models.list()
    for model in in_use:
        if manifest := await worker_models.read_card(model):
            return model_response(_describe(manifest, in_use), HTTPStatus.OK, {}, exclude_none=True)
    if in_use:
        return problem(ProblemType.NO_MODEL, "The workers do not report their models: upgrade the workers too.")
    return problem(ProblemType.NO_MODEL, "Start a worker, or read in its log why it has no model.")


@router.get(
    "/churn/queue",
    operation_id="get_churn_queue",
    summary="How many customers wait, and for how long?",
    tags=["operations"],
    response_model=Queue,
    response_description="The queue",
    responses=NO_STORE | problem_responses(ProblemType.UNAVAILABLE),
)
async def get_queue(request: Request) -> Response:
    """Tell how many predictions and batch rows wait, for how long, and how long a new prediction will wait."""
    state = await get_services(request).queue.read()
    queue = Queue.model_validate(
        {
            "predictions": _waiting(state.counts.predictions, state.predictions_per_s),
            "batch_rows": _waiting(state.counts.rows, state.rows_per_s),
            "estimated_s": round(state.estimated_s, 3),
            "workers": state.worker_states,
        }
    )
    return model_response(queue, HTTPStatus.OK, {"Cache-Control": "no-store"})


def _waiting(counts: Counts, drained_per_s: float | None) -> dict[str, float | None]:
    rate = None if drained_per_s is None else round(drained_per_s, 1)
    return {"waiting": counts.waiting, "oldest_s": round(counts.oldest_s, 3), "drained_per_s": rate}


@router.get(
    "/livez",
    operation_id="get_liveness",
    summary="Is this API process alive?",
    tags=["operations"],
    response_description="Alive",
)
async def get_liveness() -> Alive:
    """Answer that this process is alive."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Would a prediction be computed now?",
    tags=["operations"],
    response_model=Ready,
    response_description="Ready",
    responses=NO_STORE | problem_responses(ProblemType.BAD_PARAMETER, ProblemType.NOT_READY),
    openapi_extra=openapi_parameters(WITHOUT),
)
async def get_readiness(request: Request) -> Response:
    """Answer whether a prediction that is accepted now would be computed, with the state of each part."""
    is_without_workers = WITHOUT.read(request) is not None
    readiness = await get_services(request).readiness.check()
    problems = readiness.acceptance_problems if is_without_workers else readiness.problems
    if problems:
        return problem(ProblemType.NOT_READY, " ".join(problems), **asdict(readiness))
    return JSONResponse({"status": "ready", **asdict(readiness)}, headers={"Cache-Control": "no-store"})


def _describe(manifest: dict[str, Any], in_use: Sequence[ModelInUse]) -> ModelCard:
    """Return the card of a manifest; a member that has another form than the API describes is left out."""
    card = manifest | {"in_use": [asdict(model) for model in in_use]}
    try:
        return ModelCard.model_validate(card)
    except ValidationError as error:
        others = {fault["loc"][0] for fault in error.errors()}
        return ModelCard.model_validate({"features": []} | {name: card[name] for name in card if name not in others})
