"""The routes for operators: the model, liveness and readiness."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.http.problems import ProblemType, problem, problem_responses
from api.http.responses import NO_STORE, model_response
from api.services import get_services
from celery_task_app.errors import ArtifactMissing
from celery_task_app.ml.artifact import read_manifest
from celery_task_app.store.counts import Counts
from models import Alive, ModelCard, Queue, Ready

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


@router.get(
    "/churn/queue",
    operation_id="get_churn_queue",
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
