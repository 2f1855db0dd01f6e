"""Batches: POST /churn/batches accepts one; its state and its results are fetched by id."""

import csv
import io
import json
from typing import Any

import pytest

from api.http.problems import ProblemType
from tests.harness import marked_model
from tests.harness.assertions import assert_problem
from tests.harness.customers import Row, marked_results
from tests.harness.processes import until
from tests.harness.service import Service

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def test_a_batch_is_accepted_with_an_id_and_its_location(batches: Service, rows: list[Row]) -> None:
    response = batches.post_batch(json.dumps(rows), "application/json")
    body = response.json()
    assert response.status_code == 202
    assert body == {"batch_id": body["batch_id"], "status": "Processing", "total": 120, "refused": 0, "rows": []}
    assert response.headers["location"] == f"/churn/batches/{body['batch_id']}"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["retry-after"]) >= 1


def test_json_rows_are_scored_in_their_order(batches: Service, rows: list[Row]) -> None:
    url = batches.batch_accepted(rows)
    batch = batches.batch_ended(url)
    assert (batch["total"], batch["done"], batch["failed"], len(batch["model_version"])) == (120, 120, 0, 12)
    assert batches.batch_rows(url) == marked_results(rows)


def test_a_batch_id_in_capitals_is_the_same_batch_but_a_path_in_capitals_is_404(
    batches: Service, rows: list[Row]
) -> None:
    url = batches.batch_accepted(rows)
    batch = batches.batch_ended(url)
    batch_id = url.rpartition("/")[2]
    assert batches.batch(url.replace(batch_id, batch_id.upper())).json() == batch
    assert batches.get(f"/CHURN/BATCHES/{batch_id}").status_code == 404


def test_results_have_three_formats(batches: Service, rows: list[Row]) -> None:
    rows[60]["Customer_Age"] = marked_model.RAISES
    url = batches.batch_accepted(rows)
    assert batches.batch_ended(url)["failed"] == 1
    expected = marked_results(rows)
    expected[60] = {"row": 60, "error": "InvalidPrediction"}
    assert batches.batch_rows(url) == expected
    assert batches.batch_results(url, "application/json").json() == expected
    table = list(csv.DictReader(io.StringIO(batches.batch_results(url, "text/csv").text)))
    assert table[60] == {"row": "60", "probability": "", "error": "InvalidPrediction"}
    assert [float(line["probability"] or "nan") for line in table[:60]] == [row["probability"] for row in expected[:60]]


def test_the_format_of_results_is_negotiated(batches: Service, rows: list[Row]) -> None:
    url = batches.batch_accepted(rows[:1])
    response = batches.batch_results(url, "application/json;q=0.5, text/csv;q=0.9, text/html")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["vary"] == "Accept"


def test_an_unfinished_batch_is_202_with_its_first_results(batches: Service, rows: list[Row]) -> None:
    rows[110]["Customer_Age"] = marked_model.SLEEPS
    url = batches.batch_accepted(rows)
    until(lambda: batches.batch(url).json()["done"] == 100)
    response = batches.batch(url)
    assert (response.status_code, response.json()["status"]) == (202, "Processing")
    assert int(response.headers["retry-after"]) >= 1
    assert url.endswith(response.headers["location"])
    partial = batches.batch_results(url)
    assert partial.status_code == 202
    assert [json.loads(line) for line in partial.text.splitlines()] == marked_results(rows)[:100]
    batches.delete_batch(url)


@pytest.mark.parametrize("path", [UNKNOWN, f"{UNKNOWN}:0"])
def test_an_unknown_batch_id_is_404(batches: Service, path: str) -> None:
    url = f"{batches.url}/churn/batches/{path}"
    assert_problem(batches.batch(url), ProblemType.UNKNOWN_BATCH)
    assert_problem(batches.batch_results(url), ProblemType.UNKNOWN_BATCH)
    assert_problem(batches.delete_batch(url), ProblemType.UNKNOWN_BATCH)


def test_a_deleted_batch_is_410_and_its_chunks_are_skipped(batches: Service, rows: list[Row]) -> None:
    with batches.worker.paused():
        queued = batches.batch_accepted(rows)
        assert batches.delete_batch(queued).status_code == 204
    ended = batches.batch_accepted(rows)
    batches.batch_ended(ended)
    assert_problem(batches.batch(queued), ProblemType.BATCH_DELETED)
    assert_problem(batches.batch_results(queued), ProblemType.BATCH_DELETED)
    assert batches.delete_batch(ended).status_code == 204
    assert_problem(batches.batch_results(ended), ProblemType.BATCH_DELETED)


def test_a_customers_values_are_in_no_log(batches: Service, customer: dict[str, Any]) -> None:
    secret = {**customer, "Credit_Limit": 27182.8182, "Customer_Age": marked_model.RAISES}
    assert batches.batch_ended(batches.batch_accepted([secret]))["failed"] == 1
    assert "27182.8" not in batches.api.text() + batches.worker.text()
