"""Batches that are refused before anything is stored or published, so that no server is needed."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from api.backpressure import Backlog
from api.batch_formats import CSV, JSON, NDJSON, InvalidRow
from api.batch_intake import BatchIntake, BatchReceipt
from celery_task_app.errors import BatchTooLarge, MalformedBatch, NoSpace, Overloaded, RowsRefused, Unavailable
from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from models import Customer
from tests.harness.customers import as_csv, as_ndjson, repeated_csv
from tests.harness.processes import free_port

LIMITS = {"max_bytes": 20_000_000, "max_rows": 1_000, "chunk_rows": 50}


def intake(backlog: Backlog | None = None, **limits: float) -> BatchIntake:
    """Return an intake whose broker and result store are away."""
    uri = f"redis://127.0.0.1:{free_port()}/0"
    publisher = Publisher(publisher_connection(uri))
    backlog = backlog or Backlog("churn.batch", 1_000, lambda: 0)
    return BatchIntake(Customer, BatchStore(connect(uri), 60), publisher, backlog, **{**LIMITS, **limits})  # type: ignore[arg-type]


async def is_connected() -> bool:
    """Answer that the client has not closed its connection."""
    return False


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
            return await batches.accept(
                "an id", pieces(content), media_type, all_or_none=all_or_none, is_disconnected=is_connected
            )
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


def test_bodies_that_do_not_come_take_no_place(customer: dict[str, Any]) -> None:
    async def accept_beside_slow_ones() -> None:
        batches, is_over = intake(), asyncio.Event()

        async def slow_body() -> AsyncIterator[bytes]:
            await is_over.wait()
            yield b"["

        async def receive(body: AsyncIterator[bytes]) -> BatchReceipt:
            return await batches.accept("id", body, JSON, all_or_none=False, is_disconnected=is_connected)

        slow = [asyncio.create_task(receive(slow_body())) for _ in range(30)]
        await asyncio.sleep(0)  # each task has called accept
        with pytest.raises(RowsRefused):
            await receive(pieces(b"[{}]"))
        is_over.set()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(outcome) for outcome in ended} <= {MalformedBatch, Overloaded}
        await batches.close()

    asyncio.run(accept_beside_slow_ones())


def test_the_bytes_of_all_bodies_are_limited() -> None:
    async def receive_too_many() -> None:
        batches, is_over, received = intake(max_bytes=2_000_000), asyncio.Event(), asyncio.Semaphore(0)

        async def body() -> AsyncIterator[bytes]:
            yield b" " * 1_999_999
            received.release()
            await is_over.wait()

        async def receive() -> BatchReceipt:
            return await batches.accept("id", body(), CSV, all_or_none=False, is_disconnected=is_connected)

        slow = [asyncio.create_task(receive()) for _ in range(8)]
        for _ in slow:
            await received.acquire()
        with pytest.raises(Overloaded, match="received"):
            await receive()
        is_over.set()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert Overloaded not in {type(outcome) for outcome in ended}
        await batches.close()

    asyncio.run(receive_too_many())


# The validation of a batch ends: with its client, with the process, and in time.

ENDLESS = 200_000


def test_the_validation_ends_with_its_client(customer: dict[str, Any]) -> None:
    async def is_disconnected() -> bool:
        return True

    async def accept_and_leave() -> None:
        batches = intake(max_rows=10**6, max_bytes=10**8)
        body = repeated_csv(customer, ENDLESS).encode()
        with pytest.raises(ClientDisconnect):
            await batches.accept("id", pieces(body), CSV, all_or_none=False, is_disconnected=is_disconnected)
        await batches.close()

    asyncio.run(accept_and_leave())


def test_the_validation_ends_with_the_process(customer: dict[str, Any]) -> None:
    async def accept_and_stop() -> None:
        batches = intake(max_rows=10**6, max_bytes=10**8, stop_grace_s=0)

        async def body() -> AsyncIterator[bytes]:
            yield repeated_csv(customer, 10_000).encode()
            batches.release()

        with pytest.raises(Unavailable, match="stops"):
            await batches.accept("id", body(), CSV, all_or_none=False, is_disconnected=is_connected)
        await batches.close()

    asyncio.run(accept_and_stop())


@pytest.mark.parametrize(
    ("media_type", "start", "row"), [(JSON, "[{}", ",{}"), (NDJSON, "{}", "\n{}"), (CSV, "HEADER", "\n5COMMAS")]
)
def test_a_batch_with_nearly_no_valid_row_is_refused_before_its_end(
    customer: dict[str, Any], media_type: str, start: str, row: str
) -> None:
    row = row.replace("COMMAS", "," * (len(customer) - 1))
    body = start.replace("HEADER", ",".join(customer)) + row * 20_000 + ("]" if media_type == JSON else "")
    with pytest.raises(RowsRefused, match="the rest was not read") as refused:
        accept(body, media_type, max_rows=200_000, chunk_rows=1_000)
    assert refused.value.count < 10_000
    assert [row.row for row in listed(refused.value)] == list(range(100))


def test_a_long_validation_holds_up_no_other_batch(customer: dict[str, Any]) -> None:
    async def accept_both() -> list[str]:
        batches, ended = intake(max_rows=10**6, chunk_rows=1_000), list[str]()

        is_received = asyncio.Event()

        async def receive(name: str, text: str) -> None:
            async def body() -> AsyncIterator[bytes]:
                yield text.encode()
                is_received.set()

            with contextlib.suppress(Unavailable, RowsRefused):
                await batches.accept(name, body(), CSV, all_or_none=False, is_disconnected=is_connected)
            ended.append(name)

        first = asyncio.create_task(receive("long", repeated_csv(customer, 20_000)))
        await is_received.wait()
        await receive("short", as_csv([{**customer, "Gender": "?"}] * 10))
        await first
        await batches.close()
        return ended

    assert asyncio.run(accept_both()) == ["short", "long"]


def test_a_folder_without_space_is_not_blamed_on_the_client(
    customer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(NoSpace, match="log"):
        accept(as_csv([customer]), CSV)
    assert str(tmp_path / "missing") in caplog.text
