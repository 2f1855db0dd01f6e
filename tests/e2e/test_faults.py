"""Each fault of tests/harness/faults.py, injected briefly: every accepted prediction ends as it should."""

from collections.abc import Iterator

import pytest

from tests.conftest import need
from tests.harness.faults import FAULTS, Fault, marked_service, strike
from tests.harness.ledger import Ledger
from tests.harness.service import Service

# More than twice the limits of `make faults`: a test must not fail on a busy machine.
SLOWEST_RESPONSE_MS = 8_000
SLOWEST_LIVEZ_MS = 3_000


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on servers of its own, because the faults break them."""
    need(request.param)
    folder = tmp_path_factory.mktemp("faults")
    with marked_service(request.param, folder, "tests.harness.workers.forgetful") as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_accepted_prediction_is_lost(service: Service, fault: Fault) -> None:
    if obstacle := fault.obstacle(service.servers.name):
        pytest.skip(obstacle)
    if service.servers.name in fault.not_tested_on:
        pytest.skip("it takes long: `make faults` injects it")
    ledger = Ledger(service, fault.name, per_second=25)
    with ledger.load():
        strike(fault, ledger, fault.shortest_s)
    row = ledger.balance()
    assert row.is_clean, [row, *ledger.details]
    assert row.refused or not fault.refuses
    assert row.slowest_ms < SLOWEST_RESPONSE_MS
    assert row.livez_ms < SLOWEST_LIVEZ_MS
