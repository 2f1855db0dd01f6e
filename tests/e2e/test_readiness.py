"""Readiness: /readyz names the state of each part, and is 503 if no prediction can be computed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.http.problems import ProblemType
from tests.conftest import MANIFEST, need_libfaketime
from tests.harness import marked_model
from tests.harness.assertions import assert_problem
from tests.harness.clocks import clock_env
from tests.harness.processes import ROOT, free_port, until
from tests.harness.servers import Servers, embedded_valkey, running_servers, start_redis
from tests.harness.service import Service, running_api, running_service


def test_readiness_names_each_part(service: Service) -> None:
    def loaded() -> dict[str, Any]:
        body = service.readiness()
        return body if [status["model"] for status in body["workers"].values()] == ["loaded"] else {}

    body = until(loaded)
    ((name, status),) = body.pop("workers").items()
    consumers = {"churn": 1, "churn.batch": 1} if service.servers.name == "rabbitmq" else {}
    up = dict.fromkeys(("broker", "result_store", "subscription", "submissions", "completions"), "up")
    messages = {"churn": 0, "churn.batch": 0}
    assert body == {"status": "ready", **up, "messages": messages, "consumers": consumers, "warnings": []}
    assert name.startswith("celery@")
    assert abs(status.pop("clock_skew_s")) < 1
    queues = ["churn", "churn.batch", "churn.dead"]
    assert status == {
        "model": "loaded",
        "detail": MANIFEST["version"],
        "queues": queues,
        "name": MANIFEST["name"],
        "sha256": MANIFEST["sha256"],
        "explains": True,
    }


# Each of these takes 15 s, and does not depend on the broker.
on_valkey = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze one process, but not its children."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@on_valkey
def test_a_frozen_worker_is_not_ready_within_20_s(service: Service) -> None:
    with frozen(service.worker.pid):
        until(lambda: not service.answers(), within_s=20)
        body = assert_problem(service.get("/readyz"), ProblemType.NOT_READY)
        assert (body["broker"], body["result_store"], body["workers"]) == ("up", "up", {})
        assert service.answers("/readyz?without=workers")
        assert healthcheck(service, "--hang") == 1
    until(service.answers)
    assert healthcheck(service, "--hang") == 0


def test_a_worker_that_completes_nothing_for_10_s_is_not_ready(tmp_path: Path, customer: dict[str, Any]) -> None:
    path = str(marked_model.save(tmp_path))
    with (
        running_servers("valkey", tmp_path) as servers,
        running_service(servers, tmp_path, MODEL_PATH=path) as service,
    ):
        sleeping = {**customer, "Customer_Age": marked_model.SLEEPS}
        task_ids = [service.predict(sleeping) for _ in range(4)]  # each has four attempts of 5 s; two are prefetched
        until(lambda: not service.answers())
        body = assert_problem(service.get("/readyz"), ProblemType.NOT_READY)
        assert body["detail"].startswith("Predictions are not computed: none has ended since one was published 1")
        assert [status["model"] for status in body["workers"].values()] == ["loaded"]
        without = service.get("/readyz?without=workers")
        assert (without.status_code, without.json()["completions"] != "up") == (200, True)
        for task_id in task_ids:
            service.delete(task_id)
        until(service.answers)


def healthcheck(service: Service, *options: str) -> int:
    """Run the health check of the worker's container; return its exit code."""
    command = [sys.executable, "-m", "celery_task_app.consumer.healthcheck", *options]
    env = {**os.environ, **service.worker.env}
    return subprocess.run(command, cwd=ROOT, env=env, timeout=30, check=False).returncode


@on_valkey
def test_a_frozen_pool_process_is_not_ready_within_20_s_and_is_replaced(service: Service) -> None:
    assert healthcheck(service) == 0
    (child,) = psutil.Process(service.worker.pid).children()
    child.suspend()
    until(lambda: not service.answers(), within_s=20)
    (status,) = assert_problem(service.get("/readyz"), ProblemType.NOT_READY)["workers"].values()
    assert status["model"] == "stuck"
    assert healthcheck(service) == 1
    assert healthcheck(service, "--hang") == 0  # the worker replaces the process
    until(service.answers)
    assert healthcheck(service) == 0


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_worker_without_the_broker_is_not_healthy_and_does_not_hang(service: Service) -> None:
    with service.worker.restarted_with(BROKER_URI=service.servers.broker_uri_at(free_port())):
        until(lambda: "Cannot connect" in service.worker.text())
        assert healthcheck(service) == 1
        assert healthcheck(service, "--hang") == 0
    until(service.answers, within_s=60)


