"""Predictions in the result store: states, compare-and-set, completions, and reads by the client of Celery."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from celery_task_app.errors import Deleted, Expired, InvalidPrediction, ResultStoreUnavailable
from celery_task_app.store.connection import connect, connect_async
from celery_task_app.store.predictions import (
    COMPLETIONS,
    AsyncPredictionStore,
    ExplainedProbability,
    Outcome,
    PredictionStore,
    State,
    StoredPrediction,
    decode_completions,
)
from celery_task_app.worker import app
from tests.harness.processes import free_port, silent_port
from tests.harness.servers import Servers

TTL_S = 86_400
LIFETIME_S = 3600
FAILURE = InvalidPrediction("the output of the model is not a probability")
EXPIRED = Expired("not computed within its deadline")
REASONS = {"base": -2.0, "up": [{"feature": "Credit_Limit", "log_odds": 0.5}], "down": [], "others": 0.25}
SUCCESS = StoredPrediction(State.SUCCESS, probability=0.5, model_version="v1")


@pytest.fixture
def store(prediction_store: PredictionStore) -> PredictionStore:
    return prediction_store


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


def key_of(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


def fetch(uri: str, *task_ids: str) -> list[StoredPrediction | None]:
    """Read all ids at once, as concurrent requests do."""

    async def fetch_all() -> list[StoredPrediction | None]:
        reader = AsyncPredictionStore(connect_async(uri), TTL_S)
        try:
            return await asyncio.gather(*map(reader.fetch, task_ids))
        finally:
            await reader.close()

    return asyncio.run(fetch_all())


def delete(uri: str, task_id: str) -> bool:
    async def delete() -> bool:
        reader = AsyncPredictionStore(connect_async(uri), TTL_S)
        try:
            return await reader.delete(task_id)
        finally:
            await reader.close()

    return asyncio.run(delete())


@contextlib.contextmanager
def subscribed(client: redis.Redis, channel: str) -> Iterator[Callable[[], list[bytes]]]:
    """Yield a function that returns the messages of a channel so far."""
    pubsub: redis.client.PubSub = client.pubsub()  # type: ignore[no-untyped-call]
    with contextlib.closing(pubsub):
        pubsub.subscribe(channel)
        confirmation = pubsub.get_message(timeout=30)
        assert confirmation is not None
        assert confirmation["type"] == "subscribe"

        def messages() -> list[bytes]:
            """Publish an end mark, and return the messages before it."""
            client.publish(channel, "end of test")
            found: list[bytes] = []
            while (message := pubsub.get_message(timeout=30)) is None or message["data"] != b"end of test":
                assert message is not None
                found.append(message["data"])
            return found

        yield messages


def celery_result(servers: Servers, task_id: str) -> AsyncResult:
    """Return the result that Celery's client reads without any configuration of ours."""
    return AsyncResult(task_id, app=Celery(backend=servers.backend_uri))


def test_an_unknown_id_has_no_state(servers: Servers, store: PredictionStore, task_id: str) -> None:
    assert fetch(servers.backend_uri, task_id) == [None]
    assert store.look_up([task_id]) == {task_id: None}


