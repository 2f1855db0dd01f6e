"""Several processes are one service: a client relies on nothing in the memory of one of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests

from celery_task_app.store.predictions import COMPLETIONS
from tests.harness import marked_model
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

# The processes share state through the result store. tests/e2e/test_workers.py has two workers on each broker.
pytestmark = pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)

Customer = dict[str, Any]


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two API processes, and a worker with two pool processes."""
    folder = tmp_path_factory.mktemp("service")
    settings = {"WEB_CONCURRENCY": "2", "WORKER_CONCURRENCY": "2", "MODEL_PATH": str(marked_model.save(folder))}
    with running_service(servers, folder, **settings) as running, servers.redis() as client:
        until(lambda: client.pubsub_numsub(COMPLETIONS)[0][1] == 2)  # Both API processes have started.
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_each_waiter_gets_its_own_prediction_from_either_process(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    def probability(number: int) -> float:
        response = service.post(customer | {"Total_Trans_Ct": number}, Prefer="wait=20")
        assert response.status_code == 200, response.text
        return float(response.json()["probability"]) * 1000

    assert list(pool.map(probability, range(300))) == pytest.approx(list(range(300)))
    used = [process.cpu_times().user for process in psutil.Process(service.worker.pid).children()]
    assert len(used) == 2
    assert min(used) > 0


def test_a_process_can_wait_for_a_prediction_of_the_other(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    def result(task_id: str) -> int:
        return service.result(task_id, Prefer="wait=20").status_code  # on a new connection, to either process

    task_ids = [service.predict(customer) for _ in range(10)]
    assert set(pool.map(result, task_ids * 10)) == {200}


def test_an_idempotency_key_is_one_prediction_in_both_processes(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    answers = list(pool.map(lambda _: service.post(customer, Idempotency_Key="scaling"), range(64)))
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_a_batch_is_one_batch_in_both_processes(service: Service, customer: Customer, pool: ThreadPoolExecutor) -> None:
    rows = [customer | {"Total_Trans_Ct": number % 1000} for number in range(5_000)]
    url = service.batch_accepted(rows)
    service.batch_ended(url)

    def results(_: int) -> requests.Response:
        return service.batch_results(url, "application/json")

    for answer in pool.map(results, range(8)):
        assert [row["probability"] for row in answer.json()] == [row["Total_Trans_Ct"] / 1000 for row in rows]
