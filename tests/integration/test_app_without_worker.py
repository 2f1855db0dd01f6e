"""The app on real servers in this process, without a worker: waits that end without a result, and limits of time."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from api.http.problems import ProblemType
from api.http.protocol import MAX_HEAD_BYTES
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Client
from tests.integration.in_process import serving, settings_of

Row = dict[str, Any]


@pytest.fixture(scope="module")
def api(servers: Servers) -> Iterator[Client]:
    """An API with short limits of time, which count for all APIs of a process until the next one starts."""
    with serving(settings_of(servers, max_wait_s=2, head_timeout_s=1, body_timeout_s=1)) as client:
        yield client


def test_without_a_worker_a_wait_ends_with_202_and_a_deadline_with_410(api: Client, customer: Row) -> None:
    response = api.post(customer, Prefer="wait=1")
    assert (response.status_code, response.headers["retry-after"]) == (202, "1")
    expiring = api.predict(customer, Cancel_After="1")
    until(lambda: api.result(expiring).status_code == 410)
    assert_problem(api.result(expiring), ProblemType.EXPIRED)


def test_a_client_that_leaves_ends_its_wait(api: Client, customer: Row) -> None:
    body = json.dumps(customer).encode()
    head = "POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nPrefer: wait=2\r\n"
    with connect(api) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert api.answers("/livez")


def test_results_of_a_batch_that_is_not_done_are_202(api: Client, customer: Row) -> None:
    url = api.batch_accepted([customer])
    assert api.batch(url).status_code == 202
    assert api.batch_results(url).status_code == 202


# Limits of a connection


def connect(client: Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(client.url.rpartition(":")[2])), timeout=30)


def answer(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_head_over_the_limit_is_431(api: Client) -> None:
    with connect(api) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nx: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 431 ")


def test_a_connection_whose_head_does_not_end_is_closed(api: Client) -> None:
    with connect(api) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert answer(connection) == b""


def test_a_body_that_does_not_end_is_408(api: Client) -> None:
    with connect(api) as connection:
        connection.sendall(b"POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_request_that_cannot_be_parsed_is_400(api: Client) -> None:
    with connect(api) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 400 ")


def test_requests_in_one_packet_are_all_answered(api: Client) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    with connect(api) as connection:
        connection.sendall((request + b"\r\n") * 2 + request + b"Connection: close\r\n\r\n")
        assert answer(connection).count(b"HTTP/1.1 200 ") == 3
