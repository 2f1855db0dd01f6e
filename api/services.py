"""The services that routes use, as one typed object; app.py creates it in the lifespan."""

from dataclasses import dataclass

from fastapi import Request

from api.batch_intake import BatchIntake
from api.completion import CompletionListener
from api.group_commit import GroupCommitter
from api.queue_watch import QueueWatch
from api.readiness import ReadinessCheck
from api.worker_models import WorkerModels
from celery_task_app.store.batches import AsyncBatchStore
from celery_task_app.store.idempotency import IdempotencyKeys
from celery_task_app.store.predictions import AsyncPredictionStore


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one API process.

    Attributes:
        max_wait_s: longest wait of `Prefer: wait`.
        body_max_bytes: longest body of a JSON route.
        group_commit: publishes predictions.
        predictions: reads predictions.
        completions: the waiters of `Prefer: wait`.
        idempotency_keys: the Idempotency-Keys of clients.
        batch_intake: validates and publishes batches.
        batches: reads batches.
        readiness: checks whether a prediction can be computed.
        worker_models: reads which models the workers have.
        queue: estimates how long a prediction waits.
    """

    max_wait_s: int
    body_max_bytes: int
    group_commit: GroupCommitter
    predictions: AsyncPredictionStore
    completions: CompletionListener
    idempotency_keys: IdempotencyKeys
    batch_intake: BatchIntake
    batches: AsyncBatchStore
    readiness: ReadinessCheck
    worker_models: WorkerModels
    queue: QueueWatch


def get_services(request: Request) -> Services:
    """Return the services of the app that a request belongs to."""
    services: Services = request.app.state.services
    return services
