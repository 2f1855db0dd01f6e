"""Formats of a batch, from HTTP to the results. tests/unit has all cases of the parsers and of refused rows."""

import json
from collections.abc import Callable

import pytest

from api.http.problems import ProblemType
from tests.e2e.conftest import BATCH_MAX_BYTES, BATCH_MAX_ROWS
from tests.harness.assertions import assert_problem
from tests.harness.customers import Row, as_csv, as_ndjson, marked_results, repeated_csv
from tests.harness.service import Service

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"
MEBIBYTE = 2**20

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.mark.parametrize(("media_type", "write"), [(CSV, as_csv), (NDJSON, as_ndjson)], ids=["CSV", "NDJSON"])
def test_rows_are_scored_in_their_order(
    batches: Service, rows: list[Row], media_type: str, write: Callable[[list[Row]], str]
) -> None:
    body = "\ufeff" + write(rows).replace("\n", "\r\n")
    response = batches.post_batch(body, f"{media_type}; charset=utf-8", on_error="reject")
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


def test_other_fields_are_ignored(batches: Service, customer: Row) -> None:
    batches.batch_ended(batches.batch_accepted([customer | {"\ud800": "\ud800", "more": {"a": [1]}}]))


def test_a_malformed_file_is_400_and_no_value_is_logged(batches: Service, customer: Row) -> None:
    header, line = as_csv([{**customer, "Credit_Limit": 31415.9}]).splitlines()
    response = batches.post_batch(f'{header}\n{line}\n"{line}\n' + f"{line}\n" * 3000)
    assert "close every quote" in assert_problem(response, ProblemType.MALFORMED_BATCH)["detail"]
    assert "31415.9" not in response.text + batches.api.text()


def test_a_batch_with_too_many_rows_is_413(batches: Service, customer: Row) -> None:
    batches.delete_batch(batches.batch_url(batches.post_batch(repeated_csv(customer, BATCH_MAX_ROWS))))
    response = batches.post_batch(repeated_csv(customer, BATCH_MAX_ROWS + 1))
    assert_problem(response, ProblemType.BATCH_TOO_LARGE)


def test_a_batch_without_a_length_and_with_too_many_bytes_is_413(batches: Service) -> None:
    chunked = iter([b"\n" * MEBIBYTE] * (BATCH_MAX_BYTES // MEBIBYTE + 1))
    assert_problem(batches.post_batch(chunked, CSV), ProblemType.BATCH_TOO_LARGE)


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
