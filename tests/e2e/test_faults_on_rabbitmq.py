"""Each fault on RabbitMQ and Redis, as test_faults.py; a file of its own, so that two processes share the faults."""

from collections.abc import Iterator

import pytest

from tests.conftest import need
from tests.e2e.test_faults import assert_nothing_is_lost
from tests.harness.faults import FAULTS, Fault, marked_service
from tests.harness.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on servers of its own, because the faults break them."""
    need("rabbitmq")
    with marked_service("rabbitmq", tmp_path_factory.mktemp("faults"), "tests.harness.workers.forgetful") as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_accepted_prediction_is_lost_on_rabbitmq(service: Service, fault: Fault) -> None:
    assert_nothing_is_lost(service, fault)
