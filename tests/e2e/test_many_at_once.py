"""No read or write of the result store fails because many others do the same, also while the store pauses."""

import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.harness.processes import Process
from tests.harness.servers import Servers, running_servers
from tests.harness.service import Service, running_api

AT_ONCE = 400


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers of their own, because the tests freeze them."""
    with running_servers("valkey", tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_api(servers, tmp_path_factory.mktemp("many")) as api:
        yield api


def send_at_once(service: Service, requests: Sequence[bytes]) -> Counter[int]:
    """Send all requests before the first answer is read; return the number of each status."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=30)) for _ in requests
        ]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        return Counter(int(connection.recv(1_000).split(b" ", 2)[1]) for connection in connections)


@contextlib.contextmanager
def briefly_paused(process: Process, seconds: float) -> Iterator[None]:
    with process.paused():
        timer = threading.Timer(seconds, process.signal, [18])  # SIGCONT
        timer.start()
        yield
        timer.join()


def keyed_posts(customer: dict[str, Any], prefix: str) -> list[bytes]:
    body = json.dumps(customer)
    head = "POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    return [f"{head % len(body)}Idempotency-Key: {prefix}-{number}\r\n\r\n{body}".encode() for number in range(AT_ONCE)]


@pytest.mark.parametrize("pause_s", [0, 0.4])
def test_keyed_posts_are_all_accepted(service: Service, customer: dict[str, Any], pause_s: float) -> None:
    requests = keyed_posts(customer, str(pause_s))
    with briefly_paused(service.servers.store, pause_s) if pause_s else contextlib.nullcontext():
        assert send_at_once(service, requests) == {202: AT_ONCE}


@pytest.mark.parametrize("pause_s", [0, 0.4])
@pytest.mark.parametrize(("method", "status"), [("GET", 202), ("DELETE", 204)])
def test_requests_for_a_batch_are_all_answered(
    service: Service, customer: dict[str, Any], method: str, status: int, pause_s: float
) -> None:
    path = service.batch_accepted([customer]).removeprefix(service.url)
    requests = [f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()] * AT_ONCE
    with briefly_paused(service.servers.store, pause_s) if pause_s else contextlib.nullcontext():
        assert send_at_once(service, requests) == {status: AT_ONCE}


def test_connections_to_the_store_stay_few(service: Service, customer: dict[str, Any]) -> None:
    send_at_once(service, keyed_posts(customer, "few"))
    with service.servers.redis() as client:
        assert len(client.client_list()) < 120
