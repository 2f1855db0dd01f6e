"""Several workers, outages of the broker, and programs on the broker: each worker consumes, and none obeys them."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celery_task_app.messaging.messages import ChunkMessage
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.worker import BATCHES
from tests.harness import marked_model
from tests.harness.customers import Row
from tests.harness.processes import ROOT, await_connections, until
from tests.harness.publishing import publish_dead_letter
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service


def inspect(service: Service, command: str) -> str:
    """Return the output of `celery inspect`, for all workers of the broker."""
    program = [sys.executable, "-m", "celery", "-A", "celery_task_app.worker", "inspect", "-t", "1", command]
    env = {**os.environ, **service.servers.env}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def cleared(servers: Servers) -> Servers:
    """Servers that know no worker of an earlier test, because a test counts all workers."""
    servers.clear()
    return servers


@pytest.mark.parametrize("remote_control", ["false", "true"])
def test_two_workers_of_one_host_both_consume(
    cleared: Servers, tmp_path: Path, customer: dict[str, Any], remote_control: str
) -> None:
    settings = {"MODEL_PATH": str(marked_model.save(tmp_path)), "REMOTE_CONTROL": remote_control}
    (tmp_path / "second").mkdir()
    other_model = str(marked_model.save(tmp_path / "second", marked_model.SlowModel(per_customer_s=0)))
    second = Service(cleared, tmp_path / "second", {**settings, "MODEL_PATH": other_model})
    with running_service(cleared, tmp_path, **settings) as first, second.worker.running():
        until(lambda: len(first.readiness()["workers"]) == 2)
        if cleared.name == "rabbitmq":
            until(lambda: first.readiness()["consumers"] == {"churn": 2, "churn.batch": 2})

        versions = set()

        def both_have_predicted() -> bool:
            response = first.post(customer, Prefer="wait=20")
            assert response.status_code == 200
            versions.add(response.json()["model_version"])
            return len(versions) == 2

        until(both_have_predicted)
        assert "RESOURCE_LOCKED" not in first.worker.text() + second.worker.text()


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_workers_with_queues_of_their_own_are_one_service(
    cleared: Servers, tmp_path: Path, customer: Row, rows: list[Row]
) -> None:
    """deploy/kubernetes has such workers. Those of predictions get the dead letters of batches too."""
    settings = {"MODEL_PATH": str(marked_model.save(tmp_path)), "BATCH_CHUNK_ROWS": "50"}
    (tmp_path / "batches").mkdir()
    first = Service(cleared, tmp_path, settings, "tests.harness.workers.impatient")
    second = Service(cleared, tmp_path / "batches", settings, "tests.harness.workers.impatient")
    first.worker.command = [*first.worker.command, "-Q", "churn,churn.dead"]
    second.worker.command = [*second.worker.command, "-Q", "churn.batch"]
    dead_batch = str(uuid4())
    with closing(BatchStore(connect(cleared.backend_uri), result_ttl_s=86_400)) as store:
        store.create(dead_batch, 1, 1)
    chunk = ChunkMessage.from_columns(dead_batch, 0, [0], {name: [value] for name, value in customer.items()})
    poison = {**customer, "Customer_Age": marked_model.KILLS}
    with first.api.running(), first.worker.running():
        first.await_answer("/readyz?without=workers", first.api)
        until(lambda: list(first.readiness()["workers"].values())[:1])
        assert first.ended(first.predict(customer)).status_code == 200
        batch = first.batch_accepted([*rows, poison])  # no worker has ever declared its queue
        publish_dead_letter(cleared, chunk)
        until(lambda: cleared.depth(BATCHES) == 4)  # three chunks, and the row of the dead letter
        assert "churn.batch" in first.readiness()["detail"]
        with second.worker.running():
            first.await_answer("/readyz", first.api, second.worker)
            assert first.batch_ended(batch, within_s=60)["failed"] == 1
            first.batch_ended(f"{first.url}/churn/batches/{dead_batch}")
            assert first.ended(first.predict(poison), within_s=60).status_code == 500
            until(cleared.is_empty)


def test_no_worker_obeys_a_program_on_the_broker(cleared: Servers, tmp_path: Path) -> None:
    with running_service(cleared, tmp_path) as service:
        assert "pong" not in inspect(service, "ping")


def test_remote_control_answers_without_the_values_of_customers(
    cleared: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    settings = {"MODEL_PATH": str(marked_model.save(tmp_path)), "REMOTE_CONTROL": "true"}
    with running_service(cleared, tmp_path, "tests.harness.workers.late", **settings) as service:
        assert "pong" in inspect(service, "ping")
        sleeping = {**customer, "Customer_Age": marked_model.SLEEPS, "Credit_Limit": 987654.5}
        task_ids = [service.predict(sleeping) for _ in range(4)]

        def listed() -> str:
            return inspect(service, "active") + inspect(service, "reserved")

        until(lambda: listed().count("predict_churn") >= 2)
        assert "987654.5" not in listed()
        for task_id in task_ids:
            service.delete(task_id)


def test_a_worker_consumes_within_seconds_of_the_return_of_the_broker(
    cleared: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    with running_service(cleared, tmp_path, MODEL_PATH=str(marked_model.save(tmp_path))) as service:
        # RabbitMQ 3.10 never finds a leader for a queue that is lost just after its declaration.
        started = time.monotonic()
        until(lambda: service.post(customer, Prefer="wait=5").ok and time.monotonic() - started > 4)
        cleared.broker.kill()
        # Celery's own pauses are 2, 4, 6 ... s; after 7 s the next one is longer than the limit of this test.
        await_connections(cleared.broker_port, 5)
        cleared.broker.start()
        until(lambda: service.post(customer).status_code == 202, within_s=60)
        accepted = time.monotonic()
        assert service.post(customer, Prefer="wait=20").status_code == 200
        assert time.monotonic() - accepted < 5
        until(service.answers, within_s=10)
