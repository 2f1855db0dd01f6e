"""Back-pressure: a full queue is 429 with an honest Retry-After, and accepted predictions still end."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from api.http.problems import ProblemType
from tests.harness import marked_model
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

Customer = dict[str, Any]
HIGH_WATER = 40


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("backpressure")
    limits = {"QUEUE_HIGH_WATER": str(HIGH_WATER), "BATCH_HIGH_WATER": "100", "BATCH_CHUNK_ROWS": "10"}
    with running_service(servers, folder, MODEL_PATH=str(marked_model.save(folder)), **limits) as running:
        yield running


def test_a_full_queue_is_429_and_accepted_predictions_end(service: Service, customer: Customer) -> None:
    accepted: dict[str, float] = {}

    def post() -> requests.Response:
        number = len(accepted) % 1000
        response = service.post({**customer, "Total_Trans_Ct": number})
        if response.status_code == 202:
            accepted[response.json()["task_id"]] = number / 1000
        return response

    with service.worker.paused():
        (refused,) = until(lambda: [response for response in [post()] if response.status_code != 202])
        assert_problem(refused, ProblemType.OVERLOADED)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert len(accepted) > HIGH_WATER
        assert service.answers("/livez")
    until(lambda: post().status_code == 202)
    for task_id, probability in accepted.items():
        assert service.ended(task_id).json()["probability"] == probability


def test_batches_have_a_limit_of_their_own(service: Service, customer: Customer) -> None:
    accepted: list[str] = []

    def post() -> requests.Response:
        response = service.request("POST", "/churn/batches", json=[customer] * 60)
        if response.status_code == 202:
            accepted.append(service.batch_url(response))
        return response

    with service.worker.paused():
        (refused,) = until(lambda: [response for response in [post()] if response.status_code != 202])
        assert_problem(refused, ProblemType.OVERLOADED)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        service.predict(customer)
    until(lambda: post().status_code == 202)
    for url in accepted:
        service.batch_ended(url)
