"""The service-wide counts of a result store, for tests."""

import asyncio
import contextlib

from celery_task_app.store.connection import connect_async
from celery_task_app.store.counts import STATES, AsyncCountReader, Counts, ServiceCounts


def read_counts(uri: str, lost_after_s: int = 60) -> ServiceCounts:
    """Return the counts of the result store at an address."""

    async def read() -> ServiceCounts:
        async with contextlib.AsyncExitStack() as stack:
            reader = AsyncCountReader(connect_async(uri), lost_after_s)
            stack.push_async_callback(reader.close)
            return await reader.read()

    return asyncio.run(read())


def counts(accepted: int, **ended: int) -> Counts:
    """Return counts, to be compared; the age of the oldest is not compared."""
    return Counts(accepted, dict.fromkeys(STATES, 0) | ended, 0)
