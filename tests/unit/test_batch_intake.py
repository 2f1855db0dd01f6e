"""Batches that are refused before anything is stored or published, so that no server is needed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.backpressure import Backlog
from api.batch_formats import CSV, JSON, NDJSON, InvalidRow
from api.batch_intake import BatchIntake, BatchReceipt
from celery_task_app.errors import BatchTooLarge, MalformedBatch, Overloaded, RowsRefused
from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from models import Customer
from tests.harness.customers import as_csv, as_ndjson
from tests.harness.processes import free_port

LIMITS = {"max_bytes": 20_000_000, "max_rows": 1_000, "chunk_rows": 50}


def intake(backlog: Backlog | None = None, **limits: int) -> BatchIntake:
    """Return an intake whose broker and result store are away."""
    uri = f"redis://127.0.0.1:{free_port()}/0"
    publisher = Publisher(publisher_connection(uri))
    backlog = backlog or Backlog("churn.batch", 1_000, lambda: 0)
    return BatchIntake(Customer, BatchStore(connect(uri), 60), publisher, backlog, **(LIMITS | limits))


async def pieces(body: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def accept(
    body: bytes | str, media_type: str, *, all_or_none: bool = False, backlog: Backlog | None = None, **limits: int
) -> BatchReceipt:
    async def accept() -> BatchReceipt:
        batches = intake(backlog, **limits)
        content = body.encode() if isinstance(body, str) else body
        try:
            return await batches.accept("an id", pieces(content), media_type, all_or_none=all_or_none)
        finally:
            await batches.close()

    return asyncio.run(accept())


def listed(error: RowsRefused) -> list[InvalidRow]:
    return [row for row in error.listed if isinstance(row, InvalidRow)]


def test_a_malformed_batch_is_refused() -> None:
    with pytest.raises(MalformedBatch):
        accept("[", JSON)


@pytest.mark.parametrize("media_type", [CSV, NDJSON, JSON])
def test_a_batch_with_too_many_bytes_is_refused(media_type: str) -> None:
    with pytest.raises(BatchTooLarge, match="1000000 bytes"):
        accept(b"\n" * 1_000_001, media_type, max_bytes=1_000_000)


def test_a_json_array_over_8_mib_is_refused_with_ndjson_as_the_alternative(customer: dict[str, Any]) -> None:
    row = json.dumps(customer)
    body = f"[{row}" + f",{row}" * (8 * 2**20 // len(row)) + "]"
    with pytest.raises(BatchTooLarge, match="application/x-ndjson"):
        accept(body, JSON)


@pytest.mark.parametrize("media_type", [CSV, NDJSON, JSON])
def test_a_batch_with_too_many_rows_is_refused(customer: dict[str, Any], media_type: str) -> None:
    rows = [customer] * 101
    bodies = {CSV: as_csv(rows), NDJSON: as_ndjson(rows), JSON: json.dumps(rows)}
    with pytest.raises(BatchTooLarge, match="100 rows"):
        accept(bodies[media_type], media_type, max_rows=100)


def test_a_batch_without_a_valid_row_is_refused_and_lists_100_rows() -> None:
    with pytest.raises(RowsRefused) as refused:
        accept("5\n{}\n" * 200, NDJSON)
    assert refused.value.count == 400
    assert [row.row for row in listed(refused.value)] == list(range(100))


def test_a_batch_with_an_invalid_row_is_refused_if_all_or_none(customer: dict[str, Any]) -> None:
    rows = [customer] * 120
    rows[3] = rows[70] = {**customer, "Gender": "?"}
    with pytest.raises(RowsRefused) as refused:
        accept(as_csv(rows), CSV, all_or_none=True)
    assert refused.value.count == 2
    assert [(row.row, row.line) for row in listed(refused.value)] == [(3, 5), (70, 72)]


def test_a_full_queue_refuses_a_batch_before_its_body_is_read(customer: dict[str, Any]) -> None:
    backlog = Backlog("churn.batch", 1, lambda: 1_000)
    with pytest.raises(Overloaded):
        backlog.check()
    with pytest.raises(Overloaded):
        accept("not read", JSON, backlog=backlog)


def test_a_full_queue_refuses_a_batch_before_it_is_published(customer: dict[str, Any]) -> None:
    with pytest.raises(Overloaded):
        accept(as_csv([customer]), CSV, backlog=Backlog("churn.batch", 1, lambda: 1_000))


def test_the_ninth_batch_at_a_time_is_refused() -> None:
    async def accept_nine() -> list[BatchReceipt | BaseException]:
        batches, is_ninth_refused = intake(), asyncio.Event()

        async def slow_body() -> AsyncIterator[bytes]:
            await is_ninth_refused.wait()
            yield b"["

        bodies = [
            asyncio.create_task(batches.accept(f"id {number}", slow_body(), JSON, all_or_none=False))
            for number in range(8)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many batches"):
            await batches.accept("id 8", slow_body(), JSON, all_or_none=False)
        is_ninth_refused.set()
        ended = await asyncio.gather(*bodies, return_exceptions=True)
        with pytest.raises(MalformedBatch):  # the limit is not reached any more
            await batches.accept("id 9", pieces(b"["), JSON, all_or_none=False)
        await batches.close()
        return ended

    assert {type(outcome) for outcome in asyncio.run(accept_nine())} == {MalformedBatch}