def test_a_marked_id_is_queued_with_its_deadline(
    servers: Servers, store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    store.mark_queued({task_id: LIFETIME_S})
    assert fetch(servers.backend_uri, task_id) == [StoredPrediction(State.QUEUED)]
    assert store.look_up([task_id]) == {task_id: StoredPrediction(State.QUEUED)}
    marker = json.loads(client.get(key_of(task_id)) or b"")
    seconds, microseconds = client.time()
    assert 0 <= seconds + microseconds / 1e6 + LIFETIME_S - marker["deadline"] < 30


def test_a_discarded_id_has_no_state(servers: Servers, store: PredictionStore, task_id: str) -> None:
    store.mark_queued({task_id: LIFETIME_S})
    store.discard([task_id])
    assert fetch(servers.backend_uri, task_id) == [None]


def test_a_probability_is_read_to_the_last_bit(servers: Servers, store: PredictionStore, task_id: str) -> None:
    store.mark_queued({task_id: LIFETIME_S})
    store.finish({task_id: 0.1 + 0.2}, "v1")
    success = StoredPrediction(State.SUCCESS, probability=0.1 + 0.2, model_version="v1")
    assert fetch(servers.backend_uri, task_id) == [success]
    assert store.look_up([task_id]) == {task_id: success}


def test_an_explained_probability_has_its_reasons(servers: Servers, store: PredictionStore, task_id: str) -> None:
    store.finish({task_id: ExplainedProbability(0.5, REASONS)}, "v1")
    expected = StoredPrediction(State.SUCCESS, probability=0.5, model_version="v1", reasons=REASONS)
    assert fetch(servers.backend_uri, task_id) == [expected]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FAILURE, StoredPrediction(State.FAILURE, error="InvalidPrediction")),
        (EXPIRED, StoredPrediction(State.REVOKED, error="Expired")),
        (Deleted("deleted by the client"), StoredPrediction(State.REVOKED, error="Deleted")),
    ],
    ids=["failure", "expired", "deleted"],
)
def test_an_error_is_read_by_its_class_name(
    servers: Servers, store: PredictionStore, task_id: str, error: Outcome, expected: StoredPrediction
) -> None:
    store.mark_queued({task_id: LIFETIME_S})
    assert store.finish({task_id: error}, "v1") == 1
    assert fetch(servers.backend_uri, task_id) == [expected]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (0.5, SUCCESS),
        (FAILURE, StoredPrediction(State.FAILURE, error="InvalidPrediction")),
        (EXPIRED, StoredPrediction(State.REVOKED, error="Expired")),
    ],
    ids=["success", "failure", "expired"],
)
def test_a_state_is_written_where_the_store_has_lost_the_marker(
    store: PredictionStore, task_id: str, outcome: Outcome, expected: StoredPrediction
) -> None:
    assert store.finish({task_id: outcome}, "v1") == 1
    assert store.look_up([task_id]) == {task_id: expected}


@pytest.mark.parametrize("late", [0.6, ExplainedProbability(0.6, REASONS), FAILURE, EXPIRED], ids=str)
@pytest.mark.parametrize("first", [0.5, FAILURE, EXPIRED, Deleted("deleted by the client")], ids=str)
def test_a_terminal_state_is_kept(
    store: PredictionStore, client: redis.Redis, task_id: str, first: Outcome, late: Outcome
) -> None:
    store.mark_queued({task_id: LIFETIME_S})
    store.finish({task_id: first}, "v1")
    before = client.get(key_of(task_id))
    with subscribed(client, COMPLETIONS) as completions:
        assert store.finish({task_id: late}, "v2") == 0
        store.mark_queued({task_id: LIFETIME_S})
        assert completions() == []
    assert client.get(key_of(task_id)) == before


def test_finish_returns_the_number_of_states_that_it_wrote(store: PredictionStore) -> None:
    queued, finished, lost = (str(uuid4()) for _ in range(3))
    store.mark_queued({queued: LIFETIME_S, finished: LIFETIME_S})
    assert store.finish({finished: 0.5}, "v1") == 1
    assert store.finish({queued: 0.5, finished: 0.6, lost: FAILURE}, "v1") == 2
    assert store.finish({queued: 0.5, finished: 0.6, lost: FAILURE}, "v1") == 0
    assert store.finish({}) == 0


def test_completions_are_published_together_and_once(store: PredictionStore, client: redis.Redis) -> None:
    done, failed, before = (str(uuid4()) for _ in range(3))
    store.finish({before: 0.5}, "v1")
    with subscribed(client, COMPLETIONS) as completions:
        store.finish({done: 0.5, failed: FAILURE, before: 0.6}, "v1")
        store.finish({done: 0.6, failed: 0.6})
        (message,) = completions()
    assert decode_completions(message) == {
        done: SUCCESS,
        failed: StoredPrediction(State.FAILURE, error="InvalidPrediction"),
    }


