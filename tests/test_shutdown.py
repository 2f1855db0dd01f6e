"""Stopping and replacing: what was begun is finished, what was accepted is not lost, and the exit code is 0."""

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

from tests import marked_model
from tests.processes import Servers, Service, running_service, until

GRACE_S = 10  # as docker stop has it


@pytest.fixture
def service(servers: Servers, tmp_path: Path) -> Iterator[Service]:
    path = str(marked_model.save(tmp_path, marked_model.SlowModel()))
    with running_service(servers, tmp_path, MODEL_PATH=path) as running:
        yield running


def test_an_api_that_is_stopped_answers_what_it_has_begun(service: Service, customer: dict[str, Any]) -> None:
    def send(path: str, body: bytes, length: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        headers = {"Content-Type": "application/json", "Content-Length": str(length)}
        connection.request("POST", path, body, headers)
        return connection

    def answer(connection: http.client.HTTPConnection) -> dict[str, Any]:
        response = connection.getresponse()
        assert response.status == 202
        return json.loads(response.read())  # type: ignore[no-any-return]

    rows = json.dumps([customer]).encode()
    batch = send("/churn/batches", rows[:100], len(rows))
    with service.servers.store.paused():
        posted = {}
        for number in range(32):
            body = json.dumps({**customer, "Total_Trans_Ct": number}).encode()
            posted[send("/churn/predict", body, len(body))] = number / 1000
        assert service.answers("/livez")  # so it has read what came before
        service.api.signal(signal.SIGTERM)
        until(lambda: "Shutting down" in service.api.text())
    batch.send(rows[100:])
    batch_id = answer(batch)["batch_id"]
    accepted = {answer(connection)["task_id"]: probability for connection, probability in posted.items()}
    assert service.api.popen is not None
    assert service.api.popen.wait(GRACE_S) == 0

    service.api.start()
    until(service.answers)
    for task_id, probability in accepted.items():
        assert service.ended(task_id).json()["probability"] == probability
    until(lambda: requests.get(f"{service.url}/churn/batches/{batch_id}", timeout=30).json()["done"] == 1)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_api_ends_with_0(servers: Servers, tmp_path: Path, number: signal.Signals) -> None:
    alone = Service(servers, tmp_path, {})
    alone.api.start()
    until(lambda: alone.answers("/livez"))
    with requests.Session() as kept:  # a connection that stays open holds up nothing
        kept.get(f"{alone.url}/livez", timeout=30)
        alone.api.signal(number)
        assert alone.api.popen is not None
        assert alone.api.popen.wait(GRACE_S) == 0


def test_a_worker_that_is_stopped_finishes_the_message_at_hand(service: Service, customer: dict[str, Any]) -> None:
    batch = requests.post(f"{service.url}/churn/batches", json=[customer] * 100, timeout=30)  # takes 2 s
    until(lambda: "score_chunk" in service.worker.text() and "received" in service.worker.text())
    assert service.worker.stop(within_s=GRACE_S) == 0
    state = requests.get(service.url + batch.headers["location"], timeout=30).json()
    assert (state["done"], state["failed"]) == (100, 0)


def test_replacing_each_process_under_load_loses_nothing(service: Service, customer: dict[str, Any]) -> None:
    accepted: dict[str, float] = {}
    statuses: set[int] = set()
    stopped = threading.Event()

    def send(client: int) -> None:
        number = client
        while not stopped.is_set():
            body = {**customer, "Total_Trans_Ct": number % 1000}
            try:
                response = requests.post(f"{service.url}/churn/predict", json=body, timeout=30)
            except requests.ConnectionError:  # nobody listens: that is no answer
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

    def accepted_more() -> None:
        goal = len(accepted) + 20
        until(lambda: len(accepted) >= goal)

    with load():
        accepted_more()
        for process in (service.api, service.worker):
            assert process.stop(within_s=GRACE_S) == 0
            process.start()
            accepted_more()
    assert statuses <= {202, 503}
    for task_id, probability in accepted.items():
        assert service.ended(task_id).json()["probability"] == probability