def test_without_workers_predictions_are_accepted_and_wait(service: Service, customer: dict[str, Any]) -> None:
    service.worker.stop()
    until(lambda: not service.answers())
    answer = service.get("/readyz?without=workers")
    assert (answer.status_code, answer.json()["status"], answer.json()["workers"]) == (200, "ready", {})
    task_id = service.predict(customer)
    batch = service.batch_accepted([customer])
    service.worker.start()
    assert service.ended(task_id, within_s=60).status_code == 200
    service.batch_ended(batch)
    until(service.answers)
    assert_problem(service.get("/readyz?without=broker"), ProblemType.BAD_PARAMETER)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_memory_alarm_of_the_broker_is_named(service: Service, customer: dict[str, Any]) -> None:
    service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
    try:
        until(lambda: "alarm" in service.readiness()["broker"])
        assert "alarm" in assert_problem(service.post(customer), ProblemType.UNAVAILABLE)["detail"]
    finally:
        service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
    until(service.answers)


def test_a_worker_without_a_queue_is_not_ready(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        service = Service(stack.enter_context(running_servers("valkey", tmp_path)), tmp_path, {})
        service.worker.command = [*service.worker.command, "-Q", "churn.batch", "-n", "named@%h"]
        stack.enter_context(service.api.running())
        stack.enter_context(service.worker.running())
        service.await_answer("/livez", service.api)
        until(lambda: any(name.startswith("named@") for name in service.readiness()["workers"]))
        until(lambda: healthcheck(service) == 0)  # the check needs no name
        detail = assert_problem(service.get("/readyz"), ProblemType.NOT_READY)["detail"]
        assert "No worker that can predict consumes `churn`" in detail
        assert "churn.batch" not in detail


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_queue_without_a_leader_is_not_ready_and_not_full(service: Service, customer: dict[str, Any]) -> None:
    server = "{'%2F_churn', node()}"
    service.servers.rabbitmqctl("eval", f"ra:stop_server(quorum_queues, {server}).")
    try:
        until(lambda: "`churn`" in service.readiness().get("detail", ""), within_s=10)
        answers = [service.post(customer) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {503}
    finally:
        service.servers.rabbitmqctl("eval", f"ra:restart_server(quorum_queues, {server}).")
    until(lambda: service.post(customer).status_code == 202, within_s=10)
    until(service.answers, within_s=10)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize(("uri", "reason"), [("guest:wrong@", "ACCESS_REFUSED"), ("guest:guest@", "vhost")])
def test_a_refused_login_and_a_missing_vhost_are_named(servers: Servers, tmp_path: Path, uri: str, reason: str) -> None:
    address = servers.broker_uri.replace("guest:guest@", uri)
    broker_uri = address if "wrong" in uri else address.removesuffix("//") + "/missing"
    with running_api(servers, tmp_path, BROKER_URI=broker_uri) as api:
        body = assert_problem(api.get("/readyz"), ProblemType.NOT_READY)
        assert_problem(api.get("/readyz?without=workers"), ProblemType.NOT_READY)
        assert reason.lower() in body["broker"].lower()
        assert "wrong" not in body["broker"]


@on_valkey
def test_a_store_that_refuses_writes_is_not_ready(servers: Servers, tmp_path: Path) -> None:
    with running_api(servers, tmp_path) as api, servers.redis() as client:
        client.config_set("maxmemory", "1")
        try:
            until(lambda: api.readiness()["result_store"] != "up")
        finally:
            client.config_set("maxmemory", "0")
        until(lambda: api.readiness()["result_store"] == "up")


def test_a_redis_cluster_is_named(tmp_path: Path) -> None:
    store, port = start_redis(
        tmp_path / "cluster", embedded_valkey(), more=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    )
    with contextlib.ExitStack() as stack:
        stack.callback(store.kill)
        broker = stack.enter_context(running_servers("valkey", tmp_path))
        api = stack.enter_context(running_api(broker, tmp_path, BACKEND_URI=f"redis://127.0.0.1:{port}/0"))
        assert "Redis Cluster" in api.readiness()["result_store"]


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_flood_of_probes_causes_one_check_a_second(service: Service) -> None:
    log = Path(service.servers.broker.env["RABBITMQ_LOG_BASE"])

    def logged() -> int:
        return sum(path.read_text(errors="replace").count("authenticated and granted") for path in log.glob("*.log"))

    before, started = logged(), time.monotonic()
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: service.answers(), range(600)))
    took_s = time.monotonic() - started
    assert all(answers)
    assert logged() - before <= took_s + 3


@on_valkey
def test_a_clock_that_is_off_is_a_warning(servers: Servers, tmp_path: Path) -> None:
    need_libfaketime()
    with running_api(servers, tmp_path, **clock_env("-60s")) as api:
        (warning,) = api.readiness()["warnings"]
        assert re.search(r"this API is -(59|60)", warning)


@pytest.mark.parametrize("part", ["broker", "result_store"])
def test_an_unreachable_part_is_named_with_the_reason(servers: Servers, tmp_path: Path, part: str) -> None:
    name = {"broker": "BROKER_URI", "result_store": "BACKEND_URI"}[part]
    scheme = servers.env[name].partition(":")[0]
    with running_api(servers, tmp_path, **{name: f"{scheme}://127.0.0.1:{free_port()}/0"}) as api:
        body = api.readiness()
        states = {"broker": body["broker"], "result_store": body["result_store"]}
        assert "refused" in states.pop(part)
        assert list(states.values()) == ["up"]
