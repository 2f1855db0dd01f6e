"""A result store behind Sentinels fails over under load: each accepted prediction ends, or its loss is said.

tests/harness/failover.py has the kinds of fail-overs, and the window in which each may lose writes.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.conftest import need
from tests.harness.counts import read_counts
from tests.harness.failover import (
    FAIL_OVERS,
    FailOver,
    fail_over,
    predicted_without_marker,
    replicas_cut_off,
    replicated_service,
)
from tests.harness.ledger import Ledger
from tests.harness.processes import until
from tests.harness.servers import ReplicatedServers, ReplicatedStore
from tests.harness.service import Service

PER_SECOND = 15


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a primary and a replica, on servers of its own."""
    need(request.param)
    with replicated_service(request.param, tmp_path_factory.mktemp("failover")) as running:
        yield running


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that waits for one of two replicas."""
    folder = tmp_path_factory.mktemp("confirmed")
    with replicated_service("valkey", folder, replicas=2, RESULT_REPLICAS="1") as running:
        yield running


# First, on a new service: a fail-over may lose the count of a prediction that has ended, which then waits.


def test_a_prediction_whose_marker_was_lost_is_computed_all_the_same(
    service: Service, customer: dict[str, Any]
) -> None:
    store = replicated_store(service)
    before = predicted_without_marker(service)
    with service.worker.paused():
        with replicas_cut_off(store):
            task_id = service.predict({**customer, "Total_Trans_Ct": 321})
            kill_primary(store)
        await_status(service, task_id, 404)
    until(lambda: service.result(task_id).status_code == 200)
    assert service.result(task_id).json()["probability"] == 0.321
    assert predicted_without_marker(service) == before + 1
    assert read_counts(service.servers.backend_uri).predictions.waiting == 0


def test_a_prediction_whose_result_was_lost_expires_at_its_deadline(service: Service, customer: dict[str, Any]) -> None:
    store = replicated_store(service)
    with contextlib.ExitStack() as frozen:
        frozen.enter_context(service.worker.paused())
        task_id = service.predict(customer, Cancel_After="12")
        until(lambda: has_marker(store, task_id))
        with replicas_cut_off(store):
            frozen.close()
            await_status(service, task_id, 200)
            kill_primary(store)
    await_status(service, task_id, 202)
    await_status(service, task_id, 410)
    assert read_counts(service.servers.backend_uri).predictions.waiting == 0


def kinds(chosen: Iterable[FailOver]) -> pytest.MarkDecorator:
    """Let a test cause some kinds of fail-overs."""
    return pytest.mark.parametrize("kind", list(chosen), ids=lambda kind: kind.name)


# `python -m benchmarks.failover` causes each kind ten times, on both.
@pytest.mark.parametrize("service", ["rabbitmq"], indirect=True)
@kinds(kind for kind in FAIL_OVERS if kind.only_on != "valkey")
def test_a_fail_over_beside_rabbitmq_loses_nothing_outside_its_window_and_refuses_for_seconds(
    service: Service, kind: FailOver
) -> None:
    assert_ended(service, kind, may_lose=True)


@pytest.mark.parametrize("service", ["valkey"], indirect=True)
@kinds(kind for kind in FAIL_OVERS if kind.only_on == "valkey" or kind.name == "primary: kill -9")
def test_a_fail_over_beside_valkey_loses_nothing_outside_its_window_and_refuses_for_seconds(
    service: Service, kind: FailOver
) -> None:
    assert_ended(service, kind, may_lose=True)


@kinds(kind for kind in FAIL_OVERS if not kind.has_two_primaries)
def test_a_fail_over_loses_nothing_that_a_replica_has_confirmed(confirmed: Service, kind: FailOver) -> None:
    assert_ended(confirmed, kind, may_lose=False)


def replicated_store(service: Service) -> ReplicatedStore:
    """Return the store of a service, when all of its nodes run."""
    assert isinstance(service.servers, ReplicatedServers)
    store = service.servers.replicated
    for node in store.nodes.values():
        if not node.is_running:
            node.start()
    store.await_replicas()
    return store


def kill_primary(store: ReplicatedStore) -> None:
    """Kill the primary; `replicated_store` starts it again."""
    store.primary().kill()


def has_marker(store: ReplicatedStore, task_id: str) -> bool:
    """Tell whether each replica has received the marker of a prediction."""
    (replica,) = store.nodes.keys() - {store.primary_port()}
    with store.node(replica) as client:
        return bool(client.exists(f"celery-task-meta-{task_id}"))


def await_status(service: Service, task_id: str, status: int) -> None:
    """Wait until GET answers with a status, after 503s."""
    until(lambda: service.result(task_id).status_code == status)


def assert_ended(service: Service, kind: FailOver, *, may_lose: bool) -> None:
    if kind.only_on not in ("", service.servers.name):
        pytest.skip(f"only {kind.only_on} can do it")
    replicated_store(service)
    ledger = Ledger(service, kind.name, PER_SECOND)
    with ledger.load():
        refused_s = fail_over(kind, ledger, may_lose=may_lose)
    row = ledger.balance()
    assert row.is_clean, "\n".join([*ledger.details, f"{row}"])
    assert refused_s < kind.refuses_for_s
