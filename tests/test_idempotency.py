"""Idempotency-Key: the same key and body, the same prediction."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import requests

from tests.processes import Service, running_servers, running_service, until
from tests.test_app import problem


def post(service: Service, customer: dict[str, Any], key: str) -> requests.Response:
    headers = {"Idempotency-Key": key}
    return requests.post(f"{service.url}/churn/predict", json=customer, headers=headers, timeout=30)


@pytest.fixture
def key() -> str:
    return str(uuid4())


def test_the_same_key_and_body_is_the_same_prediction(service: Service, customer: dict[str, Any], key: str) -> None:
    first, second = post(service, customer, key), post(service, customer, key)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["task_id"] == second.json()["task_id"]
    assert post(service, customer, f"{key}!").json()["task_id"] != first.json()["task_id"]


def test_the_order_of_the_fields_makes_no_other_body(service: Service, customer: dict[str, Any], key: str) -> None:
    first = post(service, customer, key)
    turned = dict(reversed(customer.items()))
    assert post(service, turned, key).json() == first.json()


def test_the_same_key_with_another_body_is_422(service: Service, customer: dict[str, Any], key: str) -> None:
    post(service, customer, key)
    problem(post(service, {**customer, "Customer_Age": 46}, key), "idempotency-key-reused")


def test_requests_at_the_same_time_are_one_prediction(service: Service, customer: dict[str, Any], key: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(service, customer, key), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_the_key_holds_across_api_processes(
    service: Service, customer: dict[str, Any], key: str, tmp_path: Path
) -> None:
    other = Service(service.servers, tmp_path, {})
    other.api.start()
    try:
        until(lambda: other.answers("/livez"))
        assert post(service, customer, key).json() == post(other, customer, key).json()
    finally:
        other.api.stop()


@pytest.mark.parametrize("bad", ["", "x" * 256])
def test_a_key_that_makes_no_sense_is_400(service: Service, customer: dict[str, Any], bad: str) -> None:
    problem(post(service, customer, bad), "bad-header")


def test_a_request_that_is_still_being_accepted_is_409_and_an_abandoned_claim_is_free_in_seconds(
    service: Service, customer: dict[str, Any], key: str
) -> None:
    task_id = service.predict(customer)
    name = f"churn:idempotency:{sha256(key.encode()).hexdigest()}"
    post(service, customer, key)
    with redis.Redis.from_url(service.servers.backend_uri) as client:
        # An API process that died between its claim and the confirm has left this.
        claim = json.loads(client.get(name)) | {"accepted": False, "task_id": task_id}
        client.set(name, json.dumps(claim), ex=5)
    response = post(service, customer, key)
    problem(response, "idempotency-key-in-use")
    assert int(response.headers["retry-after"]) >= 1
    assert post(service, customer, key).json()["task_id"] != task_id  # which waited for the claim to end


class TestBreaking:
    """A service of its own, for it is broken."""

    @pytest.fixture(params=["valkey", "rabbitmq"])
    def service(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
        with running_servers(request.param, tmp_path) as own, running_service(own, tmp_path) as running:
            yield running

    def test_a_publish_that_fails_frees_the_key(self, service: Service, customer: dict[str, Any], key: str) -> None:
        with service.servers.broker.paused(), ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda _: post(service, customer, key), range(5)))
        assert {answer.status_code for answer in answers} <= {503, 409}
        until(lambda: post(service, customer, key).status_code == 202)
        assert service.ended(post(service, customer, key).json()["task_id"]).status_code == 200
