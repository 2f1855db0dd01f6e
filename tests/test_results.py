import asyncio
import contextlib
import time
from collections.abc import Callable
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from celery_task_app.errors import InvalidPrediction, ResultStoreUnavailable
from celery_task_app.results import Prediction, ResultReader, ResultStore, State, blocking_client
from celery_task_app.worker import app
from tests.processes import Servers, free_port, silent_port

DEADLINE = float(int(time.time()) + 3600)
FAILURE = InvalidPrediction("the model's answer is not a probability")


@pytest.fixture
def store(here: Servers) -> ResultStore:
    return ResultStore()


def read(*task_ids: str) -> list[Prediction | None]:
    async def ask() -> list[Prediction | None]:
        reader = ResultReader()
        try:
            return await asyncio.gather(*map(reader.fetch, task_ids))
        finally:
            await reader.close()

    return asyncio.run(ask())


def celery_result(servers: Servers, task_id: str) -> AsyncResult:
    """What Celery's own client makes of it, with no configuration of ours."""
    return AsyncResult(task_id, app=Celery(backend=servers.backend_uri))


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


def test_an_id_that_was_never_issued_is_unknown(here: Servers, task_id: str) -> None:
    assert read(task_id) == [None]


def test_a_marked_id_is_queued(store: ResultStore, task_id: str) -> None:
    store.mark_queued({task_id: DEADLINE})
    assert read(task_id) == [Prediction(State.QUEUED, deadline=DEADLINE)]
    assert store.look_up([task_id]) == {task_id: Prediction(State.QUEUED, deadline=DEADLINE)}


def test_a_forgotten_id_is_unknown(store: ResultStore, task_id: str) -> None:
    store.mark_queued({task_id: DEADLINE})
    store.forget([task_id])
    assert read(task_id) == [None]


def test_a_stored_probability_is_read_to_the_last_bit(store: ResultStore, task_id: str) -> None:
    store.mark_queued({task_id: DEADLINE})
    store.store({task_id: 0.1 + 0.2}, "v1")
    assert read(task_id) == [Prediction(State.SUCCESS, probability=0.1 + 0.2, model_version="v1")]
    assert store.look_up([task_id]) == {task_id: Prediction(State.SUCCESS, probability=0.1 + 0.2, model_version="v1")}


def test_a_failure_is_told_by_its_name(store: ResultStore, task_id: str) -> None:
    store.mark_queued({task_id: DEADLINE})
    store.store({task_id: FAILURE}, "v1")
    assert read(task_id) == [Prediction(State.FAILURE, error="InvalidPrediction")]


def test_a_result_is_stored_for_an_id_that_the_store_has_lost(store: ResultStore, task_id: str) -> None:
    store.store({task_id: 0.5}, "v1")
    assert store.look_up([task_id]) == {task_id: Prediction(State.SUCCESS, probability=0.5, model_version="v1")}


def test_a_redelivery_changes_no_answer(store: ResultStore, task_id: str) -> None:
    store.store({task_id: 0.5}, "v1")
    store.store({task_id: 0.6}, "v2")
    store.store({task_id: FAILURE})
    store.mark_queued({task_id: DEADLINE})
    assert read(task_id) == [Prediction(State.SUCCESS, probability=0.5, model_version="v1")]


def test_who_listens_is_told_once_by_celerys_own_channel(here: Servers, store: ResultStore, task_id: str) -> None:
    with blocking_client() as client, contextlib.closing(client.pubsub()) as pubsub:
        pubsub.subscribe(f"celery-task-meta-{task_id}")
        assert pubsub.get_message(timeout=30)["type"] == "subscribe"
        store.store({task_id: 0.5}, "v1")
        store.store({task_id: 0.6}, "v1")
        assert b'"result": 0.5' in pubsub.get_message(timeout=30)["data"]
        assert pubsub.get_message(timeout=0.1) is None


