"""The routes for operators: the model, liveness and readiness."""

from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from api.http.problems import ProblemType, problem, problem_responses
from api.http.responses import NO_STORE, model_response
from api.services import get_services
from api.worker_models import ModelInUse
from models import Alive, ModelCard, Ready

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
        if model.sha256 and (manifest := await worker_models.read_card(model.sha256)):
            return model_response(_describe(manifest, in_use), HTTPStatus.OK, {}, exclude_none=True)
    return problem(ProblemType.NO_MODEL, "Start a worker, or read in its log why it has no model.")


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
    responses=NO_STORE | problem_responses(ProblemType.NOT_READY),
)
async def get_readiness(request: Request) -> Response:
    """Answer whether a prediction that is accepted now would be computed, with the state of each part."""
    readiness = await get_services(request).readiness.check()
    if not readiness.is_ready:
        return problem(ProblemType.NOT_READY, " ".join(readiness.problems), **asdict(readiness))
    return JSONResponse({"status": "ready", **asdict(readiness)}, headers={"Cache-Control": "no-store"})


def _describe(manifest: dict[str, Any], in_use: Sequence[ModelInUse]) -> ModelCard:
    """Return the card of a manifest; a member that has another form than the API describes is left out."""
    card = manifest | {"in_use": [asdict(model) for model in in_use]}
    try:
        return ModelCard.model_validate(card)
    except ValidationError as error:
        others = {fault["loc"][0] for fault in error.errors()}
        return ModelCard.model_validate({"features": []} | {name: card[name] for name in card if name not in others})
