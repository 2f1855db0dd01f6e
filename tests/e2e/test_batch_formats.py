"""Formats of a batch: CSV, NDJSON and a JSON array; invalid rows, malformed files, and limits of size."""

import json
from collections.abc import Callable

import pytest
import requests

from api.http.problems import ProblemType
from models import Customer
from tests.e2e.conftest import BATCH_MAX_BYTES, BATCH_MAX_ROWS
from tests.harness.assertions import assert_problem
from tests.harness.customers import Row, as_csv, as_ndjson, marked_results, repeated_csv
from tests.harness.service import Service

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"
MEBIBYTE = 2**20


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "\n" + text.replace("\n", "\n\n"),
        lambda text: text.replace("\n", ',"more, of\nit"\n').replace(',"more, of\nit"', ",extra", 1),
    ],
    ids=["plain", "BOM and CRLF", "blank lines", "an extra column of two lines"],
)
def test_csv_rows_are_scored_in_their_order(batches: Service, rows: list[Row], change: Callable[[str], str]) -> None:
    response = batches.post_batch(change(as_csv(rows)), "text/csv; charset=utf-8")
    assert response.json()["total"] == 120, response.text
    url = batches.batch_url(response)
    batches.batch_ended(url)
    assert batches.batch_rows(url) == marked_results(rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "\n \n" + text.replace("\n", "\n\n"),
        lambda text: text.rstrip(),
    ],
    ids=["plain", "BOM and CRLF", "blank lines", "no newline at the end"],
)
def test_ndjson_rows_are_scored_in_their_order(batches: Service, rows: list[Row], change: Callable[[str], str]) -> None:
    response = batches.post_batch(change(as_ndjson(rows)), "application/x-ndjson; charset=utf-8")
    assert response.json()["total"] == 120, response.text
    url = batches.batch_url(response)
    batches.batch_ended(url)
    assert batches.batch_rows(url) == marked_results(rows)


def test_invalid_csv_rows_are_named_and_the_others_are_scored(batches: Service, rows: list[Row]) -> None:
    rows[3] |= {"Gender": "somebody's secret", "Customer_Age": 7.5}
    rows[70]["Credit_Limit"] = "NaN"
    response = batches.post_batch(as_csv(rows))
    body = response.json()
    assert (response.status_code, body["total"], body["refused"]) == (202, 118, 2)
    assert [(row["row"], row["line"]) for row in body["rows"]] == [(3, 5), (70, 72)]
    assert [error["pointer"] for error in body["rows"][0]["errors"]] == ["#/3/Customer_Age", "#/3/Gender"]
    assert "secret" not in response.text
    url = batches.batch_url(response)
    batches.batch_ended(url)
    assert batches.batch_rows(url) == [one for one in marked_results(rows) if one["row"] not in (3, 70)]


def test_invalid_ndjson_rows_are_named_with_their_lines(batches: Service, rows: list[Row]) -> None:
    rows[3] |= {"Gender": "somebody's secret", "Customer_Age": "45"}
    response = batches.post_batch("\n" + as_ndjson(rows), NDJSON)
    body = response.json()
    assert (response.status_code, body["total"], body["refused"]) == (202, 119, 1)
    assert [(row["row"], row["line"]) for row in body["rows"]] == [(3, 5)]
    assert [error["pointer"] for error in body["rows"][0]["errors"]] == ["#/3/Customer_Age", "#/3/Gender"]
    assert "secret" not in response.text


def test_on_error_reject_refuses_the_whole_batch(batches: Service, rows: list[Row]) -> None:
    rows[3]["Gender"] = rows[70]["Gender"] = "?"
    response = batches.post_batch(json.dumps(rows), JSON, on_error="reject")
    body = assert_problem(response, ProblemType.INVALID_ROWS)
    assert (body["refused"], [row["row"] for row in body["rows"]]) == (2, [3, 70])
    assert batches.post_batch(json.dumps(rows[4:70]), JSON, on_error="reject").status_code == 202


def test_a_batch_without_a_valid_row_is_422(batches: Service) -> None:
    response = batches.post_batch("[" + ", ".join(["5", "{}"] * 200) + "]", JSON)
    body = assert_problem(response, ProblemType.INVALID_ROWS)
    assert (body["refused"], len(body["rows"])) == (400, 100)
    assert body["rows"][0]["errors"][0]["pointer"] == "#/0"
    assert len(body["rows"][1]["errors"]) == len(Customer.model_fields)


