"""Faults of the surroundings: what operators, other programs, the network and other clients do to a service under load.

They belong to the table in tests/harness/faults.py.
"""

import contextlib
import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import redis

from celery_task_app.worker import PREDICTIONS
from tests.harness import marked_model
from tests.harness.clocks import clock_env
from tests.harness.customers import CUSTOMER
from tests.harness.ledger import Ledger
from tests.harness.processes import until
from tests.harness.proxy import proxy
from tests.harness.servers import DISK_MIB

REPAIRS_ITSELF_WITHIN_S = 8
DEATH = "exited with 'signal 9"  # billiard logs it for each process
ATTEMPTS = 4  # of a prediction, celery_task_app/consumer/delivery.py
PROBABILITY = CUSTOMER["Total_Trans_Ct"] / 1000  # of the marked model
SLOW_CLIENTS = 9  # of each kind; the API receives eight batches at a time
AT_ONCE = 400


@contextmanager
def leader_lost(ledger: Ledger) -> Iterator[None]:
    server = f"{{'%2F_{PREDICTIONS.name}', node()}}"
    ledger.service.servers.rabbitmqctl("eval", f"ok = ra:stop_server(quorum_queues, {server}).")
    try:
        yield
    finally:
        ledger.service.servers.rabbitmqctl("eval", f"ok = ra:restart_server(quorum_queues, {server}).")


@contextmanager
def subscription_silent(ledger: Ledger) -> Iterator[None]:
    """Lose all packets of the API's subscription, as a firewall does that has forgotten the connection."""
    address = urlsplit(ledger.service.servers.backend_uri)
    assert address.port
    with proxy(address.port) as between:
        uri = address._replace(netloc=f"127.0.0.1:{between.port}").geturl()
        with ledger.service.api.restarted_with(BACKEND_URI=uri):
            ledger.wait_for_more(ledger.answered_polls, 2)
            between.silence(b"SUBSCRIBE")
            yield


@contextmanager
def disk_full(ledger: Ledger) -> Iterator[None]:
    servers = ledger.service.servers
    assert servers.disk is not None
    filler = servers.disk / "of another program"
    if servers.name == "rabbitmq":  # The alarm must come too late.
        servers.rabbitmqctl("set_disk_free_limit", "1000")
    try:
        refused = ledger.refusals()

        def is_refused() -> bool:
            fill(filler)  # again and again: the broker deletes files of its own, which frees space
            return ledger.refusals() > refused

        until(is_refused, within_s=60)
        yield
    finally:
        filler.unlink()
        if servers.name == "rabbitmq":
            servers.rabbitmqctl("set_disk_free_limit", "50MB")
    if servers.name == "rabbitmq":  # RabbitMQ 3.10 may need a restart, because its write-ahead log has crashed.
        try:
            ledger.wait_for_more(ledger.accepted, 20, within_s=REPAIRS_ITSELF_WITHIN_S)
        except AssertionError:
            servers.broker.kill()
            servers.broker.start()


def fill(path: Path) -> None:
    """Append to a file until its disk is full."""
    with path.open("ab", buffering=0) as file:
        for size in (2**20, 1):
            try:
                for _ in range(2 * DISK_MIB):
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


@contextmanager
def clocks_far_apart(ledger: Ledger) -> Iterator[None]:
    with (
        ledger.service.api.restarted_with(**clock_env("-2h")),
        ledger.service.worker.restarted_with(**clock_env("+2h")),
    ):
        ledger.wait_for_more(ledger.accepted, 20)
        yield


@contextmanager
def api_clock_ahead(ledger: Ledger) -> Iterator[None]:
    """Let an API fetch predictions that an API with another clock has accepted, while they wait."""
    with contextlib.ExitStack() as stack:
        with ledger.service.worker.paused():
            ledger.wait_for_more(ledger.accepted, 20)
            stack.enter_context(ledger.service.api.restarted_with(**clock_env("+2h")))
            ledger.wait_for_more(ledger.accepted, 20)
        yield


