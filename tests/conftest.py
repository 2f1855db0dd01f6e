"""Fixtures: every test with `servers` runs on the embedded Valkey, and on RabbitMQ with Redis."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.harness.browser import CHROMIUM
from tests.harness.clocks import LIBFAKETIME
from tests.harness.customers import CUSTOMER
from tests.harness.processes import ROOT
from tests.harness.servers import Servers, missing_programs, running_servers
from tests.harness.service import Service, running_service


def need(servers_name: str) -> None:
    """Skip a test whose servers are not installed; fail it in CI, where REQUIRE_SERVICES is 1."""
    if servers_name == "rabbitmq" and (missing := missing_programs()):
        skip(f"not installed: {', '.join(missing)} (Debian packages of these names)")


def need_libfaketime() -> None:
    """Skip a test that sets clocks, without libfaketime; fail it in CI."""
    if LIBFAKETIME is None:
        skip("not installed: libfaketime (Debian package of this name)")


def need_chromium() -> None:
    """Skip a test of a page without a browser; fail it in CI."""
    if CHROMIUM is None:
        skip("not installed: chromium (Debian package of this name)")


def need_commit(commit: str) -> None:
    """Skip a test that runs an older commit, without git or without the history; the workflow fetches all of it."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"]
    if not shutil.which("git") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"no commit {commit} here: a clone with the whole history has it (git fetch --unshallow)")


def skip(reason: str) -> None:
    """Skip a test for a missing program; fail it in CI."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Servers]]:
    """Return servers by their name; each are started once, because RabbitMQ takes seconds."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(running_servers(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def servers(request: pytest.FixtureRequest, started: Callable[[str], Servers]) -> Servers:
    """Servers without queues and keys of an earlier module."""
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
def customer() -> dict[str, Any]:
    """The example customer of `models.Customer`."""
    return dict(CUSTOMER)


MANIFEST: dict[str, Any] = json.loads((ROOT / "celery_task_app/ml/artifacts/churn.json").read_text())
DATA = Path(os.environ.get("DATA", ROOT / "BankChurners.csv"))

# Several test processes run at a time, so the threads and processes of one training only wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
