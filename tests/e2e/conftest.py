"""Fixtures of the end-to-end tests: a service with the marked model, and customers in its result store."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.harness import marked_model
from tests.harness.collector import Collector, running_collector
from tests.harness.publishing import Customers, mark_queued
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service


@pytest.fixture(scope="module")
def marked(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the marked model, and a worker with short time limits."""
    folder = tmp_path_factory.mktemp("marked")
    path = str(marked_model.save(folder))
    with running_service(servers, folder, "tests.harness.workers.impatient", MODEL_PATH=path) as running:
        yield running


@pytest.fixture
def queued(servers: Servers, customer: dict[str, Any]) -> Customers:
    """Twenty customers by task id, marked as queued but not published, each with a probability of its own."""
    customers = {str(uuid4()): {**customer, "Total_Trans_Ct": 100 + number} for number in range(20)}
    mark_queued(servers, customers)
    return customers


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector of traces."""
    with running_collector() as running:
        yield running


BATCH_MAX_ROWS = 5_000
BATCH_MAX_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def batches(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same, with small chunks and low limits of a batch."""
    folder = tmp_path_factory.mktemp("batches")
    settings = {
        "MODEL_PATH": str(marked_model.save(folder)),
        "BATCH_CHUNK_ROWS": "50",
        "BATCH_MAX_ROWS": str(BATCH_MAX_ROWS),
        "BATCH_MAX_BYTES": str(BATCH_MAX_BYTES),
    }
    with running_service(servers, folder, "tests.harness.workers.impatient", **settings) as running:
        yield running


@pytest.fixture
def rows(customer: dict[str, Any]) -> list[dict[str, Any]]:
    """Three chunks of a batch, the last one not full; each row has a probability of its own."""
    return [{**customer, "Total_Trans_Ct": number} for number in range(120)]
