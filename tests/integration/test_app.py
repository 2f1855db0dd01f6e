"""The app on real servers in this process: each route succeeds, from the request to the stored result."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.http.problems import ProblemType
from celery_task_app.consumer.heartbeat import WorkerHealth
from tests.conftest import MANIFEST
from tests.harness.assertions import assert_problem
from tests.harness.customers import as_csv, as_ndjson
from tests.harness.processes import free_port, silent_port, until
from tests.harness.servers import Servers
from tests.harness.service import Client
from tests.integration.in_process import MODEL, consuming, serving, settings_of

Row = dict[str, Any]


@pytest.fixture(scope="module")
def worker(servers: Servers) -> Iterator[WorkerHealth]:
    with consuming(servers, MODEL) as health:
        yield health


@pytest.fixture(scope="module")
def api(servers: Servers, worker: WorkerHealth) -> Iterator[Client]:
    """An API with a worker."""
    with serving(settings_of(servers, batch_chunk_rows=50)) as client:
        yield client


# Predictions


def test_a_request_that_waits_gets_its_probability(api: Client, customer: Row) -> None:
    response = api.post(customer, Prefer="wait=20")
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=20")
    task_id = response.json()["task_id"]
    assert api.result(task_id).json() == response.json()
    assert 0 <= response.json()["probability"] <= 1


def test_a_result_can_be_awaited_and_deleted(api: Client, customer: Row) -> None:
    task_id = api.predict(customer)
    assert api.result(task_id, Prefer="wait=20").status_code == 200
    assert api.delete(task_id).status_code == 204
    assert_problem(api.result(task_id), ProblemType.DELETED)
    assert_problem(api.delete("00000000-0000-0000-0000-000000000001"), ProblemType.UNKNOWN_TASK)


def test_reasons_are_returned_if_the_client_asks(api: Client, customer: Row) -> None:
    response = api.post(customer, {"explain": "true"}, Prefer="wait=20")
    assert response.json()["reasons"]["up"]


def test_a_key_gets_the_same_prediction_again(api: Client, customer: Row) -> None:
    first = api.predict(customer, Idempotency_Key="one")
    again = api.post(customer, Idempotency_Key="one", Prefer="wait=20")
    assert (again.status_code, again.json()["task_id"]) == (200, first)
    other = api.post({**customer, "Customer_Age": 31}, Idempotency_Key="one")
    assert_problem(other, ProblemType.IDEMPOTENCY_KEY_REUSED)


# Batches


def test_a_batch_is_scored_and_deleted(api: Client, customer: Row) -> None:
    rows = [{**customer, "Customer_Age": 26 + number % 40} for number in range(120)]
    url = api.batch_url(api.post_batch(as_csv([*rows, {**customer, "Gender": "?"}])))
    assert api.batch_ended(url)["total"] == 120
    assert [row["row"] for row in api.batch_rows(url)] == list(range(120))
    assert api.batch_results(url, "text/csv").text.startswith("row,probability,error\r\n0,")
    assert len(api.batch_results(url, "application/json").json()) == 120
    assert api.delete_batch(url).status_code == 204
    assert_problem(api.batch(url), ProblemType.BATCH_DELETED)
    assert_problem(api.batch_results(url), ProblemType.BATCH_DELETED)
    assert_problem(api.batch(url[:-12] + "0" * 12), ProblemType.UNKNOWN_BATCH)
    assert_problem(api.delete_batch(url[:-12] + "0" * 12), ProblemType.UNKNOWN_BATCH)


def test_invalid_rows_are_named(api: Client, customer: Row) -> None:
    response = api.post_batch(as_ndjson([customer, {}]), "application/x-ndjson", on_error="reject")
    body = assert_problem(response, ProblemType.INVALID_ROWS)
    assert (body["refused"], body["rows"][0]["line"]) == (1, 2)


# Operations


def test_the_service_is_ready_while_a_worker_publishes_its_status(
    api: Client, worker: WorkerHealth, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of the status file
    worker.publish(["churn", "churn.batch"])
    until(api.answers)
    assert api.readiness()["status"] == "ready"
    assert api.request("HEAD", "/readyz").content == b""
    assert api.get("/livez").json() == {"status": "alive"}


def test_the_model_is_described_as_its_worker_reports_it(api: Client, worker: WorkerHealth) -> None:
    worker.publish(["churn", "churn.batch"])
    card = api.get("/churn/model").json()
    assert card.pop("in_use") == [{"version": MANIFEST["version"], "sha256": MANIFEST["sha256"], "workers": 1}]
    assert card.pop("training").items() <= MANIFEST["training"].items()
    assert card == {name: MANIFEST[name] for name in card}
    assert api.request("HEAD", "/churn/model").status_code == 200


def test_docs_need_no_key_and_predictions_do(servers: Servers, customer: Row) -> None:
    with serving(settings_of(servers, api_keys=hashlib.sha256(b"a-key").hexdigest())) as client:
        assert client.get("/docs").status_code == 200
        assert_problem(client.post(customer), ProblemType.UNAUTHORIZED)
        assert client.post(customer, Authorization="Bearer a-key").status_code == 202


@pytest.mark.parametrize("part", ["broker_uri", "backend_uri"])
def test_a_part_that_is_away_is_named_and_predictions_are_503(servers: Servers, customer: Row, part: str) -> None:
    address = str(getattr(servers, part))
    away = address.replace(f":{address.rpartition(':')[2].partition('/')[0]}/", f":{free_port()}/")
    with serving(settings_of(servers).model_copy(update={part: away})) as client:
        response = client.post(customer)
        assert assert_problem(response, ProblemType.UNAVAILABLE)["detail"]
        body = assert_problem(client.get("/readyz"), ProblemType.NOT_READY)
        assert "refused" in body["broker" if part == "broker_uri" else "result_store"]


def test_a_store_that_does_not_answer_is_named_in_time(servers: Servers) -> None:
    with silent_port() as port:
        silent = settings_of(servers).model_copy(update={"backend_uri": f"redis://127.0.0.1:{port}/0"})
        with serving(silent) as client:
            started = time.monotonic()
            assert client.readiness()["result_store"] != "up"
            assert time.monotonic() - started < 5
