"""The routes for operators: the model, liveness and readiness."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.http.problems import ProblemType, problem, problem_responses
from api.http.responses import NO_STORE
from api.services import get_services
from celery_task_app.errors import ArtifactMissing
from celery_task_app.ml.artifact import read_manifest
from models import Alive, ModelCard, Ready

router = APIRouter(responses=problem_responses(ProblemType.INTERNAL_ERROR))


@router.get(
    "/churn/model",
    operation_id="get_churn_model",
    tags=["model"],
    response_model=ModelCard,
    response_model_exclude_none=True,
    response_description="The content of its manifest",
    responses=problem_responses(ProblemType.NO_MANIFEST),
)
def get_model(request: Request) -> Any:  # FastAPI runs it in a thread, because it reads a file
    """Describe the model: its version, its features as the training data has them, and its scores."""
    try:
        return read_manifest(get_services(request).model_path)
    except ArtifactMissing:
        return problem(ProblemType.NO_MANIFEST, "There is no manifest beside the model file.")


@router.get("/livez", operation_id="get_liveness", tags=["operations"], response_description="Alive")
async def get_liveness() -> Alive:
    """Answer that this process is alive."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="get_readiness",
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
