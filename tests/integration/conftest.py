"""Fixtures of the integration tests: our classes in this process, connected to real servers."""

import contextlib
from collections.abc import Iterator

import pytest
import redis

from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import PredictionStore
from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS
from tests.harness.servers import Servers

TTL_S = 86_400


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    """A plain client of the result store."""
    with servers.redis() as client:
        yield client


@pytest.fixture
def prediction_store(servers: Servers) -> Iterator[PredictionStore]:
    with contextlib.closing(PredictionStore(connect(servers.backend_uri), TTL_S)) as store:
        yield store


@pytest.fixture
def batch_store(servers: Servers) -> Iterator[BatchStore]:
    with contextlib.closing(BatchStore(connect(servers.backend_uri), TTL_S)) as store:
        yield store


@pytest.fixture
def publisher(servers: Servers) -> Iterator[Publisher]:
    with contextlib.closing(Publisher(publisher_connection(servers.broker_uri))) as publisher:
        yield publisher


@pytest.fixture
def empty_queues(servers: Servers) -> Iterator[None]:
    """Declare and empty all queues, before the test and after it."""

    def purge() -> None:
        with servers.connection() as connection:
            for queue in (PREDICTIONS, BATCHES, DEAD):
                bound = queue(connection.default_channel)
                bound.declare()
                bound.purge()

    purge()
    yield
    purge()
