"""Readiness: can a prediction be computed now? It needs the broker, the result store, and a worker that can predict."""

import asyncio
from dataclasses import dataclass

from celery_task_app.errors import BrokerUnavailable, ResultStoreUnavailable
from celery_task_app.messaging.publisher import probe_broker
from celery_task_app.store.connection import AsyncStoreClient
from celery_task_app.store.worker_status import WorkerStatus, can_predict, list_worker_statuses

_WITHIN_S = 2.5
_UP = "up"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of each part.

    Attributes:
        broker: "up", or the reason why it is not.
        result_store: "up", or the reason why it is not.
        workers: the status of each live worker, by name.
    """

    broker: str
    result_store: str
    workers: dict[str, WorkerStatus]

    @property
    def is_ready(self) -> bool:
        """Whether a prediction that is accepted now would be computed; a model may still have to be loaded."""
        return self.broker == self.result_store == _UP and any(map(can_predict, self.workers.values()))


class ReadinessCheck:
    """Checks every part, all at the same time, within 2.5 seconds."""

    def __init__(self, broker_uri: str, store: AsyncStoreClient) -> None:
        """Check the broker at an address, and the result store of a client."""
        self._broker_uri = broker_uri
        self._store = store

    async def check(self) -> Readiness:
        """Return the state of each part."""
        broker, (result_store, workers) = await asyncio.gather(self._check_broker(), self._check_store())
        return Readiness(broker, result_store, workers)

    async def close(self) -> None:
        """Close the connections."""
        await self._store.aclose()

    async def _check_broker(self) -> str:
        try:
            async with asyncio.timeout(_WITHIN_S):
                await asyncio.to_thread(probe_broker, self._broker_uri)
        except TimeoutError:
            return f"no answer within {_WITHIN_S} s"
        except BrokerUnavailable as error:
            return f"{error}"
        return _UP

    async def _check_store(self) -> tuple[str, dict[str, WorkerStatus]]:
        try:
            async with asyncio.timeout(_WITHIN_S):
                return _UP, await list_worker_statuses(self._store)
        except TimeoutError:
            return f"no answer within {_WITHIN_S} s", {}
        except ResultStoreUnavailable as error:
            return f"{error.__cause__}", {}
