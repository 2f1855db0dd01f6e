"""Accepting batches: every chunk is published, or none of the batch remains."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from uuid import uuid4

import pytest
import redis

from api.backpressure import Backlog
from api.batch_formats import CSV, JSON, NDJSON
from api.batch_intake import BatchIntake, BatchReceipt
from celery_task_app.errors import BrokerUnavailable, ResultStoreUnavailable
from celery_task_app.messaging.messages import ChunkMessage
from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.worker import BATCHES
from models import Customer
from tests.harness.customers import Row, as_csv, as_ndjson
from tests.harness.processes import free_port
from tests.harness.proxy import proxy
from tests.harness.servers import Servers
from tests.integration.queues import arguments, take_all

TTL_S = 86_400
CHUNK_ROWS = 50

pytestmark = pytest.mark.usefixtures("empty_queues")


async def is_connected() -> bool:
    """Answer that the client has not closed its connection."""
    return False


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


def accept(
    servers: Servers, body: str, media_type: str, broker_uri: str | None = None, backend_uri: str | None = None
) -> BatchReceipt:
    """Accept a batch on these servers, or on others."""

    async def accept() -> BatchReceipt:
        publisher = Publisher(publisher_connection(broker_uri or servers.broker_uri))
        intake = BatchIntake(
            Customer,
            BatchStore(connect(backend_uri or servers.backend_uri), TTL_S),
            publisher,
            Backlog(BATCHES.name, 1_000_000, partial(publisher.depth, BATCHES)),
            max_bytes=10_000_000,
            max_rows=100_000,
            chunk_rows=CHUNK_ROWS,
        )
        try:
            return await intake.accept(
                str(uuid4()), pieces(body.encode()), media_type, all_or_none=False, is_disconnected=is_connected
            )
        finally:
            await intake.close()

    return asyncio.run(accept())


def published(servers: Servers) -> list[ChunkMessage]:
    return [ChunkMessage.parse(arguments(message)) for message in take_all(servers, BATCHES)]


@pytest.fixture
def rows(customer: Row) -> list[Row]:
    """Return three chunks of customers, of which the last is not full."""
    return [{**customer, "Total_Trans_Ct": number} for number in range(120)]


@pytest.mark.parametrize("media_type", [CSV, NDJSON, JSON])
def test_the_chunks_of_an_accepted_batch_are_published_in_order(
    servers: Servers, batch_store: BatchStore, rows: list[Row], media_type: str
) -> None:
    rows[70]["Gender"] = "?"
    bodies = {CSV: as_csv(rows), NDJSON: as_ndjson(rows), JSON: json.dumps(rows)}
    receipt = accept(servers, bodies[media_type], media_type)
    assert (receipt.total, receipt.refused, [row.row for row in receipt.listed]) == (119, 1, [70])
    chunks = published(servers)
    assert [(chunk.batch_id, chunk.chunk) for chunk in chunks] == [(receipt.batch_id, number) for number in range(3)]
    valid = [row for row in range(120) if row != 70]
    assert [row for chunk in chunks for row in chunk.rows] == valid
    assert [count for chunk in chunks for count in chunk.columns["Total_Trans_Ct"]] == valid
    assert batch_store.pending(receipt.batch_id, 2, chunks[2].rows) == set(chunks[2].rows)


def test_a_batch_is_deleted_if_the_broker_goes_away_between_two_chunks(
    servers: Servers, client: redis.Redis, rows: list[Row]
) -> None:
    before = set(client.scan_iter("churn:batch:*"))
    chunk_bytes = len(json.dumps(rows[:CHUNK_ROWS])) // 3  # at least, column by column
    with proxy(servers.broker_port, max_bytes=20 * chunk_bytes) as between, pytest.raises(BrokerUnavailable):
        accept(servers, as_csv(rows * 50), CSV, broker_uri=servers.broker_uri_at(between.port))
    (key,) = set(client.scan_iter("churn:batch:*")) - before
    assert client.hget(key, "state") == b"deleted"
    chunks = published(servers)
    assert 0 < len(chunks) < int(client.hget(key, "chunks") or 0)
    assert {f"churn:batch:{chunk.batch_id}".encode() for chunk in chunks} == {key}


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "lost at once"])
def test_a_batch_is_deleted_if_the_broker_is_away(
    servers: Servers, client: redis.Redis, rows: list[Row], is_refused: bool
) -> None:
    before = set(client.scan_iter("churn:batch:*"))
    with proxy(servers.broker_port, max_bytes=0) as between, pytest.raises(BrokerUnavailable):
        port = free_port() if is_refused else between.port
        accept(servers, as_csv(rows), CSV, broker_uri=servers.broker_uri_at(port))
    (key,) = set(client.scan_iter("churn:batch:*")) - before
    assert client.hget(key, "state") == b"deleted"
    assert published(servers) == []


def test_nothing_is_published_if_the_result_store_is_away(servers: Servers, rows: list[Row]) -> None:
    with pytest.raises(ResultStoreUnavailable):
        accept(servers, as_csv(rows), CSV, backend_uri=f"redis://127.0.0.1:{free_port()}/0")
    assert published(servers) == []
