"""Group commit: predictions are marked and published many at a time, and each request gets its own result."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
import redis

from api.backpressure import Backlog
from api.group_commit import GroupCommitter
from celery_task_app.errors import BrokerUnavailable, Overloaded, ResultStoreUnavailable
from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest
from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import PredictionStore, State
from celery_task_app.worker import PREDICTIONS
from tests.harness.processes import free_port, silent_port
from tests.harness.servers import Servers
from tests.integration.queues import arguments, take_all

T = TypeVar("T")
TTL_S = 86_400
DEADLINE_S = 3_600
LIMITS: dict[str, Any] = {"deadline_s": DEADLINE_S, "max_message_size": 256, "max_pending": 4_096}

pytestmark = pytest.mark.usefixtures("empty_queues")


@contextlib.asynccontextmanager
async def running(broker_uri: str, backend_uri: str, **limits: Any) -> AsyncIterator[GroupCommitter]:
    publisher = Publisher(publisher_connection(broker_uri))
    backlog = Backlog(PREDICTIONS.name, 10_000, partial(publisher.depth, PREDICTIONS))
    store = PredictionStore(connect(backend_uri), TTL_S)
    group_commit = GroupCommitter(store, publisher, backlog, **(LIMITS | limits))
    try:
        yield group_commit
    finally:
        await group_commit.close()


def run(
    servers: Servers,
    use: Callable[[GroupCommitter], Awaitable[T]],
    broker_uri: str | None = None,
    backend_uri: str | None = None,
    **limits: Any,
) -> T:
    """Use a committer on these servers, or on others."""

    async def use_and_close() -> T:
        addresses = broker_uri or servers.broker_uri, backend_uri or servers.backend_uri
        async with running(*addresses, **limits) as group_commit:
            return await use(group_commit)

    return asyncio.run(use_and_close())


async def submit(group_commit: GroupCommitter, customer: dict[str, Any], deadline_s: float | None = None) -> str:
    task_id = str(uuid4())
    await group_commit.submit(task_id, PredictionRequest(customer), deadline_s)
    return task_id


async def submit_many(group_commit: GroupCommitter, customers: list[dict[str, Any]]) -> list[str | BaseException]:
    return await asyncio.gather(*(submit(group_commit, customer) for customer in customers), return_exceptions=True)


async def ended_within(seconds: float, tasks: list[asyncio.Task[str]]) -> set[asyncio.Task[str]]:
    """Return the tasks that have ended when the first one ends, or after some seconds."""
    done, _pending = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return done


def published(servers: Servers) -> list[PredictionMessage]:
    """Take the messages from the queue."""
    return [PredictionMessage.parse(arguments(message)) for message in take_all(servers, PREDICTIONS)]


def published_ids(servers: Servers) -> list[str]:
    return sorted(task_id for message in published(servers) for task_id in message.ids)


def test_an_accepted_prediction_is_marked_and_published(
    servers: Servers, prediction_store: PredictionStore, customer: dict[str, Any]
) -> None:
    task_id = run(servers, lambda group_commit: submit(group_commit, customer))
    assert UUID(task_id).version == 4
    stored = prediction_store.look_up([task_id])[task_id]
    assert stored is not None
    assert stored.state is State.QUEUED
    assert published(servers) == [PredictionMessage({task_id: PredictionRequest(customer)})]


def test_a_request_for_reasons_travels_with_its_prediction(servers: Servers, customer: dict[str, Any]) -> None:
    request = PredictionRequest(customer, explain=True)
    run(servers, lambda group_commit: group_commit.submit("an id", request))
    assert published(servers) == [PredictionMessage({"an id": request})]


@pytest.mark.parametrize(("asked_s", "expected_s"), [(None, DEADLINE_S), (60, 60), (10 * DEADLINE_S, DEADLINE_S)])
def test_the_deadline_is_the_shorter_one_of_client_and_service(
    servers: Servers,
    customer: dict[str, Any],
    asked_s: float | None,
    expected_s: float,
) -> None:
    before_s = time.time()
    task_id = run(servers, lambda group_commit: submit(group_commit, customer, asked_s))
    with servers.redis() as client:
        deadline = json.loads(client.get(f"celery-task-meta-{task_id}") or b"")["deadline"]
    assert before_s + expected_s - 1 <= deadline <= time.time() + expected_s


def test_concurrent_predictions_travel_in_few_messages(servers: Servers, customer: dict[str, Any]) -> None:
    ids = run(servers, lambda group_commit: submit_many(group_commit, [customer] * 1000))
    groups = [message.ids for message in published(servers)]
    assert sorted(map(str, ids)) == sorted(task_id for group in groups for task_id in group)
    assert len(groups) < 50
    assert max(map(len, groups)) <= 256


def test_a_message_fills_until_the_one_before_it_is_predicted(servers: Servers, customer: dict[str, Any]) -> None:
    async def use(group_commit: GroupCommitter) -> tuple[str, list[str]]:
        first = await submit(group_commit, customer)
        others: list[asyncio.Task[str]] = []
        for _ in range(3):
            others.append(asyncio.create_task(submit(group_commit, customer)))
            assert not await ended_within(0.05, others)
        group_commit.on_completion(b'[{"task_id": "of another process"}]')
        assert not await ended_within(0.05, others)
        group_commit.on_completion(f'[{{"task_id": "{first}"}}]'.encode())
        return first, await asyncio.gather(*others)

    first, others = run(servers, use, max_delay_s=60)  # longer than a request waits to be accepted
    assert [sorted(message.ids) for message in published(servers)] == [[first], sorted(others)]


def test_a_prediction_is_uncompleted_from_its_publication_to_the_next_completion(
    servers: Servers, customer: dict[str, Any]
) -> None:
    async def use(group_commit: GroupCommitter) -> None:
        assert group_commit.uncompleted_s == 0
        await submit(group_commit, customer)
        first_s = group_commit.uncompleted_s
        await submit(group_commit, customer)
        assert 0 < first_s < group_commit.uncompleted_s
        group_commit.on_completion(b'[{"task_id": "deleted by a client"}]')
        assert group_commit.uncompleted_s > 0
        group_commit.on_completion(b'[{"times": [0, 0], "task_id": "of another process"}]')
        assert group_commit.uncompleted_s == 0
        await submit(group_commit, customer)
        group_commit.on_completion(b"")  # a new subscription
        assert group_commit.uncompleted_s == 0

    run(servers, use)


def test_each_prediction_keeps_its_own_task_id(servers: Servers, customer: dict[str, Any]) -> None:
    customers = [{**customer, "Credit_Limit": limit} for limit in range(100)]
    ids = run(servers, lambda group_commit: submit_many(group_commit, customers))
    requests = {task_id: request for message in published(servers) for task_id, request in message.requests.items()}
    assert [requests[str(task_id)].features for task_id in ids] == customers


def test_too_many_pending_predictions_are_refused_at_once(servers: Servers, customer: dict[str, Any]) -> None:
    outcomes = run(
        servers,
        lambda group_commit: submit_many(group_commit, [customer] * 100),
        max_pending=2,
        max_message_size=1,
    )
    assert {type(outcome) for outcome in outcomes} == {str, Overloaded}
    assert published_ids(servers) == sorted(outcome for outcome in outcomes if isinstance(outcome, str))


def test_closing_publishes_all_pending_predictions(servers: Servers, customer: dict[str, Any]) -> None:
    async def submit_and_close() -> list[str]:
        async with running(servers.broker_uri, servers.backend_uri) as group_commit:
            pending = [asyncio.create_task(submit(group_commit, customer)) for _ in range(300)]
            await asyncio.sleep(0)  # each task has called submit
        return await asyncio.gather(*pending)

    assert sorted(asyncio.run(submit_and_close())) == published_ids(servers)


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "silent"])
def test_an_unreachable_broker_is_an_error_and_the_marker_is_removed(
    servers: Servers, client: redis.Redis, customer: dict[str, Any], is_refused: bool
) -> None:
    async def use(group_commit: GroupCommitter) -> None:
        try:
            await submit(group_commit, customer)
        finally:
            assert group_commit.uncompleted_s == 0

    before = set(client.scan_iter("celery-task-meta-*"))
    with silent_port() as silent:
        uri = servers.broker_uri_at(free_port() if is_refused else silent)
        limits: dict[str, Any] = {"accept_within_s": 1.5} if is_refused else {}
        # The publisher fails earlier than the time limit of the request: it names the reason, and is free for others.
        with pytest.raises(BrokerUnavailable, match="did not confirm"):
            run(servers, use, broker_uri=uri, **limits)
    assert set(client.scan_iter("celery-task-meta-*")) == before


def test_a_request_waits_no_longer_than_its_limit(servers: Servers, customer: dict[str, Any]) -> None:
    async def use(group_commit: GroupCommitter) -> None:
        started = asyncio.get_running_loop().time()
        with servers.store.paused(), pytest.raises(BrokerUnavailable, match=r"not published within 0\.3 s"):
            await submit(group_commit, customer)
        assert asyncio.get_running_loop().time() - started < 1

    run(servers, use, accept_within_s=0.3)


def test_an_unreachable_result_store_is_an_error_and_nothing_is_published(
    servers: Servers, customer: dict[str, Any]
) -> None:
    away = f"redis://127.0.0.1:{free_port()}/0"
    with pytest.raises(ResultStoreUnavailable):
        run(servers, lambda group_commit: submit(group_commit, customer), backend_uri=away)
    assert published(servers) == []


def test_a_message_that_cannot_be_encoded_fails_no_other(servers: Servers, customer: dict[str, Any]) -> None:
    async def use(group_commit: GroupCommitter) -> str:
        with pytest.raises(BrokerUnavailable, match="not published"):
            await submit(group_commit, {**customer, "Credit_Limit": Unserializable()})
        return await submit(group_commit, customer)

    task_id = run(servers, use)
    assert published_ids(servers) == [task_id]


class Unserializable:
    """A value without a form in JSON."""


def test_a_full_queue_refuses_before_anything_is_marked(
    servers: Servers, client: redis.Redis, customer: dict[str, Any]
) -> None:
    before = set(client.scan_iter("celery-task-meta-*"))

    async def use() -> None:
        publisher = Publisher(publisher_connection(servers.broker_uri))
        store = PredictionStore(connect(servers.backend_uri), TTL_S)
        group_commit = GroupCommitter(store, publisher, Backlog(PREDICTIONS.name, 1, lambda: 50), **LIMITS)
        try:
            for _ in range(2):
                with pytest.raises(Overloaded):
                    await submit(group_commit, customer)
        finally:
            await group_commit.close()

    asyncio.run(use())
    assert set(client.scan_iter("celery-task-meta-*")) == before
    assert published(servers) == []
