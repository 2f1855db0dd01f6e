"""The service-wide counts in the result store: accepted, ended by state, and waiting, for predictions and for rows.

The Lua scripts that change states increment them (scripts/counts.lua), so a count and its state change in one step.
The memory of the result store is read with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import redis

from celery_task_app.store.connection import AsyncStoreClient, load_counting_script, store_call

STATES = ("success", "failure", "expired", "deleted")
"""The terminal states as the counts name them; Celery's REVOKED is expired or deleted."""

_LOST_AFTER_S = 60  # after the deadline; a worker that began before it ends within the time limit of 10 s


class CountKeys(NamedTuple):
    """The keys of the counts of one kind, which every counting script gets."""

    counts: str
    waiting: str


PREDICTIONS = CountKeys("churn:counts:predictions", "churn:waiting:predictions")
ROWS = CountKeys("churn:counts:rows", "churn:waiting:rows")


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of predictions or of rows since the result store was empty.

    Attributes:
        accepted: the number that was accepted.
        ended: by terminal state, the number that has it; the first one counts, if a deletion replaces it.
        oldest_s: seconds that the oldest message or batch with a waiting customer has waited; 0 if there is none.
    """

    accepted: int
    ended: Mapping[str, int]
    oldest_s: float = field(compare=False)

    @property
    def waiting(self) -> int:
        """The number that was accepted and has no terminal state."""
        return self.accepted - sum(self.ended.values())


class StoreMemory(NamedTuple):
    """The memory of the result store in bytes; the limit is 0 if there is none."""

    used_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """The counts of all predictions and of the rows of all batches, and the memory that they are in.

    Attributes:
        predictions: the counts of predictions.
        rows: the counts of rows.
        memory: of the result store; None if it refuses INFO to this client.
    """

    predictions: Counts
    rows: Counts
    memory: StoreMemory | None = field(default=None, compare=False)


class AsyncCountReader:
    """Reads the counts."""

    def __init__(self, client: AsyncStoreClient, lost_after_s: int = _LOST_AFTER_S) -> None:
        """Read with a client of the result store.

        Args:
            client: of the result store.
            lost_after_s: seconds after the deadline of a message or a batch; then its customers without a terminal
                state are counted as expired.
        """
        self._client = client
        self._lost_after_s = lost_after_s
        self._read = client.register_script(load_counting_script("read_counts"))

    async def read(self) -> ServiceCounts:
        """Return the counts, and the memory of the result store.

        Raises:
            ResultStoreUnavailable: within 2.5 seconds.
        """
        async with store_call(), self._client.pipeline(transaction=False) as pipeline:
            for keys in (PREDICTIONS, ROWS):
                await cast("Any", self._read(keys, [self._lost_after_s], client=pipeline))
            pipeline.info("memory")
            predictions, rows, memory = await pipeline.execute(raise_on_error=False)
            for reply in (predictions, rows):
                if isinstance(reply, redis.RedisError):
                    raise reply
        return ServiceCounts(_counts(predictions), _counts(rows), _memory(memory))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _counts(values: list[int]) -> Counts:
    accepted, *ended, oldest_ms = values
    return Counts(accepted, dict(zip(STATES, ended, strict=True)), oldest_ms / 1000)


def _memory(reply: dict[str, int] | redis.RedisError) -> StoreMemory | None:
    """Return the memory; a user of the store may have no right to INFO, and some hosted stores do not have it."""
    if isinstance(reply, redis.RedisError):
        return None
    return StoreMemory(reply["used_memory"], reply["maxmemory"])
