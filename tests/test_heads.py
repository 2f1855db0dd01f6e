"""Heads of requests, byte by byte: long ones are taken, endless ones are not."""

import socket
from typing import Any

import pytest
import requests

from tests.processes import Service

MEGABYTE = 1_000_000


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
def test_a_head_without_end_is_hung_up_on(service: Service, start: bytes, piece: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(start)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for _ in range(10 * MEGABYTE // len(piece)):
                connection.sendall(piece)


def test_a_long_head_and_a_long_body_are_taken(service: Service, customer: dict[str, Any]) -> None:
    with requests.Session() as session:
        for _ in range(5):
            headers = {f"X-{number}": "a" * 1_000 for number in range(30)}
            assert session.get(f"{service.url}/livez", headers=headers, timeout=30).ok
            body, headers = b" " * MEGABYTE, {"Content-Type": "text/csv"}
            response = session.post(
                f"{service.url}/churn/batches", body, headers={"Content-Type": "text/csv"}, timeout=5
            )
            assert response.json()["type"] == "/problems/malformed-batch"
