"""Batches in the result store: their progress, and the results of their rows.

There are two kinds of keys. A batch is a hash with its state and counters. A chunk is a hash too: either one field with
the results of the whole chunk, or, if an attempt was lost and its rows were split, one field for each row. The keys of
the chunks have the TTL of their batch.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celery_task_app.errors import PredictionError, ResultStoreUnavailable
from celery_task_app.store.connection import (
    AsyncStoreClient,
    StoreClient,
    load_counting_script,
    store_call,
    store_errors,
)
from celery_task_app.store.counts import ROWS
from celery_task_app.store.replication import append_wait, require_confirmed, run_script, run_script_async

_WHOLE = "whole"
_VERSION = b"version:"  # begins a counter of rows in scripts/finish_rows.lua
_READ_AT_ONCE = 4  # chunks


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """The progress of one batch.

    Attributes:
        is_deleted: the client deleted it.
        total: number of its rows.
        done: rows that have a terminal state, failures included.
        failed: rows that could not be predicted.
        chunks: number of messages in which it was published.
        model_version: of the model that computed the last rows; None before the first.
        model_versions: by version, the rows that a model of this version computed.
    """

    is_deleted: bool
    total: int
    done: int
    failed: int
    chunks: int
    model_version: str | None
    model_versions: Mapping[str, int]

    @property
    def is_finished(self) -> bool:
        """Whether every row has a terminal state."""
        return self.done >= self.total


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The result of one row: its probability of churn in [0, 1], or the class name of its error."""

    row: int
    probability: float | None
    error: str | None


