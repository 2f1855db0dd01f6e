"""The metrics of running processes: docs/metrics.md is complete, the numbers are true, and a shared port is refused."""

import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psutil
import pytest

from celery_task_app.worker import PREDICT_TASK, PREDICTIONS
from tests.conftest import skip
from tests.harness import marked_model
from tests.harness.customers import Row
from tests.harness.metrics import Scrape, differences, documented, scrape
from tests.harness.processes import Process, free_port, until
from tests.harness.publishing import prediction_message, publish, publish_arguments, publish_dead_letter
from tests.harness.servers import Servers
from tests.harness.service import Service

Customer = dict[str, Any]
MOST_SERIES = 500


class Measured(Service):
    """A service that serves metrics."""

    @property
    def metrics_port(self) -> int:
        return int(self.settings["METRICS_PORT"])

    def scrape_api(self) -> Scrape:
        return scrape(self.metrics_port)

    def scrape_worker(self) -> Scrape:
        return scrape(self.metrics_port + 1)


@pytest.fixture(scope="module")
def measured(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """A service with the marked model, two pool processes and metrics."""
    folder = tmp_path_factory.mktemp("measured")
    settings = {
        "MODEL_PATH": str(marked_model.save(folder)),
        "WORKER_CONCURRENCY": "2",
        "METRICS_PORT": str(free_port()),
        "BATCH_CHUNK_ROWS": "50",
    }
    service = Measured(servers, folder, settings, "tests.harness.workers.impatient")
    try:
        service.start()
        yield service
    finally:
        service.stop()


def test_the_page_describes_the_live_metrics(measured: Measured, customer: Customer, rows: list[Row]) -> None:
    assert measured.post({**customer, "Gender": "X"}).status_code == 422
    measured.ended(measured.predict(customer))
    measured.batch_ended(measured.batch_accepted(rows))
    with measured.servers.redis() as client:
        client.config_set("maxmemory", "512mb")  # without a limit there is no gauge of it
        found = measured.scrape_api()
        client.config_set("maxmemory", "0")
    assert differences(found.families, documented("API")) == []
    assert differences(measured.scrape_worker().families, documented("worker")) == []
    assert len(measured.scrape_api().series) < MOST_SERIES
    assert len(measured.scrape_worker().series) < MOST_SERIES


def test_promtool_finds_no_fault(measured: Measured) -> None:
    promtool = shutil.which("promtool") or ""
    if not promtool:
        skip("not installed: promtool (Debian package prometheus)")
    for found in (measured.scrape_api(), measured.scrape_worker()):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=found.text, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_accepted_customer_is_in_the_numbers_of_both_processes(
    measured: Measured, customer: Customer, rows: list[Row]
) -> None:
    before, worker_before = measured.scrape_api(), measured.scrape_worker()
    for task_id in [measured.predict(customer) for _ in range(30)]:
        measured.ended(task_id)
    measured.batch_ended(measured.batch_accepted(rows))
    after, worker_after = measured.scrape_api(), measured.scrape_worker()

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    def worker_grown(name: str, **labels: str) -> float:
        return worker_after.value(name, **labels) - worker_before.value(name, **labels)

    assert grown("churn_accepted_total") == grown("churn_ended_total", state="success") == 30
    assert grown("churn_submissions_total", outcome="accepted") == 30
    assert grown("churn_message_customers_sum") == 30
    assert grown("churn_batch_rows_accepted_total") == grown("churn_batch_rows_ended_total", state="success") == 120
    assert grown("churn_batches_total", outcome="accepted") == 1
    predict = {"route": "/churn/predict", "method": "POST", "status": "202"}
    assert grown("churn_http_requests_total", **predict) == 30
    assert 0 < grown("churn_http_request_seconds_total", **predict) < 30
    assert after.value("churn_waiting_customers") == after.value("churn_waiting_batch_rows") == 0
    assert after.value("churn_workers", state="loaded") == 1
    assert {after.value("churn_consuming_workers", queue=queue) for queue in ("churn", "churn.batch")} == {1}
    assert worker_grown("churn_worker_customers_total", kind="predictions") == 30
    assert worker_grown("churn_worker_customers_total", kind="rows") == 120
    messages = grown("churn_message_customers_count")
    assert worker_grown("churn_queue_wait_seconds_count", kind="predictions") == messages
    assert 0 < worker_grown("churn_queue_wait_seconds_sum", kind="predictions") < 30 * messages
    assert worker_grown("churn_predict_seconds_count", kind="rows") == 3
    assert worker_after.value("churn_model_load_seconds") > 0


def test_waiting_customers_and_waiters_are_shown(measured: Measured, customer: Customer) -> None:
    with measured.worker.paused():
        ids = [measured.predict(customer) for _ in range(3)]
        until(lambda: measured.scrape_api().value("churn_waiting_customers") == 3)
        until(lambda: measured.scrape_api().value("churn_oldest_waiting_seconds") > 0)
        queue = measured.get("/churn/queue").json()
        assert queue["predictions"]["waiting"] == 3
        assert queue["estimated_s"] > 0
    for task_id in ids:
        measured.ended(task_id)
    until(lambda: measured.get("/churn/queue").json()["predictions"]["waiting"] == 0)


def test_lost_split_malformed_and_dead_messages_are_counted(measured: Measured, customer: Customer) -> None:
    before = measured.scrape_worker()
    poisonous = measured.predict({**customer, "Customer_Age": marked_model.KILLS})
    assert measured.ended(poisonous, within_s=60).status_code == 500
    publish_dead_letter(measured.servers, prediction_message({str(uuid4()): customer}))
    publish_arguments(measured.servers, {"no": "customers"}, PREDICT_TASK, PREDICTIONS)
    publish(measured.servers, prediction_message({str(uuid4()): customer}))

    def grown(name: str, **labels: str) -> float:
        return measured.scrape_worker().value(name, **labels) - before.value(name, **labels)

    def messages(outcome: str) -> float:
        return grown("churn_worker_messages_total", kind="predictions", outcome=outcome)

    until(lambda: messages("malformed") == 1)
    until(lambda: grown("churn_dead_letters_total", kind="predictions") == 1)
    until(lambda: messages("predicted") == 2)
    assert messages("lost") == 4


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_the_service_wide_numbers_survive_a_restart_of_every_process(measured: Measured, customer: Customer) -> None:
    measured.ended(measured.predict(customer))
    names = ("churn_accepted_total", "churn_waiting_customers", "churn_batch_rows_accepted_total")
    before = [measured.scrape_api().value(name) for name in names]
    for process in (measured.api, measured.worker):
        process.restart(process.env)
    measured.await_answer("/readyz", measured.api, measured.worker)
    assert [measured.scrape_api().value(name) for name in names] == before
    assert measured.scrape_api().value("churn_submissions_total", outcome="accepted") == 0


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_a_killed_worker_frees_its_port(measured: Measured) -> None:
    children = psutil.Process(measured.worker.pid).children()
    psutil.Process(measured.worker.pid).kill()  # not its pool processes
    measured.worker.wait()
    with socket.create_server(("127.0.0.1", measured.metrics_port + 1)):
        pass
    for child in children:
        child.kill()
    measured.worker.start()
    measured.await_answer("/readyz", measured.worker)
    until(lambda: measured.worker.text().count("metrics served") >= 2)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_a_frozen_result_store_leaves_the_numbers_of_the_process(measured: Measured) -> None:
    with measured.servers.store.paused():
        found = measured.scrape_api()
        assert found.value("churn_result_store_up") == 0
        assert "churn_accepted_total" not in found.text
        assert 'churn_submissions_total{outcome="accepted"}' in found.text
    until(lambda: measured.scrape_api().value("churn_result_store_up") == 1)
    until(measured.answers)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_a_body_that_is_too_slow_is_counted_once(measured: Measured) -> None:
    with measured.api.restarted_with(BODY_TIMEOUT_S="1"):
        measured.await_answer("/readyz", measured.api)
        with socket.create_connection(("127.0.0.1", measured.port), timeout=30) as connection:
            head = (
                "POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408")

        def outcomes() -> dict[str, float]:
            found = measured.scrape_api()
            return {name: found.value("churn_submissions_total", outcome=name) for name in ("body-timeout", "not-json")}

        until(lambda: outcomes() == {"body-timeout": 1, "not-json": 0})
        found = measured.scrape_api()
        route = {"route": "/churn/predict", "method": "POST"}
        assert found.value("churn_http_requests_total", **route, status="408") == 1
        assert found.value("churn_http_refused_connections_total") == 1
    measured.await_answer("/readyz", measured.api)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_random_requests_add_no_series(measured: Measured, customer: Customer) -> None:
    draw = random.Random(0)

    def send(count: int) -> None:
        for number in range(count):
            word = f"{draw.getrandbits(64):x}"
            path = ("/", "/churn/", "/churn/result/", "/churn/batches/")[number % 4] + word
            measured.request(draw.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS"]), path)
            measured.post({**customer, "Gender": "X"}, Idempotency_Key=word)

    send(100)
    before = measured.scrape_api()
    send(400)
    assert measured.scrape_api().series == before.series


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
@pytest.mark.parametrize(
    "program",
    [
        ["-m", "uvicorn", "app:app", "--workers", "3", "--port", "PORT"],
        ["-m", "celery", "-A", "celery_task_app.worker", "worker"],
    ],
    ids=["uvicorn --workers 3", "a second worker"],
)
def test_processes_that_would_share_a_port_do_not_start(measured: Measured, program: list[str]) -> None:
    is_worker = "worker" in program
    port = measured.metrics_port if is_worker else free_port()
    command = [sys.executable, *(str(free_port()) if part == "PORT" else part for part in program)]
    log = measured.folder / f"refused-{port}.log"
    env = {**measured.servers.env, "METRICS_PORT": str(port)}
    process = Process(command, log, env)
    process.start()
    try:
        assert process.wait(60) == 1 if is_worker else process.wait(60) is not None
    finally:
        process.kill()
    used = port + 1 if is_worker else port
    assert f"the metrics of this process need 127.0.0.1:{used}, which cannot be used" in log.read_text()
    assert "METRICS_PORT=0" in log.read_text()


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_without_the_setting_no_metrics_are_served(servers: Servers, measured: Measured) -> None:
    with measured.api.restarted_with(METRICS_PORT="0"):
        measured.await_answer("/livez", measured.api)
        with socket.create_server(("127.0.0.1", measured.metrics_port)):
            pass
    measured.await_answer("/readyz", measured.api)
