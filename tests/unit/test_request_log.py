"""Each request has one line and one id; no text of a client imitates a field or a line, and no value is logged."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from api.http.exception_handlers import add_exception_handlers
from api.http.request_log import log_request
from api.http.request_middleware import RequestMiddleware
from app import app
from celery_task_app.errors import ResultStoreUnavailable
from tests.unit.asgi import ASGIResponse, call

TASK_ID = "0f3d6c1a-52a7-4f5e-8a55-7d0a3f5e9b21"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def fields_of(log: pytest.LogCaptureFixture) -> dict[str, str]:
    """Return the fields of the only line of a request."""
    (line,) = (record.getMessage() for record in log.records if record.name == "api.http.request_log")
    event, *fields = line.split(" ")
    assert event == "request"
    return dict(field.split("=", 1) for field in fields)


def test_a_line_has_method_route_status_time_and_ids(log: pytest.LogCaptureFixture) -> None:
    answer = call(app, "GET", "/openapi.json?x=1", headers={"X-Request-ID": "mine-1"})
    fields = fields_of(log)
    assert float(fields.pop("ms")) >= 0
    assert fields == {
        "method": "GET",
        "route": "other",
        "path": "/openapi.json",
        "status": "200",
        "request_id": answer.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/nothing?secret=1", "/REDACTED"),
        ("/churn/result/42.5/more", "/churn/result/REDACTED/REDACTED"),
        (f"/churn/nothing/{TASK_ID}", f"/churn/REDACTED/{TASK_ID}"),
    ],
)
def test_an_unknown_path_is_logged_with_words_of_routes_and_ids_only(
    log: pytest.LogCaptureFixture, path: str, shown: str
) -> None:
    call(app, "GET", path)
    fields = fields_of(log)
    assert (fields["route"], fields["path"], fields["status"]) == ("other", shown, "404")


def test_a_refused_customer_is_logged_with_its_faults_and_without_values(log: pytest.LogCaptureFixture) -> None:
    body = b'{"Gender": "a secret", "a secret": 1}'
    guarded = with_body_limit(body)
    assert guarded.status == 422
    fields = fields_of(log)
    assert fields["problem"] == "invalid-features"
    assert "Customer_Age:missing" in fields["faults"]
    assert len(fields["faults"].split(",")) == 5
    assert "secret" not in str(fields)


def services() -> Any:
    """Return the limits that a route reads before it calls a service."""
    return SimpleNamespace(body_max_bytes=16_384)


def with_body_limit(body: bytes) -> ASGIResponse:
    """Send a customer to the app, whose lifespan did not run."""
    app.state.services = services()
    try:
        return call(app, "POST", "/churn/predict", body, {"content-type": "application/json"})
    finally:
        del app.state.services


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_are_left_out(log: pytest.LogCaptureFixture, path: str) -> None:
    app.state.services = services()
    try:
        assert call(app, "GET", path).status in (200, 500)  # there is no result store
    finally:
        del app.state.services
    assert [record for record in log.records if record.name == "api.http.request_log"] == []


def test_an_unknown_path_that_ends_like_a_probe_is_logged(log: pytest.LogCaptureFixture) -> None:
    call(app, "GET", "/secret/livez")
    assert fields_of(log)["path"] == "/REDACTED/livez"


@given(st.text(), st.text(), st.text(max_size=300))
def test_no_text_of_a_client_adds_a_field_or_a_line(client: str, path: str, task_id: str) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]
    logger = logging.getLogger("api.http.request_log")
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.INFO
    try:
        scope = {"app": app, "method": "GET", "path": path, "client": (client, 1), "path_params": {"task_id": task_id}}
        log_request({**scope, "request_id": "1"}, 404, 0.1)
    finally:
        logger.removeHandler(handler)
        logger.level = level
    (line,) = (record.getMessage() for record in records)
    assert line.isprintable()
    names = [field.split("=")[0] for field in line.split(" ")]
    assert names == ["request", "method", "route", "status", "ms", "request_id", "client", "path", "task_id"]
    assert line.count("=") == len(names) - 1


# X-Request-ID


def test_every_answer_has_a_request_id_of_its_own() -> None:
    ids = {call(app, "GET", path).headers["x-request-id"] for path in ("/livez", "/", "/nothing", "/docs", "/livez")}
    assert len(ids) == 5


@pytest.mark.parametrize("sent", ["a", "0b8e3c4e-28ff-4a5c", "1-67891233-abcdef012345", "x" * 128])
def test_the_request_id_of_a_client_is_returned(sent: str) -> None:
    assert call(app, "GET", "/livez", headers={"X-Request-ID": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, 'a"b', "é", "a\tb", "a,b", "status=200"])
def test_a_request_id_with_other_characters_is_replaced(sent: str) -> None:
    made = call(app, "GET", "/livez", headers={"X-Request-ID": sent}).headers["x-request-id"]
    assert made != sent
    assert 1 <= len(made) <= 128


def test_a_defect_is_logged_as_500(log: pytest.LogCaptureFixture) -> None:
    failing = FastAPI()
    failing.add_middleware(RequestMiddleware, recorders=[log_request])

    @failing.get("/fails")
    async def fails() -> None:
        raise RuntimeError("a secret")

    assert call(failing, "GET", "/fails", headers={"X-Request-ID": "mine-2"}).status == 500
    fields = fields_of(log)
    assert (fields["request_id"], fields["status"], fields["problem"]) == ("mine-2", "500", "internal-error")


# The cause of a 503


def test_the_cause_of_many_503s_is_logged_once_a_second(log: pytest.LogCaptureFixture) -> None:
    failing = FastAPI()
    add_exception_handlers(failing)

    @failing.get("/fails")
    async def fails(request: Request) -> None:
        raise ResultStoreUnavailable("the result store is away")

    statuses = [call(failing, "GET", "/fails").status for _ in range(20)]
    causes = [record for record in log.records if record.name == "api.http.exception_handlers"]
    assert statuses == [503] * 20
    assert causes[0].getMessage() == "unavailable requests_total=1 reason=the result store is away"
    assert causes[0].exc_info is None
    assert len(causes) <= 1 + (causes[-1].created - causes[0].created)
