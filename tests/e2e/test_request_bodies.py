"""Bodies and heads of requests: their lengths. No request here reaches a worker."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from api.http.problems import ProblemType
from celery_task_app.settings import Settings
from tests.harness.assertions import assert_problem
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

MEGABYTE = 1_000_000
LIMIT = Settings().body_max_bytes


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_api(servers, tmp_path_factory.mktemp("bodies")) as api:
        yield api


# tests/unit/test_json_route.py and tests/unit/test_app.py have all cases of a body.


def test_a_body_that_is_not_strict_json_is_400(service: Service) -> None:
    assert_problem(service.post_body(b"[" * 10_000), ProblemType.NOT_JSON)


def in_chunks(body: bytes) -> Iterator[bytes]:
    """Split a body, so that it is sent without a Content-Length."""
    yield from (body[start : start + 1_000] for start in range(0, len(body), 1_000))


def test_a_body_without_a_length_over_the_limit_is_413(service: Service) -> None:
    assert_problem(service.post_body(in_chunks(b" " * 10 * MEGABYTE)), ProblemType.TOO_LARGE)


def test_a_body_without_a_length_of_exactly_the_limit_is_accepted(service: Service, customer: dict[str, Any]) -> None:
    assert service.post_body(in_chunks(json.dumps(customer).encode().ljust(LIMIT))).status_code == 202


def test_a_client_that_disconnects_within_its_body_causes_no_error(servers: Servers, tmp_path: Path) -> None:
    head = b"POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    with running_api(servers, tmp_path) as api:
        with socket.create_connection(("127.0.0.1", api.port), timeout=30) as client:
            client.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100 ")  # the route reads the body
            client.sendall(b"{")
        assert api.api.stop() == 0  # after the response to each request
    assert "Traceback" not in api.api.text()


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /livez", b"a" * 10_000),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 10_000),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X: aaaaaa\r\n" * 1_000),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n", b"X: aaaaaa\r\n" * 1_000),
    ],
    ids=["address", "header", "headers", "headers of the second request"],
)
def test_a_connection_with_an_endless_head_is_closed(service: Service, start: bytes, piece: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(start)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for _ in range(10 * MEGABYTE // len(piece)):
                connection.sendall(piece)


def test_a_long_head_and_a_long_body_are_accepted(service: Service) -> None:
    with requests.Session() as session:
        for _ in range(5):
            headers = {f"X-{number}": "a" * 1_000 for number in range(30)}
            assert session.get(f"{service.url}/livez", headers=headers, timeout=30).ok
            body, headers = b" " * MEGABYTE, {"Content-Type": "text/csv"}
            response = session.post(f"{service.url}/churn/batches", body, headers=headers, timeout=5)
            assert_problem(response, ProblemType.MALFORMED_BATCH)
