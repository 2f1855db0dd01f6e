"""Taking a batch: check every row, then publish its chunks on a queue of their own. Reading rows is rows.py's business.

One thread takes one batch at a time: the event loop is never held, and memory holds a chunk of one batch.
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
from pydantic_core import to_json

from celery_task_app.backlog import Backlog
from celery_task_app.batches import BatchStore
from celery_task_app.errors import BatchTooLarge, Overloaded, RowsRefused, Unavailable
from celery_task_app.rows import Refused, slices
from celery_task_app.settings import settings
from celery_task_app.submission import Publisher
from celery_task_app.worker import BATCHES, SCORE_TASK

logger = logging.getLogger(__name__)

_MAX_AT_ONCE = 8  # bodies that are received, or wait for the thread
_IN_MEMORY_BYTES = 1024 * 1024  # of a body; what is more goes to a file without a name
_LISTED = 100  # refused rows that an answer names


@dataclass
class Taken:
    """A batch that was taken, or is about to be.

    Attributes:
        total: rows that are customers.
        refused: how many are not.
        listed: the first of those.
    """

    batch_id: str
    total: int = 0
    refused: int = 0
    listed: list[Refused] = field(default_factory=list)


class Intake:
    """Takes batches. One for an API process."""

    def __init__(self, schema: type[BaseModel]) -> None:
        """Take batches of rows that are of this schema."""
        self._schema = schema
        self._store = BatchStore()
        self._publisher = Publisher()
        self._backlog = Backlog(BATCHES, settings.batch_high_water, self._publisher.depth)
        self._thread = ThreadPoolExecutor(1, "intake")
        self._taking = 0

    async def take(self, batch_id: str, body: AsyncIterator[bytes], media_type: str, *, all_or_none: bool) -> Taken:
        """Receive a batch, check it, and return once the broker has confirmed all of it.

        Args:
            batch_id: a new UUID.
            body: the rows as text.
            media_type: rows.CSV or rows.JSON.
            all_or_none: refuse the batch if it has a row that is no customer, instead of leaving that row out.

        Raises:
            MalformedBatch: it can't be read.
            BatchTooLarge: it has more bytes or rows than a batch may have.
            RowsRefused: no row of it, or with all_or_none not every one, is a customer.
            Overloaded: too many batches are being taken, or too many rows wait, or the queue is full.
            Unavailable: the broker or the result store did not take it; nothing of it will be computed.
        """
        self._backlog.refuse_if_full()
        if self._taking >= _MAX_AT_ONCE:
            raise Overloaded("too many batches are being taken")
        self._taking += 1
        try:
            with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spool:
                async for piece in body:
                    spool.write(piece)
                    if spool.tell() > settings.batch_max_bytes:
                        raise BatchTooLarge(f"a batch may have {settings.batch_max_bytes} bytes")
                spool.seek(0)
                check_and_publish = partial(self._check_and_publish, Taken(batch_id), all_or_none=all_or_none)
                work = asyncio.wrap_future(self._thread.submit(check_and_publish, spool, media_type))
                try:
                    return await asyncio.shield(work)
                except asyncio.CancelledError:
                    with contextlib.suppress(Exception):  # the thread still reads the file
                        await work
                    raise
        finally:
            self._taking -= 1

    async def close(self) -> None:
        """Finish what was received, then stop."""
        await asyncio.to_thread(self._thread.shutdown)
        self._publisher.close()

    def _check_and_publish(self, taken: Taken, body: IO[bytes], media_type: str, *, all_or_none: bool) -> Taken:
        with tempfile.TemporaryFile() as chunks:
            lengths = list(self._check(body, media_type, taken, chunks))
            if not taken.total or (all_or_none and taken.refused):
                raise RowsRefused("it has rows that are not customers", taken.refused, taken.listed)
            self._backlog.read()
            chunks.seek(0)
            self._publish(taken, chunks, lengths)
        logger.info("batch taken batch_id=%s rows=%d refused=%d", taken.batch_id, taken.total, taken.refused)
        return taken

    def _check(self, body: IO[bytes], media_type: str, taken: Taken, chunks: IO[bytes]) -> Iterator[int]:
        """Write each chunk to a file as the text that its message will carry, and yield its length."""
        for part in slices(body, media_type, self._schema, settings.batch_chunk_rows):
            taken.total += len(part.rows)
            taken.refused += len(part.refused)
            taken.listed += part.refused[: _LISTED - len(taken.listed)]
            if taken.total + taken.refused > settings.batch_max_rows:
                raise BatchTooLarge(f"a batch may have {settings.batch_max_rows} rows")
            if part.rows:
                yield chunks.write(to_json({"rows": part.rows, "customers": part.customers}))

    def _publish(self, taken: Taken, chunks: IO[bytes], lengths: list[int]) -> None:
        # Should the store fail, there is nothing to take back: it would fail again, and nobody knows the id.
        self._store.create(taken.batch_id, taken.total, len(lengths))
        try:
            for number, length in enumerate(lengths):
                self._publisher.send(
                    SCORE_TASK,
                    BATCHES,
                    {"batch_id": taken.batch_id, "chunk": number, "content": chunks.read(length).decode()},
                )
                self._backlog.published(min(taken.total, settings.batch_chunk_rows))
        except Exception:
            logger.warning("batch taken back batch_id=%s", taken.batch_id)
            with contextlib.suppress(Unavailable):
                self._store.delete(taken.batch_id)
            raise
