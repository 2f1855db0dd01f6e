"""Accepting a batch: its body is received, every row is validated, and its chunks are published.

One thread validates a slice of each batch in turn, so no batch waits for another one, and memory holds a slice of each.
Only JSON arrays wait for one another: each is held in memory as a whole. The body and the chunks are spooled to files;
nothing is published before every row is validated.
"""

import asyncio
import contextlib
import logging
import math
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from api.backpressure import Backlog
from api.batch_formats import DESCRIBED_ROWS, JSON, MAX_JSON_BYTES, InvalidRow, RowParser
from celery_task_app.errors import BatchTooLarge, BatchTooSlow, NoSpace, Overloaded, RowsRefused, Unavailable
from celery_task_app.messaging.messages import ChunkMessage, encode_chunk
from celery_task_app.messaging.publisher import Publisher
from celery_task_app.observability.tracing import Tracing, trace_request
from celery_task_app.store.batches import BatchStore

logger = logging.getLogger(__name__)

_MAX_AT_ONCE = 8  # batches that are validated
_SPOOL_IN_MEMORY_BYTES = 64 * 1024  # of a body; a longer body goes to a temporary file
_LEAST_BYTES = 1024 * 1024  # that a body counts while it is received, so that their number is limited too
_VALIDATE_WITHIN_S = 60  # of the thread, for one batch; 200,000 rows of BankChurners.csv take about 2 s
_CHECK_CLIENT_EVERY_S = 0.5
_STOP_GRACE_S = 5  # after a stop begins; a usual batch is accepted meanwhile
# A batch with more invalid rows than this, and nearly no valid one, is refused before the rest is read.
_REFUSE_FROM_ROWS = 2_000
_REFUSE_FROM_SHARE = 0.99


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
        stop_grace_s: float = _STOP_GRACE_S,
        tracing: Tracing | None = None,
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
            stop_grace_s: seconds after `release` in which a batch may still be accepted.
            tracing: traces the chunks, if it is on.
        """
        self._parser = RowParser(schema)
        self._store = store
        self._publisher = publisher
        self._backlog = backlog
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._chunk_rows = chunk_rows
        self._thread = ThreadPoolExecutor(1, "batch-intake")
        self._received_bytes = 0  # of all bodies that are received or validated
        self._validated = 0
        self._json = asyncio.Lock()  # a JSON array is held in memory as a whole, so one is validated at a time
        self._stop_grace_s = stop_grace_s
        self._tracing = tracing
        self._refuse_from = math.inf  # on the clock of `time.monotonic`

    async def accept(
        self,
        batch_id: str,
        body: AsyncIterator[bytes],
        media_type: str,
        *,
        all_or_none: bool,
        is_disconnected: Callable[[], Awaitable[bool]],
    ) -> BatchReceipt:
        """Receive and validate a batch; return once the broker has confirmed all of its chunks.

        Args:
            batch_id: a new UUID.
            body: the rows as text.
            media_type: CSV, NDJSON or JSON.
            all_or_none: refuse the batch if a row is invalid, instead of leaving that row out.
            is_disconnected: returns whether the client has closed its connection; then nothing is published.

        Raises:
            MalformedBatch: the body cannot be parsed.
            BatchTooLarge: it has too many bytes or rows.
            BatchTooSlow: its validation takes too long.
            RowsRefused: no row is valid, or nearly none, or with `all_or_none` not every row.
            Overloaded: too many batches are being accepted, too many rows wait, or the queue is full.
            NoSpace: the body cannot be written to a temporary file.
            Unavailable: the broker or the result store did not accept it; no client knows its id.
            ClientDisconnect: the client has closed its connection.
        """
        self._backlog.refuse_if_full()
        self._refuse_if_busy()
        with contextlib.ExitStack() as files:
            with _no_space():
                spool = tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES)  # noqa: SIM115 - _close closes both
                files.callback(_close, spool)
                chunks = tempfile.TemporaryFile()  # noqa: SIM115
                files.callback(_close, chunks)
            async with self._received(spool, body, media_type), self._turn(media_type):
                receipt = BatchReceipt(batch_id)
                chunk_sizes: list[tuple[int, int]] = []
                steps = self._validate(spool, media_type, receipt, chunks, chunk_sizes, all_or_none=all_or_none)
                await self._run(steps, is_disconnected)
                traceparent = trace_request(batch_id) if self._tracing else ""
                await self._run(self._publish(receipt, chunks, chunk_sizes, traceparent))
        return receipt

    def release(self) -> None:
        """Refuse the batches that are not validated within a few seconds: this process stops."""
        self._refuse_from = min(self._refuse_from, time.monotonic() + self._stop_grace_s)

    async def close(self) -> None:
        """Close the connections, after the last step."""
        self.release()
        await asyncio.to_thread(self._thread.shutdown)
        self._publisher.close()
        self._store.close()

    @contextlib.asynccontextmanager
    async def _received(self, spool: IO[bytes], body: AsyncIterator[bytes], media_type: str) -> AsyncIterator[None]:
        """Receive a body. It takes bytes of a budget, and a place only when it is complete."""
        taken = _LEAST_BYTES
        self._received_bytes += taken
        try:
            async for piece in body:
                self._refuse_if_stopping()
                with _no_space():
                    spool.write(piece)
                size = spool.tell()
                self._check_size(size, media_type)
                if size > taken:
                    self._received_bytes += size - taken
                    taken = size
                if self._received_bytes > _MAX_AT_ONCE * max(self._max_bytes, _LEAST_BYTES):
                    raise Overloaded("too many batches are being received")
            with _no_space():
                spool.seek(0)  # writes the rest of Python's buffer
            yield
        finally:
            self._received_bytes -= taken

    @contextlib.asynccontextmanager
    async def _turn(self, media_type: str) -> AsyncIterator[None]:
        """Take a place among the batches that are validated in turns."""
        async with self._json if media_type == JSON else contextlib.nullcontext():
            self._refuse_if_busy()
            self._validated += 1
            try:
                yield
            finally:
                self._validated -= 1

    def _refuse_if_busy(self) -> None:
        if self._validated >= _MAX_AT_ONCE:
            raise Overloaded("too many batches are being accepted")

    async def _run(self, steps: Iterator[None], is_disconnected: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Run the steps in the thread; those of all batches alternate. A step is a slice of rows, or a chunk."""
        loop, used_s, checked = asyncio.get_running_loop(), 0.0, time.monotonic()
        step = partial(_timed, steps)
        try:
            while (took_s := await asyncio.shield(loop.run_in_executor(self._thread, step))) is not None:
                used_s += took_s
                if is_disconnected is None:  # chunks are being published
                    continue
                self._refuse_if_stopping()
                if used_s > _VALIDATE_WITHIN_S:
                    raise BatchTooSlow(f"its validation took more than {_VALIDATE_WITHIN_S} s: send it in parts")
                if time.monotonic() - checked > _CHECK_CLIENT_EVERY_S:
                    checked = time.monotonic()
                    if await is_disconnected():
                        raise ClientDisconnect
        finally:
            await asyncio.shield(loop.run_in_executor(self._thread, steps.close))  # type: ignore[attr-defined]

    def _refuse_if_stopping(self) -> None:
        if time.monotonic() > self._refuse_from:
            raise Unavailable("the API stops: send the batch again")

    def _check_size(self, size: int, media_type: str) -> None:
        if size > self._max_bytes:
            raise BatchTooLarge(f"the limit is {self._max_bytes} bytes")
        if media_type == JSON and size > MAX_JSON_BYTES:
            raise BatchTooLarge(
                f"the limit of a JSON array is {MAX_JSON_BYTES} bytes: send application/x-ndjson instead"
            )

    def _validate(  # noqa: PLR0913 - where the rows come from, and where they go
        self,
        body: IO[bytes],
        media_type: str,
        receipt: BatchReceipt,
        chunks: IO[bytes],
        chunk_sizes: list[tuple[int, int]],
        *,
        all_or_none: bool,
    ) -> Iterator[None]:
        """Write the content of each chunk to a file, and its rows and its length to a list; a step is a chunk."""
        for part in self._parser.parse(body, media_type, self._chunk_rows):
            receipt.total += len(part.rows)
            receipt.refused += len(part.invalid)
            receipt.listed += part.invalid[: DESCRIBED_ROWS - len(receipt.listed)]
            read = receipt.total + receipt.refused
            if read > self._max_rows:
                raise BatchTooLarge(f"the limit is {self._max_rows} rows")
            if receipt.refused >= max(_REFUSE_FROM_ROWS, _REFUSE_FROM_SHARE * read):
                raise RowsRefused(
                    f"{receipt.refused} of the first {read} rows are not valid customers; the rest was not read",
                    receipt.refused,
                    receipt.listed,
                )
            if part.rows:
                with _no_space():
                    chunk_sizes.append((len(part.rows), chunks.write(encode_chunk(part.rows, part.columns))))
            yield
        if not receipt.total or (all_or_none and receipt.refused):
            raise RowsRefused("rows are not valid customers", receipt.refused, receipt.listed)
        with _no_space():
            chunks.seek(0)  # writes the rest of Python's buffer

    def _publish(
        self, receipt: BatchReceipt, chunks: IO[bytes], chunk_sizes: list[tuple[int, int]], traceparent: str
    ) -> Iterator[None]:
        """Publish the chunks; a step is a chunk."""
        self._backlog.check()
        # If this fails there is nothing to delete: the store would fail again, and no client knows the id.
        self._store.create(receipt.batch_id, receipt.total, len(chunk_sizes))
        try:
            for number, (rows, length) in enumerate(chunk_sizes):
                message = ChunkMessage(receipt.batch_id, number, chunks.read(length).decode(), traceparent)
                with self._tracing.publishing(message, rows) if self._tracing else contextlib.nullcontext():
                    self._publisher.publish(message)
                self._backlog.record_published(rows)
                yield
            self._store.accept(receipt.batch_id)
        except BaseException:
            logger.warning("batch deleted: not all chunks were published batch_id=%s", receipt.batch_id)
            with contextlib.suppress(Unavailable):
                self._store.delete(receipt.batch_id)
            raise


def _timed(steps: Iterator[None]) -> float | None:
    """Run a step; return the seconds that it took, or None after the last one."""
    started = time.monotonic()
    try:
        next(steps)
    except StopIteration:
        return None
    return time.monotonic() - started


def _close(file: IO[bytes]) -> None:
    """Close a temporary file. On a full disk it fails to write its buffer, which is of no use any more."""
    with contextlib.suppress(OSError):
        file.close()


@contextlib.contextmanager
def _no_space() -> Iterator[None]:
    """Raise NoSpace for an error of a temporary file, and log the folder."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "none"
        logger.error("batch refused: no temporary file folder=%s error=%r", folder, error)  # noqa: TRY400
        raise NoSpace("the API cannot store the body of a batch: its operator finds the reason in the log") from error
