"""Readiness: what it says of each part, and when it stops saying that all is well."""

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
import requests

from tests.conftest import MANIFEST
from tests.processes import ROOT, Servers, Service, free_port, until
from tests.test_app import problem


def said(service: Service) -> dict[str, Any]:
    return requests.get(f"{service.url}/readyz", timeout=30).json()  # type: ignore[no-any-return]


def test_readiness_names_each_part(service: Service) -> None:
    def loaded() -> dict[str, Any]:
        body = said(service)
        return body if [sign["model"] for sign in body["workers"].values()] == ["loaded"] else {}

    body = until(loaded)
    ((name, sign),) = body.pop("workers").items()
    assert body == {"status": "ready", "broker": "up", "result_store": "up"}
    assert name.startswith("celery@")
    assert sign == {"model": "loaded", "detail": MANIFEST["version"]}


# These take 15 s each, and the broker has no part in them.
on_one_back_end = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@on_one_back_end
def test_a_worker_whose_main_process_is_frozen_is_missed_within_20_s(service: Service) -> None:
    with frozen(service.worker.pid):
        until(lambda: not service.answers(), within_s=20)
        body = problem(requests.get(f"{service.url}/readyz", timeout=30), "not-ready")
        assert (body["broker"], body["result_store"], body["workers"]) == ("up", "up", {})
    until(service.answers)


def container_check(service: Service) -> int:
    command = [sys.executable, "-m", "celery_task_app.health"]
    env = {**os.environ, **service.servers.env}
    return subprocess.run(command, cwd=ROOT, env=env, timeout=30, check=False).returncode


@on_one_back_end
def test_a_predicting_process_that_is_frozen_is_said_within_20_s_and_replaced(service: Service) -> None:
    assert container_check(service) == 0
    (child,) = psutil.Process(service.worker.pid).children()
    child.suspend()
    until(lambda: not service.answers(), within_s=20)
    (sign,) = problem(requests.get(f"{service.url}/readyz", timeout=30), "not-ready")["workers"].values()
    assert sign["model"] == "stuck"
    assert container_check(service) == 1
    until(service.answers)
    assert container_check(service) == 0


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_broker_that_takes_no_messages_is_said_so(service: Service, customer: dict[str, Any]) -> None:
    service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
    try:
        until(lambda: "alarm" in said(service)["broker"])
        refused = requests.post(f"{service.url}/churn/predict", json=customer, timeout=30)
        assert "alarm" in problem(refused, "unavailable")["detail"]
    finally:
        service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
    until(service.answers)


@pytest.mark.parametrize("part", ["broker", "result_store"])
def test_the_part_that_is_away_is_named_with_its_reason(servers: Servers, tmp_path: Path, part: str) -> None:
    name = {"broker": "BROKER_URI", "result_store": "BACKEND_URI"}[part]
    scheme = servers.env[name].partition(":")[0]
    alone = Service(servers, tmp_path, {name: f"{scheme}://127.0.0.1:{free_port()}/0"})
    alone.api.start()
    try:
        until(lambda: alone.answers("/livez"))
        body = said(alone)
        states = {"broker": body["broker"], "result_store": body["result_store"]}
        assert "refused" in states.pop(part)
        assert list(states.values()) == ["up"]
    finally:
        alone.stop()
