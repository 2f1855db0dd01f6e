"""Fail-overs of a result store behind Sentinels, under load.

A fail-over may lose the writes that the new primary has not received. The ledger knows such losses only inside the
window of each kind.
"""

import contextlib
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import marked_model
from tests.harness.ledger import Ledger
from tests.harness.processes import free_port, until
from tests.harness.servers import MASTER_NAME, ReplicatedServers, ReplicatedStore, running_replicated_servers
from tests.harness.service import Service, running_service

DEADLINE_S = 20  # a prediction whose result was lost expires
LAG_S = 1
DETECTED_WITHIN_S = 5


@dataclass(frozen=True)
class FailOver:
    """One way in which another server becomes the primary.

    Attributes:
        name: as reports and tests show it.
        inject: causes it, and repairs the former primary on exit.
        loses_from_s: seconds before it began; writes since then may be lost.
        loses_until_s: seconds after it was caused; writes until then may be lost.
        refuses_for_s: longest time of refusals after it: twice the Sentinels' DOWN_AFTER_S, and an election.
        only_on: the name of the servers that can do it; empty if all can.
        has_two_primaries: the former primary accepts writes beside the new one, and another replica may confirm them.
    """

    name: str
    inject: Callable[[ReplicatedStore], AbstractContextManager[None]]
    loses_from_s: float
    loses_until_s: float
    refuses_for_s: float = 8
    only_on: str = ""
    has_two_primaries: bool = False


@contextmanager
def primary_killed(store: ReplicatedStore) -> Iterator[None]:
    former = store.primary()
    former.kill()
    yield
    former.start()


@contextmanager
def primary_frozen(store: ReplicatedStore) -> Iterator[None]:
    with store.primary().paused():
        yield


@contextmanager
def primary_replaced(store: ReplicatedStore) -> Iterator[None]:
    """Order the fail-over; the former primary works on for some ten seconds, until the Sentinels demote it."""
    with store.sentinel() as client:
        client.execute_command("SENTINEL FAILOVER", MASTER_NAME)
    yield


@contextmanager
def primary_replaced_in_order(store: ReplicatedStore) -> Iterator[None]:
    """Let the primary hand over by itself: it waits for its replica, and is demoted at once."""
    with store.sentinel() as client:
        client.execute_command("SENTINEL FAILOVER", MASTER_NAME, "COORDINATED")
    yield


@contextmanager
def replicas_cut_off(store: ReplicatedStore) -> Iterator[None]:
    """Let no replica receive a write."""
    port, primary = store.primary_port(), store.primary()
    with contextlib.ExitStack() as stack:
        for replica in store.nodes.values():
            if replica is not primary:
                stack.enter_context(replica.paused())
        with store.node(port) as client:
            client.execute_command("CLIENT KILL TYPE replica")
        yield


@contextmanager
def primary_killed_ahead_of_replicas(store: ReplicatedStore) -> Iterator[None]:
    """Cut the replicas off while the primary accepts writes, and kill it a second later."""
    former = store.primary()
    with replicas_cut_off(store):
        time.sleep(LAG_S)
        former.kill()
    yield
    former.start()


@contextmanager
def primary_stopped(store: ReplicatedStore) -> Iterator[None]:
    """Stop the primary as an operator does: it waits for its replicas before it exits."""
    former = store.primary()
    former.signal(signal.SIGTERM)
    yield
    former.wait()
    former.start()


FAIL_OVERS = [
    FailOver("primary: kill -9", primary_killed, loses_from_s=1, loses_until_s=0.5),
    FailOver("primary: SIGSTOP", primary_frozen, loses_from_s=1, loses_until_s=0.5),
    FailOver("primary: SIGTERM", primary_stopped, loses_from_s=0, loses_until_s=0),
    FailOver("SENTINEL FAILOVER", primary_replaced, loses_from_s=0.5, loses_until_s=6, has_two_primaries=True),
    FailOver("SENTINEL FAILOVER, COORDINATED", primary_replaced_in_order, 0, 0, only_on="valkey"),
    FailOver(
        "primary: kill -9, a second ahead of its replicas",
        primary_killed_ahead_of_replicas,
        loses_from_s=0.5,
        loses_until_s=0.5,
        refuses_for_s=8 + LAG_S,
    ),
]


@contextmanager
def replicated_service(servers_name: str, folder: Path, replicas: int = 1, **settings: str) -> Iterator[Service]:
    """Run a service with the marked model on a replicated result store."""
    path = str(marked_model.save(folder))
    settings = {"MODEL_PATH": path, "DEADLINE_S": str(DEADLINE_S), "METRICS_PORT": str(free_port()), **settings}
    with (
        running_replicated_servers(servers_name, folder, replicas) as servers,
        running_service(servers, folder, "tests.harness.workers.forgetful", **settings) as running,
    ):
        yield running


def fail_over(kind: FailOver, ledger: Ledger, *, may_lose: bool = True) -> float:
    """Cause a fail-over under load; return for how many seconds predictions were refused.

    Args:
        kind: of the fail-over.
        ledger: its service has ReplicatedServers.
        may_lose: predictions inside the window of this kind may be lost.
    """
    assert isinstance(ledger.service.servers, ReplicatedServers)
    store = ledger.service.servers.replicated
    ledger.wait_for_more(ledger.accepted, round(2 * ledger.per_second))
    former = store.primary_port()
    ledger.detected_within_s = DETECTED_WITHIN_S
    started = time.monotonic()
    may_lose = may_lose or kind.has_two_primaries
    if may_lose:
        ledger.loss_windows.append((started - kind.loses_from_s, math.inf))
    with kind.inject(store):
        if may_lose:
            ledger.loss_windows[-1] = (started - kind.loses_from_s, time.monotonic() + kind.loses_until_s)
        until(lambda: store.primary_port() != former)
        ledger.wait_for_more(ledger.accepted, round(2 * ledger.per_second))
    refused_s = ledger.refused_for_s(started)
    store.await_replicas(is_hurried=not kind.has_two_primaries)  # a client that stays at the former one loses writes
    return refused_s


def predicted_without_marker(service: Service) -> int:
    """Count the predictions that the worker has computed although the store had lost their markers."""
    pattern = r"message outcome=predicted .* customers=(\d+) .*queue_ms=None .* task_ids="
    return sum(map(int, re.findall(pattern, service.worker.text())))
