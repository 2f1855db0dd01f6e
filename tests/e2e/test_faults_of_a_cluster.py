"""Some faults of a RabbitMQ cluster, once each and briefly; `make faults-cluster` has all of them, ten times each."""

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.conftest import need, skip
from tests.harness.cluster_faults import FAULTS, service_on_cluster
from tests.harness.faults import Fault, strike
from tests.harness.ledger import Ledger
from tests.harness.service import Service

TESTED = [
    fault for fault in FAULTS if fault.name in ("leader: kill -9", "leader: SIGSTOP for 15 s", "two nodes: kill -9")
]
# `make faults-cluster` has the limit of 5 s; here other tests may keep both cores busy.
MOST_REFUSAL_S = 15


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    need("rabbitmq")
    if not shutil.which("erl_call"):
        skip("not installed: erl_call (Debian package erlang-base)")
    with service_on_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.mark.parametrize("fault", TESTED, ids=lambda fault: fault.name)
def test_no_accepted_prediction_is_lost_on_a_cluster(service: Service, fault: Fault) -> None:
    ledger = Ledger(service, fault.name, per_second=15)
    with ledger.load():
        started = time.monotonic()
        strike(fault, ledger, fault.shortest_s)
        refused_s = ledger.longest_refusal_s(started)
    row = ledger.balance()
    assert row.is_clean, "\n".join([*ledger.details, f"{row}"])
    assert 429 not in row.refused
    assert bool(row.refused) >= fault.refuses
    assert fault.refuses or refused_s < MOST_REFUSAL_S
