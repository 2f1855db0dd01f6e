"""A result store behind Sentinels: every client follows a fail-over, in bounded time, and Celery's own client too."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from api.completion import CompletionListener
from celery_task_app.errors import NotReplicated, ResultStoreUnavailable
from celery_task_app.settings import Settings
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import check_store, connect, connect_async
from celery_task_app.store.counts import AsyncCountReader
from celery_task_app.store.predictions import AsyncPredictionStore, PredictionStore, StoredPrediction
from celery_task_app.store.sentinel import celery_backend
from tests.conftest import need
from tests.harness.processes import silent_port, until
from tests.harness.servers import MASTER_NAME, ReplicatedStore, embedded_valkey, running_replicated_store

TTL_S = 86_400
PASSWORDS = ("p:s@w", "sentinels")
WITHIN_S = 2.5


@pytest.fixture(scope="module", params=["valkey", "redis"])
def replicated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedStore]:
    """A primary with a replica behind three Sentinels, all with passwords."""
    if request.param == "redis":
        need("rabbitmq")
    program = embedded_valkey() if request.param == "valkey" else "redis-server"
    with running_replicated_store(program, tmp_path_factory.mktemp("store"), passwords=PASSWORDS) as store:
        yield store


@pytest.fixture
def uri(replicated: ReplicatedStore) -> str:
    """The address as the settings give it to the clients."""
    replicated.await_replicas()
    return Settings(backend_uri=replicated.backend_uri).backend_uri


def replace_primary(store: ReplicatedStore) -> None:
    """Order a fail-over, and wait until every Sentinel reports the new primary."""
    former = store.primary_port()
    with store.sentinel() as client:
        client.execute_command("SENTINEL FAILOVER", MASTER_NAME)
    until(lambda: former not in primaries(store))


def primaries(store: ReplicatedStore) -> set[int]:
    """Return the port that each Sentinel reports."""
    ports = set()
    for port in store.sentinels:
        with redis.Redis(port=port, password=store.passwords[1]) as client:
            ports.add(int(client.sentinel_get_master_addr_by_name(MASTER_NAME)[1]))
    return ports


def test_blocking_clients_leave_a_replaced_primary_that_still_answers(replicated: ReplicatedStore, uri: str) -> None:
    with (
        contextlib.closing(PredictionStore(connect(uri), TTL_S)) as predictions,
        contextlib.closing(BatchStore(connect(uri), TTL_S)) as batches,
    ):
        predictions.mark_queued({str(uuid4()): 60})
        batches.create(str(uuid4()), total=1, chunks=1)
        replace_primary(replicated)
        time.sleep(1)  # the clients ask once a second
        task_id, batch_id = str(uuid4()), str(uuid4())
        predictions.mark_queued({task_id: 60})
        batches.create(batch_id, total=1, chunks=1)
        batches.finish(batch_id, 0, {0: 0.5}, "v1")
        with replicated.node(replicated.primary_port()) as client:
            assert client.exists(f"celery-task-meta-{task_id}")
            assert client.hget(f"churn:batch:{batch_id}", "done") == b"1"


def test_asyncio_clients_and_their_pipelines_leave_it_too(replicated: ReplicatedStore, uri: str) -> None:
    async def count() -> tuple[StoredPrediction | None, int]:
        reader, counts = AsyncPredictionStore(connect_async(uri), TTL_S), AsyncCountReader(connect_async(uri))
        await asyncio.gather(*(reader.fetch(str(uuid4())) for _ in range(5)), *(counts.read() for _ in range(5)))
        await asyncio.to_thread(replace_primary, replicated)
        await asyncio.sleep(1)
        task_id = str(uuid4())
        with replicated.node(replicated.primary_port()) as client:
            PredictionStore(client, TTL_S).finish({task_id: 0.5}, "v1")
            client.hset("churn:counts:predictions", "accepted", 4711)
        found = await reader.fetch(task_id), (await counts.read()).predictions.accepted
        await reader.close()
        await counts.close()
        return found

    stored, accepted = asyncio.run(count())
    assert stored is not None
    assert stored.probability == 0.5
    assert accepted == 4711


def test_waiters_get_their_completions_from_the_new_primary(replicated: ReplicatedStore, uri: str) -> None:
    async def wait() -> StoredPrediction | None:
        reader, task_id = AsyncPredictionStore(connect_async(uri), TTL_S), str(uuid4())
        listener = CompletionListener(
            partial(connect_async, uri), reader, max_waiters=10, on_completion=lambda _message: None
        )
        with listener.subscribe(task_id) as completion:
            await asyncio.to_thread(until, lambda: listener.is_subscribed)
            await asyncio.to_thread(replace_primary, replicated)
            with contextlib.closing(PredictionStore(connect(uri), TTL_S)) as worker:
                await asyncio.to_thread(worker.finish, {task_id: 0.5}, "v1")
            async with asyncio.timeout(5):  # the former primary is demoted after some ten seconds
                found = await completion
        await listener.close()
        await reader.close()
        return found

    found = asyncio.run(wait())
    assert found is not None
    assert found.probability == 0.5


def test_celery_reads_a_result_by_the_same_address(replicated: ReplicatedStore, uri: str) -> None:
    task_id = str(uuid4())
    celery = Celery()
    celery.conf.update(celery_backend(uri), redis_socket_timeout=2)
    with contextlib.closing(PredictionStore(connect(uri), TTL_S, replicas=1)) as store:
        store.finish({task_id: 0.25}, "v1")
    assert AsyncResult(task_id, app=celery).result == 0.25
    replace_primary(replicated)
    replicated.await_replicas()
    assert AsyncResult(task_id, app=celery).result == 0.25
    assert "sentinels" not in celery.backend.as_uri()


def test_a_sentinel_that_is_frozen_or_gone_costs_less_than_a_call_may_take(
    replicated: ReplicatedStore, uri: str
) -> None:
    frozen, gone, _well = replicated.sentinels.values()
    gone.kill()
    with frozen.paused(), contextlib.closing(PredictionStore(connect(uri), TTL_S)) as store:
        started = time.monotonic()
        store.look_up([str(uuid4())])
        assert time.monotonic() - started < WITHIN_S
    gone.start()
    replicated.await_sentinels()


def test_a_store_is_used_while_no_sentinel_answers(replicated: ReplicatedStore, uri: str) -> None:
    with contextlib.closing(PredictionStore(connect(uri), TTL_S)) as store, contextlib.ExitStack() as stack:
        store.look_up([str(uuid4())])
        for sentinel in replicated.sentinels.values():
            stack.enter_context(sentinel.paused())
        time.sleep(1)
        started = time.monotonic()
        store.look_up([str(uuid4())])
        assert time.monotonic() - started < WITHIN_S


def test_sentinels_that_are_silent_are_an_error_within_seconds() -> None:
    with silent_port() as one, silent_port() as two, silent_port() as three:
        uri = ";".join(f"sentinel://127.0.0.1:{port}" for port in (one, two, three))
        uri = Settings(backend_uri=uri).backend_uri

        async def check() -> None:
            async with connect_async(uri) as client:
                await check_store(client, "churn:test", "", ttl_s=60)

        started = time.monotonic()
        with contextlib.closing(PredictionStore(connect(uri), TTL_S)) as store, pytest.raises(ResultStoreUnavailable):
            store.look_up([str(uuid4())])
        with pytest.raises(ResultStoreUnavailable):
            asyncio.run(check())
        assert time.monotonic() - started < 2 * WITHIN_S + 0.5


def test_a_frozen_primary_is_an_error_within_seconds(replicated: ReplicatedStore, uri: str) -> None:
    with contextlib.closing(PredictionStore(connect(uri), TTL_S)) as store:
        store.look_up([str(uuid4())])
        with replicated.primary().paused():
            started = time.monotonic()
            with pytest.raises(ResultStoreUnavailable):
                store.look_up([str(uuid4())])
            assert time.monotonic() - started < WITHIN_S


def test_a_wrong_name_of_the_master_is_an_error(uri: str) -> None:
    wrong = uri.replace(f"master_name={MASTER_NAME}", "master_name=another")
    with (
        contextlib.closing(PredictionStore(connect(wrong), TTL_S)) as store,
        pytest.raises(ResultStoreUnavailable, match="MasterNotFoundError"),
    ):
        store.look_up([str(uuid4())])


def test_a_write_that_a_replica_must_confirm_is_refused_without_one(replicated: ReplicatedStore, uri: str) -> None:
    task_id, later = str(uuid4()), str(uuid4())
    with contextlib.closing(PredictionStore(connect(uri), TTL_S, replicas=1)) as store:
        assert store.mark_queued({task_id: 60}) > 0
        (replica,) = (node for port, node in replicated.nodes.items() if port != replicated.primary_port())
        with replica.paused():
            with pytest.raises(NotReplicated, match="0 of 1 replicas"):
                store.mark_queued({later: 60})
            assert store.look_up([later]) == {later: None}
            for _ in range(2):  # the second one finds the state, and writes nothing
                with pytest.raises(NotReplicated):
                    store.finish({task_id: 0.5}, "v1")
        assert store.finish({task_id: 0.5}, "v1") == 0


def test_the_check_of_the_store_needs_the_replicas_that_must_confirm(uri: str) -> None:
    async def check(replicas: int) -> float:
        async with connect_async(uri) as client:
            return await check_store(client, "churn:test", "", ttl_s=60, replicas=replicas)

    assert abs(asyncio.run(check(1))) < 60
    with pytest.raises(ResultStoreUnavailable, match="1 of 2 replicas"):
        asyncio.run(check(2))


def test_the_sentinels_need_no_password_of_the_store(tmp_path: Path) -> None:
    with running_replicated_store(embedded_valkey(), tmp_path, replicas=0, passwords=("store", "")) as store:
        uri = Settings(backend_uri=store.backend_uri).backend_uri
        with contextlib.closing(PredictionStore(connect(uri), TTL_S)) as predictions:
            assert predictions.look_up(["x"]) == {"x": None}
