"""Stopping and replacing processes: running work is finished, no accepted prediction is lost, the exit code is 0."""

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.harness import marked_model
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api, running_service

Customer = dict[str, Any]
GRACE_S = 10  # the default of `docker stop`


@pytest.fixture
def has_begun(tmp_path: Path) -> Path:
    """The file that the model creates when it begins to predict."""
    return tmp_path / "has_begun"


@pytest.fixture
def service(servers: Servers, tmp_path: Path, has_begun: Path) -> Iterator[Service]:
    path = str(marked_model.save(tmp_path, marked_model.SlowModel(has_begun=has_begun)))
    with running_service(servers, tmp_path, MODEL_PATH=path) as running:
        has_begun.unlink(missing_ok=True)  # A model predicts once when it is loaded.
        yield running


def test_an_api_that_is_stopped_answers_its_open_requests(service: Service, customer: Customer) -> None:
    def send(path: str, body: bytes, length: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        headers = {"Content-Type": "application/json", "Content-Length": str(length)}
        connection.request("POST", path, body, headers)
        return connection

    def accepted(connection: http.client.HTTPConnection) -> dict[str, Any]:
        response = connection.getresponse()
        assert response.status == 202
        body: dict[str, Any] = json.loads(response.read())
        return body

    rows = json.dumps([customer]).encode()
    batch = send("/churn/batches", rows[:100], len(rows))
    with service.servers.store.paused():
        posted = {}
        for number in range(32):
            body = json.dumps({**customer, "Total_Trans_Ct": number}).encode()
            posted[send("/churn/predict", body, len(body))] = number / 1000
        assert service.answers("/livez")  # The API has read the earlier requests.
        service.api.signal(signal.SIGTERM)
        until(lambda: not service.answers("/livez"))  # It accepts no connection any more.
    batch.send(rows[100:])
    batch_id = accepted(batch)["batch_id"]
    probabilities = {accepted(connection)["task_id"]: probability for connection, probability in posted.items()}
    assert service.api.wait(GRACE_S) == 0

    service.api.start()
    until(service.answers)
    for task_id, probability in probabilities.items():
        assert service.ended(task_id).json()["probability"] == probability
    assert service.batch_ended(f"{service.url}/churn/batches/{batch_id}")["done"] == 1


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_api_ends_with_0(servers: Servers, tmp_path: Path, number: signal.Signals) -> None:
    with running_api(servers, tmp_path) as alone, requests.Session() as kept:
        kept.get(f"{alone.url}/livez", timeout=30)  # An idle connection does not delay the end.
        alone.api.signal(number)
        assert alone.api.wait(GRACE_S) == 0


def test_a_worker_that_is_stopped_finishes_its_message(service: Service, customer: Customer, has_begun: Path) -> None:
    url = service.batch_accepted([customer] * 100)  # It takes 2 s.
    until(has_begun.exists)
    assert service.worker.stop(within_s=GRACE_S) == 0
    state = service.batch(url).json()
    assert (state["done"], state["failed"]) == (100, 0)


def test_a_worker_that_is_stopped_raises_each_soft_time_limit_once(
    servers: Servers, tmp_path: Path, has_begun: Path, customer: Customer
) -> None:
    model = marked_model.SlowModel(has_begun=has_begun)
    # With WARM_UP the main process lets the model predict, and a new pool process does not.
    settings = {"MODEL_PATH": str(marked_model.save(tmp_path, model)), "WORKER_CONCURRENCY": "4", "WARM_UP": "true"}
    with running_service(servers, tmp_path, **settings) as service:
        task_ids = []
        for _ in range(4):
            has_begun.unlink(missing_ok=True)
            task_ids.append(service.predict({**customer, "Customer_Age": marked_model.SLEEPS}))
            until(has_begun.exists)
        assert service.worker.stop() == 0
        log = service.worker.text()
        assert all(f"attempt lost message_id={task_id}" in log for task_id in task_ids)
        assert "Exception raised outside body" not in log
        assert "Pool process" not in log  # the second signal has ended none that had reported its message
        assert "exiting without it" not in log


def test_replacing_each_process_under_load_loses_no_prediction(service: Service, customer: Customer) -> None:
    accepted: dict[str, float] = {}
    statuses: set[int] = set()
    stopped = threading.Event()

    def send(client: int) -> None:
        number = client
        while not stopped.is_set():
            body = {**customer, "Total_Trans_Ct": number % 1000}
            try:
                response = service.post(body)
            except requests.ConnectionError:  # The API is down.
                stopped.wait(0.05)
                continue
            statuses.add(response.status_code)
            if response.status_code == 202:
                accepted[response.json()["task_id"]] = body["Total_Trans_Ct"] / 1000
            number += 4
            stopped.wait(0.1)

    @contextmanager
    def load() -> Iterator[None]:
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(send, client) for client in range(4)]
            try:
                yield
            finally:
                stopped.set()
            for client in clients:
                client.result()

    def wait_for_more() -> None:
        goal = len(accepted) + 20
        until(lambda: len(accepted) >= goal)

    with load():
        wait_for_more()
        for process in (service.api, service.worker):
            assert process.stop(within_s=GRACE_S) == 0
            process.start()
            wait_for_more()
    assert statuses <= {202, 503}
    for task_id, probability in accepted.items():
        assert service.ended(task_id).json()["probability"] == probability
