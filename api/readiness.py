"""Readiness: can a prediction be computed now? It needs the broker, the result store, and a worker that can predict."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from api.worker_models import list_workers
from celery_task_app.errors import BrokerUnavailable, ResultStoreUnavailable
from celery_task_app.messaging.messages import ChunkMessage, PredictionMessage
from celery_task_app.messaging.publisher import QueueCounts, probe_broker
from celery_task_app.ml.schema import parse_schema
from celery_task_app.store.connection import AsyncStoreClient, end_task
from celery_task_app.store.customer_schema import publish_customer_schema
from celery_task_app.store.worker_status import WorkerStatus, can_predict

_WITHIN_S = 2.5
_KEEP_S = 1.0
_PUBLISH_PERIOD_S = 20  # a third of the TTL of the schema
_UP = "up"
_SKEW_S = 1.0
_COMPUTED_WITHIN_S = 1.0
_UNCOMPLETED_AFTER_S = 10.0  # the hard time limit of a message
_QUEUES = {PredictionMessage.queue.name: "predictions", ChunkMessage.queue.name: "batches"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of each part.

    Attributes:
        broker: "up", or the reason why it is not.
        result_store: "up", or the reason why it is not.
        subscription: "up", or the reason why this process learns of no completion.
        submissions: "up", or the reason why the last predictions were not accepted.
        completions: "up", or for how long no prediction has ended although others wait in the queue.
        workers: the status of each live worker, by name.
        messages: by queue, the number of messages that no worker has taken yet.
        consumers: by queue, the number of consumers that the broker reports; empty if it does not count them, or if
            predictions prove its counts wrong.
        warnings: problems that prevent no prediction.
    """

    broker: str = _UP
    result_store: str = _UP
    subscription: str = _UP
    submissions: str = _UP
    completions: str = _UP
    workers: dict[str, WorkerStatus] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def acceptance_problems(self) -> list[str]:
        """The reasons why this process would accept no prediction now, as sentences; it needs no worker for that."""
        parts = {
            "The broker": self.broker,
            "The result store": self.result_store,
            "The subscription to completions": self.subscription,
            "The last submission": self.submissions,
        }
        return [f"{name} failed: {state.rstrip('.')}." for name, state in parts.items() if state != _UP]

    @property
    def problems(self) -> list[str]:
        """The reasons why a prediction or a batch that is accepted now would not be computed, as sentences."""
        found = self.acceptance_problems
        if self.result_store == _UP:
            found += [
                f"No worker that can predict consumes `{queue}`, the queue of {content}: see workers."
                for queue, content in _QUEUES.items()
                if not any(can_predict(status, queue) for status in self.workers.values())
            ]
        if not found:
            found = [
                f"The broker reports no consumer of `{queue}`: the queue has no leader, or no worker is connected."
                for queue, count in self.consumers.items()
                if not count
            ]
        if not found and self.completions != _UP:
            found = [f"Predictions are not computed: {self.completions}."]
        return found

    @property
    def is_ready(self) -> bool:
        """Whether a prediction or a batch that is accepted now would be computed."""
        return not self.problems


