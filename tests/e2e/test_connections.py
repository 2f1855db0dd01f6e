"""No connection holds the API up: heads, trailers and bodies have limits of size and time."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.http.problems import ProblemType
from api.http.protocol import MAX_HEAD_BYTES
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

TIMEOUT_S = 2
POST = b"POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"HEAD_TIMEOUT_S": str(TIMEOUT_S), "BODY_TIMEOUT_S": str(TIMEOUT_S), "UVICORN_TIMEOUT_KEEP_ALIVE": "1"}
    with running_api(servers, tmp_path_factory.mktemp("connections"), **settings) as api:
        yield api


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


def is_read(connection: socket.socket) -> bool:
    """Tell whether the API has read every byte that was sent, from Linux' table of connections."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    waiting = {(local[-4:], remote[-4:]): queues.split(":") for _, local, remote, _, queues, *_ in rows}
    here, there = (f"{name[1]:04X}" for name in (connection.getsockname(), connection.getpeername()))
    unsent, unread = waiting[here, there][0], waiting.get((there, here), ["0", "0"])[1]  # the API may have closed it
    return int(unsent, 16) == int(unread, 16) == 0


def answer(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def drip(connection: socket.socket, text: bytes, every_s: float) -> bytes:
    """Send a byte at a time until the server closes the connection; return its answer."""
    connection.settimeout(every_s)
    for byte in text:
        try:
            connection.sendall(bytes([byte]))
            received = connection.recv(65_536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return b""
        connection.settimeout(30)
        return received + answer(connection)
    raise AssertionError("the server did not close the connection")


# The head

HEADS = {
    "nothing": b"",
    "half a line": b"GET /live",
    "half a head": GET + b"X: 1\r\n",
    "blank lines": b"\r\n",
    "half of a second head": GET + b"\r\n" + b"GET /livez HTTP/1.1\r\n",
}


@pytest.mark.parametrize("start", HEADS.values(), ids=HEADS)
def test_a_connection_without_a_whole_head_is_closed(service: Service, start: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(start)
        started = time.monotonic()
        answer(connection)
        assert time.monotonic() - started < 3 * TIMEOUT_S + 5


def test_a_head_that_drips_is_not_given_more_time(service: Service) -> None:
    with connect(service) as connection:
        drip(connection, GET + b"X: " + b"a" * 1_000, every_s=0.1)


def test_idle_connections_beyond_the_limit_of_files_lock_no_client_out_for_long(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    with running_api(servers, folder, HEAD_TIMEOUT_S=str(TIMEOUT_S)) as api, contextlib.ExitStack() as stack:
        api_process = psutil.Process(api.api.pid)
        api_process.rlimit(psutil.RLIMIT_NOFILE, (64, 64))
        for _ in range(200):
            stack.enter_context(connect(api))
        until(lambda: api.answers("/livez"), within_s=30)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_head_of_exactly_the_limit_is_answered_and_a_longer_one_is_431(service: Service, number: int) -> None:
    start = b"GET /livez HTTP/1.1\r\n"
    fixed = len(b"/livez") + len(b"connectionclose") + 4
    for excess, expected in ((0, 200), (1, 431)):
        size = (MAX_HEAD_BYTES - fixed) // number - len(b"x") - 4
        rest = (MAX_HEAD_BYTES - fixed) % number
        headers = [b"x: " + b"a" * (size + (rest + excess if not index else 0)) for index in range(number)]
        head = start + b"\r\n".join([*headers, b"connection: close"]) + b"\r\n\r\n"
        for pieces in ([head], [head[:60_000], head[60_000:]]):
            with connect(service) as connection:
                for piece in pieces:
                    connection.sendall(piece)
                    until(partial(is_read, connection))  # so that the API reads them one by one
                assert status(answer(connection)) == expected


def test_trailers_count_as_the_head(service: Service) -> None:
    process = psutil.Process(service.api.pid)
    before = process.memory_info().rss
    with connect(service) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        with contextlib.suppress(OSError):
            for _ in range(20_000):
                connection.sendall(b"X: aaaaaaaaaa\r\n" * 100)
        response = answer(connection)
    assert not response or status(response) == 431
    assert process.memory_info().rss - before < 20_000_000


def test_a_short_trailer_is_accepted_and_is_no_header(service: Service, customer: dict[str, Any]) -> None:
    body = json.dumps(customer).encode()
    with connect(service) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n0\r\nPrefer: wait=x\r\nIdempotency-Key: \r\n\r\n" % (len(body), body))
        assert status(answer(connection)) == 202


def test_pipelined_requests_are_all_answered(service: Service) -> None:
    requests = 2 * MAX_HEAD_BYTES // len(GET)
    with connect(service) as connection:
        connection.sendall((GET + b"\r\n") * requests + GET + b"Connection: close\r\n\r\n")
        assert answer(connection).count(b"HTTP/1.1 200") == requests + 1


def test_a_request_that_is_not_http_is_a_problem(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = answer(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400


def test_a_request_with_an_unusable_address_is_a_problem(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(answer(connection)) == 400
    assert "Traceback" not in service.api.text()


# The body


@pytest.mark.parametrize("path", [b"/churn/predict", b"/churn/batches"])
def test_a_body_that_pauses_is_408(service: Service, path: bytes) -> None:
    head = POST.replace(b"/churn/predict", path) + b"Content-Length: 1000\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(head + b"[{")
        response = answer(connection)
    assert status(response) == ProblemType.BODY_TIMEOUT.status
    assert json.loads(response.partition(b"\r\n\r\n")[2])["type"] == "/problems/body-timeout"


def test_a_body_that_drips_is_408(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        assert status(drip(connection, b" " * 1000, every_s=0.1)) == 408


def test_a_body_that_no_route_reads_has_limits_too(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert status(drip(connection, b" " * 1000, every_s=0.1)) == 200


def test_a_steady_body_may_take_longer_than_the_timeout(service: Service) -> None:
    pieces = 4 * TIMEOUT_S

    def body() -> Iterator[bytes]:
        yield b"["
        for _ in range(pieces):
            time.sleep(0.5)  # the client is slow
            yield b" " * 16_384
        yield b"]"

    assert_problem(service.post_batch(body(), "application/json"), ProblemType.MALFORMED_BATCH)


def test_a_request_that_waits_longer_than_the_timeouts_is_answered(service: Service, customer: dict[str, Any]) -> None:
    response = service.post(customer, Prefer=f"wait={2 * TIMEOUT_S + 2}")
    assert response.status_code == 202  # no worker


def test_a_fast_start_of_a_body_buys_no_long_pause(service: Service) -> None:
    with connect(service) as connection:
        head = POST.replace(b"/churn/predict", b"/churn/batches").replace(b"application/json", b"text/csv")
        connection.sendall(head + b"Content-Length: 10000000\r\n\r\n" + b"\n" * 4_000_000)
        started = time.monotonic()
        assert status(answer(connection)) in (400, 408)
        assert time.monotonic() - started < 4 * TIMEOUT_S + 5


def test_a_half_head_after_a_large_body_is_closed(service: Service) -> None:
    body = b"[" + b" " * 1_000_000 + b"]"
    with connect(service) as connection:
        head = POST.replace(b"/churn/predict", b"/churn/batches")
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert status(connection.recv(65_536)) == 400
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        started = time.monotonic()
        answer(connection)
        assert time.monotonic() - started < 3 * TIMEOUT_S + 5


def test_no_request_behind_a_refused_one_is_answered(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    large = GET + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(large + f"DELETE /churn/result/{task_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer(connection).count(b"HTTP/1.1") == 1
    assert service.result(task_id).status_code == 202


# Waiting clients


def test_a_client_that_disconnects_frees_its_place(
    servers: Servers, customer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_api(servers, tmp_path_factory.mktemp("waiters"), MAX_WAITERS="1") as api:
        head = b"GET /churn/result/%s HTTP/1.1\r\nHost: x\r\nPrefer: wait=25\r\n\r\n"
        task_id = api.predict(customer)

        def waits() -> bool:
            started = time.monotonic()
            api.result(task_id, Prefer="wait=1")
            return time.monotonic() - started > 0.9

        with connect(api) as connection:
            connection.sendall(head % task_id.encode())
            until(lambda: not waits())
        until(waits, within_s=3)


# HTTP versions and methods


def test_http_1_0_gets_no_chunked_coding(service: Service, customer: dict[str, Any]) -> None:
    url = service.batch_accepted([customer]).removeprefix(service.url)
    with connect(service) as connection:
        connection.sendall(f"GET {url}/results HTTP/1.0\r\n\r\n".encode())
        head, _, body = answer(connection).lower().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-length: 0" in head
    assert body == b""


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/churn/result/1"])
def test_head_has_the_status_and_the_headers_of_get_and_no_body(service: Service, path: str) -> None:
    get, head = service.get(path), service.request("HEAD", path)
    assert (head.status_code, head.text) == (get.status_code, "")
    names = ("content-type", "content-length", "cache-control", "retry-after")
    assert [head.headers.get(name) for name in names] == [get.headers.get(name) for name in names]
