"""Backpressure: too many that wait are 429 with an honest Retry-After, and what was accepted before is answered."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from kombu import Connection, Queue

from celery_task_app import backlog
from celery_task_app.backlog import Backlog
from celery_task_app.errors import BrokerUnavailable, Overloaded
from celery_task_app.submission import Publisher
from celery_task_app.worker import PREDICTIONS
from tests import marked_model
from tests.processes import Servers, Service, running_service, until
from tests.test_app import problem

HIGH_WATER = 40


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("backlog")
    limits = {"QUEUE_HIGH_WATER": str(HIGH_WATER), "BATCH_HIGH_WATER": "100", "BATCH_CHUNK_ROWS": "10"}
    with running_service(servers, folder, MODEL_PATH=str(marked_model.save(folder)), **limits) as running:
        yield running


def test_beyond_the_high_water_mark_it_is_429_and_what_was_accepted_is_answered(
    service: Service, customer: dict[str, Any]
) -> None:
    accepted = {}

    def post() -> requests.Response:
        number = len(accepted) % 1000
        body = {**customer, "Total_Trans_Ct": number}
        response = requests.post(f"{service.url}/churn/predict", json=body, timeout=30)
        if response.status_code == 202:
            accepted[response.json()["task_id"]] = number / 1000
        return response

    with service.worker.paused():
        (refused,) = until(lambda: [answer for answer in [post()] if answer.status_code != 202])
        problem(refused, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert len(accepted) > HIGH_WATER
        assert requests.get(f"{service.url}/livez", timeout=30).ok
    until(lambda: post().status_code == 202)
    for task_id, probability in accepted.items():
        assert service.ended(task_id).json()["probability"] == probability


def test_batches_have_a_mark_of_their_own(service: Service, customer: dict[str, Any]) -> None:
    url, accepted = f"{service.url}/churn/batches", []

    def post() -> requests.Response:
        response = requests.post(url, json=[customer] * 60, timeout=30)
        if response.status_code == 202:
            accepted.append(response.json()["batch_id"])
        return response

    with service.worker.paused():
        (refused,) = until(lambda: [answer for answer in [post()] if answer.status_code != 202])
        problem(refused, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert requests.post(f"{service.url}/churn/predict", json=customer, timeout=30).status_code == 202
    until(lambda: post().status_code == 202)
    for batch_id in accepted:
        until(lambda batch_id=batch_id: requests.get(f"{url}/{batch_id}", timeout=30).status_code == 200)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(backlog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def queue(here: Servers) -> Iterator[Queue]:
    """One that nobody consumes."""
    queue = Queue("churn.counted", routing_key="churn.counted", queue_arguments=PREDICTIONS.queue_arguments)
    yield queue
    with Connection(here.broker_uri) as connection:
        queue(connection.default_channel).delete()


def test_a_queue_is_counted_in_customers_and_read_again_after_a_second(
    here: Servers, queue: Queue, clock: list[float]
) -> None:
    publisher = Publisher()
    counted = Backlog(queue, 25, publisher.depth)
    for _ in range(3):
        publisher.send("nobody's", queue, {})
        counted.published(10)
    with pytest.raises(Overloaded):
        counted.read()
    with pytest.raises(Overloaded):
        counted.refuse_if_full()
    with Connection(here.broker_uri) as connection:
        queue(connection.default_channel).purge()
    with pytest.raises(Overloaded):
        counted.read()
    clock[0] += 1
    counted.refuse_if_full()
    counted.read()
    publisher.close()


@pytest.mark.parametrize(
    ("depths", "after_s"),
    [
        ([150], 1),  # nothing is known yet
        ([150, 140], 4),  # 100 customers in a second, 400 too many
        ([150, 149], 49),
        ([150, 150], 50),  # at most one message in this second
        ([900, 899], 60),
        ([150, 140, 100, 110], 1),  # known from before
    ],
)
def test_the_time_to_wait_is_what_is_too_much_over_what_drains(
    clock: list[float], depths: list[int], after_s: int
) -> None:
    measured = iter(depths)
    counted = Backlog(PREDICTIONS, 1000, lambda _: next(measured))
    for _ in range(1000):
        counted.published(10)
    for _ in depths[1:]:
        with contextlib.suppress(Overloaded):
            counted.read()
        clock[0] += 1
    with pytest.raises(Overloaded) as refused:
        counted.read()
    assert refused.value.retry_after_s == after_s


def test_the_size_of_a_message_is_the_mean_of_those_that_wait(clock: list[float]) -> None:
    counted = Backlog(PREDICTIONS, 100, lambda _: 10)
    for size in [256] * 50 + [1] * 10:
        counted.published(size)
    counted.read()


def test_a_broker_that_does_not_tell_refuses_nobody(here: Servers, queue: Queue) -> None:
    publisher = Publisher()
    counted = Backlog(queue, 0, publisher.depth)
    counted.read()  # there is no connection yet
    publisher.send("nobody's", queue, {})
    assert publisher.depth(queue) == 1
    counted = Backlog(queue, 0, publisher.depth)
    with here.broker.paused():
        counted.read()
        counted.refuse_if_full()
    with pytest.raises(BrokerUnavailable):
        publisher.depth(queue)
