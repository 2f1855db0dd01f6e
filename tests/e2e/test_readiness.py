"""Readiness: /readyz names the state of each part, and is 503 if no prediction can be computed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.http.problems import ProblemType
from tests.conftest import MANIFEST
from tests.harness.assertions import assert_problem
from tests.harness.processes import ROOT, free_port, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api


def test_readiness_names_each_part(service: Service) -> None:
    def loaded() -> dict[str, Any]:
        body = service.readiness()
        return body if [status["model"] for status in body["workers"].values()] == ["loaded"] else {}

    body = until(loaded)
    ((name, status),) = body.pop("workers").items()
    assert body == {"status": "ready", "broker": "up", "result_store": "up"}
    assert name.startswith("celery@")
    assert status == {"model": "loaded", "detail": MANIFEST["version"]}


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
    until(service.answers)


def healthcheck(service: Service) -> int:
    """Run the health check of the worker's container; return its exit code."""
    command = [sys.executable, "-m", "celery_task_app.consumer.healthcheck"]
    env = {**os.environ, **service.servers.env}
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
    until(service.answers)
    assert healthcheck(service) == 0


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_memory_alarm_of_the_broker_is_named(service: Service, customer: dict[str, Any]) -> None:
    service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
    try:
        until(lambda: "alarm" in service.readiness()["broker"])
        assert "alarm" in assert_problem(service.post(customer), ProblemType.UNAVAILABLE)["detail"]
    finally:
        service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
    until(service.answers)


@pytest.mark.parametrize("part", ["broker", "result_store"])
def test_an_unreachable_part_is_named_with_the_reason(servers: Servers, tmp_path: Path, part: str) -> None:
    name = {"broker": "BROKER_URI", "result_store": "BACKEND_URI"}[part]
    scheme = servers.env[name].partition(":")[0]
    with running_api(servers, tmp_path, **{name: f"{scheme}://127.0.0.1:{free_port()}/0"}) as api:
        body = api.readiness()
        states = {"broker": body["broker"], "result_store": body["result_store"]}
        assert "refused" in states.pop(part)
        assert list(states.values()) == ["up"]
