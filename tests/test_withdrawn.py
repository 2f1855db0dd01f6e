"""DELETE and deadlines: what is gone is gone for good, and every race ends so."""

import time
from typing import Any

import pytest
import requests
from celery import Celery
from celery.result import AsyncResult

from celery_task_app.errors import Deleted, Expired
from tests.processes import Service, until
from tests.test_app import problem

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def delete(service: Service, task_id: str) -> requests.Response:
    return requests.delete(f"{service.url}/churn/result/{task_id}", timeout=30)


def post(service: Service, customer: dict[str, Any], cancel_after: str) -> requests.Response:
    headers = {"Cancel-After": cancel_after}
    return requests.post(f"{service.url}/churn/predict", json=customer, headers=headers, timeout=30)


def celery_result(service: Service, task_id: str) -> AsyncResult:
    return AsyncResult(task_id, app=Celery(backend=service.servers.backend_uri))


def test_what_is_done_is_erased(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    service.ended(task_id)
    response = delete(service, task_id)
    assert (response.status_code, response.content) == (204, b"")
    problem(service.result(task_id), "deleted")
    with pytest.raises(Deleted):
        celery_result(service, task_id).get(timeout=30)


def test_what_waits_is_cancelled_and_its_result_is_not_stored(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        assert delete(service, task_id).status_code == 204
        problem(service.result(task_id), "deleted")
    service.ended(service.predict(customer))  # the worker has come so far
    problem(service.result(task_id), "deleted")


def test_a_deletion_wins_every_race(service: Service, customer: dict[str, Any]) -> None:
    ids = [service.predict(customer) for _ in range(100)]
    for number, task_id in enumerate(ids):
        time.sleep(0.001 * (number % 10))
        assert delete(service, task_id).status_code == 204
    service.ended(service.predict(customer))
    for task_id in ids:
        problem(service.result(task_id), "deleted")


def test_deleting_twice_is_no_error_and_an_unknown_id_is_404(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    assert [delete(service, task_id).status_code for _ in range(2)] == [204, 204]
    problem(delete(service, UNKNOWN), "unknown-task")
    problem(delete(service, "no id"), "unknown-task")
    problem(service.result(UNKNOWN), "unknown-task")


def test_what_is_not_computed_in_time_expires_for_good(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = post(service, customer, "3").json()["task_id"]
        assert service.result(task_id).status_code == 202
        until(lambda: service.result(task_id).status_code == 410)
        problem(service.result(task_id), "expired")
    service.ended(service.predict(customer))
    problem(service.result(task_id), "expired")


def test_the_worker_computes_nothing_that_is_overdue(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = post(service, customer, "1").json()["task_id"]
        time.sleep(1.1)  # nobody asks meanwhile; it is the worker that finds out
    until(lambda: celery_result(service, task_id).state == "REVOKED")
    with pytest.raises(Expired):
        celery_result(service, task_id).get(timeout=30)


def test_what_is_computed_in_time_does_not_expire(service: Service, customer: dict[str, Any]) -> None:
    task_id = post(service, customer, "4").json()["task_id"]
    service.ended(task_id)
    time.sleep(4.1)
    assert service.result(task_id).status_code == 200


@pytest.mark.parametrize("bad", ["0", "-1", "soon", "1.5", ""])
def test_a_deadline_that_makes_no_sense_is_400(service: Service, customer: dict[str, Any], bad: str) -> None:
    problem(post(service, customer, bad), "bad-header")
