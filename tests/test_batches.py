"""Batches, end to end: each row of the contract on both back-ends, bad input, poison, and a worker that is killed."""

import csv
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import requests

from app import app
from celery_task_app.batches import BatchStore
from celery_task_app.errors import InvalidPrediction
from celery_task_app.submission import Publisher
from celery_task_app.worker import BATCHES, DEAD, SCORE_TASK
from tests import marked_model
from tests.processes import ROOT, Servers, Service, running_service, until
from tests.test_app import problem

Row = dict[str, Any]
LIMITS = {"BATCH_CHUNK_ROWS": "50", "BATCH_MAX_BYTES": "3000000", "BATCH_MAX_ROWS": "5000"}


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Small chunks and limits, a model whose answers are known, and a worker with short time limits."""
    folder = tmp_path_factory.mktemp("batches")
    path = str(marked_model.save(folder))
    with running_service(servers, folder, celery_app="tests.impatient_worker", MODEL_PATH=path, **LIMITS) as running:
        yield running


@pytest.fixture
def rows(customer: Row) -> list[Row]:
    """Three chunks, the last not full; each row has a probability of its own."""
    return [{**customer, "Total_Trans_Ct": number} for number in range(120)]


def as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def post(
    service: Service, body: bytes | str | Iterator[bytes], kind: str = "text/csv", **query: str
) -> requests.Response:
    body = body.encode() if isinstance(body, str) else body
    url = f"{service.url}/churn/batches"
    return requests.post(url, data=body, headers={"content-type": kind}, params=query, timeout=60)


def accepted(service: Service, rows: list[Row]) -> str:
    response = post(service, json.dumps(rows), "application/json")
    assert response.status_code == 202, response.text
    return f"{service.url}{response.headers['location']}"


def ended(where: str, within_s: float = 30) -> Row:
    answer: requests.Response = until(
        lambda: (answer := requests.get(where, timeout=30)).status_code != 202 and answer, within_s
    )  # type: ignore[assignment]
    body: Row = answer.json()
    assert (answer.status_code, body["status"]) == (200, "Success")
    assert body["done"] == body["total"]
    return body


def results(where: str, accept: str = "application/x-ndjson") -> requests.Response:
    return requests.get(f"{where}/results", headers={"accept": accept}, timeout=30)


def scored(where: str) -> list[Row]:
    return [json.loads(line) for line in results(where).text.splitlines()]


def right(rows: list[Row]) -> list[Row]:
    return [{"row": number, "probability": row["Total_Trans_Ct"] / 1000} for number, row in enumerate(rows)]


def test_a_batch_is_accepted_with_an_id_and_told_where_to_ask(service: Service, rows: list[Row]) -> None:
    response = post(service, json.dumps(rows), "application/json")
    body = response.json()
    assert response.status_code == 202
    assert body == {"batch_id": body["batch_id"], "status": "Processing", "total": 120, "refused": 0, "rows": []}
    assert response.headers["location"] == f"/churn/batches/{body['batch_id']}"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["retry-after"]) >= 1


def test_json_is_scored_in_the_order_sent(service: Service, rows: list[Row]) -> None:
    where = accepted(service, rows)
    batch = ended(where)
    assert (batch["total"], batch["done"], batch["failed"], len(batch["model_version"])) == (120, 120, 0, 12)
    assert scored(where) == right(rows)
    assert requests.get(where.upper().replace("HTTP://127.0.0.1", service.url[:16]), timeout=30).status_code == 404
    batch_id = where.rpartition("/")[2]
    assert requests.get(where.replace(batch_id, batch_id.upper()), timeout=30).json() == batch


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "\n" + text.replace("\n", "\n\n"),
        lambda text: text.replace("\n", ',"more, of\nit"\n').replace(',"more, of\nit"', ",extra", 1),
    ],
    ids=["plain", "BOM and CRLF", "blank lines", "an extra column of two lines"],
)
def test_csv_is_scored_in_the_order_sent(service: Service, rows: list[Row], dress: Any) -> None:
    response = post(service, dress(as_csv(rows)), "text/csv; charset=utf-8")
    assert response.json()["total"] == 120, response.text
    where = f"{service.url}{response.headers['location']}"
    ended(where)
    assert scored(where) == right(rows)


def test_results_come_in_the_form_that_is_accepted(service: Service, rows: list[Row]) -> None:
    rows[60]["Customer_Age"] = marked_model.RAISES
    where = accepted(service, rows)
    assert ended(where)["failed"] == 1
    expected = right(rows)
    expected[60] = {"row": 60, "error": "InvalidPrediction"}
    assert scored(where) == expected
    assert results(where, "application/json").json() == expected
    table = list(csv.DictReader(io.StringIO(results(where, "text/csv").text)))
    assert table[60] == {"row": "60", "probability": "", "error": "InvalidPrediction"}
    assert [float(line["probability"] or "nan") for line in table[:60]] == [row["probability"] for row in expected[:60]]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/x-ndjson"),
        ("application/*", "application/x-ndjson"),
        ("text/*", "text/csv; charset=utf-8"),
        ("application/json;q=0.5, text/csv;q=0.9, text/html", "text/csv; charset=utf-8"),
        ("application/json", "application/json"),
    ],
)
def test_the_form_is_negotiated(service: Service, rows: list[Row], accept: str, kind: str) -> None:
    answer = results(accepted(service, rows[:1]), accept)
    assert answer.headers["content-type"] == kind
    assert answer.headers["vary"] == "Accept"


def test_a_form_that_there_is_not_is_406(service: Service, rows: list[Row]) -> None:
    problem(results(accepted(service, rows[:1]), "text/html, text/csv;q=0"), "not-acceptable")


def test_before_it_is_done_a_batch_is_processing_and_gives_what_is_there(service: Service, rows: list[Row]) -> None:
    rows[110]["Customer_Age"] = marked_model.SLEEPS
    where = accepted(service, rows)
    until(lambda: requests.get(where, timeout=30).json()["done"] == 100)
    answer = requests.get(where, timeout=30)
    assert (answer.status_code, answer.json()["status"]) == (202, "Processing")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["location"] in where
    partial = results(where)
    assert partial.status_code == 202
    assert [json.loads(line) for line in partial.text.splitlines()] == right(rows)[:100]
    requests.delete(where, timeout=30)


def test_rows_that_are_no_customers_are_named_and_the_others_scored(service: Service, rows: list[Row]) -> None:
    rows[3] |= {"Gender": "somebody's secret", "Customer_Age": 7.5}
    rows[70]["Credit_Limit"] = "NaN"
    response = post(service, as_csv(rows))
    body = response.json()
    assert (response.status_code, body["total"], body["refused"]) == (202, 118, 2)
    assert [(row["row"], row["line"]) for row in body["rows"]] == [(3, 5), (70, 72)]
    assert [error["pointer"] for error in body["rows"][0]["errors"]] == ["#/3/Customer_Age", "#/3/Gender"]
    assert "secret" not in response.text
    where = f"{service.url}{response.headers['location']}"
    ended(where)
    assert scored(where) == [one for one in right(rows) if one["row"] not in (3, 70)]


def test_a_batch_is_refused_whole_if_so_wished(service: Service, rows: list[Row]) -> None:
    rows[3]["Gender"] = rows[70]["Gender"] = "?"
    response = post(service, json.dumps(rows), "application/json", on_error="reject")
    body = problem(response, "invalid-rows")
    assert (body["refused"], [row["row"] for row in body["rows"]]) == (2, [3, 70])
    assert post(service, json.dumps(rows[4:70]), "application/json", on_error="reject").status_code == 202


def test_a_batch_without_any_customer_is_refused(service: Service) -> None:
    body = problem(post(service, "[" + ", ".join(["5", "{}"] * 200) + "]", "application/json"), "invalid-rows")
    assert (body["refused"], len(body["rows"])) == (400, 100)
    assert body["rows"][0]["errors"][0]["pointer"] == "#/0"
    assert len(body["rows"][1]["errors"]) == 19


FAULTS = {
    "NaN": {"Credit_Limit": float("nan")},
    "infinity": {"Credit_Limit": float("inf")},
    "true": {"Customer_Age": True},
    "text": {"Customer_Age": "45"},
    "null": {"Gender": None},
    "a lone surrogate": {"Gender": "\ud800"},
    "400 digits": {"Credit_Limit": 10**399},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_in_json_text_is_no_number(service: Service, customer: Row, fault: Row) -> None:
    body = problem(post(service, json.dumps([customer | fault]), "application/json"), "invalid-rows")
    assert [error["pointer"] for error in body["rows"][0]["errors"]] == [f"#/0/{next(iter(fault))}"]


def test_keys_that_no_text_can_hold_are_ignored_as_others_are(service: Service, customer: Row) -> None:
    ended(accepted(service, [customer | {"\ud800": "\ud800", "more": {"a": [1]}}]))


MALFORMED_CSV = {
    "nothing": b"",
    "only a header": b"HEADER\n",
    "a wrong header": b"age,gender\n1,2\n",
    "no header": b"ROW\nROW\n",
    "a ragged row": b"HEADER\nROW\nROW,5\nROW\n",
    "a short row": b"HEADER\nROW\n45\n",
    "a quote that never closes": b'HEADER\nROW\n"ROW\n' + b"ROW\n" * 3000,
    "such a quote, at the end": b'HEADER\nROW\n"ROW\n',
    "a duplicate column": b"HEADER,Gender\nROW,F\n",
    "bad UTF-8": b"HEADER\nROW\n\xff\xfe\n",
    "UTF-16": "HEADER\nROW\n".encode("utf-16"),
    "one endless line": b"HEADER\n" + b"5" * 100_000,
}
MALFORMED_JSON = {
    "nothing": b"",
    "an empty array": b" [ ] ",
    "an object": b"{}",
    "no end": b"[ROW,ROW",
    "no comma": b"[ROW ROW]",
    "a comma too many": b"[ROW,]",
    "more than an array": b"[ROW] []",
    "duplicate keys": b'[ROW,{"Gender": "F", "Gender": "M"}]',
    "5,000 digits": b"[ROW," + b"9" * 5000 + b"]",
    "deep": b"[ROW," + b"[" * 10_000 + b"]" * 10_000 + b"]",
    "deep without an end": b"[" * 100_000,
    "a huge row": b'[ROW,"' + b"x" * 100_000 + b'"]',
    "bad UTF-8": b'[ROW,"\xff"]',
}
MALFORMED = [
    pytest.param(kind, body, id=f"{kind.partition('/')[2]}-{name}")
    for kind, bodies in (("text/csv", MALFORMED_CSV), ("application/json", MALFORMED_JSON))
    for name, body in bodies.items()
]


@pytest.mark.parametrize(("kind", "body"), MALFORMED)
def test_what_is_no_batch_is_400_with_a_reason(service: Service, customer: Row, kind: str, body: bytes) -> None:
    secret = {**customer, "Credit_Limit": 31415.9}
    header, row = as_csv([secret]).encode().splitlines()
    body = body.replace(b"HEADER", header).replace(b"ROW", row if kind == "text/csv" else json.dumps(secret).encode())
    response = post(service, body, kind)
    detail = problem(response, "malformed-batch")["detail"]
    assert len(detail) > 10
    assert "31415" not in response.text + service.api.text()


@pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream", "multipart/form-data"])
def test_what_is_neither_csv_nor_json_is_415(service: Service, rows: list[Row], kind: str) -> None:
    problem(post(service, as_csv(rows), kind), "unsupported-media-type")


def test_a_batch_that_is_too_large_is_413(service: Service, rows: list[Row]) -> None:
    header, line = as_csv(rows[:1]).splitlines()
    problem(post(service, f"{header}\n" + f"{line}\n" * 5001), "batch-too-large")
    assert post(service, f"{header}\n" + f"{line}\n" * 5000).status_code == 202
    problem(post(service, b"\n" * 3_000_001), "batch-too-large")
    problem(post(service, iter([b"\n" * 1_000_000] * 4)), "batch-too-large")


@pytest.mark.parametrize(
    "path", ["00000000-0000-4000-8000-000000000000", "1", "x" * 10_000, "%00", "00000000-0000-4000-8000-000000000000:0"]
)
def test_an_unknown_batch_is_404(service: Service, path: str) -> None:
    where = f"{service.url}/churn/batches/{path}"
    problem(requests.get(where, timeout=30), "unknown-batch")
    problem(results(where), "unknown-batch")
    problem(requests.delete(where, timeout=30), "unknown-batch")


def test_a_deleted_batch_is_gone_and_its_chunks_are_skipped(service: Service, rows: list[Row]) -> None:
    with service.worker.paused():
        where = accepted(service, rows)
        assert requests.delete(where, timeout=30).status_code == 204
    after = accepted(service, rows)
    ended(after)
    problem(requests.get(where, timeout=30), "batch-deleted")
    problem(results(where), "batch-deleted")
    assert requests.delete(after, timeout=30).status_code == 204
    problem(results(after), "batch-deleted")


def test_the_features_of_a_deleted_batch_are_not_in_the_result_store(here: Servers, customer: Row) -> None:
    store, batch_id = BatchStore(), str(uuid4())
    store.create(batch_id, 2, 1)
    store.store(batch_id, 0, {0: 0.5}, "v")
    store.delete(batch_id)
    store.store(batch_id, 0, {1: 0.5}, "v")
    assert store.owed(batch_id, 0, [0, 1]) == set()
    assert list(store._client.scan_iter(f"churn:batch:{batch_id}*")) == [f"churn:batch:{batch_id}".encode()]


def test_a_chunk_that_comes_twice_counts_once(here: Servers) -> None:
    store, batch_id = BatchStore(), str(uuid4())
    store.create(batch_id, 4, 2)

    def counted() -> tuple[int, ...]:
        counters = store._client.hgetall(f"churn:batch:{batch_id}")
        return int(counters[b"done"]), int(counters[b"failed"])  # type: ignore[index]

    store.store(batch_id, 0, {0: 0.5, 1: InvalidPrediction("no")}, "v")
    store.store(batch_id, 0, {0: 0.7, 1: 0.7}, "v")
    store.store(batch_id, 0, {0: 0.7}, "v")
    assert counted() == (2, 1)
    store.store(batch_id, 1, {3: 0.5}, "v")
    assert store.owed(batch_id, 1, [2, 3]) == {2}
    store.store(batch_id, 1, {2: InvalidPrediction("no"), 3: 0.7}, "v")
    store.store(batch_id, 1, {2: 0.7, 3: 0.7}, "v")
    assert counted() == (4, 2)
    assert store.owed(batch_id, 1, [2, 3]) == store.owed(batch_id, 0, [0, 1]) == set()
    assert 0 < store._client.ttl(f"churn:batch:{batch_id}:1") <= 86_400  # type: ignore[operator]


def message(batch_id: str, rows: list[Row]) -> Row:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    content = json.dumps({"rows": list(range(len(rows))), "customers": columns})
    return {"batch_id": batch_id, "chunk": 0, "content": content}


@pytest.mark.parametrize("queue", [BATCHES, DEAD], ids=lambda queue: queue.name)
def test_a_message_that_comes_twice_changes_nothing(
    service: Service, here: Servers, rows: list[Row], queue: Any
) -> None:
    batch_id, publisher = str(uuid4()), Publisher()
    BatchStore().create(batch_id, 30, 1)
    for number in (0, 500):
        changed = [{**row, "Total_Trans_Ct": row["Total_Trans_Ct"] + number} for row in rows[:30]]
        publisher.send(SCORE_TASK, queue, message(batch_id, changed))
        ended(f"{service.url}/churn/batches/{batch_id}")
    publisher.close()
    after = accepted(service, rows)
    ended(after)
    assert scored(f"{service.url}/churn/batches/{batch_id}") == right(rows[:30])


@pytest.mark.parametrize("kwargs", [{}, {"batch_id": "x", "chunk": 0, "content": "{"}, {"content": 5}])
def test_a_message_that_makes_no_sense_hurts_nobody(
    service: Service, here: Servers, rows: list[Row], kwargs: Row
) -> None:
    publisher = Publisher()
    publisher.send(SCORE_TASK, BATCHES, kwargs)
    publisher.close()
    ended(accepted(service, rows))


@pytest.mark.parametrize(
    ("age", "error"),
    [
        (marked_model.KILLS, "TooManyAttempts"),
        (marked_model.SLEEPS, "TooManyAttempts"),
        (marked_model.IS_NAN, "InvalidPrediction"),
        (marked_model.HAS_NO_SHAPE, "InvalidPrediction"),
    ],
    ids=["kills", "sleeps", "NaN", "wrong shape"],
)
def test_a_poisonous_row_fails_alone(service: Service, rows: list[Row], age: int, error: str) -> None:
    rows[57]["Customer_Age"] = age
    where = accepted(service, rows)
    assert ended(where, within_s=60)["failed"] == 1
    expected = right(rows)
    expected[57] = {"row": 57, "error": error}
    assert scored(where) == expected


def test_a_worker_that_is_killed_loses_and_doubles_nothing(service: Service, rows: list[Row]) -> None:
    many = rows * 20
    where = accepted(service, many)
    until(lambda: requests.get(where, timeout=30).json()["done"] > 0)
    for child in psutil.Process(service.worker.pid).children():
        child.send_signal(signal.SIGKILL)
    assert ended(where, within_s=60)["failed"] == 0
    assert scored(where) == right(many)
    if service.servers.name == "rabbitmq":  # Valkey redelivers after a minute, which is tested with single predictions
        where = accepted(service, many)
        service.worker.kill()
        service.worker.start()
        assert ended(where, within_s=60)["failed"] == 0
        assert scored(where) == right(many)


def test_a_broker_that_is_away_is_503_and_nothing_is_left(service: Service, rows: list[Row]) -> None:
    with service.servers.broker.paused():
        started = time.monotonic()
        response = post(service, json.dumps(rows), "application/json")
        assert time.monotonic() - started < 15
    problem(response, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    until(service.answers)
    ended(accepted(service, rows))


def test_a_batch_that_could_not_be_announced_is_not_taken_back(service: Service, rows: list[Row]) -> None:
    """For that would fail again, and take as long again."""
    before = service.api.text().count("batch taken back")
    with service.servers.store.paused():
        problem(post(service, json.dumps(rows), "application/json"), "unavailable")
    assert service.api.text().count("batch taken back") == before
    until(service.answers)
    ended(accepted(service, rows))


def test_a_publish_that_fails_half_way_takes_the_batch_back(here: Servers, rows: list[Row]) -> None:
    from celery_task_app.errors import BrokerUnavailable
    from celery_task_app.intake import Intake, Taken
    from models import Customer

    intake, store = Intake(Customer), BatchStore()
    before = set(store._client.scan_iter("churn:batch:*"))
    sent = []

    def send(*message: Any) -> None:
        sent.append(message)
        if len(sent) > 1:
            raise BrokerUnavailable("away")

    intake._publisher.send = send  # type: ignore[method-assign]
    body = io.BytesIO(as_csv(rows * 20).encode())
    with pytest.raises(BrokerUnavailable):
        intake._check_and_publish(Taken(str(uuid4())), body, "text/csv", all_or_none=False)
    (batch,) = set(store._client.scan_iter("churn:batch:*")) - before
    assert store._client.hget(batch, "state") == b"deleted"
    assert len(sent) == 2


def test_a_client_that_goes_before_the_end_leaves_nothing(service: Service, here: Servers, customer: Row) -> None:
    client = BatchStore()._client
    before = set(client.scan_iter("churn:batch:*"))
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        head = "POST /churn/batches HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall((head + as_csv([customer] * 10)).encode())
    assert service.answers("/livez")
    ended(accepted(service, [customer]))
    assert len(set(client.scan_iter("churn:batch:*")) - before) == 2  # those of the last batch
    assert "Traceback" not in service.api.text()


def test_openapi_documents_each_answer_about_batches() -> None:
    paths = app.openapi()["paths"]
    one, results = paths["/churn/batches/{batch_id}"], paths["/churn/batches/{batch_id}/results"]["get"]["responses"]
    assert {"202", "400", "413", "415", "422", "429", "503"} <= set(paths["/churn/batches"]["post"]["responses"])
    assert {"200", "202", "404", "410", "503"} <= set(one["get"]["responses"])
    assert {"204", "404", "503"} <= set(one["delete"]["responses"])
    assert {"200", "202", "404", "406", "410", "503"} <= set(results)
    assert {"text/csv", "application/json", "application/x-ndjson"} == set(results["200"]["content"])


def test_a_customers_values_are_in_no_log(service: Service, customer: Row) -> None:
    where = accepted(service, [{**customer, "Credit_Limit": 27182.8182, "Customer_Age": marked_model.RAISES}])
    assert ended(where)["failed"] == 1
    assert "27182" not in service.api.text() + service.worker.text()


def score(service: Service, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery_task_app.score", str(path), "--url", service.url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_adds_a_probability_to_each_row(service: Service, rows: list[Row], tmp_path: Path) -> None:
    rows[1]["Gender"] = "X"
    rows[2]["Customer_Age"] = marked_model.RAISES
    (tmp_path / "customers.csv").write_text(as_csv([row | {"name": 'a "name"'} for row in rows]))
    run = score(service, tmp_path / "customers.csv")
    assert run.returncode == 0, run.stderr
    table = list(csv.DictReader(io.StringIO(run.stdout)))
    assert [row["name"] for row in table] == ['a "name"'] * 120
    assert [row["churn_probability"] for row in table[:4]] == ["0.0", "", "", "0.003"]
    assert [row["churn_error"] for row in table[:4]] == [
        "",
        "Gender: Input should be 'F' or 'M'",
        "InvalidPrediction",
        "",
    ]
    assert "119 of 119" in run.stderr


def test_the_command_line_says_why_it_failed(service: Service, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text("name\nsomebody\n")
    run = score(service, tmp_path / "customers.csv")
    assert (run.returncode, run.stdout) == (1, "")
    assert "lacks Customer_Age" in run.stderr
    assert score(service, tmp_path / "nowhere.csv").returncode == 1
