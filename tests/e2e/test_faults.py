"""Each fault of tests/harness/faults.py on Valkey, injected briefly: every accepted prediction ends, and is counted."""

from collections.abc import Iterator

import pytest

from tests.harness.faults import FAULTS, Fault, marked_service, strike
from tests.harness.ledger import Ledger
from tests.harness.service import Service

# Below the client's limit of 20 s, so no answer hangs. `make faults` reports the times of a machine without other work;
# here other tests may keep the disk busy for seconds.
SLOWEST_RESPONSE_MS = 15_000
SLOWEST_LIVEZ_MS = 10_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on servers of its own, because the faults break them."""
    with marked_service("valkey", tmp_path_factory.mktemp("faults"), "tests.harness.workers.forgetful") as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_accepted_prediction_is_lost_on_valkey(service: Service, fault: Fault) -> None:
    assert_nothing_is_lost(service, fault)


def assert_nothing_is_lost(service: Service, fault: Fault) -> None:
    """Inject a fault under load; every accepted prediction must end and be counted, and the service still answer."""
    if obstacle := fault.obstacle(service.servers.name):
        pytest.skip(obstacle)
    if service.servers.name in fault.not_tested_on:
        pytest.skip("it takes long: `make faults` injects it")
    ledger = Ledger(service, fault.name, per_second=15)
    with ledger.load():
        strike(fault, ledger, fault.shortest_s)
    row = ledger.balance()
    assert row.is_clean, "\n".join([*ledger.details, f"{row}"])
    assert row.refused or not fault.refuses
    assert row.slowest_ms < SLOWEST_RESPONSE_MS
    assert row.livez_ms < SLOWEST_LIVEZ_MS
