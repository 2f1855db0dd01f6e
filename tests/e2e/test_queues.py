"""Queues and brokers that change: a worker waits for them, and consumes every queue that the service uses."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import QueueNotFound
from kombu import Queue

from celery_task_app.worker import BATCHES, DEAD, PREDICT_TASK, PREDICTIONS, app
from tests.harness.processes import Process, await_connections, until
from tests.harness.proxy import proxy
from tests.harness.servers import Servers, embedded_valkey, start_redis
from tests.harness.service import Service, running_api, running_service

# A queue of Valkey is a list: it exists only while it has messages, and has no arguments.
on_rabbitmq = pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)


@pytest.fixture(scope="module")
def api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API without a worker, on which an earlier worker has declared the queues."""
    with running_api(servers, tmp_path_factory.mktemp("api")) as api:
        with api.worker.running():
            until(api.answers)
        yield api


@on_rabbitmq
def test_only_the_used_queues_are_declared(api: Service) -> None:
    names = api.servers.rabbitmqctl("list_queues", "--no-table-headers", "name").split()
    declared = {name for name in names if not name.startswith(("celery@", "celeryev"))}
    assert declared == {PREDICTIONS.name, BATCHES.name, DEAD.name} == {"churn", "churn.batch", "churn.dead"}


@on_rabbitmq
def test_a_message_that_reached_its_delivery_limit_is_predicted(api: Service, customer: dict[str, Any]) -> None:
    task_id = api.predict(customer)
    with api.servers.connection() as connection:
        queue = PREDICTIONS(connection.default_channel)

        def requeued() -> int:
            deliveries = 0
            while message := queue.get():
                message.requeue()  # as if its worker had died
                deliveries += 1
            return deliveries

        assert requeued() == 21
    until(lambda: api.servers.depth(DEAD) == 1)
    with api.worker.running():
        assert api.ended(task_id).status_code == 200
        until(api.servers.is_empty)


@on_rabbitmq
def test_a_worker_waits_until_a_queue_has_the_right_arguments(api: Service, tmp_path: Path) -> None:
    with api.servers.connection() as connection, proxy(api.servers.broker_port) as between:
        channel = connection.default_channel
        PREDICTIONS(channel).delete()
        classic = Queue(PREDICTIONS.name, channel=channel, queue_arguments={"x-queue-type": "classic"})
        classic.queue_declare()
        env = {**api.worker.env, "BROKER_URI": api.servers.broker_uri_at(between.port)}
        with Process(api.worker.command, tmp_path / "worker.log", env).running():
            # RabbitMQ closes a connection of the worker at each declaration: PRECONDITION_FAILED.
            until(lambda: between.accepted >= 5)
            classic.delete()
            until(api.answers)


@on_rabbitmq
def test_a_worker_consumes_a_queue_that_was_deleted_under_load(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    deleted = threading.Event()
    accepted: list[str] = []

    def send(service: Service) -> None:
        while not deleted.is_set():
            response = service.post(customer)
            if response.status_code == 202:
                accepted.append(response.json()["task_id"])

    with ThreadPoolExecutor() as clients, running_service(servers, tmp_path) as service:
        for _ in range(4):
            clients.submit(send, service)
        until(lambda: len(accepted) > 100)
        service.ended(accepted[100])
        servers.rabbitmqctl("delete_queue", PREDICTIONS.name)
        deleted.set()
        assert service.ended(service.predict(customer), within_s=60).status_code == 200


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_a_worker_waits_for_a_broker_that_starts_later(servers: Servers, tmp_path: Path) -> None:
    broker, port = start_redis(tmp_path / "broker", embedded_valkey())
    late = replace(servers, broker=broker, broker_uri=f"redis://127.0.0.1:{port}/0")
    try:
        with running_service(late, tmp_path) as service:
            assert service.worker.stop() == 0
            broker.kill()
            service.worker.start()
            await_connections(port, 1)
            broker.start()
            until(service.answers)
    finally:
        broker.kill()


def test_a_misspelt_queue_is_an_error(servers: Servers) -> None:
    with servers.connection() as connection, pytest.raises(QueueNotFound):
        app.send_task(PREDICT_TASK, kwargs={}, queue="chrun", ignore_result=True, connection=connection)
