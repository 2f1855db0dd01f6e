import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Connection, Queue

from celery_task_app import submission
from celery_task_app.errors import BrokerUnavailable, Overloaded, ResultStoreUnavailable
from celery_task_app.results import ResultReader, State, blocking_client
from celery_task_app.submission import Publisher, Submissions
from celery_task_app.worker import DEAD, PREDICTIONS, app
from tests.processes import Servers, free_port, silent_port

T = TypeVar("T")


@pytest.fixture(autouse=True)
def empty_queues(here: Servers) -> Iterator[None]:
    with Connection(here.broker_uri) as connection:
        for queue in (PREDICTIONS, DEAD):
            bound = queue(connection.default_channel)
            bound.declare()
            bound.purge()
    yield
    with Connection(here.broker_uri) as connection:
        PREDICTIONS(connection.default_channel).declare()
        PREDICTIONS(connection.default_channel).purge()


def messages(servers: Servers) -> list[Any]:
    """Take what is in the queue."""
    taken = []
    with Connection(servers.broker_uri) as connection:
        queue = Queue(PREDICTIONS.name, channel=connection.default_channel)
        while message := queue.get(no_ack=True):
            taken.append(message)
    return taken


def customers_of(message: Any) -> dict[str, Any]:
    return message.payload[1]["customers"]  # type: ignore[no-any-return]


def with_submissions(use: Callable[[Submissions], Awaitable[T]]) -> T:
    async def run() -> T:
        submissions = Submissions()
        try:
            return await use(submissions)
        finally:
            await submissions.close()

    return asyncio.run(run())


async def submit(submissions: Submissions, customer: dict[str, Any]) -> str:
    task_id = str(uuid4())
    await submissions.submit(task_id, customer)
    return task_id


async def together(calls: list[Coroutine[Any, Any, str]]) -> list[str | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)


def test_an_accepted_customer_is_marked_and_in_the_queue(here: Servers, customer: dict[str, Any]) -> None:
    async def use(submissions: Submissions) -> str:
        task_id = await submit(submissions, customer)
        reader = ResultReader()
        known = await reader.fetch(task_id)
        await reader.close()
        assert known is not None
        assert known.state is State.QUEUED
        return task_id

    task_id = with_submissions(use)
    assert UUID(task_id).version == 4
    assert [customers_of(message) for message in messages(here)] == [{task_id: customer}]


def test_customers_that_come_meanwhile_ride_in_one_message(here: Servers, customer: dict[str, Any]) -> None:
    ids = with_submissions(lambda room: together([submit(room, customer) for _ in range(1000)]))
    groups = [list(customers_of(message)) for message in messages(here)]
    assert sorted(ids) == sorted(task_id for group in groups for task_id in group)
    assert len(groups) < 50
    assert max(map(len, groups)) <= 256


