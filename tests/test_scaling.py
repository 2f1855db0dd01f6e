"""More processes are one service: nothing that a client relies on is in the memory of one of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests

from tests import marked_model
from tests.processes import Servers, Service, running_service, until


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two API processes, and a worker with two."""
    folder = tmp_path_factory.mktemp("service")
    settings = {"WEB_CONCURRENCY": "2", "WORKER_CONCURRENCY": "2", "MODEL_PATH": str(marked_model.save(folder))}
    with running_service(servers, folder, **settings) as running:
        until(lambda: running.api.text().count("Application startup complete") == 2)
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def post(service: Service, customer: dict[str, Any], **headers: str) -> requests.Response:
    url, names = f"{service.url}/churn/predict", {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(url, json=customer, headers=names, timeout=30)


def test_every_client_that_waits_gets_its_own_prediction_whichever_process_it_asks(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    def probability(number: int) -> float:
        answer = post(service, customer | {"Total_Trans_Ct": number}, Prefer="wait=20")
        assert answer.status_code == 200, answer.text
        return answer.json()["probability"] * 1000

    assert list(pool.map(probability, range(300))) == pytest.approx(list(range(300)))
    used = [process.cpu_times().user for process in psutil.Process(service.worker.pid).children()]
    assert len(used) == 2
    assert min(used) > 0


def test_a_prediction_that_one_process_accepted_another_waits_for(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    def result(task_id: str) -> int:
        url, headers = f"{service.url}/churn/result/{task_id}", {"Prefer": "wait=20"}
        return requests.get(url, headers=headers, timeout=30).status_code  # a connection of its own, to either

    task_ids = [service.predict(customer) for _ in range(10)]
    assert set(pool.map(result, task_ids * 10)) == {200}


def test_one_idempotency_key_is_one_prediction_in_all_processes(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    answers = list(pool.map(lambda _: post(service, customer, Idempotency_Key="scaling"), range(64)))
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_a_batch_is_one_batch_in_all_processes(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    rows = [customer | {"Total_Trans_Ct": number % 1000} for number in range(5_000)]
    accepted = requests.post(f"{service.url}/churn/batches", json=rows, timeout=30)
    where = service.url + accepted.headers["Location"]
    until(lambda: requests.get(where, timeout=30).status_code == 200)
    answers = pool.map(lambda _: requests.get(f"{where}/results", headers={"Accept": "application/json"}), range(8))
    for answer in answers:
        assert [row["probability"] for row in answer.json()] == [row["Total_Trans_Ct"] / 1000 for row in rows]
