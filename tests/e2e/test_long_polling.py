"""Long polling: with `Prefer: wait=N` a response comes at the completion, and no waiter stays behind."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from celery_task_app.store.predictions import COMPLETIONS
from tests.harness.service import Service, running_api

Customer = dict[str, Any]
WAIT = "wait=20"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


@contextmanager
def waiter(service: Service, task_id: str) -> Iterator[HTTPConnection]:
    """Send a request that the API holds; the API has read it, because it has answered a later request."""
    with closing(HTTPConnection(urlsplit(service.url).netloc, timeout=30)) as client:
        client.request("GET", f"/churn/result/{task_id}", headers={"Prefer": WAIT})
        assert service.result(task_id).status_code == 202
        yield client


def test_a_post_with_wait_returns_the_prediction(service: Service, customer: Customer) -> None:
    response = service.post(customer, Prefer=WAIT)
    assert response.status_code == 200
    assert response.headers["preference-applied"] == WAIT
    assert response.headers["vary"] == "Prefer"
    assert response.json() == service.result(response.json()["task_id"]).json()


def test_a_post_with_wait_tells_the_time_of_each_stage(service: Service, customer: Customer) -> None:
    response = service.post(customer, Prefer=WAIT)
    stages = [stage.split(";dur=") for stage in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["accept", "queue", "predict", "store"]
    milliseconds = [float(duration) for _, duration in stages]
    assert min(milliseconds) >= 0
    assert 0 < sum(milliseconds) <= response.elapsed.total_seconds() * 1000 + 1  # rounded, and the store's clock
    assert "server-timing" not in service.post(customer).headers


def test_an_idempotent_post_with_wait_tells_the_stages_of_its_own_prediction(
    service: Service, customer: Customer
) -> None:
    first, second = (service.post(customer, Prefer=WAIT, Idempotency_Key="stages") for _ in range(2))
    assert first.json() == second.json()
    assert "server-timing" not in second.headers


def test_a_get_with_wait_returns_at_the_completion(service: Service, customer: Customer) -> None:
    with ExitStack() as stack:
        with service.worker.paused():
            client = stack.enter_context(waiter(service, service.predict(customer)))
        response = client.getresponse()
    assert (response.status, response.headers["preference-applied"]) == (200, WAIT)


def test_a_terminal_state_is_returned_at_once_without_preference_applied(service: Service, customer: Customer) -> None:
    task_id = service.predict(customer)
    service.ended(task_id)
    response = service.result(task_id, Prefer=WAIT)
    assert response.status_code == 200
    assert "preference-applied" not in response.headers


def test_a_wait_without_a_completion_is_202(service: Service, customer: Customer) -> None:
    with service.worker.paused():
        started = time.monotonic()
        response = service.post(customer, Prefer="wait=1")
        assert 1 <= time.monotonic() - started < 15
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")
    assert service.result(response.json()["task_id"], Prefer=WAIT).status_code == 200


def test_an_unknown_task_id_is_404_at_once(service: Service) -> None:
    started = time.monotonic()
    assert service.result("00000000-0000-4000-8000-000000000000", Prefer=WAIT).status_code == 404
    assert time.monotonic() - started < 15


def test_many_waiters_of_one_prediction_and_of_many_are_all_answered(service: Service, customer: Customer) -> None:
    with ExitStack() as stack:
        with service.worker.paused():
            ids = [service.predict(customer) for _ in range(20)]
            waiters = [stack.enter_context(waiter(service, task_id)) for task_id in [*ids, *ids[:1] * 20]]
        answers = [client.getresponse() for client in waiters]
    assert {(answer.status, answer.headers["preference-applied"]) for answer in answers} == {(200, WAIT)}


def test_a_prediction_of_another_api_process_can_be_awaited(
    service: Service, customer: Customer, tmp_path: Path
) -> None:
    with running_api(service.servers, tmp_path) as other, ExitStack() as stack:
        with service.worker.paused():
            client = stack.enter_context(waiter(other, service.predict(customer)))
        response = client.getresponse()
    assert (response.status, response.headers["preference-applied"]) == (200, WAIT)


def test_an_api_process_subscribes_to_one_channel_for_all_waiters(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    answers = list(pool.map(lambda _: service.post(customer, Prefer=WAIT), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    with service.servers.redis() as client:
        assert client.pubsub_channels("celery-task-meta-*") == []
        assert client.pubsub_numsub(COMPLETIONS) == [(COMPLETIONS.encode(), 1)]


def test_a_waiter_of_a_deleted_prediction_is_410(service: Service, customer: Customer) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        with waiter(service, task_id) as client:
            assert service.delete(task_id).status_code == 204
            assert client.getresponse().status == 410