def test_a_message_fills_until_the_one_before_it_is_predicted(
    here: Servers, customer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_LINGER_S", 60)  # longer than a customer waits to be accepted

    async def use(submissions: Submissions) -> tuple[str, list[str]]:
        first = await submit(submissions, customer)
        others = []
        for _ in range(3):
            others.append(asyncio.create_task(submit(submissions, customer)))
            await asyncio.sleep(0.05)
        assert not any(other.done() for other in others)
        submissions.hear(b"of others only")
        submissions.hear(f'[{{"task_id": "{first}"}}]'.encode())
        return first, await asyncio.gather(*others)

    first, others = with_submissions(use)
    groups = [sorted(customers_of(message)) for message in messages(here)]
    assert groups == [[first], sorted(others)]


def test_each_customer_keeps_its_own_id(here: Servers, customer: dict[str, Any]) -> None:
    limits = list(range(100))

    async def use(submissions: Submissions) -> list[str | BaseException]:
        return await together([submit(submissions, {**customer, "Credit_Limit": limit}) for limit in limits])

    ids = with_submissions(use)
    queued = {task_id: row for message in messages(here) for task_id, row in customers_of(message).items()}
    assert [queued[str(task_id)]["Credit_Limit"] for task_id in ids] == limits


def test_a_customers_values_are_in_the_body_of_the_message_only(here: Servers, customer: dict[str, Any]) -> None:
    with_submissions(lambda room: submit(room, {**customer, "Credit_Limit": 12345.678}))
    (message,) = messages(here)
    assert "12345.678" in message.body if isinstance(message.body, str) else b"12345.678" in message.body
    assert "12345.678" not in json.dumps([message.headers, message.properties], default=str)
    assert message.headers["argsrepr"] == message.headers["kwargsrepr"] == "-"
    assert message.headers["ignore_result"] is True


def test_a_full_waiting_room_refuses_at_once(
    here: Servers, customer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for_two = submission.settings.model_copy(update={"waiting_room": 2, "group_max": 1})
    monkeypatch.setattr(submission, "settings", room_for_two)

    async def use(submissions: Submissions) -> list[str | BaseException]:
        return await together([submit(submissions, customer) for _ in range(100)])

    outcomes = with_submissions(use)
    accepted = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert {type(outcome) for outcome in outcomes} == {str, Overloaded}
    assert sorted(accepted) == sorted(task_id for message in messages(here) for task_id in customers_of(message))


def test_closing_publishes_what_waits(here: Servers, customer: dict[str, Any]) -> None:
    async def run() -> list[str]:
        submissions = Submissions()
        waiting = [asyncio.create_task(submit(submissions, customer)) for _ in range(300)]
        await asyncio.sleep(0)  # each has taken its place
        await submissions.close()
        return await asyncio.gather(*waiting)

    ids = asyncio.run(run())
    assert sorted(ids) == sorted(task_id for message in messages(here) for task_id in customers_of(message))


@pytest.mark.parametrize("refuses", [True, False])
def test_a_broker_that_is_away_is_said_so_and_the_id_is_taken_back(
    here: Servers, customer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    scheme = here.broker_uri.partition(":")[0]
    with silent_port() as silent, blocking_client() as client:
        port = free_port() if refuses else silent
        monkeypatch.setitem(app.conf, "broker_url", f"{scheme}://127.0.0.1:{port}/")
        before = set(client.keys("celery-task-meta-*"))
        if refuses:
            monkeypatch.setattr(submission, "_ACCEPT_WITHIN_S", 1.5)
        # The publisher gives up earlier than the client: it is free for the next ones, and says why.
        with pytest.raises(BrokerUnavailable, match="did not confirm"):
            with_submissions(lambda room: submit(room, customer))
        assert set(client.keys("celery-task-meta-*")) == before


@pytest.mark.timeout(20, func_only=True)  # without a limit of its own it would be waited for without end
def test_a_broker_that_is_frozen_is_given_up(here: Servers, customer: dict[str, Any]) -> None:
    publishers = [Publisher(), Publisher()]
    for publisher in publishers:
        publisher.publish({str(uuid4()): customer})
    with here.broker.paused():
        with pytest.raises(BrokerUnavailable):
            publishers[0].publish({str(uuid4()): customer})
        with pytest.raises(BrokerUnavailable, match="depth"):
            publishers[1].depth(PREDICTIONS)


def test_a_store_that_is_away_is_said_so_and_nothing_is_queued(
    here: Servers, customer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery_task_app import results

    away = results.settings.model_copy(update={"backend_uri": f"redis://127.0.0.1:{free_port()}/0"})
    monkeypatch.setattr(results, "settings", away)
    with pytest.raises(ResultStoreUnavailable):
        with_submissions(lambda room: submit(room, customer))
    assert messages(here) == []


def test_a_group_that_fails_takes_no_other_with_it(here: Servers, customer: dict[str, Any]) -> None:
    async def use(submissions: Submissions) -> str:
        with pytest.raises(BrokerUnavailable):
            await submit(submissions, {**customer, "Credit_Limit": Unsendable()})
        return await submit(submissions, customer)

    task_id = with_submissions(use)
    assert [list(customers_of(message)) for message in messages(here)] == [[task_id]]


class Unsendable:
    """Nothing that JSON has a form for."""


def test_a_dropped_connection_costs_no_request(here: Servers, customer: dict[str, Any]) -> None:
    publisher = Publisher()
    publisher.publish({str(uuid4()): customer})
    drop_connection(publisher)
    publisher.publish({str(uuid4()): customer})
    publisher.close()
    assert len(messages(here)) == 2


def drop_connection(publisher: Publisher) -> None:
    channel = publisher._connection.connection
    if hasattr(channel, "sock"):
        channel.sock.shutdown(2)
    else:
        for pooled in publisher._producer.channel.pool._get_free_connections():  # type: ignore[union-attr]
            pooled._sock.shutdown(2)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
class TestRabbitMQ:
    """What Valkey and Redis do not promise."""

    def test_a_full_queue_refuses_and_loses_nothing(
        self, here: Servers, customer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = Queue(PREDICTIONS.name, queue_arguments=PREDICTIONS.queue_arguments | {"x-max-length": 3})
        monkeypatch.setattr(submission, "PREDICTIONS", small)
        delete_queue(here)
        publisher, accepted = Publisher(), []
        with pytest.raises(Overloaded):
            for _ in range(100):
                task_id = str(uuid4())
                publisher.publish({task_id: customer})
                accepted.append(task_id)
        publisher.close()
        assert [list(customers_of(message)) for message in messages(here)] == [[task_id] for task_id in accepted]
        delete_queue(here)

    def test_a_queue_that_vanishes_is_declared_again(self, here: Servers, customer: dict[str, Any]) -> None:
        publisher = Publisher()
        publisher.publish({str(uuid4()): customer})
        delete_queue(here)
        publisher.publish({str(uuid4()): customer})
        publisher.close()
        assert len(messages(here)) == 1

    @pytest.mark.parametrize("queue", [PREDICTIONS, DEAD], ids=lambda queue: queue.name)
    def test_the_queues_are_quorum_queues(self, here: Servers, queue: Queue) -> None:
        classic = queue.queue_arguments | {"x-queue-type": "classic"}
        with Connection(here.broker_uri) as connection, pytest.raises(PreconditionFailed, match="x-queue-type"):
            Queue(queue.name, queue_arguments=classic, channel=connection.default_channel).queue_declare()

    @pytest.mark.parametrize("argument", ["x-max-length", "x-dead-letter-strategy"])
    def test_no_queue_without_this_is_accepted(self, here: Servers, argument: str) -> None:
        others = {name: value for name, value in PREDICTIONS.queue_arguments.items() if name != argument}
        with Connection(here.broker_uri) as connection, pytest.raises(PreconditionFailed, match=argument):
            Queue(PREDICTIONS.name, queue_arguments=others, channel=connection.default_channel).queue_declare()


def delete_queue(servers: Servers) -> None:
    with Connection(servers.broker_uri) as connection:
        PREDICTIONS(connection.default_channel).delete()
