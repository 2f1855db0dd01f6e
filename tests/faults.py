"""Faults under load: one table of them, and a ledger of every 202.

The tests strike each fault as briefly as it takes to bite (tests/test_faults.py); `make faults` for longer, and `make
soak` one after the other on the same service (benchmarks/faults.py).
"""

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import redis
import requests

from celery_task_app.worker import PREDICT_TASK, PREDICTIONS, app
from test_client import CUSTOMER
from tests import marked_model
from tests.processes import Process, Service, free_port, running_servers, running_service, until

# On Valkey what a lost worker had taken comes back after a minute.
ALL_ENDED_WITHIN_S = 100
REFUSALS = {429, 503}
IN_FLIGHT = 200  # more than the load sends in the three seconds that an answer may take


@dataclass
class Row:
    """What a fault did to the clients."""

    servers: str
    fault: str
    sent: int = 0
    accepted: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    """How many, by status."""
    unanswered: int = 0
    """The API itself was away."""
    lost: int = 0
    """Accepted, and unknown or not ended in the end."""
    wrong: int = 0
    """Accepted, and ended otherwise than it should."""
    other: dict[str, int] = field(default_factory=dict)
    """Answers that no client should get, by what was asked."""
    slowest_ms: int = 0
    livez_ms: int = 0
    """The slowest answer of /livez."""
    ended_s: float = 0
    """Seconds from the end of the load until all had ended and the queues were empty."""
    left: dict[str, int] = field(default_factory=dict)
    """Messages that were still in a queue."""
    not_applicable: str = ""
    """Why there is no such fault on these servers."""
    memory: str = ""
    """Of a soak: what became of it."""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.wrong or self.other or self.left)


