"""Batches in the result store: progress, idempotent results of chunks, and deletion."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest
import redis

from celery_task_app.errors import InvalidPrediction, ResultStoreUnavailable
from celery_task_app.store.batches import AsyncBatchStore, BatchStore, ScoredRow, StoredBatch
from celery_task_app.store.connection import connect, connect_async
from tests.harness.processes import free_port
from tests.harness.servers import Servers

TTL_S = 86_400
FAILURE = InvalidPrediction("the output of the model is not a probability")


@pytest.fixture
def store(batch_store: BatchStore) -> BatchStore:
    return batch_store


@pytest.fixture
def batch_id() -> str:
    return str(uuid4())


def find(uri: str, batch_id: str) -> StoredBatch | None:
    async def find() -> StoredBatch | None:
        reader = AsyncBatchStore(connect_async(uri))
        try:
            return await reader.find(batch_id)
        finally:
            await reader.close()

    return asyncio.run(find())


def results(uri: str, batch_id: str) -> list[ScoredRow]:
    async def results() -> list[ScoredRow]:
        reader = AsyncBatchStore(connect_async(uri))
        try:
            batch = await reader.find(batch_id)
            assert batch is not None
            return [row async for rows in reader.results(batch_id, batch) for row in rows]
        finally:
            await reader.close()

    return asyncio.run(results())


def delete(uri: str, batch_id: str) -> bool:
    async def delete() -> bool:
        reader = AsyncBatchStore(connect_async(uri))
        try:
            return await reader.delete(batch_id)
        finally:
            await reader.close()

    return asyncio.run(delete())


def keys(client: redis.Redis, batch_id: str) -> set[bytes]:
    return set(client.scan_iter(f"churn:batch:{batch_id}*"))


def test_an_unknown_batch_has_no_progress_and_no_pending_rows(
    servers: Servers, store: BatchStore, batch_id: str
) -> None:
    assert find(servers.backend_uri, batch_id) is None
    assert store.pending(batch_id, 0, [0, 1]) == set()
    assert delete(servers.backend_uri, batch_id) is False


def test_an_unknown_batch_stores_no_result(store: BatchStore, client: redis.Redis, batch_id: str) -> None:
    store.finish(batch_id, 0, {0: 0.5, 1: 0.5}, "v1")
    assert keys(client, batch_id) == set()


def test_a_new_batch_has_all_rows_pending(servers: Servers, store: BatchStore, batch_id: str) -> None:
    store.create(batch_id, 4, 2)
    new = StoredBatch(is_deleted=False, total=4, done=0, failed=0, chunks=2, model_version=None, model_versions={})
    assert find(servers.backend_uri, batch_id) == new
    assert not new.is_finished
    assert store.pending(batch_id, 0, [0, 1]) == {0, 1}
    assert results(servers.backend_uri, batch_id) == []


def test_results_come_in_the_order_of_the_rows(servers: Servers, store: BatchStore, batch_id: str) -> None:
    store.create(batch_id, 14, 7)
    for chunk in (6, 0, 5, 1, 4, 2):
        store.finish(batch_id, chunk, {2 * chunk: chunk / 10, 2 * chunk + 1: FAILURE}, "v1")
    store.finish(batch_id, 3, {7: FAILURE}, "v1")
    assert len(results(servers.backend_uri, batch_id)) == 13
    store.finish(batch_id, 3, {6: 0.3}, "v1")
    expected = []
    for chunk in range(7):
        expected += [ScoredRow(2 * chunk, chunk / 10, None), ScoredRow(2 * chunk + 1, None, "InvalidPrediction")]
    assert results(servers.backend_uri, batch_id) == expected
    finished = StoredBatch(
        is_deleted=False, total=14, done=14, failed=7, chunks=7, model_version="v1", model_versions={"v1": 7}
    )
    assert find(servers.backend_uri, batch_id) == finished
    assert finished.is_finished


def test_a_redelivered_chunk_is_counted_once(servers: Servers, store: BatchStore, batch_id: str) -> None:
    store.create(batch_id, 4, 2)

    def counters() -> tuple[int, int]:
        batch = find(servers.backend_uri, batch_id)
        assert batch is not None
        return batch.done, batch.failed

    store.finish(batch_id, 0, {0: 0.5, 1: FAILURE}, "v1")
    store.finish(batch_id, 0, {0: 0.7, 1: 0.7}, "v1")
    store.finish(batch_id, 0, {0: 0.7}, "v1")
    assert counters() == (2, 1)
    store.finish(batch_id, 1, {3: 0.5}, "v1")
    assert store.pending(batch_id, 1, [2, 3]) == {2}
    store.finish(batch_id, 1, {2: FAILURE, 3: 0.7}, "v1")
    store.finish(batch_id, 1, {2: 0.7, 3: 0.7}, "v1")
    assert counters() == (4, 2)
    assert store.pending(batch_id, 1, [2, 3]) == store.pending(batch_id, 0, [0, 1]) == set()
    assert results(servers.backend_uri, batch_id) == [
        ScoredRow(0, 0.5, None),
        ScoredRow(1, None, "InvalidPrediction"),
        ScoredRow(2, None, "InvalidPrediction"),
        ScoredRow(3, 0.5, None),
    ]


def test_failed_attempts_leave_the_model_version_of_the_last_success(
    servers: Servers, store: BatchStore, batch_id: str
) -> None:
    store.create(batch_id, 2, 2)
    store.finish(batch_id, 0, {0: 0.5}, "v1")
    store.finish(batch_id, 1, {1: FAILURE}, None)
    batch = find(servers.backend_uri, batch_id)
    assert batch is not None
    assert batch.model_version == "v1"


def test_the_rows_of_each_model_version_are_counted_once(servers: Servers, store: BatchStore, batch_id: str) -> None:
    store.create(batch_id, 7, 3)
    store.finish(batch_id, 0, {0: 0.5, 1: 0.5, 2: FAILURE}, "v1")
    store.finish(batch_id, 0, {0: 0.7, 1: 0.7, 2: 0.7}, "v2")  # redelivered, and stored already
    store.finish(batch_id, 1, {3: 0.5, 4: 0.5}, "v2")
    store.finish(batch_id, 2, {5: 0.5}, "v1")
    store.finish(batch_id, 2, {6: FAILURE}, "v3")
    batch = find(servers.backend_uri, batch_id)
    assert batch is not None
    assert (batch.model_version, batch.model_versions) == ("v1", {"v1": 3, "v2": 2})


def test_every_key_of_a_batch_has_the_ttl_of_the_batch(store: BatchStore, client: redis.Redis, batch_id: str) -> None:
    store.create(batch_id, 4, 2)
    store.finish(batch_id, 0, {0: 0.5, 1: 0.5}, "v1")
    store.finish(batch_id, 1, {2: 0.5}, "v1")
    assert len(keys(client, batch_id)) == 3
    assert all(0 < client.ttl(key) <= TTL_S for key in keys(client, batch_id))


@pytest.mark.parametrize("side", ["store", "reader"])
def test_a_deleted_batch_keeps_no_results_and_takes_none(
    servers: Servers, store: BatchStore, client: redis.Redis, batch_id: str, side: str
) -> None:
    store.create(batch_id, 4, 2)
    store.finish(batch_id, 0, {0: 0.5}, "v1")
    if side == "store":
        store.delete(batch_id)
    else:
        assert delete(servers.backend_uri, batch_id) is True
    store.finish(batch_id, 0, {1: 0.5}, "v1")
    store.finish(batch_id, 1, {2: 0.5, 3: 0.5}, "v1")
    assert store.pending(batch_id, 0, [0, 1]) == set()
    assert keys(client, batch_id) == {f"churn:batch:{batch_id}".encode()}
    batch = find(servers.backend_uri, batch_id)
    assert batch is not None
    assert batch.is_deleted
    assert delete(servers.backend_uri, batch_id) is True


def test_results_that_vanish_from_a_finished_batch_are_an_error(
    servers: Servers, store: BatchStore, client: redis.Redis, batch_id: str
) -> None:
    store.create(batch_id, 2, 2)
    store.finish(batch_id, 0, {0: 0.5}, "v1")
    store.finish(batch_id, 1, {1: 0.5}, "v1")
    client.delete(f"churn:batch:{batch_id}:1")
    with pytest.raises(ResultStoreUnavailable):
        results(servers.backend_uri, batch_id)


def test_a_result_store_that_is_away_is_an_error_of_every_method(batch_id: str) -> None:
    uri = f"redis://127.0.0.1:{free_port()}/0"
    store = BatchStore(connect(uri), TTL_S)
    calls: list[Callable[[], object]] = [
        lambda: store.create(batch_id, 2, 1),
        lambda: store.pending(batch_id, 0, [0, 1]),
        lambda: store.finish(batch_id, 0, {0: 0.5}, "v1"),
        lambda: store.delete(batch_id),
        lambda: find(uri, batch_id),
        lambda: delete(uri, batch_id),
    ]
    for call in calls:
        with pytest.raises(ResultStoreUnavailable):
            call()
