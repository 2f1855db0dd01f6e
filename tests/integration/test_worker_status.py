"""The status of a worker in the result store: its TTL, and the readiness and health check that read it."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from api.readiness import Readiness, ReadinessCheck
from celery_task_app.errors import ResultStoreUnavailable
from celery_task_app.store.connection import connect, connect_async
from celery_task_app.store.customer_schema import read_customer_schema
from celery_task_app.store.worker_status import (
    WorkerStatus,
    list_worker_statuses,
    publish_status,
    withdraw_status,
)
from tests.harness.processes import free_port, until
from tests.harness.publishing import publish_arguments
from tests.harness.servers import Servers

QUEUES = ["churn", "churn.batch"]
LOADED = WorkerStatus(model="loaded", detail="v1", queues=QUEUES)
FAILED = WorkerStatus(model="failed", detail="no model", queues=[])


@pytest.fixture
def host() -> str:
    return str(uuid4())


@pytest.fixture(autouse=True)
def no_statuses(client: redis.Redis) -> Iterator[None]:
    yield
    for key in (*client.scan_iter("churn:worker:*"), "churn:workers"):
        client.delete(key)


SCHEMA = {"features": [{"name": "age", "type": "integer"}], "example": {"age": 45}}


def statuses(uri: str) -> dict[str, WorkerStatus]:
    async def read() -> dict[str, WorkerStatus]:
        async with connect_async(uri) as client:
            return await list_worker_statuses(client)

    return asyncio.run(read())


def readiness(broker_uri: str, backend_uri: str, *, has_computed: bool = False, uncompleted_s: float = 0) -> Readiness:
    async def check() -> Readiness:
        parts = ReadinessCheck(
            broker_uri,
            connect_async(backend_uri),
            SCHEMA,
            is_subscribed=lambda: True,
            failure=lambda: "",
            has_computed=lambda _within_s: has_computed,
            uncompleted_s=lambda: uncompleted_s,
        )
        try:
            return await parts.check()
        finally:
            await parts.close()

    return asyncio.run(check())


def test_a_published_status_is_listed_with_a_ttl(servers: Servers, client: redis.Redis, host: str) -> None:
    assert statuses(servers.backend_uri) == {}
    publish_status(client, f"celery@{host}/1", LOADED, 15)
    publish_status(client, f"celery@{host}/2", FAILED, 15)
    assert statuses(servers.backend_uri) == {f"celery@{host}/1": LOADED, f"celery@{host}/2": FAILED}
    assert all(0 < client.ttl(key) <= 15 for key in client.scan_iter("churn:worker:*"))


def test_a_withdrawn_or_expired_status_is_not_listed(servers: Servers, client: redis.Redis, host: str) -> None:
    for pid in (1, 2, 3):
        publish_status(client, f"celery@{host}/{pid}", LOADED, 15)
    withdraw_status(client, f"celery@{host}/1")
    client.pexpire(f"churn:worker:celery@{host}/2", 1)
    until(lambda: not client.exists(f"churn:worker:celery@{host}/2"))
    assert statuses(servers.backend_uri) == {f"celery@{host}/3": LOADED}
    assert client.smembers("churn:workers") == {f"celery@{host}/3".encode()}


def test_readiness_needs_every_part(servers: Servers, client: redis.Redis, host: str) -> None:
    publish_status(client, f"celery@{host}/1", FAILED, 15)
    publish_status(client, f"celery@{host}/2", LOADED, 15)
    ready = readiness(servers.broker_uri, servers.backend_uri)
    assert (ready.broker, ready.result_store) == ("up", "up")
    assert ready.is_ready is (servers.name == "valkey")  # RabbitMQ knows that there is no worker
    assert ready.workers == {f"celery@{host}/1": FAILED, f"celery@{host}/2": LOADED}
    without_broker = readiness(servers.broker_uri_at(free_port()), servers.backend_uri)
    assert not without_broker.is_ready
    assert "refused" in without_broker.broker
    port = free_port()
    without_store = readiness(servers.broker_uri, f"redis://127.0.0.1:{port}/0")
    assert not without_store.is_ready
    assert (without_store.broker, without_store.workers) == ("up", {})
    assert f"127.0.0.1:{port}" in without_store.result_store


def test_predictions_prove_that_a_cluster_counts_consumers_late(
    servers: Servers, client: redis.Redis, host: str
) -> None:
    if servers.name == "valkey":
        pytest.skip("Valkey counts no consumers")
    publish_status(client, f"celery@{host}/1", LOADED, 15)
    cluster = f"{servers.broker_uri};{servers.broker_uri}"
    assert readiness(cluster, servers.backend_uri, has_computed=True).is_ready
    assert not readiness(cluster, servers.backend_uri, has_computed=False).is_ready
    assert not readiness(servers.broker_uri, servers.backend_uri, has_computed=True).is_ready


@pytest.mark.usefixtures("empty_queues")
def test_predictions_that_wait_while_none_ends_are_a_problem(servers: Servers) -> None:
    def completions(uncompleted_s: float) -> str:
        return readiness(servers.broker_uri, servers.backend_uri, uncompleted_s=uncompleted_s).completions

    assert completions(11) == "up"  # a worker has them
    publish_arguments(servers, {})
    until(lambda: completions(11) == "none has ended since one was published 11 s ago")
    assert completions(9) == "up"


def test_a_result_store_that_is_away_is_an_error(host: str) -> None:
    uri = f"redis://127.0.0.1:{free_port()}/0"
    with connect(uri) as away:
        with pytest.raises(ResultStoreUnavailable):
            publish_status(away, f"celery@{host}/1", LOADED, 15)
        with pytest.raises(ResultStoreUnavailable):
            withdraw_status(away, f"celery@{host}/1")
    with pytest.raises(ResultStoreUnavailable):
        statuses(uri)


def test_a_check_tells_the_workers_what_the_api_asks_for(servers: Servers, client: redis.Redis) -> None:
    client.delete("churn:schema")
    assert read_customer_schema(client) is None
    readiness(servers.broker_uri, servers.backend_uri)
    assert read_customer_schema(client) == SCHEMA
