"""The scoring command in this process, against the app on a real server: each row gets a probability or a reason."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_task_app.cli.score.__main__ import main
from tests.conftest import MANIFEST
from tests.harness.customers import as_csv
from tests.harness.processes import free_port
from tests.harness.servers import Servers
from tests.harness.service import Client
from tests.harness.stub import running_stub
from tests.integration.in_process import MODEL, consuming, serving, settings_of

Row = dict[str, Any]

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture(scope="module")
def api(servers: Servers) -> Iterator[Client]:
    """An API that takes 100 rows in a batch, so that the command sends several."""
    with consuming(servers, MODEL), serving(settings_of(servers, batch_max_rows=100)) as client:
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "customers.csv"


def scored(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def test_each_row_gets_a_probability_or_a_reason(
    api: Client, customer: Row, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**customer, "name": f"=customer {number}"} for number in range(150)]
    rows[3] = rows[140] = {**rows[3], "Gender": "?"}
    path.write_text(as_csv(rows))
    out = path.with_name("scored.csv")
    assert main(["--url", api.url, "--out", str(out), "--threshold", "0.5", str(path)]) == 0
    results = scored(out)
    assert [row["name"] for row in results[:2]] == ["'=customer 0", "'=customer 1"]
    assert {row["churn"] for row in results if row["churn_probability"]} <= {"yes", "no"}
    assert [number for number, row in enumerate(results) if row["churn_error"]] == [3, 140]
    assert results[3]["churn_error"].startswith("Gender: ")
    assert "148 rows scored, 2 not" in capsys.readouterr().err
    assert main(["--url", api.url, "--out", str(out), "--raw", str(path)]) == 0
    assert scored(out)[0]["name"] == "=customer 0"


def test_every_reason_is_fetched_although_an_answer_has_a_hundred(api: Client, customer: Row, path: Path) -> None:
    path.write_text(as_csv([customer, *[{**customer, "Gender": "?"}] * 220]))
    out = path.with_name("scored.csv")
    assert main(["--url", api.url, "--out", str(out), str(path)]) == 0
    assert [bool(row["churn_error"]) for row in scored(out)] == [False, *[True] * 220]


def test_a_run_is_resumed_with_the_batches_of_an_earlier_one(
    api: Client, customer: Row, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(as_csv([customer] * 60))
    batch_id = api.post_batch(as_csv([customer] * 60)).json()["batch_id"]
    out = path.with_name("scored.csv")
    assert main(["--url", api.url, "--out", str(out), "--resume", batch_id, str(path)]) == 0
    assert len(scored(out)) == 60
    path.write_text(as_csv([customer] * 10))
    assert main(["--url", api.url, "--resume", f"{batch_id}:60", str(path)]) == 1
    assert "another file" in capsys.readouterr().err


def test_the_output_is_standard_output_without_out(
    api: Client, customer: Row, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(as_csv([customer]))
    assert main(["--url", api.url, str(path)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.endswith("Avg_Utilization_Ratio,churn_probability,churn_error")
    assert len(line.split(",")) == len(MANIFEST["features"]) + 2


def test_a_file_without_rows_or_of_another_kind_is_named(
    api: Client, customer: Row, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (as_csv([customer]).splitlines()[0], "name\nAnna\n", ""):
        path.write_text(content)
        assert main(["--url", api.url, str(path)]) == 1
        assert capsys.readouterr().err.startswith("Not scored. ")


def test_a_batch_that_is_unknown_is_named(
    api: Client, customer: Row, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(as_csv([customer]))
    assert main(["--url", api.url, "--resume", "0" * 32, str(path)]) == 1
    assert "Not scored. " in capsys.readouterr().err


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", "null"])
def test_another_service_is_named(servers: Servers, path: Path, body: str, capsys: pytest.CaptureFixture[str]) -> None:
    with running_stub() as stub:
        stub.status, stub.body = 200, body
        assert main(["--url", stub.url, str(path)]) == 1
    assert f"{stub.url} is not the churn service" in capsys.readouterr().err


@pytest.mark.parametrize("status", [308, 404, 502])
def test_an_answer_without_a_reason_is_shown(
    servers: Servers, path: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_stub() as stub:
        stub.status, stub.body, stub.location = status, "", "https://churn.example/" if status == 308 else ""
        assert main(["--url", stub.url, str(path)]) == 1
    assert ("churn.example" if status == 308 else str(status)) in capsys.readouterr().err


def test_a_service_that_is_away_is_named_with_the_reason(
    servers: Servers, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", f"http://127.0.0.1:{free_port()}", str(path)]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_the_key_of_the_key_file_is_sent(servers: Servers, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = path.with_name("client.key")
    key.write_text("a-key\n")
    with running_stub() as stub:
        stub.status, stub.body = 401, '{"title": "No valid API key", "detail": "Send a key."}'
        assert main(["--url", stub.url, "--key-file", str(key), str(path)]) == 1
        assert stub.authorization == "Bearer a-key"
    assert "No valid API key: Send a key." in capsys.readouterr().err
