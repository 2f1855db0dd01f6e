"""Idempotency-Key: the same key and body return the same prediction."""

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.http.problems import ProblemType
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.service import Service, running_api

Customer = dict[str, Any]


@pytest.fixture
def key() -> str:
    return str(uuid4())


def test_the_same_key_and_body_is_the_same_prediction(service: Service, customer: Customer, key: str) -> None:
    first, second = (service.post(customer, Idempotency_Key=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["task_id"] == second.json()["task_id"]
    other = service.post(customer, Idempotency_Key=f"{key}!")
    assert other.json()["task_id"] != first.json()["task_id"]


def test_the_order_of_the_fields_does_not_change_the_body(service: Service, customer: Customer, key: str) -> None:
    first = service.post(customer, Idempotency_Key=key)
    reordered = dict(reversed(customer.items()))
    assert service.post(reordered, Idempotency_Key=key).json() == first.json()


def test_the_same_key_with_another_body_is_422(service: Service, customer: Customer, key: str) -> None:
    service.post(customer, Idempotency_Key=key)
    changed = service.post({**customer, "Customer_Age": 46}, Idempotency_Key=key)
    assert_problem(changed, ProblemType.IDEMPOTENCY_KEY_REUSED)


def test_concurrent_requests_with_one_key_are_one_prediction(service: Service, customer: Customer, key: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.post(customer, Idempotency_Key=key), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_two_api_processes_share_their_keys(service: Service, customer: Customer, key: str, tmp_path: Path) -> None:
    with running_api(service.servers, tmp_path) as other:
        first = service.post(customer, Idempotency_Key=key)
        assert other.post(customer, Idempotency_Key=key).json() == first.json()


def test_a_key_in_use_is_409_and_an_abandoned_claim_expires_within_seconds(
    service: Service, customer: Customer, key: str
) -> None:
    task_id = service.predict(customer)
    name = f"churn:idempotency:{sha256(key.encode()).hexdigest()}"
    service.post(customer, Idempotency_Key=key)
    with service.servers.redis() as client:
        # An API process that died between its claim and the publisher confirm leaves this value.
        claim = json.loads(client.get(name)) | {"accepted": False, "task_id": task_id}
        client.set(name, json.dumps(claim), ex=5)
    response = service.post(customer, Idempotency_Key=key)
    assert_problem(response, ProblemType.IDEMPOTENCY_KEY_IN_USE)
    assert int(response.headers["retry-after"]) >= 1
    until(lambda: service.post(customer, Idempotency_Key=key).status_code == 202, within_s=10)
    assert service.post(customer, Idempotency_Key=key).json()["task_id"] != task_id


# A key lives no longer than its prediction.


def test_a_repeat_after_the_deletion_is_submitted_anew(service: Service, customer: Customer, key: str) -> None:
    deleted = service.predict(customer, Idempotency_Key=key)
    service.delete(deleted)
    assert service.predict(customer, Idempotency_Key=key) != deleted


def test_a_repeat_after_the_expiry_is_submitted_anew(service: Service, customer: Customer, key: str) -> None:
    with service.worker.paused():
        expired = service.predict(customer, Idempotency_Key=key, Cancel_After="1")
        assert service.predict(customer, Idempotency_Key=key, Cancel_After="1") == expired
        until(lambda: service.predict(customer, Idempotency_Key=key, Cancel_After="1") != expired, within_s=10)


def test_a_repeat_whose_result_is_no_longer_kept_is_submitted_anew(
    service: Service, customer: Customer, key: str, tmp_path: Path
) -> None:
    with running_api(service.servers, tmp_path, RESULT_TTL_S="1", DEADLINE_S="1") as other:
        first = other.predict(customer, Idempotency_Key=key)
        with service.servers.redis() as client:
            client.pexpire(f"celery-task-meta-{first}", 1)  # as RESULT_TTL_S does
            until(lambda: not client.exists(f"celery-task-meta-{first}"))
        with ThreadPoolExecutor(5) as pool:
            repeats = set(pool.map(lambda _: other.predict(customer, Idempotency_Key=key), range(5)))
        assert len(repeats) == 1
        assert repeats != {first}


def test_a_failed_publish_releases_the_key(service: Service, customer: Customer, key: str) -> None:
    with service.servers.broker.paused(), ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: service.post(customer, Idempotency_Key=key), range(5)))
    assert {answer.status_code for answer in answers} <= {503, 409}
    until(lambda: service.post(customer, Idempotency_Key=key).status_code == 202)
    task_id = service.post(customer, Idempotency_Key=key).json()["task_id"]
    assert service.ended(task_id).status_code == 200