class BatchStore:
    """The blocking side: the API announces a batch, the worker writes the results of its chunks.

    Every method raises ResultStoreUnavailable within about two seconds if the store does not answer or refuses.
    """

    def __init__(self, client: StoreClient, result_ttl_s: int, replicas: int = 0) -> None:
        """Use a client of the result store.

        Args:
            client: of the result store.
            result_ttl_s: seconds that a batch is kept.
            replicas: of the store that must confirm a new batch and the results of its rows.
        """
        self._client = client
        self._result_ttl_s = result_ttl_s
        self._replicas = replicas
        self._finish_rows = client.register_script(load_counting_script("finish_rows"))
        self._accept = client.register_script(load_counting_script("accept_batch"))
        self._delete = client.register_script(load_counting_script("delete_batch"))

    def create(self, batch_id: str, total: int, chunks: int) -> None:
        """Write a new batch with no row finished."""
        counters = {"state": "running", "total": total, "chunks": chunks, "done": 0, "failed": 0}
        with store_errors(), self._client.pipeline(transaction=not self._replicas) as pipeline:
            pipeline.hset(_key(batch_id), mapping=cast("dict[Any, Any]", counters))
            pipeline.expire(_key(batch_id), self._result_ttl_s)
            append_wait(pipeline, self._replicas)
            require_confirmed(pipeline.execute(), self._replicas)

    def accept(self, batch_id: str) -> None:
        """Count the rows of a batch as accepted, because all of its chunks were published."""
        with store_errors():
            self._accept([_key(batch_id), *ROWS])

    def pending(self, batch_id: str, chunk: int, rows: Sequence[int]) -> set[int]:
        """Return the rows of a chunk without a terminal state; none if the batch was deleted or is unknown."""
        return self.look_up(batch_id, chunk, rows)[0]

    def look_up(self, batch_id: str, chunk: int, rows: Sequence[int]) -> tuple[set[int], float | None]:
        """Return the pending rows of a chunk, and the seconds since its batch was accepted.

        Returns:
            The rows as `pending` does; the seconds by the store's clock, or None while the batch is being accepted.
        """
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            pipeline.hmget(_key(batch_id), "state", "accepted_at")
            pipeline.hkeys(_key(batch_id, chunk))
            pipeline.time()
            (state, accepted_at), fields, (seconds, microseconds) = pipeline.execute()
        if state != b"running" or _WHOLE.encode() in fields:
            return set(), None
        waited_s = max(0.0, seconds + microseconds / 1e6 - float(accepted_at)) if accepted_at else None
        return set(rows) - set(map(int, fields)), waited_s

    def finish(
        self, batch_id: str, chunk: int, outcomes: Mapping[int, float | PredictionError], model_version: str | None
    ) -> None:
        """Write how rows of a chunk ended; a row that has a terminal state keeps it, and is not counted twice.

        Args:
            batch_id: the batch of the chunk.
            chunk: the number of the chunk.
            outcomes: by row, its probability of churn in [0, 1] or its error; of one row, or of all rows of the chunk
                that are pending.
            model_version: of the model that computed the probabilities.
        """
        if not outcomes:
            return
        keys = [_key(batch_id), _key(batch_id, chunk), *ROWS]
        with store_errors():
            if len(outcomes) == 1 or self._write_rows(keys, [model_version or "", *_field(_WHOLE, outcomes)]):
                fields = [part for row, outcome in outcomes.items() for part in _field(str(row), {row: outcome})]
                self._write_rows(keys, [model_version or "", *fields])

    def _write_rows(self, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return run_script(self._client, self._finish_rows, keys, arguments, self._replicas)

    def delete(self, batch_id: str) -> None:
        """Cancel the pending rows of a batch, and remove its results."""
        with store_errors():
            chunks = cast("int", self._delete([_key(batch_id), *ROWS]))
            if chunks > 0:
                self._client.unlink(*_chunk_keys(batch_id, chunks))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class AsyncBatchStore:
    """The asyncio side, for the API. Every method raises ResultStoreUnavailable within about two seconds."""

    def __init__(self, client: AsyncStoreClient, replicas: int = 0) -> None:
        """Use a client of the result store, of which so many replicas must confirm a deletion."""
        self._client = client
        self._replicas = replicas
        self._delete = client.register_script(load_counting_script("delete_batch"))

    async def find(self, batch_id: str) -> StoredBatch | None:
        """Return the progress of a batch; None if it was never accepted or its TTL has ended."""
        async with store_call():
            stored = cast("dict[bytes, bytes]", await cast("Any", self._client.hgetall(_key(batch_id))))
        if not stored:
            return None
        total, done, failed, chunks = (int(stored[name]) for name in (b"total", b"done", b"failed", b"chunks"))
        version = stored.get(b"model_version")
        versions = {
            name.removeprefix(_VERSION).decode(): int(rows)
            for name, rows in sorted(stored.items())
            if name.startswith(_VERSION)
        }
        is_deleted = stored[b"state"] == b"deleted"
        return StoredBatch(is_deleted, total, done, failed, chunks, version.decode() if version else None, versions)

    async def results(self, batch_id: str, batch: StoredBatch) -> AsyncIterator[list[ScoredRow]]:
        """Yield the stored results, chunk by chunk, in the order of the rows.

        Raises:
            ResultStoreUnavailable: the store does not answer, or results of a finished batch are gone.
        """
        for start in range(0, batch.chunks, _READ_AT_ONCE):
            async with store_call(), self._client.pipeline(transaction=False) as pipeline:
                for chunk in range(start, min(start + _READ_AT_ONCE, batch.chunks)):
                    pipeline.hgetall(_key(batch_id, chunk))
                found = cast("list[dict[bytes, bytes]]", await pipeline.execute())
            for fields in found:
                if not fields and batch.is_finished:
                    raise ResultStoreUnavailable("the batch was deleted, or has expired, while its results were read")
                if fields:
                    yield sorted((row for value in fields.values() for row in _decode(value)), key=lambda row: row.row)

    async def delete(self, batch_id: str) -> bool:
        """Cancel the pending rows of a batch, and remove its results; return whether the batch was known."""
        async with store_call():
            keys = [_key(batch_id), *ROWS]
            chunks = cast("int", await run_script_async(self._client, self._delete, keys, [], self._replicas))
            if chunks > 0:
                await self._client.unlink(*_chunk_keys(batch_id, chunks))
        return chunks >= 0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _key(batch_id: str, chunk: int | None = None) -> str:
    return f"churn:batch:{batch_id}" if chunk is None else f"churn:batch:{batch_id}:{chunk}"


def _chunk_keys(batch_id: str, chunks: int) -> list[str]:
    return [_key(batch_id, chunk) for chunk in range(chunks)]


def _field(name: str, outcomes: Mapping[int, float | PredictionError]) -> tuple[str, str, int, int]:
    """Return the arguments of scripts/finish_rows.lua for one field: name, value, rows, failed rows."""
    errors = {row: type(error).__name__ for row, error in outcomes.items() if isinstance(error, PredictionError)}
    probabilities = [None if row in errors else outcome for row, outcome in outcomes.items()]
    value = json.dumps([list(outcomes), probabilities, errors], separators=(",", ":"))
    return name, value, len(outcomes), len(errors)


def _decode(value: bytes) -> list[ScoredRow]:
    rows, probabilities, errors = json.loads(value)
    scored = zip(rows, probabilities, strict=True)
    return [ScoredRow(row, probability, errors.get(str(row)) if errors else None) for row, probability in scored]
