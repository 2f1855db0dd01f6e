"""Large batches on the shipped service: predictions are not delayed, memory stays flat, every row is scored."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import DATA
from tests.harness.customers import Row, as_ndjson, repeated_csv
from tests.harness.processes import ROOT, until
from tests.harness.service import Service

on_valkey = pytest.mark.parametrize("servers", ["valkey"], indirect=True)  # nothing here depends on the broker

UPLOAD = (
    "import sys, requests\n"
    "answer = requests.post(sys.argv[1], data=open(sys.argv[2], 'rb'), headers={'content-type': sys.argv[3]})\n"
    "print(answer.headers['location'])"
)


def test_100_000_rows_delay_no_request_and_do_not_fill_memory(service: Service, customer: Row, tmp_path: Path) -> None:
    """The event loop stays free during the upload, and a prediction overtakes the waiting rows."""
    count = 100_000
    # Each format and each back-end once: a format does not depend on the back-end.
    media_type = {"valkey": "application/x-ndjson", "rabbitmq": "text/csv"}[service.servers.name]
    api = psutil.Process(service.api.pid)
    service.batch_ended(service.batch_url(service.post_batch(repeated_csv(customer, 2000))))
    body = repeated_csv(customer, count) if media_type == "text/csv" else as_ndjson([customer]) * count
    (tmp_path / "body").write_text(body)
    before, most = api.memory_info().rss, 0
    slowest_s, began = 0.0, time.perf_counter()
    command = [sys.executable, "-c", UPLOAD, f"{service.url}/churn/batches", str(tmp_path / "body"), media_type]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as upload:
        while upload.poll() is None:
            started = time.perf_counter()
            assert service.answers("/livez")
            slowest_s = max(slowest_s, time.perf_counter() - started)
            most = max(most, api.memory_info().rss)
            time.sleep(0.005)
        assert upload.stdout is not None
        url = f"{service.url}{upload.stdout.read().strip()}"
        took_s = time.perf_counter() - began
    for _ in range(3):
        assert service.ended(service.predict(customer)).status_code == 200
    assert service.batch(url).status_code == 202, "the batch ended before the predictions: the test proves nothing"
    service.batch_ended(url, within_s=60)
    assert len(service.batch_rows(url)) == count
    most = max(most, api.memory_info().rss)
    assert slowest_s < took_s / 2, f"/livez took {slowest_s:.2f} s during an upload of {took_s:.2f} s"
    assert most - before < 50 * 2**20, f"{(most - before) / 2**20:.1f} MiB"


def test_a_result_store_that_is_frozen_for_a_while_loses_no_row(service: Service, customer: Row) -> None:
    url = service.batch_url(service.post_batch(repeated_csv(customer, 50_000)))
    until(lambda: service.batch(url).json()["done"] > 0)
    with service.servers.store.paused():
        assert service.batch(url).status_code == 503
    assert service.batch_ended(url, within_s=60)["failed"] == 0
    assert len(service.batch_rows(url)) == 50_000


@on_valkey
def test_the_benchmark_of_batches_runs(service: Service, customer: Row, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(repeated_csv(customer, 100))
    command = [sys.executable, "-m", "benchmarks.bulk", str(tmp_path / "customers.csv"), "--url", service.url]
    run = subprocess.run(
        [*command, "--rounds", "1", "--times", "2"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [line.split(", ")[0] for line in run.stdout.splitlines()] == [
        "text/csv: 200 rows",
        "application/x-ndjson: 200 rows",
    ]


@on_valkey
@pytest.mark.skipif(not DATA.exists(), reason=f"no data set at {DATA}: set DATA")
def test_bankchurners_csv_is_scored_as_by_the_model(service: Service) -> None:
    program = (
        "import sys, json, pandas as pd; from celery_task_app.ml.model import ChurnModel\n"
        "from celery_task_app.settings import settings\n"
        "table = pd.read_csv(sys.argv[1], keep_default_na=False).to_dict('records')\n"
        "print(json.dumps(ChurnModel(settings.model_path).churn_probabilities(table)))"
    )
    response = service.post_batch(DATA.read_bytes())
    assert (response.json()["total"], response.json()["refused"]) == (10_127, 0)
    url = service.batch_url(response)
    service.batch_ended(url)
    command = [sys.executable, "-c", program, str(DATA)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert [one["probability"] for one in service.batch_rows(url)] == json.loads(run.stdout)
