"""A batch as a client sees it: how far it is, and how that and its results are kept in the result store.

Two kinds of keys. A batch is a hash: its state and its counters. A chunk of it is a hash too: one field with the
results of the whole chunk, or, where an attempt was lost and its rows were sent apart, one field for each row. They
all end when the batch's life does. HTTP codes are app.py's business.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celery_task_app.errors import PredictionError, ResultStoreUnavailable
from celery_task_app.results import async_client, blocking_client, store_errors
from celery_task_app.rows import Scored
from celery_task_app.settings import settings

_WHOLE = "whole"
_READ_AT_ONCE = 4  # chunks

# Counts a row once, whatever comes twice: a whole chunk is written where nothing is, and a row where neither it nor the
# whole is. A batch that was deleted, or is unknown, takes nothing.
_STORE = """
if redis.call('HGET', KEYS[1], 'state') ~= 'running' or redis.call('HEXISTS', KEYS[2], 'whole') == 1 then
    return 0
end
if ARGV[2] == 'whole' and redis.call('EXISTS', KEYS[2]) == 1 then
    return 1
end
for i = 2, #ARGV, 4 do
    if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 then
        redis.call('HINCRBY', KEYS[1], 'done', ARGV[i + 2])
        redis.call('HINCRBY', KEYS[1], 'failed', ARGV[i + 3])
    end
end
if ARGV[1] ~= '' then
    redis.call('HSET', KEYS[1], 'model_version', ARGV[1])
end
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return 0
"""

_DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    return -1
end
redis.call('HSET', KEYS[1], 'state', 'deleted')
return tonumber(redis.call('HGET', KEYS[1], 'chunks'))
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the result store knows of one batch.

    Attributes:
        deleted: it was cancelled and its results erased.
        total: rows that it has.
        done: rows that have ended, those that failed among them.
        failed: rows that could not be predicted.
        chunks: messages that it was sent in.
        model_version: of the model that computed the last chunk; None before the first.
    """

    deleted: bool
    total: int
    done: int
    failed: int
    chunks: int
    model_version: str | None

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done >= self.total


class BatchStore:
    """The blocking side: the API announces a batch, the worker stores its chunks.

    Every method raises ResultStoreUnavailable within about two seconds if the store does not answer or refuses.
    """

    def __init__(self) -> None:
        self._client = blocking_client()
        self._store = self._client.register_script(_STORE)
        self._delete = self._client.register_script(_DELETE)

    def create(self, batch_id: str, total: int, chunks: int) -> None:
        """Make a batch known, for RESULT_TTL_S."""
        counters = {"state": "running", "total": total, "chunks": chunks, "done": 0, "failed": 0}
        with store_errors(), self._client.pipeline() as pipeline:
            pipeline.hset(_key(batch_id), mapping=cast("dict[Any, Any]", counters))
            pipeline.expire(_key(batch_id), settings.result_ttl_s)
            pipeline.execute()

    def owed(self, batch_id: str, chunk: int, rows: Sequence[int]) -> set[int]:
        """Return those of a chunk's rows that have not ended; none if the batch was deleted or is unknown."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            pipeline.hget(_key(batch_id), "state")
            pipeline.hkeys(_key(batch_id, chunk))
            state, fields = pipeline.execute()
        if state != b"running" or _WHOLE.encode() in fields:
            return set()
        return set(rows) - set(map(int, fields))

    def store(
        self, batch_id: str, chunk: int, outcomes: Mapping[int, float | PredictionError], model_version: str | None
    ) -> None:
        """Store how rows of a chunk ended; a row that has ended already keeps what it has, and is not counted twice.

        Args:
            batch_id: of the batch that the chunk belongs to.
            chunk: its number.
            outcomes: by row, the probability of churn in [0, 1] or what made it impossible; of one row, or of all that
                the chunk still owes.
            model_version: of the model that computed the probabilities.
        """
        if not outcomes:
            return
        keys = [_key(batch_id), _key(batch_id, chunk)]
        with store_errors():
            if len(outcomes) == 1 or self._store(keys, [model_version or "", *_field(_WHOLE, outcomes)]):
                apart = [part for row, outcome in outcomes.items() for part in _field(str(row), {row: outcome})]
                self._store(keys, [model_version or "", *apart])

    def delete(self, batch_id: str) -> None:
        """Cancel a batch: what was not computed yet will not be, and what was is erased."""
        with store_errors():
            chunks = cast("int", self._delete([_key(batch_id)]))
            if chunks > 0:
                self._client.unlink(*(_key(batch_id, chunk) for chunk in range(chunks)))


class BatchReader:
    """The API's side. Every method raises ResultStoreUnavailable within about two seconds."""

    def __init__(self) -> None:
        self._client = async_client()
        self._delete = self._client.register_script(_DELETE)

    async def find(self, batch_id: str) -> Batch | None:
        """Return how far a batch is; None if it was never accepted or its life is over."""
        with store_errors():
            known = cast("dict[bytes, bytes]", await cast("Any", self._client.hgetall(_key(batch_id))))
        if not known:
            return None
        total, done, failed, chunks = (int(known[name]) for name in (b"total", b"done", b"failed", b"chunks"))
        version = known.get(b"model_version")
        return Batch(known[b"state"] == b"deleted", total, done, failed, chunks, version.decode() if version else None)

    async def results(self, batch_id: str, batch: Batch) -> AsyncIterator[list[Scored]]:
        """Yield the results that are there, in the order sent.

        Raises:
            ResultStoreUnavailable: it went away, or with it what a batch that has ended had.
        """
        for start in range(0, batch.chunks, _READ_AT_ONCE):
            with store_errors():
                async with self._client.pipeline(transaction=False) as pipeline:
                    for chunk in range(start, min(start + _READ_AT_ONCE, batch.chunks)):
                        pipeline.hgetall(_key(batch_id, chunk))
                    found = cast("list[dict[bytes, bytes]]", await pipeline.execute())
            for fields in found:
                if not fields and batch.ended:
                    raise ResultStoreUnavailable("the batch was deleted, or has expired, while its results were read")
                if fields:
                    yield sorted((one for value in fields.values() for one in _scored(value)), key=lambda one: one.row)

    async def delete(self, batch_id: str) -> bool:
        """Cancel a batch and erase its results; return whether it was known."""
        with store_errors():
            chunks = cast("int", await cast("Any", self._delete([_key(batch_id)])))
            if chunks > 0:
                await self._client.unlink(*(_key(batch_id, chunk) for chunk in range(chunks)))
        return chunks >= 0

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()


def _key(batch_id: str, chunk: int | None = None) -> str:
    return f"churn:batch:{batch_id}" if chunk is None else f"churn:batch:{batch_id}:{chunk}"


def _field(name: str, outcomes: Mapping[int, float | PredictionError]) -> tuple[str, str, int, int]:
    """Return the arguments of the script for one field: its name, value, rows, and how many of them failed."""
    errors = {row: type(error).__name__ for row, error in outcomes.items() if isinstance(error, PredictionError)}
    probabilities = [None if row in errors else outcome for row, outcome in outcomes.items()]
    value = json.dumps([list(outcomes), probabilities, errors], separators=(",", ":"))
    return name, value, len(outcomes), len(errors)


def _scored(value: bytes) -> list[Scored]:
    rows, probabilities, errors = json.loads(value)
    found = zip(rows, probabilities, strict=True)
    return [Scored(row, probability, errors.get(str(row)) if errors else None) for row, probability in found]