def test_every_state_has_an_end(here: Servers, store: ResultStore) -> None:
    queued, done = str(uuid4()), str(uuid4())
    store.mark_queued({queued: time.time() + 3600})  # the tests began when DEADLINE was made, and take their time
    store.store({done: 0.5}, "v1")
    with blocking_client() as client:
        assert 86_000 < client.ttl(f"celery-task-meta-{done}") <= 86_400
        assert 86_000 + 3600 < client.ttl(f"celery-task-meta-{queued}") <= 86_401 + 3600


def test_celerys_own_client_reads_each_state(here: Servers, store: ResultStore) -> None:
    queued, done, failed = str(uuid4()), str(uuid4()), str(uuid4())
    store.mark_queued({queued: DEADLINE})
    store.store({done: 0.5, failed: FAILURE}, "v1")
    assert celery_result(here, queued).state == "QUEUED"
    assert celery_result(here, done).get(timeout=30) == 0.5
    with pytest.raises(InvalidPrediction, match="not a probability"):
        celery_result(here, failed).get(timeout=30)


def test_reads_that_are_asked_for_meanwhile_share_a_round_trip(here: Servers, store: ResultStore) -> None:
    ids = [str(uuid4()) for _ in range(500)]
    store.store(dict.fromkeys(ids, 0.5), "v1")
    with blocking_client() as client:
        before = client.info("commandstats")["cmdstat_mget"]["calls"]
        assert all(known is not None and known.probability == 0.5 for known in read(*ids))
        assert client.info("commandstats")["cmdstat_mget"]["calls"] - before == 1


def test_a_store_that_is_away_is_said_so(monkeypatch: pytest.MonkeyPatch, here: Servers, task_id: str) -> None:
    from celery_task_app import results

    monkeypatch.setattr(
        results, "settings", results.settings.model_copy(update={"backend_uri": f"redis://127.0.0.1:{free_port()}/0"})
    )
    store = ResultStore()
    calls: list[Callable[[], object]] = [
        lambda: store.mark_queued({task_id: DEADLINE}),
        lambda: store.forget([task_id]),
        lambda: store.look_up([task_id]),
        lambda: store.store({task_id: 0.5}, "v1"),
        lambda: read(task_id),
    ]
    for call in calls:
        with pytest.raises(ResultStoreUnavailable):
            call()


@pytest.mark.timeout(8, func_only=True)  # the client's defaults take 10 s
@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_store_that_is_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch, here: Servers, task_id: str, is_frozen: bool
) -> None:
    from celery_task_app import results

    with silent_port() as port:
        if not is_frozen:
            silent = results.settings.model_copy(update={"backend_uri": f"redis://127.0.0.1:{port}/0"})
            monkeypatch.setattr(results, "settings", silent)
        store = ResultStore()
        if is_frozen:
            store.look_up([task_id])
        with here.store.paused(), pytest.raises(ResultStoreUnavailable):
            store.look_up([task_id])


@pytest.mark.timeout(20, func_only=True)  # its default takes two minutes
@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_celerys_own_client_gives_up_a_store_that_is_frozen(here: Servers, task_id: str) -> None:
    configured = Celery(backend=here.backend_uri)
    configured.conf.redis_socket_timeout = app.conf.redis_socket_timeout
    result = AsyncResult(task_id, app=configured)
    assert result.state == "PENDING"
    with here.store.paused(), pytest.raises(redis.TimeoutError):
        _ = result.state


def test_a_reader_goes_on_after_the_store_failed_once(here: Servers, store: ResultStore, task_id: str) -> None:
    store.store({task_id: 0.5}, "v1")

    async def ask() -> None:
        reader = ResultReader()
        with blocking_client() as client:
            client.config_set("maxclients", 1)
            try:
                with pytest.raises(ResultStoreUnavailable):
                    await reader.fetch(task_id)
            finally:
                client.config_set("maxclients", 1000)
        assert await reader.fetch(task_id)
        await reader.close()

    asyncio.run(ask())
