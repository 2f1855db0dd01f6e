"""The service-wide counts, read from a result store or from a scrape, and their comparison with a ledger."""

import asyncio
import contextlib
from collections.abc import Mapping

from celery_task_app.store.connection import connect_async
from celery_task_app.store.counts import STATES, AsyncCountReader, Counts, ServiceCounts
from tests.harness.metrics import Scrape


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


def scraped_counts(scrape: Scrape) -> ServiceCounts:
    """Return the counts of a scrape of the API; its number of waiting customers must be accepted - ended."""
    predictions = _scraped(scrape, "churn_{}", "churn_waiting_customers")
    return ServiceCounts(predictions, _scraped(scrape, "churn_batch_rows_{}", "churn_waiting_batch_rows"))


def _scraped(scrape: Scrape, name: str, waiting: str) -> Counts:
    ended = {state: int(scrape.value(name.format("ended_total"), state=state)) for state in STATES}
    found = Counts(int(scrape.value(name.format("accepted_total"))), ended, 0)
    assert scrape.value(waiting) == found.waiting, scrape.text
    return found


def difference(after: Counts, before: Counts) -> Counts:
    """Return the growth of each count between two readings; it is negative if the result store has lost data."""
    ended = {state: after.ended[state] - before.ended[state] for state in STATES}
    return Counts(after.accepted - before.accepted, ended, 0)


def imbalances(counted: Counts, recorded: Mapping[str, int], may_be_more: int = 0) -> list[str]:
    """Compare the counts of a service at rest with a ledger.

    Args:
        counted: since the ledger was opened.
        recorded: by terminal state, the accepted customers of the ledger that must have it.
        may_be_more: requests whose clients do not know whether they were accepted. Each of them is counted or not.

    Returns:
        A sentence for each number that is too small or too large. No customer may wait. None may have expired, because
        its deadline is an hour away.
    """
    found = [f"{counted.waiting} wait"] if counted.waiting else []
    numbers = {"accepted": counted.accepted, **counted.ended}
    expected = {"accepted": sum(recorded.values()), **recorded}
    for name, number in numbers.items():
        least = expected.get(name, 0)
        most = least + (may_be_more if name != "expired" else 0)
        if not least <= number <= most:
            found.append(f"{number} {name}, but the ledger has {least}" + (f" to {most}" if most > least else ""))
    return found
