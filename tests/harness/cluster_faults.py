"""The faults of a cluster of three RabbitMQ nodes: each one breaks nodes under load, and repairs them.

`make faults-cluster` injects each one ten times. tests/e2e/test_faults_of_a_cluster.py injects some of them once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.harness import marked_model
from tests.harness.cluster import Cluster, Node, can_separate, running_cluster
from tests.harness.faults import Fault
from tests.harness.ledger import CONFIRM_LOST, Ledger
from tests.harness.processes import free_port, until
from tests.harness.service import Service, running_service

WHOLE_WITHIN_S = 240
Choice = Callable[[Ledger], Node]


@contextmanager
def service_on_cluster(folder: Path) -> Iterator[Service]:
    """Run a service with the marked model on a cluster of its own."""
    path = str(marked_model.save(folder))
    with (
        running_cluster(folder) as cluster,
        running_service(cluster, folder, MODEL_PATH=path, METRICS_PORT=str(free_port())) as service,
    ):
        yield service


def cluster_of(ledger: Ledger) -> Cluster:
    """Return the cluster under a ledger's service."""
    servers = ledger.service.servers
    assert isinstance(servers, Cluster)
    return servers


def leader(ledger: Ledger) -> Node:
    """Return the node with the leader of the queue of predictions."""
    return cluster_of(ledger).leader()


def node_of_api(ledger: Ledger) -> Node:
    """Return the node that the API publishes to; another node has the leader."""
    return follower(cluster_of(ledger), cluster_of(ledger).node_of(ledger.service.api))


def node_of_worker(ledger: Ledger) -> Node:
    """Return the node that the worker consumes from; another node has the leader."""
    return follower(cluster_of(ledger), cluster_of(ledger).node_of(ledger.service.worker))


def follower(cluster: Cluster, node: Node) -> Node:
    """Return a node once another one has the leader."""
    if cluster.leader() is node:
        cluster.lead(next(other for other in cluster.nodes if other is not node))
    return node


@contextmanager
def killed(choose: Choice, ledger: Ledger) -> Iterator[None]:
    """Kill a node; at the end start it again."""
    node = choose(ledger)
    node.process.kill()
    try:
        yield
    finally:
        node.process.start()
        until(cluster_of(ledger).is_whole, WHOLE_WITHIN_S, every_s=1)


@contextmanager
def frozen(choose: Choice, ledger: Ledger) -> Iterator[None]:
    """Freeze a node; at the end let it run on."""
    with choose(ledger).process.paused():
        yield
    until(cluster_of(ledger).is_whole, WHOLE_WITHIN_S, every_s=1)


@contextmanager
def separated(choose: Choice, ledger: Ledger) -> Iterator[None]:
    """Lose every packet between a node and the two others; at the end let them pass."""
    cluster, node = cluster_of(ledger), choose(ledger)
    with node.separated([other for other in cluster.nodes if other is not node]):
        yield
    until(cluster.is_whole, WHOLE_WITHIN_S, every_s=1)


@contextmanager
def restarted_in_turn(ledger: Ledger) -> Iterator[None]:
    """Stop each node as an operator does, and start it again; wait for its replicas before the next one."""
    cluster = cluster_of(ledger)
    for node in cluster.nodes:
        node.process.stop(within_s=60)
        node.process.kill()  # the script has ended; a child may still run
        node.process.start()
        until(cluster.is_whole, WHOLE_WITHIN_S, every_s=1)
    yield


@contextmanager
def two_killed(ledger: Ledger) -> Iterator[None]:
    """Kill the leader and a second node at the same moment; at the end start both."""
    cluster = cluster_of(ledger)
    first = cluster.leader()
    victims = [first, next(node for node in cluster.nodes if node is not first)]
    for node in victims:
        node.process.kill()
    try:
        yield
    finally:
        for node in victims:
            node.process.start()
        until(cluster.is_whole, WHOLE_WITHIN_S, every_s=1)


def lacks_iptables() -> str:
    """Return the reason why packets cannot be dropped here; empty if they can."""
    return "" if can_separate() else "only root can drop packets, with iptables"


# The heartbeats of a worker reveal a frozen node within 10 s (celery_task_app/worker.py), and RabbitMQ's nodes miss it
# after 12 s (SETTINGS in tests/harness/cluster.py).
FROZEN_S = 15
REVEALED_WITHIN_S = 12
SEPARATED_S = 20
FAULTS = [
    Fault("leader: kill -9", partial(killed, leader), 5, shortest_s=3, unclear=CONFIRM_LOST),
    Fault("node of the API: kill -9", partial(killed, node_of_api), 5, shortest_s=3, unclear=CONFIRM_LOST),
    Fault("node of the worker: kill -9", partial(killed, node_of_worker), 5, shortest_s=3, unclear=CONFIRM_LOST),
    *(
        Fault(
            f"{name}: SIGSTOP for {FROZEN_S} s",
            partial(frozen, choose),
            FROZEN_S,
            shortest_s=4,
            detected_within_s=REVEALED_WITHIN_S,
            unclear=CONFIRM_LOST,
        )
        for name, choose in (
            ("leader", leader),
            ("node of the API", node_of_api),
            ("node of the worker", node_of_worker),
        )
    ),
    Fault(
        f"leader: separated for {SEPARATED_S} s",
        partial(separated, leader),
        SEPARATED_S,
        needs=lacks_iptables,
        detected_within_s=REVEALED_WITHIN_S,
        unclear=CONFIRM_LOST,
    ),
    Fault("rolling restart", restarted_in_turn, unclear=CONFIRM_LOST),
    Fault("two nodes: kill -9", two_killed, 5, True, shortest_s=3, unclear=CONFIRM_LOST),
]
