"""Each fault of tests/faults.py, struck as briefly as it takes to bite: what was accepted ends as it should."""

from collections.abc import Iterator

import pytest

from tests.conftest import need
from tests.faults import FAULTS, Fault, Ledger, marked_service, strike
from tests.processes import Service

# Twice what `make faults` allows, and more: a test must not fail because the machine is busy.
NO_ANSWER_TAKES_LONGER_MS = 8_000
LIVEZ_TAKES_NO_LONGER_MS = 3_000


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on servers of its own, for it breaks them."""
    need(request.param)
    with marked_service(request.param, tmp_path_factory.mktemp("faults"), "tests.forgetful_worker") as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_that_was_accepted_is_lost(service: Service, fault: Fault) -> None:
    if not fault.is_possible(service.servers.name):
        pytest.skip(f"not on Valkey: {fault.not_on_valkey}")
    ledger = Ledger(service, fault.name, per_second=25)
    with ledger.load():
        strike(fault, ledger)
    row = ledger.balance()
    assert row.is_clean, [row, *ledger.details]
    assert row.refused or not fault.refuses
    assert row.slowest_ms < NO_ANSWER_TAKES_LONGER_MS
    assert row.livez_ms < LIVEZ_TAKES_NO_LONGER_MS