@contextmanager
def bodies_slow(ledger: Ledger) -> Iterator[None]:
    """Send bodies at a byte each 2 s; small batches of another client must be accepted, and end, all the while."""
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: 5000\r\n\r\n"
    heads = [head.format("/churn/batches", "text/csv"), head.format("/churn/predict", "application/json")]
    ended, batches = threading.Event(), list[str]()
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", ledger.service.port)))
            for _ in range(SLOW_CLIENTS * len(heads))
        ]
        for number, connection in enumerate(slow):
            connection.sendall(heads[number % len(heads)].encode())
        threads = [
            threading.Thread(target=send_slowly, args=(slow, ended)),
            threading.Thread(target=send_batches, args=(ledger, ended, batches)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    for url in batches:
        ledger.service.batch_ended(url)


def send_slowly(connections: Sequence[socket.socket], ended: threading.Event) -> None:
    """Send a byte each 2 s on each connection."""
    while not ended.wait(2):
        for connection in connections:
            with contextlib.suppress(OSError):  # The API may close it.
                connection.sendall(b" ")


def send_batches(ledger: Ledger, ended: threading.Event, urls: list[str]) -> None:
    """Send a small batch twice a second, collect the URLs, and report refusals."""
    while not ended.wait(0.5):
        response = ledger.service.post_batch(json.dumps([CUSTOMER] * 2), "application/json")
        if response.status_code == 202:
            urls.append(ledger.service.batch_url(response))
            ledger.expect_rows(2)
        else:
            ledger.report(f"POST /churn/batches: {response.status_code}")


@contextmanager
def memory_too_small(ledger: Ledger) -> Iterator[None]:
    """Replace the worker by one whose pool processes are killed while they load the model.

    At first a single prediction waits, so that it meets more deaths than it has attempts. A death takes 3 to 5 s.
    """
    service, worker = ledger.service, ledger.service.worker
    model = service.folder / "kills.joblib"
    if not model.exists():
        marked_model.save(model.parent, marked_model.KillsWhileLoading(), model.name)
    ledger.paused.set()
    try:
        until(lambda: not ledger.pending and service.servers.is_empty(), within_s=60)
        deaths = worker.text().count(DEATH)
        with worker.restarted_with(MODEL_PATH=str(model), WARM_UP="false"):
            ledger.expect(service.predict(CUSTOMER), PROBABILITY)
            until(lambda: not worker.is_running or worker.text().count(DEATH) >= deaths + ATTEMPTS, 60)
            ledger.paused.clear()
            yield
    finally:
        ledger.paused.clear()


@contextmanager
def login_refused(ledger: Ledger) -> Iterator[None]:
    servers = ledger.service.servers
    if servers.name == "rabbitmq":
        # At once: a command takes seconds on a busy machine, and a connection works until it is closed.
        servers.rabbitmqctl(
            "eval",
            'rabbit_auth_backend_internal:change_password(<<"guest">>, <<"another">>, <<"test">>), '
            '[rabbit_networking:close_connection(Pid, "changed") || Pid <- rabbit_networking:connections()].',
        )
        try:
            yield
        finally:
            servers.rabbitmqctl("change_password", "guest", "guest")
        return
    port = urlsplit(servers.backend_uri).port
    assert port
    with redis.Redis(port=port) as client:
        client.config_set("requirepass", "another")
    with redis.Redis(port=port, password="another") as client:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
        try:
            yield
        finally:
            client.config_set("requirepass", "")


@contextmanager
def store_asked_at_once(ledger: Ledger) -> Iterator[None]:
    """Send many requests of each kind at once that read or write the result store one by one."""
    customer = json.dumps(CUSTOMER)
    posts = [("POST", "/churn/predict", f"Idempotency-Key: {uuid4()}\r\n", customer) for _ in range(AT_ONCE)]
    for status, body in send_at_once(ledger, posts):
        if status == 202:
            ledger.expect(json.loads(body)["task_id"], PROBABILITY)
    urls = [ledger.service.batch_accepted([CUSTOMER]) for _ in range(5)]
    ledger.expect_rows(len(urls))
    paths = [urlsplit(url).path for url in urls]
    for url in urls:
        ledger.service.batch_ended(url)
    for method in ("GET", "DELETE"):
        send_at_once(ledger, [(method, paths[number % len(paths)], "", "") for number in range(AT_ONCE)])
    yield


def send_at_once(ledger: Ledger, wanted: Sequence[tuple[str, str, str, str]]) -> list[tuple[int, str]]:
    """Send requests at the same time; return status and body of each response, and report each server error.

    Args:
        ledger: it records the errors.
        wanted: method, path, further header lines, and body of each request.
    """
    received = [b""] * len(wanted)
    with contextlib.ExitStack() as stack:
        waiting = stack.enter_context(selectors.DefaultSelector())
        for number in range(len(wanted)):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", ledger.service.port)))
            waiting.register(connection, selectors.EVENT_READ, number)
        for key, (method, path, headers, body) in zip(list(waiting.get_map().values()), wanted, strict=True):
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
            text = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            key.fileobj.sendall(text.encode())  # type: ignore[union-attr] # registered above: a socket
        deadline = time.monotonic() + 30
        while waiting.get_map() and time.monotonic() < deadline:
            for key, _ in waiting.select(1):
                piece = key.fileobj.recv(65_536)  # type: ignore[union-attr] # as above
                received[key.data] += piece
                if not piece:
                    waiting.unregister(key.fileobj)
    responses = [(int(text[9:12] or b"0"), text.partition(b"\r\n\r\n")[2].decode()) for text in received]
    for (method, path, _, _), (status, _) in zip(wanted, responses, strict=True):
        if status == 0 or status >= 500:
            ledger.report(f"{method} {path.rpartition('/')[0]}/...: {status}")
    return responses
