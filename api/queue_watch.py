"""The queue for clients and operators: how many customers wait, how fast they end, and how long a new one will wait.

The numbers are the service-wide counts of the result store, so every API process reports the same. They are read at
most once a second, when a request or a scrape needs them; a 202 uses the last reading and waits for none.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from api.worker_models import list_workers
from celery_task_app.errors import ResultStoreUnavailable
from celery_task_app.ml.schema import parse_schema
from celery_task_app.store.connection import AsyncStoreClient, end_task
from celery_task_app.store.counts import AsyncCountReader, Counts, ServiceCounts
from celery_task_app.store.worker_status import WorkerStatus

_KEEP_S = 1.0
_WINDOW_S = 10.0
_MAX_GAP_S = 5.0  # between two readings; over a longer time the queue may have been empty
_OLD_AFTER_S = 10.0  # a reading that is older estimates nothing
_SHORT_QUEUE = 256  # customers, which one message may have
_MAX_RETRY_AFTER_S = 60


class DrainRate:
    """The customers of one kind that end in a second, measured only while customers wait."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()  # time, ended, waiting

    def add(self, now: float, counts: Counts) -> None:
        """Add a reading."""
        self._samples.append((now, counts.accepted - counts.waiting, counts.waiting))
        while now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()

    @property
    def per_s(self) -> float | None:
        """The mean of the last 10 s; None if no two readings in a row found waiting customers."""
        busy = [
            (end[0] - begin[0], end[1] - begin[1])
            for begin, end in itertools.pairwise(self._samples)
            if begin[2] > 0 and end[2] > 0 and 0 < end[0] - begin[0] <= _MAX_GAP_S
        ]
        seconds = sum(took for took, _ in busy)
        return sum(ended for _, ended in busy) / seconds if seconds else None


@dataclass(frozen=True, slots=True)
class QueueState:
    """A reading of the queue.

    Attributes:
        counts: of predictions and of rows.
        workers: the status of each live worker, by name.
        predictions_per_s: drain rate of predictions; None if it was not measured.
        rows_per_s: drain rate of rows; None if it was not measured.
    """

    counts: ServiceCounts
    workers: Mapping[str, WorkerStatus]
    predictions_per_s: float | None
    rows_per_s: float | None

    @property
    def worker_states(self) -> dict[str, int]:
        """By state, the number of live workers."""
        return dict(Counter(status["model"] for status in self.workers.values()))

    @property
    def estimated_s(self) -> float:
        """Seconds until a prediction that is accepted now is computed."""
        return estimate_wait_s(self.counts.predictions, self.predictions_per_s)


def estimate_wait_s(counts: Counts, drained_per_s: float | None) -> float:
    """Return the seconds until a customer that is accepted now has ended.

    A queue is served in its order, so it is the number before it divided by the drain rate. In a short queue, or
    without a drain rate, the age of the oldest customer is the better estimate: a new one will wait about as long.
    """
    if counts.waiting <= 0:
        return 0.0
    if not drained_per_s:
        return counts.oldest_s
    by_rate = counts.waiting / drained_per_s
    return min(by_rate, counts.oldest_s) if counts.waiting <= _SHORT_QUEUE else by_rate


class QueueWatch:
    """Reads the queue, at most once a second for all requests of this process."""

    def __init__(
        self,
        counts: AsyncCountReader,
        store: AsyncStoreClient,
        schema: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the queue.

        Args:
            counts: reads the counts.
            store: a client of the result store, for the statuses of workers.
            schema: of customers, with which the models of the workers are compared.
            clock: the time in seconds.
        """
        self._counts = counts
        self._store = store
        self._schema = parse_schema(schema)
        self._clock = clock
        self._predictions, self._rows = DrainRate(), DrainRate()
        self._reading: asyncio.Task[QueueState] | None = None
        self._read_at = -math.inf
        self._retry_after_s = self._rows_retry_after_s = 1

    async def read(self, max_age_s: float = _KEEP_S) -> QueueState:
        """Return the state of the queue, at most a second old.

        Args:
            max_age_s: longest age of the last reading in seconds; beyond it the result store is read.

        Raises:
            ResultStoreUnavailable: within about five seconds.
        """
        return await asyncio.shield(self._start(max_age_s))

    @property
    def retry_after_s(self) -> int:
        """Seconds, from 1 to 60, after which a client should ask for a prediction again; it waits for no reading."""
        self._refresh()
        return self._retry_after_s

    @property
    def rows_retry_after_s(self) -> int:
        """The same for a batch."""
        self._refresh()
        return self._rows_retry_after_s

    async def close(self) -> None:
        """End a reading, and close the connections."""
        if self._reading:
            await end_task(self._reading)
        await self._counts.close()
        await self._store.aclose()

    def _refresh(self) -> None:
        """Start a reading, if the last one is older than a second."""
        age_s = self._clock() - self._read_at
        if age_s > _KEEP_S:
            if age_s > _OLD_AFTER_S:
                self._retry_after_s = self._rows_retry_after_s = 1
            self._start(_KEEP_S)

    def _start(self, max_age_s: float) -> asyncio.Task[QueueState]:
        if self._reading is None or (self._reading.done() and self._clock() - self._read_at > max_age_s):
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_retrieve)
        return self._reading

    async def _read(self) -> QueueState:
        try:
            counts, workers = await asyncio.gather(self._counts.read(), list_workers(self._store, self._schema))
        finally:
            self._read_at = now = self._clock()
        self._predictions.add(now, counts.predictions)
        self._rows.add(now, counts.rows)
        state = QueueState(counts, workers, self._predictions.per_s, self._rows.per_s)
        self._retry_after_s = _retry_after_s(state.estimated_s)
        self._rows_retry_after_s = _retry_after_s(estimate_wait_s(counts.rows, state.rows_per_s))
        return state


def _retry_after_s(estimated_s: float) -> int:
    return min(max(math.ceil(estimated_s), 1), _MAX_RETRY_AFTER_S)


def _retrieve(reading: asyncio.Task[QueueState]) -> None:
    """Mark an error as retrieved: no request may wait for the reading."""
    with contextlib.suppress(asyncio.CancelledError, ResultStoreUnavailable):
        reading.result()
