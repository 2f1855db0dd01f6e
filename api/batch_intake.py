"""Accepting a batch: its body is received, every row is validated, and its chunks are published.

One thread validates and publishes one batch at a time, so the event loop never blocks, and memory holds one chunk. The
body and the chunks are spooled to files; nothing is published before every row is validated.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from pydantic import BaseModel

from api.backpressure import Backlog
from api.batch_formats import JSON, MAX_JSON_BYTES, InvalidRow, parse_rows
from celery_task_app.errors import BatchTooLarge, Overloaded, RowsRefused, Unavailable
from celery_task_app.messaging.messages import ChunkMessage, encode_chunk
from celery_task_app.messaging.publisher import Publisher
from celery_task_app.store.batches import BatchStore

logger = logging.getLogger(__name__)

_MAX_AT_ONCE = 8  # batches that are being received, or wait for the thread
_SPOOL_IN_MEMORY_BYTES = 1024 * 1024  # of a body; a longer body goes to a temporary file
_LISTED_ROWS = 100  # invalid rows that a response names


@dataclass
class BatchReceipt:
    """The numbers of a batch.

    Attributes:
        total: valid rows, which will be scored.
        refused: invalid rows.
        listed: the first invalid rows.
    """

    batch_id: str
    total: int = 0
    refused: int = 0
    listed: list[InvalidRow] = field(default_factory=list)


class BatchIntake:
    """Accepts batches. One for an API process."""

    def __init__(  # noqa: PLR0913 - its parts and its limits, the limits by keyword
        self,
        schema: type[BaseModel],
        store: BatchStore,
        publisher: Publisher,
        backlog: Backlog,
        *,
        max_bytes: int,
        max_rows: int,
        chunk_rows: int,
    ) -> None:
        """Accept batches of rows with a schema.

        Args:
            schema: of a row.
            store: gets the batches.
            publisher: publishes the chunks; the thread is its only user.
            backlog: of the queue of batches.
            max_bytes: longest body.
            max_rows: most rows of a batch, invalid rows included.
            chunk_rows: rows of a chunk.
        """
        self._schema = schema
        self._store = store
        self._publisher = publisher
        self._backlog = backlog
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._chunk_rows = chunk_rows
        self._thread = ThreadPoolExecutor(1, "batch-intake")
        self._being_accepted = 0

    async def accept(
        self, batch_id: str, body: AsyncIterator[bytes], media_type: str, *, all_or_none: bool
    ) -> BatchReceipt:
        """Receive and validate a batch; return once the broker has confirmed all of its chunks.

        Args:
            batch_id: a new UUID.
            body: the rows as text.
            media_type: CSV, NDJSON or JSON.
            all_or_none: refuse the batch if a row is invalid, instead of leaving that row out.

        Raises:
            MalformedBatch: the body cannot be parsed.
            BatchTooLarge: it has too many bytes or rows.
            RowsRefused: no row is valid, or with `all_or_none` not every row.
            Overloaded: too many batches are being accepted, too many rows wait, or the queue is full.
            Unavailable: the broker or the result store did not accept it; no row will be computed.
        """
        self._backlog.refuse_if_full()
        if self._being_accepted >= _MAX_AT_ONCE:
            raise Overloaded("too many batches are being accepted")
        self._being_accepted += 1
        try:
            with tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES) as spool:
                async for piece in body:
                    spool.write(piece)
                    self._check_size(spool.tell(), media_type)
                spool.seek(0)
                validate_and_publish = partial(
                    self._validate_and_publish, BatchReceipt(batch_id), all_or_none=all_or_none
                )
                work = asyncio.wrap_future(self._thread.submit(validate_and_publish, spool, media_type))
                try:
                    return await asyncio.shield(work)
                except asyncio.CancelledError:
                    with contextlib.suppress(Exception):  # the thread still reads the spool
                        await work
                    raise
        finally:
            self._being_accepted -= 1

    async def close(self) -> None:
        """Finish the batches that were received, then close the connections."""
        await asyncio.to_thread(self._thread.shutdown)
        self._publisher.close()
        self._store.close()

    def _check_size(self, size: int, media_type: str) -> None:
        if size > self._max_bytes:
            raise BatchTooLarge(f"the limit is {self._max_bytes} bytes")
        if media_type == JSON and size > MAX_JSON_BYTES:
            raise BatchTooLarge(
                f"the limit of a JSON array is {MAX_JSON_BYTES} bytes: send application/x-ndjson instead"
            )

    def _validate_and_publish(
        self, receipt: BatchReceipt, body: IO[bytes], media_type: str, *, all_or_none: bool
    ) -> BatchReceipt:
        with tempfile.TemporaryFile() as chunks:
            lengths = list(self._validate(body, media_type, receipt, chunks))
            if not receipt.total or (all_or_none and receipt.refused):
                raise RowsRefused("rows are not valid customers", receipt.refused, receipt.listed)
            self._backlog.check()
            chunks.seek(0)
            self._publish(receipt, chunks, lengths)
        logger.info("batch accepted batch_id=%s rows=%d refused=%d", receipt.batch_id, receipt.total, receipt.refused)
        return receipt

    def _validate(self, body: IO[bytes], media_type: str, receipt: BatchReceipt, chunks: IO[bytes]) -> Iterator[int]:
        """Write the content of each chunk's message to a file, and yield its length."""
        for part in parse_rows(body, media_type, self._schema, self._chunk_rows):
            receipt.total += len(part.rows)
            receipt.refused += len(part.invalid)
            receipt.listed += part.invalid[: _LISTED_ROWS - len(receipt.listed)]
            if receipt.total + receipt.refused > self._max_rows:
                raise BatchTooLarge(f"the limit is {self._max_rows} rows")
            if part.rows:
                yield chunks.write(encode_chunk(part.rows, part.columns))

    def _publish(self, receipt: BatchReceipt, chunks: IO[bytes], lengths: list[int]) -> None:
        # If this fails there is nothing to delete: the store would fail again, and no client knows the id.
        self._store.create(receipt.batch_id, receipt.total, len(lengths))
        try:
            for number, length in enumerate(lengths):
                self._publisher.publish(ChunkMessage(receipt.batch_id, number, chunks.read(length).decode()))
                self._backlog.record_published(min(receipt.total, self._chunk_rows))
        except Exception:
            logger.warning("batch deleted: not all chunks were published batch_id=%s", receipt.batch_id)
            with contextlib.suppress(Unavailable):
                self._store.delete(receipt.batch_id)
            raise
