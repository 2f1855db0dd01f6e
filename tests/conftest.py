"""The fixtures: each test that asks for `servers` runs on the embedded Valkey and on real RabbitMQ and Redis."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from celery_task_app import results
from celery_task_app.settings import Settings
from celery_task_app.worker import app
from test_client import CUSTOMER
from tests.processes import ROOT, Servers, Service, missing_programs, running_servers, running_service


def need(servers_name: str) -> None:
    """Skip a test whose servers are not installed, on a laptop; fail it in CI."""
    if servers_name == "rabbitmq" and (missing := missing_programs()):
        reason = f"not installed: {', '.join(missing)} (Debian packages of these names)"
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Servers]]:
    """Servers by name, each started once: RabbitMQ takes its time."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(running_servers(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def servers(request: pytest.FixtureRequest, started: Callable[[str], Servers]) -> Servers:
    """Servers that know nothing of the modules before."""
    need(request.param)
    running = started(request.param)
    running.clear()
    return running


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API and a worker that the tests of a module share."""
    with running_service(servers, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def here(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """The servers, for the service's modules in this very process."""
    monkeypatch.setattr(results, "settings", Settings(backend_uri=servers.backend_uri))
    monkeypatch.setitem(app.conf, "broker_url", servers.broker_uri)
    return servers


@pytest.fixture
def customer() -> dict[str, Any]:
    """The article's customer."""
    return dict(CUSTOMER)


MANIFEST: dict[str, Any] = json.loads((ROOT / "celery_task_app/ml/artifacts/churn.json").read_text())
DATA = Path(os.environ.get("DATA", ROOT / "BankChurners.csv"))
