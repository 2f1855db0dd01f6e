"""Bodies and heads of requests: media types, strict JSON, and lengths. No request here reaches a worker."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from api.http.problems import ProblemType
from celery_task_app.settings import Settings
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

MEGABYTE = 1_000_000
LIMIT = Settings().body_max_bytes


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_api(servers, tmp_path_factory.mktemp("bodies")) as api:
        yield api


# tests/unit has all cases of the parser.
NOT_JSON = {
    "truncated": b"{",
    "not UTF-8": b"\xff\xfe\xfd",
    "10,000 nested arrays": b"[" * 10_000,
    "a name twice": b'{"Customer_Age": 20, "Customer_Age": 45}',
    "an integer of 5,000 digits": b'{"Customer_Age": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_not_strict_json_is_400(service: Service, body: bytes) -> None:
    assert_problem(service.post_body(body), ProblemType.NOT_JSON)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"secret": 1, "secret": 2}', "An object has two members with the same name"),
        (b'{"secret": secret}', "Expecting value at character 11"),
    ],
)
def test_the_detail_names_the_error_and_repeats_no_value(service: Service, body: bytes, detail: str) -> None:
    response = service.post_body(body)
    assert assert_problem(response, ProblemType.NOT_JSON)["detail"].startswith(detail)
    assert "secret" not in response.text


@pytest.mark.parametrize("content_type", ["text/csv", "application/x-www-form-urlencoded", "json", "", None])
def test_another_content_type_is_415(service: Service, customer: dict[str, Any], content_type: str | None) -> None:
    assert_problem(service.post_body(json.dumps(customer), content_type), ProblemType.NOT_JSON_TYPE)


@pytest.mark.parametrize(
    "headers", [{"content-encoding": "gzip"}, {"content-type": "application/json; charset=latin1"}]
)
@pytest.mark.parametrize("path", ["/churn/predict", "/churn/batches"])
def test_an_encoding_other_than_utf_8_is_415(service: Service, path: str, headers: dict[str, str]) -> None:
    fields = {"content-type": "application/json", **headers}
    response = service.request("POST", path, data=b"{}", headers=fields)
    assert_problem(response, ProblemType.UNSUPPORTED_ENCODING)
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(("path", "status"), [("/churn/predict?explain=1", 422), ("/churn/batches?on_error=x", 422)])
def test_a_bad_query_parameter_is_not_blamed_on_the_features(
    service: Service, customer: dict[str, Any], path: str, status: int
) -> None:
    body = customer if "predict" in path else [customer]
    assert assert_problem(service.request("POST", path, json=body), ProblemType.BAD_PARAMETER)["status"] == status


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
def test_every_json_media_type_is_accepted(service: Service, customer: dict[str, Any], content_type: str) -> None:
    assert service.post_body(json.dumps(customer), content_type).status_code == 202


def in_chunks(body: bytes) -> Iterator[bytes]:
    """Split a body, so that it is sent without a Content-Length."""
    yield from (body[start : start + 1_000] for start in range(0, len(body), 1_000))


@pytest.mark.parametrize("send", [bytes, in_chunks], ids=["Content-Length", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, 10 * MEGABYTE])
def test_a_body_over_the_limit_is_413(service: Service, size: int, send: Callable[[bytes], Any]) -> None:
    assert_problem(service.post_body(send(b" " * size)), ProblemType.TOO_LARGE)


@pytest.mark.parametrize("send", [bytes, in_chunks], ids=["Content-Length", "chunked"])
def test_a_body_of_exactly_the_limit_is_accepted(
    service: Service, customer: dict[str, Any], send: Callable[[bytes], Any]
) -> None:
    assert service.post_body(send(json.dumps(customer).encode().ljust(LIMIT))).status_code == 202


def test_a_client_that_disconnects_within_its_body_causes_no_error(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(b"POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: 100\r\n\r\n{")
    until(lambda: '"POST /churn/predict HTTP/1.1" 400' in service.api.text())
    assert "Traceback" not in service.api.text()


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