def test_a_completion_is_published_once_on_the_channel_of_celery(
    store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    with subscribed(client, key_of(task_id)) as messages:
        store.finish({task_id: 0.5}, "v1")
        store.finish({task_id: 0.6}, "v1")
        (message,) = messages()
    assert json.loads(message)["result"] == 0.5


def test_an_unknown_id_cannot_be_deleted(servers: Servers, client: redis.Redis, task_id: str) -> None:
    with subscribed(client, COMPLETIONS) as completions:
        assert delete(servers.backend_uri, task_id) is False
        assert completions() == []
    assert client.get(key_of(task_id)) is None


@pytest.mark.parametrize("outcome", [None, 0.5, FAILURE, EXPIRED], ids=str)
def test_a_deletion_replaces_every_state_and_is_published(
    servers: Servers, store: PredictionStore, client: redis.Redis, task_id: str, outcome: Outcome | None
) -> None:
    store.mark_queued({task_id: LIFETIME_S})
    if outcome is not None:
        store.finish({task_id: outcome}, "v1")
    deleted = StoredPrediction(State.REVOKED, error="Deleted")
    with subscribed(client, COMPLETIONS) as completions:
        assert delete(servers.backend_uri, task_id) is True
        (message,) = completions()
    assert decode_completions(message) == {task_id: deleted}
    assert store.finish({task_id: 0.5}, "v1") == 0
    assert fetch(servers.backend_uri, task_id) == [deleted]
    assert delete(servers.backend_uri, task_id) is True
    assert 0 < client.ttl(key_of(task_id)) <= TTL_S


def test_a_deletion_erases_the_probability(
    servers: Servers, store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    store.finish({task_id: 0.123456789}, "v1")
    delete(servers.backend_uri, task_id)
    assert b"0.123456789" not in (client.get(key_of(task_id)) or b"")


def test_an_overdue_prediction_expires_when_it_is_read(
    servers: Servers, store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    store.mark_queued({task_id: -1})
    expired = StoredPrediction(State.REVOKED, error="Expired")
    with subscribed(client, COMPLETIONS) as completions:
        assert fetch(servers.backend_uri, task_id) == [expired]
        (message,) = completions()
    assert decode_completions(message) == {task_id: expired}
    assert store.finish({task_id: 0.5}, "v1") == 0
    assert store.look_up([task_id]) == {task_id: expired}


def test_a_finished_prediction_does_not_expire(servers: Servers, store: PredictionStore, task_id: str) -> None:
    store.mark_queued({task_id: -1})
    store.finish({task_id: 0.5}, "v1")
    assert fetch(servers.backend_uri, task_id) == [SUCCESS]


def test_every_state_has_a_ttl(store: PredictionStore, client: redis.Redis) -> None:
    queued, done = str(uuid4()), str(uuid4())
    store.mark_queued({queued: 3600})
    store.finish({done: 0.5}, "v1")
    assert TTL_S - 400 < client.ttl(key_of(done)) <= TTL_S
    assert TTL_S - 400 + 3600 < client.ttl(key_of(queued)) <= TTL_S + 1 + 3600


def test_the_client_of_celery_reads_each_state(servers: Servers, store: PredictionStore) -> None:
    queued, done, failed, expired = (str(uuid4()) for _ in range(4))
    store.mark_queued({queued: LIFETIME_S})
    store.finish({done: 0.5, failed: FAILURE, expired: EXPIRED}, "v1")
    assert celery_result(servers, queued).state == "QUEUED"
    assert celery_result(servers, done).get(timeout=30) == 0.5
    with pytest.raises(InvalidPrediction, match="not a probability"):
        celery_result(servers, failed).get(timeout=30)
    assert celery_result(servers, expired).state == "REVOKED"
    with pytest.raises(Expired):
        celery_result(servers, expired).get(timeout=30)
    delete(servers.backend_uri, done)
    with pytest.raises(Deleted):
        celery_result(servers, done).get(timeout=30)


def test_concurrent_reads_share_one_round_trip(servers: Servers, store: PredictionStore, client: redis.Redis) -> None:
    ids = [str(uuid4()) for _ in range(500)]
    store.finish(dict.fromkeys(ids, 0.5), "v1")

    def reads() -> int:
        statistics: dict[str, Any] = client.info("commandstats")
        return int(statistics.get("cmdstat_evalsha", {"calls": 0})["calls"])

    before = reads()
    assert fetch(servers.backend_uri, *ids) == [SUCCESS] * 500
    assert reads() - before in (1, 2)  # 2 if the script was not loaded


def test_a_result_store_that_is_away_is_an_error_of_every_method(task_id: str) -> None:
    uri = f"redis://127.0.0.1:{free_port()}/0"
    store = PredictionStore(connect(uri), TTL_S)
    calls: list[Callable[[], object]] = [
        lambda: store.mark_queued({task_id: LIFETIME_S}),
        lambda: store.discard([task_id]),
        lambda: store.look_up([task_id]),
        lambda: store.finish({task_id: 0.5}, "v1"),
        lambda: fetch(uri, task_id),
        lambda: delete(uri, task_id),
    ]
    for call in calls:
        with pytest.raises(ResultStoreUnavailable):
            call()


@pytest.mark.timeout(8, func_only=True)  # the client's defaults take 10 s
@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_a_frozen_result_store_is_an_error_within_seconds(
    servers: Servers, store: PredictionStore, task_id: str
) -> None:
    store.look_up([task_id])
    with servers.store.paused(), pytest.raises(ResultStoreUnavailable):
        store.look_up([task_id])


@pytest.mark.timeout(8, func_only=True)
def test_a_silent_port_is_an_error_within_seconds(task_id: str) -> None:
    with silent_port() as port:
        store = PredictionStore(connect(f"redis://127.0.0.1:{port}/0"), TTL_S)
        with pytest.raises(ResultStoreUnavailable):
            store.look_up([task_id])


@pytest.mark.timeout(20, func_only=True)  # the default of Celery takes two minutes
@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_the_client_of_celery_gives_up_a_frozen_result_store(servers: Servers, task_id: str) -> None:
    configured = Celery(backend=servers.backend_uri)
    configured.conf.redis_socket_timeout = app.conf.redis_socket_timeout
    result = AsyncResult(task_id, app=configured)
    assert result.state == "PENDING"
    with servers.store.paused(), pytest.raises(redis.TimeoutError):
        _ = result.state


def test_a_read_succeeds_after_a_read_that_failed(
    servers: Servers, store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    store.finish({task_id: 0.5}, "v1")

    async def fetch_twice() -> StoredPrediction | None:
        reader = AsyncPredictionStore(connect_async(servers.backend_uri), TTL_S)
        client.config_set("maxclients", 1)
        try:
            with pytest.raises(ResultStoreUnavailable):
                await reader.fetch(task_id)
        finally:
            client.config_set("maxclients", 1000)
        try:
            return await reader.fetch(task_id)
        finally:
            await reader.close()

    assert asyncio.run(fetch_twice()) == SUCCESS


def test_a_result_of_another_celery_app_is_unknown_and_disturbs_no_other_read(
    servers: Servers, store: PredictionStore, client: redis.Redis
) -> None:
    foreign, ours = str(uuid4()), str(uuid4())
    client.set(key_of(foreign), json.dumps({"status": "SUCCESS", "result": 5, "task_id": foreign}))
    store.finish({ours: 0.5}, "v1")

    async def fetch_both() -> list[StoredPrediction | None]:
        reader = AsyncPredictionStore(connect_async(servers.backend_uri), TTL_S)
        try:
            return [await reader.fetch(foreign), await reader.fetch(ours)]
        finally:
            await reader.close()

    assert asyncio.run(fetch_both()) == [None, SUCCESS]
    assert store.look_up([foreign]) == {foreign: None}