class Ledger:
    """Clients that send customers and fetch their predictions, and the book of every one that was accepted."""

    def __init__(self, service: Service, fault: str, per_second: float) -> None:
        self.service = service
        self.per_second = per_second
        self.row = Row(service.servers.name, fault)
        self.refused: Counter[int] = Counter()
        self.other: Counter[str] = Counter()
        self.details: list[str] = []
        self.paused = threading.Event()
        self.ages: deque[int] = deque()
        """Of the next customers, as tests/marked_model.py marks them."""
        self._owed: deque[tuple[str, float | None]] = deque()  # None: an explicit failure
        self._slowest_s = self._slowest_livez_s = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def owed(self) -> int:
        """How many were accepted and have not been seen to end."""
        return len(self._owed)

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response | None:
        """Return the answer; None if the API is away."""
        started = time.monotonic()
        try:
            return requests.request(method, self.service.url + path, timeout=10, **more)
        except requests.Timeout:
            with self._lock:
                self.other[f"{method}: none in 10 s"] += 1
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            pass
        finally:
            took_s = time.monotonic() - started
            with self._lock:
                if path == "/livez":
                    self._slowest_livez_s = max(self._slowest_livez_s, took_s)
                else:
                    self._slowest_s = max(self._slowest_s, took_s)
        return None

    def _send(self, number: int) -> None:
        customer = {**CUSTOMER, "Total_Trans_Ct": number % 1000}
        with self._lock:
            self.row.sent += 1
            if self.ages:
                customer["Customer_Age"] = self.ages.popleft()
        response = self._ask("POST", "/churn/predict", json=customer)
        with self._lock:
            if response is None:
                self.row.unanswered += 1
            elif response.status_code == 202:
                self.row.accepted += 1
                expected = None if customer["Customer_Age"] == marked_model.KILLS else number % 1000 / 1000
                self._owed.append((response.json()["task_id"], expected))
            elif response.status_code in REFUSALS and int(response.headers["retry-after"]) >= 1:
                self.refused[response.status_code] += 1
            else:
                self.other[f"POST: {response.status_code}"] += 1

    def _fetch(self) -> bool:
        """Ask for the one that waits longest, and cross it off if it has ended; return whether it has."""
        task_id, expected = self._owed[0]
        response = self._ask("GET", f"/churn/result/{task_id}")
        self._owed.popleft()
        if response is None or response.status_code in (202, 503):
            self._owed.append((task_id, expected))
            return False
        if response.status_code == 404:
            self.row.lost += 1
        elif (response.status_code, response.json().get("probability")) != (500 if expected is None else 200, expected):
            self.row.wrong += 1
        else:
            return True
        self.details.append(f"{task_id}: {response.status_code} {response.text}")
        return True

    def _send_all(self) -> None:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            due = time.monotonic()
            for number in itertools.count():
                due = max(due + 1 / self.per_second, time.monotonic() - 1)
                if self._stopped.wait(max(0, due - time.monotonic())):
                    return
                if not self.paused.is_set():
                    pool.submit(self._send, number)

    def _fetch_all(self) -> None:
        while not self._stopped.is_set():
            if not (self._owed and self._fetch()):
                self._stopped.wait(0.01)

    def _probe(self) -> None:
        while not self._stopped.wait(0.05):
            self._ask("GET", "/livez")

    @contextmanager
    def load(self) -> Iterator[None]:
        threads = [threading.Thread(target=work) for work in (self._send_all, self._fetch_all, self._probe)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def more(self, count: Callable[[], int], by: int, within_s: float = 60) -> None:
        """Wait until a count has grown: what it counts works, or fails, again."""
        goal = count() + by
        until(lambda: count() >= goal, within_s)

    def accepted(self) -> int:
        return self.row.accepted

    def refusals(self) -> int:
        return sum(self.refused.values())

    def balance(self) -> Row:
        """Wait until every id has ended and the queues are empty; return the figures."""
        started = time.monotonic()
        deadline = started + ALL_ENDED_WITHIN_S
        while self._owed and time.monotonic() < deadline:
            if not self._fetch():
                time.sleep(0.01)
        self.row.lost += len(self._owed)
        self.details += [f"{task_id}: never ended" for task_id, _ in self._owed]
        while left := {queue: count for queue, count in self.service.servers.messages().items() if count}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.row.ended_s = round(time.monotonic() - started, 1)
        self.row.left = left
        self.row.refused, self.row.other = dict(self.refused), dict(self.other)
        self.row.slowest_ms, self.row.livez_ms = round(self._slowest_s * 1000), round(self._slowest_livez_s * 1000)
        return self.row


def restart(process: Process) -> None:
    process.kill()
    process.start()


def keep_busy(ledger: Ledger) -> None:
    """Have a process predict customers that take it a second each, with others waiting behind them."""
    ledger.ages.extend([marked_model.LINGERS] * 2)
    until(lambda: not ledger.ages)
    ledger.more(ledger.accepted, 5)


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
    assert ledger.service.worker.stop() == 0
    ledger.service.worker.start()
    yield


@contextmanager
def worker_absent(ledger: Ledger) -> Iterator[None]:
    assert ledger.service.worker.stop() == 0
    restart(ledger.service.api)
    yield
    ledger.service.worker.start()


@contextmanager
def api_killed(ledger: Ledger) -> Iterator[None]:
    restart(ledger.service.api)
    yield


@contextmanager
def broker_killed(ledger: Ledger) -> Iterator[None]:
    ledger.service.servers.broker.kill()
    yield
    ledger.service.servers.broker.start()


@contextmanager
def store_killed(ledger: Ledger) -> Iterator[None]:
    ledger.service.servers.store.kill()
    yield
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
    yield
    ledger.service.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")


@contextmanager
def store_read_only(ledger: Ledger) -> Iterator[None]:
    with redis.Redis.from_url(ledger.service.servers.backend_uri) as client:
        client.replicaof("127.0.0.1", str(free_port()))  # a master that is not there
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
    ledger.paused.set()  # what is in a queue goes with it
    until(lambda: not ledger.owed and not any(ledger.service.servers.messages().values()), within_s=60)
    ledger.service.servers.rabbitmqctl("delete_queue", PREDICTIONS.name)
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
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@contextmanager
def rubbish_injected(ledger: Ledger) -> Iterator[None]:
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
def poison_sent(ledger: Ledger) -> Iterator[None]:
    ledger.ages.extend([marked_model.KILLS] * 2)
    yield


@dataclass(frozen=True)
class Fault:
    """One way to break the service.

    Attributes:
        name: for people.
        strike: what does it, and on leaving undoes it.
        lasts_s: how long it lasts in the report.
        refuses: nothing can be accepted while it lasts.
        not_on_valkey: why it can't be there.
    """

    name: str
    strike: Callable[[Ledger], AbstractContextManager[None]]
    lasts_s: float = 0
    refuses: bool = False
    not_on_valkey: str = ""

    def is_possible(self, servers_name: str) -> bool:
        return not (servers_name == "valkey" and self.not_on_valkey)


ONE = "Valkey is broker and result store in one process: "
FAULTS = [
    Fault("pool processes: kill -9", processes_killed),
    Fault("worker: kill -9", worker_killed),
    Fault("worker: SIGTERM, another one", worker_replaced),
    Fault("worker: absent at the start", worker_absent, lasts_s=4),
    Fault("API: kill -9", api_killed),
    Fault("broker: kill -9, restart", broker_killed, lasts_s=2, refuses=True),
    Fault("broker: SIGSTOP for 10 s", broker_frozen, lasts_s=10, refuses=True),
    Fault("all connections cut", connections_cut),
    Fault("broker: memory alarm", memory_alarm, 5, refuses=True, not_on_valkey=ONE + "see out of memory"),
    Fault("broker: queue deleted", queue_deleted, not_on_valkey="a queue is a list, gone whenever it is empty"),
    Fault("broker: queue full", queue_full, 5, refuses=True, not_on_valkey="a list has no greatest length"),
    Fault("store: kill -9, restart", store_killed, 2, refuses=True, not_on_valkey=ONE + "see broker"),
    Fault("store: SIGSTOP for 5 s", store_frozen, 5, refuses=True, not_on_valkey=ONE + "see broker"),
    Fault("store: read-only", store_read_only, 5, refuses=True),
    Fault("store: out of memory", store_full, 5, refuses=True),
    Fault("garbage, pickle, unknown, huge messages", rubbish_injected),
    Fault("customers that kill their process", poison_sent),
]


def strike(fault: Fault, ledger: Ledger, lasts_s: float = 0) -> None:
    """Let a fault bite a service under load, and wait until it works again."""
    # Two seconds, too: a queue that is declared and at once lost with its RabbitMQ (3.10) never finds its leader again.
    ledger.more(ledger.accepted, round(2 * ledger.per_second))
    with fault.strike(ledger):
        ended = time.monotonic() + lasts_s
        if fault.refuses:
            ledger.more(ledger.refusals, 1)
        until(lambda: time.monotonic() > ended, within_s=lasts_s + 1)
    ledger.more(ledger.accepted, 20)


@contextmanager
def marked_service(servers_name: str, folder: Path, celery_app: str = "celery_task_app.worker") -> Iterator[Service]:
    """A service with the model of the tests, on servers of its own, for it breaks them."""
    path = str(marked_model.save(folder))
    with (
        running_servers(servers_name, folder) as servers,
        running_service(servers, folder, celery_app, MODEL_PATH=path) as service,
    ):
        yield service
