"""Withdrawn predictions: DELETE and deadlines are terminal states that no result replaces."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from api.http.problems import ProblemType
from celery_task_app.errors import Deleted, Expired
from celery_task_app.store.celery_meta import key_of
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.service import Service

# The broker plays no role. tests/integration/test_prediction_store.py has the states on Redis too.
pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

Customer = dict[str, Any]
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def celery_result(service: Service, task_id: str) -> AsyncResult:
    return AsyncResult(task_id, app=Celery(backend=service.servers.backend_uri))


def deadline_of(service: Service, task_id: str) -> float:
    """Return the deadline of a queued prediction, in seconds of the result store's clock."""
    with service.servers.redis() as client:
        return float(json.loads(client.get(key_of(task_id)))["deadline"])


def await_clock(service: Service, deadline: float) -> None:
    """Wait until the result store's clock has passed a deadline."""
    with service.servers.redis() as client:
        until(lambda: client.time() > (int(deadline), 1_000_000 * (deadline % 1)))


def test_a_deleted_result_is_410(service: Service, customer: Customer) -> None:
    task_id = service.predict(customer)
    service.ended(task_id)
    response = service.delete(task_id)
    assert (response.status_code, response.content) == (204, b"")
    assert_problem(service.result(task_id), ProblemType.DELETED)
    with pytest.raises(Deleted):
        celery_result(service, task_id).get(timeout=30)


def test_a_queued_prediction_that_is_deleted_stays_deleted(service: Service, customer: Customer) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        assert service.delete(task_id).status_code == 204
        assert_problem(service.result(task_id), ProblemType.DELETED)
    service.ended(service.predict(customer))  # The worker has processed the earlier message.
    assert_problem(service.result(task_id), ProblemType.DELETED)


def test_a_deletion_wins_every_race_with_the_worker(service: Service, customer: Customer) -> None:
    def withdraw(number: int) -> str:
        task_id = service.predict(customer)
        for _ in range(number % 5):  # each takes some milliseconds, so deletions come before, at and after the result
            service.result(task_id)
        assert service.delete(task_id).status_code == 204
        return task_id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(withdraw, range(100)))
    service.ended(service.predict(customer))
    for task_id in ids:
        assert_problem(service.result(task_id), ProblemType.DELETED)


def test_deleting_twice_is_204_and_deleting_an_unknown_task_id_is_404(service: Service, customer: Customer) -> None:
    task_id = service.predict(customer)
    assert [service.delete(task_id).status_code for _ in range(2)] == [204, 204]
    assert_problem(service.delete(UNKNOWN), ProblemType.UNKNOWN_TASK)
    assert_problem(service.delete("no id"), ProblemType.UNKNOWN_TASK)
    assert_problem(service.result(UNKNOWN), ProblemType.UNKNOWN_TASK)


def test_a_prediction_that_misses_its_deadline_stays_expired(service: Service, customer: Customer) -> None:
    with service.worker.paused():
        task_id = service.predict(customer, Cancel_After="3")
        assert service.result(task_id).status_code == 202
        until(lambda: service.result(task_id).status_code == 410)
        assert_problem(service.result(task_id), ProblemType.EXPIRED)
    service.ended(service.predict(customer))
    assert_problem(service.result(task_id), ProblemType.EXPIRED)


def test_the_worker_expires_an_overdue_prediction_that_no_client_fetches(service: Service, customer: Customer) -> None:
    with service.worker.paused():
        task_id = service.predict(customer, Cancel_After="1")
        await_clock(service, deadline_of(service, task_id))
    until(lambda: celery_result(service, task_id).state == "REVOKED")
    with pytest.raises(Expired):
        celery_result(service, task_id).get(timeout=30)


def test_a_result_within_the_deadline_does_not_expire(service: Service, customer: Customer) -> None:
    with service.worker.paused():
        task_id = service.predict(customer, Cancel_After="4")
        deadline = deadline_of(service, task_id)
    service.ended(task_id)
    await_clock(service, deadline)
    assert service.result(task_id).status_code == 200


@pytest.mark.parametrize("bad", ["0", "-1", "soon", "1.5", ""])
def test_a_deadline_that_is_no_positive_integer_is_400(service: Service, customer: Customer, bad: str) -> None:
    assert_problem(service.post(customer, Cancel_After=bad), ProblemType.BAD_HEADER)
