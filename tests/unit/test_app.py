"""The whole app, called in this process without servers: routing, documents, and each request that it refuses."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api.batch_formats import CSV, JSON, NDJSON
from api.http.auth import APIKeyMiddleware
from api.http.problems import ProblemType
from api.services import Services
from app import app
from celery_task_app.settings import Settings
from models import Customer
from tests.harness.customers import Row, as_csv, as_ndjson
from tests.harness.processes import ROOT
from tests.unit.asgi import ASGIResponse, assert_problem, call
from tests.unit.test_batch_intake import intake

MAX_ROWS = 100
MAX_BYTES = 100_000
LIMIT = Settings().body_max_bytes
SECRET = 31415.9


@pytest.fixture(autouse=True)
def services() -> Iterator[None]:
    """Give the app services whose broker and result store are away."""
    absent: Any = None  # no request of these tests gets so far
    batches = intake(max_rows=MAX_ROWS, max_bytes=MAX_BYTES)
    app.state.services = Services(0, LIMIT, absent, absent, absent, absent, batches, absent, absent, absent, absent)
    yield
    del app.state.services
    asyncio.run(batches.close())


def get(path: str, **headers: str) -> ASGIResponse:
    return call(app, "GET", path, headers=headers)


def predict(body: bytes | str | Row, query: str = "", **headers: str) -> ASGIResponse:
    """Send bytes, text or a customer to /churn/predict; `idempotency_key="1"` becomes a header."""
    text = json.dumps(body) if isinstance(body, dict) else body
    content = text.encode() if isinstance(text, str) else text
    fields = {"content-type": JSON} | {name.replace("_", "-"): value for name, value in headers.items()}
    return call(app, "POST", f"/churn/predict{query}", content, fields)


def batch(body: bytes | str, media_type: str, query: str = "", **headers: str) -> ASGIResponse:
    content = body.encode() if isinstance(body, str) else body
    fields = {"content-type": media_type} | {name.replace("_", "-"): value for name, value in headers.items()}
    return call(app, "POST", f"/churn/batches{query}", content, fields)


# Routing and documents


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nope", 404, None),
        ("GET", "/churn/predict/", 404, None),
        ("GET", "/CHURN/BATCHES/1", 404, None),
        ("GET", "/docs/assets/nope.js", 404, None),
        ("GET", "/static/nope.js", 404, None),
        ("GET", "/static/../page.py", 404, None),
        ("PUT", "/churn/predict", 405, "POST"),
        ("PATCH", "/churn/result/1", 405, "DELETE, GET, HEAD"),
        ("POST", "/churn/model", 405, "GET, HEAD"),
        ("POST", "/livez", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("DELETE", "/docs/assets/swagger-ui.css", 405, "GET, HEAD"),
    ],
)
def test_an_error_of_the_framework_is_a_problem(method: str, path: str, status: int, allow: str | None) -> None:
    response = call(app, method, path)
    assert response.status == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "about:blank"
    assert response.headers.get("allow") == allow


def test_the_docs_load_nothing_from_another_host() -> None:
    response = get("/docs")
    page = response.body.decode()
    assert response.status == 200
    assert "http" not in page
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    addresses = re.findall(r"(?:src|href)=\"(.*?)\"", page) + re.findall(r"'(openapi\.json)'", page)
    assert len(addresses) == 4
    for address in addresses:
        assert get(f"/{address}").status == 200


def test_the_page_loads_only_its_own_files_which_are_small() -> None:
    response = get("/")
    policy = response.headers["content-security-policy"]
    assert response.status == 200
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    assert not re.search(r"<script(?! type=\"module\" src)|<style| style=| on\w+=", response.body.decode())
    files = [path for path in (ROOT / "api/static").iterdir() if path.name != "index.html"]
    for path in files:
        asset = get(f"/static/{path.name}")
        assert (asset.status, asset.body) == (200, path.read_bytes())
        assert asset.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())
    loaded_later = {"batch.js", "csv.js"}  # with the first file of customers
    at_once = sum(path.stat().st_size for path in files if path.name not in loaded_later)
    assert len(response.body) + at_once < 60_000


@pytest.mark.parametrize("path", ["/livez", "/", "/docs", "/openapi.json"])
def test_head_has_the_status_and_the_headers_of_get(path: str) -> None:
    from_get, from_head = get(path), call(app, "HEAD", path)
    for answer in (from_get, from_head):
        del answer.headers["x-request-id"]
    assert (from_head.status, from_head.headers) == (from_get.status, from_get.headers)


def test_a_running_process_is_alive() -> None:
    assert (get("/livez").status, get("/livez").json()) == (200, {"status": "alive"})


@pytest.mark.parametrize(
    "path", ["/docs/assets/../../churn/model", "/static/../churn/model", "//docs", "/docs/../churn/model", "/livez/"]
)
def test_no_path_avoids_the_key(path: str) -> None:
    guarded = APIKeyMiddleware(app, [b"no digest"])
    assert call(guarded, "GET", path).status in (401, 404)


# Single predictions. tests/unit/test_json_route.py has all cases of a body.


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xff\xfe\xfd", ProblemType.NOT_JSON),
        (b"[" * 10_000, ProblemType.NOT_JSON),
        (b'{"Customer_Age": 20, "Customer_Age": 45}', ProblemType.NOT_JSON),
        (b"{}", ProblemType.INVALID_FEATURES),
        (b" " * (LIMIT + 1), ProblemType.TOO_LARGE),
    ],
    ids=["not UTF-8", "10,000 nested arrays", "a name twice", "no features", "too large"],
)
def test_a_body_that_is_no_customer_is_refused(body: bytes, kind: ProblemType) -> None:
    assert_problem(predict(body), kind)


@pytest.mark.parametrize("content_type", ["text/csv", "json", ""])
def test_another_content_type_of_a_customer_is_415(customer: Row, content_type: str) -> None:
    assert_problem(predict(customer, content_type=content_type), ProblemType.NOT_JSON_TYPE)


@pytest.mark.parametrize(
    "headers", [{"content_encoding": "gzip"}, {"content_type": "application/json; charset=latin1"}]
)
@pytest.mark.parametrize(
    "send", [lambda **headers: predict("{}", **headers), lambda **headers: batch("[]", JSON, **headers)]
)
def test_an_encoding_other_than_utf_8_is_415(send: Callable[..., ASGIResponse], headers: dict[str, str]) -> None:
    response = send(**headers)
    assert_problem(response, ProblemType.UNSUPPORTED_ENCODING)
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "headers",
    [{"idempotency_key": ""}, {"idempotency_key": "x" * 256}, {"cancel_after": "0"}, {"cancel_after": "soon"}],
    ids=["empty key", "256 characters", "0 s", "no number"],
)
def test_an_invalid_header_is_400_and_is_named(customer: Row, headers: dict[str, str]) -> None:
    errors = assert_problem(predict(customer, **headers), ProblemType.BAD_HEADER)["errors"]
    assert [error["pointer"].lower() for error in errors] == [f"#/{name.replace('_', '-')}" for name in headers]


@pytest.mark.parametrize("explain", ["maybe", "", "1"])
def test_explain_must_be_true_or_false(customer: Row, explain: str) -> None:
    body = assert_problem(predict(customer, f"?explain={explain}"), ProblemType.BAD_PARAMETER)
    assert [fault["pointer"] for fault in body["errors"]] == ["#/explain"]


# Batches. tests/unit/test_batch_formats.py has all cases of the parsers.


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/octet-stream", "multipart/form-data"])
def test_another_media_type_of_a_batch_is_415(customer: Row, media_type: str) -> None:
    assert_problem(batch(as_csv([customer]), media_type), ProblemType.UNSUPPORTED_MEDIA_TYPE)


def test_a_bad_query_parameter_is_not_blamed_on_the_rows(customer: Row) -> None:
    body = assert_problem(batch(json.dumps([customer]), JSON, "?on_error=x"), ProblemType.BAD_PARAMETER)
    assert [fault["pointer"] for fault in body["errors"]] == ["#/on_error"]


# HEADER and ROW stand for a header and a valid row of the format.
MALFORMED = {
    "CSV: an open quote": (CSV, b'HEADER\nROW\n"ROW\n' + b"ROW\n" * 500),
    "CSV: not UTF-8": (CSV, b"HEADER\nROW\n\xff\xfe\n"),
    "JSON: an empty body": (JSON, b""),
    "JSON: no end": (JSON, b"[ROW,ROW"),
    "JSON: 10,000 nested arrays": (JSON, b"[ROW," + b"[" * 10_000 + b"]" * 10_000 + b"]"),
    "NDJSON: an empty body": (NDJSON, b"\n"),
    "NDJSON: not JSON": (NDJSON, b"ROW\nROW\nnonsense\nROW\n"),
}


@pytest.mark.parametrize(("media_type", "body"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_400_with_a_reason_and_no_value(
    customer: Row, media_type: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    secret = {**customer, "Credit_Limit": SECRET}
    header, row = as_csv([secret]).encode().splitlines()
    body = body.replace(b"HEADER", header).replace(b"ROW", row if media_type == CSV else json.dumps(secret).encode())
    response = batch(body, media_type)
    assert len(assert_problem(response, ProblemType.MALFORMED_BATCH)["detail"]) > 10
    assert "31415.9" not in response.body.decode() + caplog.text


def test_a_malformed_line_of_ndjson_is_named(customer: Row) -> None:
    line = as_ndjson([customer])
    response = batch(f"{line}\n{line}{{'Gender': 1}}\n", NDJSON)
    assert "line 4" in assert_problem(response, ProblemType.MALFORMED_BATCH)["detail"]


@pytest.mark.parametrize("media_type", [CSV, NDJSON])
def test_refused_rows_are_named_with_line_and_pointer_and_no_value(customer: Row, media_type: str) -> None:
    rows = [customer] * 90
    rows[3] = {**customer, "Gender": "somebody's secret", "Customer_Age": 7.5}
    rows[70] = {**customer, "Credit_Limit": "NaN"}
    response = batch(as_csv(rows) if media_type == CSV else as_ndjson(rows), media_type, "?on_error=reject")
    body = assert_problem(response, ProblemType.INVALID_ROWS)
    first = 2 if media_type == CSV else 1
    assert (body["refused"], [(row["row"], row["line"]) for row in body["rows"]]) == (
        2,
        [(3, 3 + first), (70, 70 + first)],
    )
    assert [error["pointer"] for error in body["rows"][0]["errors"]] == ["#/3/Customer_Age", "#/3/Gender"]
    assert b"secret" not in response.body


def test_a_batch_without_a_valid_row_is_422() -> None:
    response = batch("[" + ", ".join(["5", "{}"] * 50) + "]", JSON)
    body = assert_problem(response, ProblemType.INVALID_ROWS)
    assert (body["refused"], len(body["rows"])) == (100, 100)
    assert body["rows"][0]["errors"][0]["pointer"] == "#/0"
    assert len(body["rows"][1]["errors"]) == len(Customer.model_fields)


@pytest.mark.parametrize("media_type", [JSON, NDJSON])
def test_in_json_a_string_is_not_a_number(customer: Row, media_type: str) -> None:
    row = json.dumps(customer | {"Customer_Age": "45"})
    rows = assert_problem(batch(f"[{row}]" if media_type == JSON else row, media_type), ProblemType.INVALID_ROWS)[
        "rows"
    ]
    assert [error["pointer"] for error in rows[0]["errors"]] == ["#/0/Customer_Age"]


@pytest.mark.parametrize("media_type", [CSV, NDJSON])
def test_a_batch_with_too_many_rows_or_bytes_is_413(customer: Row, media_type: str) -> None:
    rows = [customer] * (MAX_ROWS + 1)
    assert_problem(
        batch(as_csv(rows) if media_type == CSV else as_ndjson(rows), media_type), ProblemType.BATCH_TOO_LARGE
    )
    assert_problem(batch(b"\n" * (MAX_BYTES + 1), media_type), ProblemType.BATCH_TOO_LARGE)


@pytest.mark.parametrize("accept", ["text/html", "text/html, text/csv;q=0", "*/*;q=0"])
def test_an_unknown_format_of_results_is_406(accept: str) -> None:
    assert_problem(get("/churn/batches/1/results", accept=accept), ProblemType.NOT_ACCEPTABLE)
