"""The table of faults: each one breaks a service under load, and repairs it.

tests/harness/surroundings.py has the faults of the surroundings. tests/e2e/test_faults.py injects each fault briefly.
`make faults` injects each one for longer, and `make soak` injects them at random on one service (benchmarks/faults.py).
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import redis

from celery_task_app.worker import PREDICT_TASK, PREDICTIONS, app
from tests.harness import marked_model
from tests.harness.clocks import LIBFAKETIME
from tests.harness.ledger import API_KILLED, CONFIRM_LOST, Ledger
from tests.harness.processes import Process, free_port, until
from tests.harness.servers import can_mount, running_servers, small_disk
from tests.harness.service import Service, running_service
from tests.harness.surroundings import (
    api_clock_ahead,
    bodies_slow,
    clocks_far_apart,
    disk_full,
    leader_lost,
    login_refused,
    memory_too_small,
    store_asked_at_once,
    subscription_silent,
)


@dataclass(frozen=True)
class Fault:
    """One way to break the service.

    Attributes:
        name: as reports and tests show it.
        inject: causes the fault, and repairs it on exit.
        lasts_s: seconds that it lasts in the report.
        shortest_s: seconds that it lasts in the tests.
        refuses: the service accepts nothing while it lasts.
        not_tested_on: the servers on which the tests leave it out because of its length; `make faults` has it.
        not_on_valkey: the reason if Valkey cannot have it.
        needs: returns the reason if this machine cannot cause it, else "".
        detected_within_s: seconds for which /readyz may be 200, because only a status that expires, or a timeout,
            reveals the fault.
        overloads: the service is overloaded, so a 429 is right and the service is ready.
        unclear: CONFIRM_LOST if predictions may be accepted although their clients got 503; API_KILLED if they got no
            answer. Then the service may count as many predictions more. Without it the counts equal the ledger, except
            for 503s after 2.5 s.
        unclear_on: the servers of which this is true.
    """

    name: str
    inject: Callable[[Ledger], AbstractContextManager[None]]
    lasts_s: float = 0
    refuses: bool = False
    not_on_valkey: str = ""
    shortest_s: float = 0
    needs: Callable[[], str] = str
    detected_within_s: float = 0
    overloads: bool = False
    not_tested_on: Collection[str] = ()
    unclear: str = ""
    unclear_on: Collection[str] = ("valkey", "rabbitmq")

    def obstacle(self, servers_name: str) -> str:
        """Return the reason why this fault cannot be caused here; empty if it can."""
        return (self.not_on_valkey if servers_name == "valkey" else "") or self.needs()


def strike(fault: Fault, ledger: Ledger, lasts_s: float = 0) -> None:
    """Inject a fault into a service under load, and wait until the service accepts predictions again."""
    # Load for 2 s at least: RabbitMQ 3.10 never finds a leader for a queue that is lost just after its declaration.
    ledger.wait_for_more(ledger.accepted, round(2 * ledger.per_second))
    ledger.detected_within_s, ledger.is_overloaded = fault.detected_within_s, fault.overloads
    if ledger.service.servers.name in fault.unclear_on:
        ledger.unclear.add(fault.unclear)
    with fault.inject(ledger):
        ends = time.monotonic() + lasts_s
        if fault.refuses:
            ledger.wait_for_more(ledger.refusals, 1)
        until(lambda: time.monotonic() > ends, within_s=lasts_s + 1)
    ledger.wait_for_more(ledger.accepted, 20)


@contextmanager
def marked_service(servers_name: str, folder: Path, celery_app: str = "celery_task_app.worker") -> Iterator[Service]:
    """Run a service with the marked model on servers of its own, because a fault breaks them."""
    path = str(marked_model.save(folder))
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk")) if can_mount() else None
        servers = stack.enter_context(running_servers(servers_name, folder, disk))
        yield stack.enter_context(
            running_service(servers, folder, celery_app, MODEL_PATH=path, METRICS_PORT=str(free_port()))
        )


def restart(process: Process) -> None:
    process.kill()
    process.start()


def keep_busy(ledger: Ledger) -> None:
    """Let a pool process predict two customers for a second each, and let others wait behind them."""
    ledger.ages.extend([marked_model.LINGERS] * 2)
    until(lambda: not ledger.ages)
    ledger.wait_for_more(ledger.accepted, 5)


@contextmanager
def processes_killed(ledger: Ledger) -> Iterator[None]:
    keep_busy(ledger)
    for child in psutil.Process(ledger.service.worker.pid).children():
        child.kill()
    yield


@contextmanager
def worker_killed(ledger: Ledger) -> Iterator[None]:
    keep_busy(ledger)
    restart(ledger.service.worker)
    yield


@contextmanager
def worker_replaced(ledger: Ledger) -> Iterator[None]:
    try:
        assert ledger.service.worker.stop() == 0
    finally:
        ledger.service.worker.start()
    yield


@contextmanager
def worker_absent(ledger: Ledger) -> Iterator[None]:
    try:
        assert ledger.service.worker.stop() == 0
        restart(ledger.service.api)
        yield
    finally:
        ledger.service.worker.start()


@contextmanager
def api_killed(ledger: Ledger) -> Iterator[None]:
    restart(ledger.service.api)
    yield


@contextmanager
def broker_killed(ledger: Ledger) -> Iterator[None]:
    ledger.service.servers.broker.kill()
    try:
        yield
    finally:
        ledger.service.servers.broker.start()


@contextmanager
def store_killed(ledger: Ledger) -> Iterator[None]:
    ledger.service.servers.store.kill()
    try:
        yield
    finally:
        ledger.service.servers.store.start()


def broker_frozen(ledger: Ledger) -> AbstractContextManager[None]:
    return ledger.service.servers.broker.paused()


def store_frozen(ledger: Ledger) -> AbstractContextManager[None]:
    return ledger.service.servers.store.paused()


@contextmanager
def connections_cut(ledger: Ledger) -> Iterator[None]:
    servers = ledger.service.servers
    if servers.name == "rabbitmq":
        servers.rabbitmqctl("close_all_connections", "a test")
    with redis.Redis.from_url(servers.backend_uri) as client:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
    yield


@contextmanager
def memory_alarm(ledger: Ledger) -> Iterator[None]:
    ledger.service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        ledger.service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")


@contextmanager
def store_read_only(ledger: Ledger) -> Iterator[None]:
    with redis.Redis.from_url(ledger.service.servers.backend_uri) as client:
        client.replicaof("127.0.0.1", str(free_port()))  # a primary that does not exist
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


@contextmanager
def store_full(ledger: Ledger) -> Iterator[None]:
    with redis.Redis.from_url(ledger.service.servers.backend_uri) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")


@contextmanager
def queue_deleted(ledger: Ledger) -> Iterator[None]:
    ledger.paused.set()  # The messages of a queue are deleted with it.
    try:
        until(lambda: not ledger.pending and ledger.service.servers.is_empty(), within_s=60)
        ledger.service.servers.rabbitmqctl("delete_queue", PREDICTIONS.name)
    finally:
        ledger.paused.clear()
    yield


@contextmanager
def queue_full(ledger: Ledger) -> Iterator[None]:
    servers = ledger.service.servers
    servers.rabbitmqctl("set_policy", "--apply-to", "queues", "small", f"^{PREDICTIONS.name}$", '{"max-length": 3}')
    try:
        with ledger.service.worker.paused():
            yield
    finally:
        servers.rabbitmqctl("clear_policy", "small")


class PickledTouch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@contextmanager
def garbage_published(ledger: Ledger) -> Iterator[None]:
    unpickled = ledger.service.folder / "unpickled"
    huge = {str(uuid4()): {"Customer_Age": "9" * 20_000_000}}
    with ledger.service.servers.connection() as connection, connection.Producer() as producer:
        plain = {"routing_key": PREDICTIONS.name, "exchange": "", "headers": {"id": "x", "task": PREDICT_TASK}}
        producer.publish(b"\xff garbage", content_type="application/json", content_encoding="utf-8", **plain)
        producer.publish(b"{", content_type="application/json", content_encoding="utf-8", **plain)
        producer.publish(PickledTouch(unpickled), serializer="pickle", **plain)
        producer.publish([[], {}, {}], serializer="json", **plain)
        producer.publish("text", routing_key=PREDICTIONS.name, exchange="")
        for task, kwargs in (("no.such.task", {}), (PREDICT_TASK, {"customers": huge}), (PREDICT_TASK, {"no": 1})):
            app.send_task(task, kwargs=kwargs, queue=PREDICTIONS, connection=connection, ignore_result=True)
    if ledger.service.servers.name == "valkey":
        with redis.Redis.from_url(ledger.service.servers.broker_uri) as client:
            client.lpush(PREDICTIONS.name, b"\xff garbage", b"{", b"{}", b"[1]", b"null")
            client.lpush(PREDICTIONS.name, b'{"properties": {"delivery_tag": "x"}, "body": 5}')
    yield
    assert not unpickled.exists()


@contextmanager
def poisonous_customers_sent(ledger: Ledger) -> Iterator[None]:
    ledger.ages.extend([marked_model.KILLS] * 2)
    yield


def lacks_disk() -> str:
    return "" if can_mount() else "only root can mount a small disk"


def lacks_libfaketime() -> str:
    return "" if LIBFAKETIME else "libfaketime is not installed"


STATUS_TTL_S = 15  # of a worker's status, celery_task_app/consumer/heartbeat.py
HARD_TIME_LIMIT_S = 10  # of a message, celery_task_app/worker.py
ONE = "Valkey is broker and result store in one process: "
FAULTS = [
    Fault("pool processes: kill -9", processes_killed),
    Fault("worker: kill -9", worker_killed, detected_within_s=STATUS_TTL_S),
    Fault("worker: SIGTERM, another one", worker_replaced),
    Fault("worker: absent at the start", worker_absent, lasts_s=4, unclear=API_KILLED),
    Fault("API: kill -9", api_killed, unclear=API_KILLED),
    Fault("broker: kill -9, restart", broker_killed, lasts_s=2, refuses=True, unclear=CONFIRM_LOST),
    Fault("broker: SIGSTOP for 10 s", broker_frozen, lasts_s=10, refuses=True, unclear=CONFIRM_LOST),
    Fault("all connections cut", connections_cut, unclear=CONFIRM_LOST),
    Fault("broker: memory alarm", memory_alarm, 5, True, ONE + "see out of memory", unclear=CONFIRM_LOST),
    Fault("broker: queue deleted", queue_deleted, not_on_valkey="a queue is a list, gone whenever it is empty"),
    Fault("broker: queue full", queue_full, 5, True, "a list has no greatest length", overloads=True),
    Fault("store: kill -9, restart", store_killed, 2, refuses=True, not_on_valkey=ONE + "see broker"),
    Fault("store: SIGSTOP for 5 s", store_frozen, 5, True, ONE + "see broker"),
    # On Valkey the store may refuse the second step of a publish, and confirm the first one.
    Fault("store: read-only", store_read_only, 5, True, unclear=CONFIRM_LOST, unclear_on=["valkey"]),
    Fault("store: out of memory", store_full, 5, True, unclear=CONFIRM_LOST, unclear_on=["valkey"]),
    Fault("garbage, pickle, unknown, huge messages", garbage_published),
    # A customer that hangs holds the only pool process until the hard time limit; then the others are computed.
    Fault("customers that kill their process", poisonous_customers_sent, detected_within_s=HARD_TIME_LIMIT_S),
    Fault("queue: no leader", leader_lost, 10, True, "a list has no leader", 4, unclear=CONFIRM_LOST),
    # The API notices a missing answer to a ping within 5 s.
    Fault(
        "store: silent subscription",
        subscription_silent,
        15,
        shortest_s=8,
        detected_within_s=5,
        not_tested_on=["rabbitmq"],
    ),
    Fault("broker: disk full, then free", disk_full, 5, True, needs=lacks_disk, unclear=CONFIRM_LOST),
    Fault(
        "clocks: API 2 h behind, worker 2 h ahead",
        clocks_far_apart,
        5,
        needs=lacks_libfaketime,
        not_tested_on=["rabbitmq"],
    ),
    Fault("clocks: API 2 h ahead", api_clock_ahead, 5, needs=lacks_libfaketime, not_tested_on=["rabbitmq"]),
    Fault("slow bodies", bodies_slow, 15, shortest_s=3, not_tested_on=["rabbitmq"]),
    Fault("worker: killed while loading", memory_too_small, 8, not_tested_on=["rabbitmq", "valkey"]),
    Fault("broker: login refused", login_refused, lasts_s=5, refuses=True, unclear=CONFIRM_LOST),
    Fault("store: 400 requests at once", store_asked_at_once, not_tested_on=["rabbitmq"]),
]
