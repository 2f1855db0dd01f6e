"""Waiters for completions: resolved by pub/sub, and by one read of all awaited keys after each (re)subscription."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from uuid import uuid4

import pytest
import redis

from api.completion import CompletionListener
from celery_task_app.errors import Deleted, InvalidPrediction
from celery_task_app.store.connection import connect_async, end_task
from celery_task_app.store.predictions import (
    COMPLETIONS,
    AsyncPredictionStore,
    PredictionStore,
    State,
    StoredPrediction,
    WorkerTimes,
    decode_completions,
)
from tests.harness.processes import until
from tests.harness.proxy import proxy
from tests.harness.servers import Servers

TTL_S = 86_400
SUCCESS = StoredPrediction(State.SUCCESS, probability=0.5, model_version="v1")


@contextlib.asynccontextmanager
async def listening(
    uri: str, max_waiters: int = 10, on_completion: Callable[[bytes], None] = lambda _: None
) -> AsyncIterator[CompletionListener]:
    reader = AsyncPredictionStore(connect_async(uri), TTL_S)
    listener = CompletionListener(
        partial(connect_async, uri), reader, max_waiters=max_waiters, on_completion=on_completion
    )
    try:
        yield listener
    finally:
        await listener.close()
        await reader.close()


async def until_subscribed(client: redis.Redis) -> None:
    """Wait until a listener is subscribed to the channel."""
    await asyncio.to_thread(until, lambda: client.pubsub_numsub(COMPLETIONS)[0][1] == 1)


def rejected_connections(client: redis.Redis) -> int:
    """Return the number of connections that the server has refused since its start."""
    return int(client.info("stats")["rejected_connections"])


async def within(awaitable: Awaitable[StoredPrediction | None], seconds: float = 30) -> StoredPrediction | None:
    async with asyncio.timeout(seconds):
        return await awaitable


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


def test_every_waiter_of_a_prediction_gets_its_completion_and_no_other(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    async def wait() -> None:
        async with listening(servers.backend_uri) as listener:
            await until_subscribed(client)
            with (
                listener.subscribe(task_id) as first,
                listener.subscribe(task_id) as second,
                listener.subscribe(str(uuid4())) as other,
            ):
                await asyncio.to_thread(prediction_store.finish, {task_id: 0.5}, "v1")
                assert await within(first) == await within(second) == SUCCESS
                assert not other.done()

    asyncio.run(wait())


@pytest.mark.parametrize("kind", ["failure", "deleted"])
def test_other_terminal_states_are_completions_too(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis, task_id: str, kind: str
) -> None:
    async def wait() -> StoredPrediction | None:
        async with listening(servers.backend_uri) as listener:
            await until_subscribed(client)
            prediction_store.mark_queued({task_id: 3600})
            with listener.subscribe(task_id) as completion:
                if kind == "failure":
                    prediction_store.finish({task_id: InvalidPrediction("no probability")})
                else:
                    reader = AsyncPredictionStore(connect_async(servers.backend_uri), TTL_S)
                    await reader.delete(task_id)
                    await reader.close()
                return await within(completion)

    expected = {
        "failure": StoredPrediction(State.FAILURE, error="InvalidPrediction"),
        "deleted": StoredPrediction(State.REVOKED, error="Deleted"),
    }
    assert asyncio.run(wait()) == expected[kind]


def test_a_completion_before_the_subscription_is_read(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis
) -> None:
    ended, queued, unknown = (str(uuid4()) for _ in range(3))
    prediction_store.mark_queued({queued: 3600})
    prediction_store.finish({ended: 0.5}, "v1")

    async def wait() -> None:
        async with listening(servers.backend_uri) as listener:
            with (
                listener.subscribe(ended) as first,
                listener.subscribe(queued) as second,
                listener.subscribe(unknown) as third,
            ):
                assert await within(first) == SUCCESS
                assert not second.done()
                assert not third.done()
                await asyncio.to_thread(prediction_store.finish, {queued: 0.5, unknown: 0.5}, "v1")
                assert await within(second) == await within(third) == SUCCESS

    asyncio.run(wait())


def test_completions_during_a_lost_subscription_are_read_after_the_next_one(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis
) -> None:
    ids = [str(uuid4()) for _ in range(20)]
    prediction_store.mark_queued(dict.fromkeys(ids, 3600))

    async def wait() -> list[StoredPrediction | None]:
        async with listening(servers.backend_uri, max_waiters=20) as listener:
            await until_subscribed(client)
            with contextlib.ExitStack() as stack:
                waiters = [stack.enter_context(listener.subscribe(task_id)) for task_id in ids]
                assert client.client_kill_filter(_type="pubsub") == 1
                prediction_store.finish(dict.fromkeys(ids, 0.5), "v1")
                assert client.pubsub_numsub(COMPLETIONS)[0][1] == 0
                return await asyncio.gather(*map(within, waiters))

    assert asyncio.run(wait()) == [SUCCESS] * 20


def test_a_silently_dropped_subscription_is_noticed_and_replaced(
    servers: Servers, prediction_store: PredictionStore, task_id: str
) -> None:
    host, _, rest = servers.backend_uri.removeprefix("redis://").partition(":")
    port, _, database = rest.partition("/")

    async def wait() -> StoredPrediction | None:
        with proxy(int(port)) as between:
            async with listening(f"redis://{host}:{between.port}/{database}") as listener:
                await asyncio.to_thread(until, lambda: listener.is_subscribed)
                with listener.subscribe(task_id) as completion:
                    between.silence(b"SUBSCRIBE")
                    prediction_store.finish({task_id: 0.5}, "v1")
                    await asyncio.to_thread(until, lambda: not listener.is_subscribed)
                    await asyncio.to_thread(until, lambda: listener.is_subscribed)
                    return await within(completion)

    assert asyncio.run(wait()) == SUCCESS


def test_a_waiter_survives_an_unreachable_result_store(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    async def wait() -> StoredPrediction | None:
        async with listening(servers.backend_uri) as listener:
            await until_subscribed(client)
            with listener.subscribe(task_id) as completion:
                refused = rejected_connections(client)
                client.config_set("maxclients", 1)
                try:
                    client.client_kill_filter(_type="pubsub")
                    await asyncio.to_thread(until, lambda: rejected_connections(client) >= refused + 2)
                finally:
                    client.config_set("maxclients", 1000)
                prediction_store.finish({task_id: 0.5}, "v1")
                return await within(completion)

    assert asyncio.run(wait()) == SUCCESS


def test_each_message_of_the_channel_is_passed_on(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    async def listen() -> list[bytes]:
        messages: list[bytes] = []
        async with listening(servers.backend_uri, on_completion=messages.append) as listener:
            await until_subscribed(client)
            with listener.subscribe(task_id) as completion:
                prediction_store.finish({str(uuid4()): 0.25}, "v1")
                prediction_store.finish({task_id: 0.5}, "v1")
                await within(completion)
        return messages

    subscription, *messages = asyncio.run(listen())
    assert subscription == b""
    first, second = map(decode_completions, messages)
    assert [stored.probability for stored in first.values()] == [0.25]
    assert second == {task_id: SUCCESS}


def test_a_process_has_room_for_a_number_of_waiters(servers: Servers) -> None:
    async def fill() -> None:
        async with listening(servers.backend_uri, max_waiters=2) as listener:
            with listener.subscribe("x"):
                assert not listener.is_full
                with listener.subscribe("x"):
                    assert listener.is_full
                assert not listener.is_full
            assert not listener.is_full

    asyncio.run(fill())


def test_no_room_is_a_full_process(servers: Servers) -> None:
    async def is_full() -> bool:
        async with listening(servers.backend_uri, max_waiters=0) as listener:
            return listener.is_full

    assert asyncio.run(is_full())


@pytest.mark.parametrize("end", ["release", "close"])
def test_a_stop_resolves_all_waiters_without_a_completion(servers: Servers, end: str) -> None:
    async def stop() -> list[StoredPrediction | None]:
        async with listening(servers.backend_uri) as listener:
            with listener.subscribe("x") as first, listener.subscribe("y") as second:
                if end == "release":
                    listener.release()
                else:
                    await listener.close()
                completions = [await within(first), await within(second)]
            assert listener.is_full  # the waiters have left, and no other is admitted
            return completions

    assert asyncio.run(stop()) == [None, None]


@pytest.mark.timeout(60, func_only=True)
def test_a_listener_can_be_closed_at_any_moment_of_its_start(servers: Servers) -> None:
    async def start_and_close(seconds: float) -> None:
        async with listening(servers.backend_uri):
            await asyncio.sleep(seconds)

    for number in range(50):
        asyncio.run(start_and_close(number / 5000))


def test_a_waiter_that_was_cancelled_does_not_disturb_the_others(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    async def wait() -> StoredPrediction | None:
        async with listening(servers.backend_uri) as listener:
            await until_subscribed(client)
            with listener.subscribe(task_id) as first, listener.subscribe(task_id) as second:
                first.cancel()
                prediction_store.finish({task_id: 0.5}, "v1")
                return await within(second)

    assert asyncio.run(wait()) == SUCCESS


def test_only_a_completion_of_a_worker_shows_that_one_computes(
    servers: Servers, prediction_store: PredictionStore, client: redis.Redis, task_id: str
) -> None:
    async def wait() -> None:
        async with listening(servers.backend_uri) as listener:
            await until_subscribed(client)
            with listener.subscribe(task_id) as withdrawn:
                await asyncio.to_thread(prediction_store.mark_queued, {task_id: 60})
                await asyncio.to_thread(prediction_store.finish, {task_id: Deleted("deleted by the client")})
                await within(withdrawn)
            assert not listener.has_computed(within_s=60)
            times = WorkerTimes(queue_s=0.1, predict_s=0.01)
            await asyncio.to_thread(prediction_store.finish, {str(uuid4()): 0.5}, "v1", times)  # it has no waiter
            await asyncio.to_thread(until, lambda: listener.has_computed(within_s=60))
            assert not listener.has_computed(within_s=0)

    asyncio.run(wait())


def test_a_task_that_swallows_cancellations_is_ended() -> None:
    async def run() -> None:
        swallowed = 0

        async def work() -> None:
            nonlocal swallowed
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    swallowed += 1
                    if swallowed == 3:
                        raise

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        await end_task(task)
        assert task.cancelled()
        assert swallowed == 3

    asyncio.run(asyncio.wait_for(run(), 30))