class ReadinessCheck:
    """Checks every part, all at the same time, within 2.5 seconds. All callers share one check a second."""

    def __init__(  # noqa: PLR0913 - its parts, and its limit by keyword
        self,
        broker_uri: str,
        store: AsyncStoreClient,
        schema: Mapping[str, Any],
        *,
        is_subscribed: Callable[[], bool],
        failure: Callable[[], str],
        has_computed: Callable[[float], bool],
        uncompleted_s: Callable[[], float],
        replicas: int = 0,
    ) -> None:
        """Check this process and its servers.

        Args:
            broker_uri: address of the broker.
            store: a client of the result store.
            schema: of customers; it is kept in the result store, for the workers.
            is_subscribed: returns whether this process learns of completions.
            failure: returns why the last predictions were not accepted; empty if they were.
            has_computed: returns whether a worker has completed predictions within so many seconds.
            uncompleted_s: returns the seconds since a prediction was published, if a worker has ended none since.
            replicas: of the result store that must confirm a write.
        """
        self._broker_uri = broker_uri
        self._store = store
        self._schema = schema
        self._customer = parse_schema(schema)
        self._is_subscribed = is_subscribed
        self._failure = failure
        self._has_computed = has_computed
        self._uncompleted_s = uncompleted_s
        self._replicas = replicas
        self._check: asyncio.Task[Readiness] | None = None
        self._checked_at = 0.0
        self._publishing = asyncio.create_task(self._publish_schema())

    async def check(self) -> Readiness:
        """Return the state of each part, at most a second old."""
        now = asyncio.get_running_loop().time()
        if self._check is None or (self._check.done() and now - self._checked_at > _KEEP_S):
            self._check = asyncio.create_task(self._check_all())
        return await asyncio.shield(self._check)

    async def close(self) -> None:
        """End a check that runs, and close the connections."""
        await end_task(self._publishing)
        if self._check:
            await end_task(self._check)
        await self._store.aclose()

    async def _publish_schema(self) -> None:
        """Keep the schema in the result store while this process lives: workers compare their models with it."""
        while True:
            with contextlib.suppress(ResultStoreUnavailable):
                await publish_customer_schema(self._store, self._schema)
            await asyncio.sleep(_PUBLISH_PERIOD_S)

    async def _check_all(self) -> Readiness:
        (broker, queues), (result_store, workers, warnings) = await asyncio.gather(
            self._check_broker(), self._check_store()
        )
        self._checked_at = asyncio.get_running_loop().time()
        consumers = {queue: counts.consumers for queue, counts in queues.items() if counts.consumers is not None}
        if self._are_wrong(consumers):
            consumers = {}
            warnings = [*warnings, "The broker reports no consumer, although a worker computes predictions."]
        uncompleted_s = self._uncompleted_s()
        # Without a message in the queue a worker has the uncompleted ones: it may be at a long attempt.
        waiting = queues.get(PredictionMessage.queue.name)
        is_stalled = uncompleted_s > _UNCOMPLETED_AFTER_S and waiting is not None and waiting.messages > 0
        return Readiness(
            broker=broker,
            result_store=result_store,
            subscription=_UP if self._is_subscribed() else "the result store does not answer on it",
            submissions=self._failure() or _UP,
            completions=f"none has ended since one was published {uncompleted_s:.0f} s ago" if is_stalled else _UP,
            workers=workers,
            messages={queue: counts.messages for queue, counts in queues.items()},
            consumers=consumers,
            warnings=warnings,
        )

    def _are_wrong(self, consumers: Mapping[str, int]) -> bool:
        """Tell whether a cluster reports no consumer of the predictions that a worker computes.

        RabbitMQ does so until every node knows the new leader of a queue: after the freeze of the earlier one, for
        several seconds. A single node knows the leader at once.
        """
        reports_none = consumers.get(PredictionMessage.queue.name) == 0
        return ";" in self._broker_uri and reports_none and self._has_computed(_COMPUTED_WITHIN_S)

    async def _check_broker(self) -> tuple[str, dict[str, QueueCounts]]:
        try:
            async with asyncio.timeout(_WITHIN_S):
                return _UP, await asyncio.to_thread(probe_broker, self._broker_uri)
        except TimeoutError:
            return f"no answer within {_WITHIN_S} s", {}
        except BrokerUnavailable as error:
            return f"{error}", {}

    async def _check_store(self) -> tuple[str, dict[str, WorkerStatus], list[str]]:
        try:
            async with asyncio.timeout(_WITHIN_S):
                skew_s = await publish_customer_schema(self._store, self._schema, self._replicas)
                workers = await list_workers(self._store, self._customer)
        except TimeoutError:
            return f"no answer within {_WITHIN_S} s", {}, []
        except ResultStoreUnavailable as error:
            return f"{error.__cause__ or error}", {}, []
        skews = {"this API": skew_s} | {name: status.get("clock_skew_s", 0) for name, status in workers.items()}
        warnings = [
            f"The clock of {name} is {skew:+.1f} s off the clock of the result store, which decides."
            for name, skew in skews.items()
            if abs(skew) > _SKEW_S
        ]
        return _UP, workers, warnings
