"""The metrics that are read at each scrape: the state of the whole service, and the gauges of this process."""

import asyncio
import concurrent.futures
from collections.abc import Callable

from api.queue_watch import QueueState
from api.services import Services
from celery_task_app.errors import ResultStoreUnavailable
from celery_task_app.messaging.messages import ChunkMessage, PredictionMessage
from celery_task_app.observability.metrics import ApiMetrics, ServiceState
from celery_task_app.store.worker_status import can_predict

_WITHIN_S = 5.0


def add_state_metrics(metrics: ApiMetrics, services: Services, loop: asyncio.AbstractEventLoop) -> None:
    """Add the metrics that need the services, which the lifespan creates.

    Args:
        metrics: of this process.
        services: of this process.
        loop: of the services; the exporter's thread asks it for the state of the queue.
    """
    metrics.add_gauges(
        waiters=lambda: services.completions.waiters, unpublished=lambda: services.group_commit.unpublished
    )
    metrics.add_service_state(_reader(services, loop))


def _reader(services: Services, loop: asyncio.AbstractEventLoop) -> Callable[[], ServiceState | None]:
    def read() -> ServiceState | None:
        reading = asyncio.run_coroutine_threadsafe(services.queue.read(max_age_s=0), loop)
        try:
            state = reading.result(_WITHIN_S)
        except (ResultStoreUnavailable, TimeoutError, concurrent.futures.CancelledError):
            reading.cancel()
            return None
        return _service_state(state)

    return read


def _service_state(state: QueueState) -> ServiceState:
    loaded = [status for status in state.workers.values() if status["model"] == "loaded"]
    return ServiceState(
        state.counts,
        [status["model"] for status in state.workers.values()],
        {
            queue.name: sum(can_predict(status, queue.name) for status in state.workers.values())
            for queue in (PredictionMessage.queue, ChunkMessage.queue)
        },
        [(str(status.get("name", "")), status["detail"]) for status in loaded],
    )