@pytest.mark.parametrize("media_type", [JSON, NDJSON])
def test_in_json_a_string_is_not_a_number(batches: Service, customer: Row, media_type: str) -> None:
    body = json.dumps(customer | {"Customer_Age": "45"})
    response = batches.post_batch(f"[{body}]" if media_type == JSON else body, media_type)
    rows = assert_problem(response, ProblemType.INVALID_ROWS)["rows"]
    assert [error["pointer"] for error in rows[0]["errors"]] == ["#/0/Customer_Age"]


def test_other_fields_are_ignored(batches: Service, customer: Row) -> None:
    batches.batch_ended(batches.batch_accepted([customer | {"\ud800": "\ud800", "more": {"a": [1]}}]))


# tests/unit has all cases of the parsers. HEADER and ROW stand for a header and a valid row of the format.
MALFORMED = {
    "CSV: an open quote": (CSV, b'HEADER\nROW\n"ROW\n' + b"ROW\n" * 3000),
    "CSV: not UTF-8": (CSV, b"HEADER\nROW\n\xff\xfe\n"),
    "JSON: an empty body": (JSON, b""),
    "JSON: no end": (JSON, b"[ROW,ROW"),
    "JSON: 10,000 nested arrays": (JSON, b"[ROW," + b"[" * 10_000 + b"]" * 10_000 + b"]"),
    "NDJSON: an empty body": (NDJSON, b"\n"),
    "NDJSON: not JSON": (NDJSON, b"ROW\nROW\nnonsense\nROW\n"),
}


@pytest.mark.parametrize(("media_type", "body"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_400_with_a_reason(batches: Service, customer: Row, media_type: str, body: bytes) -> None:
    secret = {**customer, "Credit_Limit": 31415.9}
    header, row = as_csv([secret]).encode().splitlines()
    body = body.replace(b"HEADER", header).replace(b"ROW", row if media_type == CSV else json.dumps(secret).encode())
    response = batches.post_batch(body, media_type)
    detail = assert_problem(response, ProblemType.MALFORMED_BATCH)["detail"]
    assert len(detail) > 10
    assert "31415" not in response.text + batches.api.text()


def test_a_malformed_line_of_ndjson_is_named(batches: Service, rows: list[Row]) -> None:
    first, second = as_ndjson(rows[:2]).splitlines()
    response = batches.post_batch(f"{first}\n\n{second}\n{{'Gender': 1}}\n", NDJSON)
    assert "line 4" in assert_problem(response, ProblemType.MALFORMED_BATCH)["detail"]


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/octet-stream", "multipart/form-data"])
def test_another_media_type_is_415(batches: Service, rows: list[Row], media_type: str) -> None:
    response = batches.post_batch(as_csv(rows), media_type)
    assert_problem(response, ProblemType.UNSUPPORTED_MEDIA_TYPE)


@pytest.mark.parametrize("media_type", [CSV, NDJSON])
def test_a_batch_with_too_many_rows_is_413(batches: Service, customer: Row, media_type: str) -> None:
    def post(count: int) -> requests.Response:
        body = repeated_csv(customer, count) if media_type == CSV else as_ndjson([customer]) * count
        return batches.post_batch(body, media_type)

    batches.delete_batch(batches.batch_url(post(BATCH_MAX_ROWS)))
    assert_problem(post(BATCH_MAX_ROWS + 1), ProblemType.BATCH_TOO_LARGE)


@pytest.mark.parametrize("media_type", [CSV, NDJSON])
def test_a_batch_with_too_many_bytes_is_413(batches: Service, media_type: str) -> None:
    response = batches.post_batch(b"\n" * (BATCH_MAX_BYTES + 1), media_type)
    assert_problem(response, ProblemType.BATCH_TOO_LARGE)
    chunked = iter([b"\n" * MEBIBYTE] * (BATCH_MAX_BYTES // MEBIBYTE + 1))
    assert_problem(batches.post_batch(chunked, media_type), ProblemType.BATCH_TOO_LARGE)


def test_a_json_array_over_8_mib_is_413_and_the_same_rows_are_accepted_as_ndjson(
    batches: Service, customer: Row
) -> None:
    row = json.dumps(customer | {"more": "x" * 10_000})
    count = 8 * MEBIBYTE // (len(row) + 1) + 1
    response = batches.post_batch("[" + ",".join([row] * count) + "]", JSON)
    assert "application/x-ndjson" in assert_problem(response, ProblemType.BATCH_TOO_LARGE)["detail"]
    accepted = batches.post_batch(f"{row}\n" * count, NDJSON)
    assert (accepted.status_code, accepted.json()["total"]) == (202, count)
    batches.delete_batch(batches.batch_url(accepted))
