"""Large batches, the service as it is shipped: nobody is held up, memory stays flat, the numbers are the model's."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import DATA
from tests.processes import ROOT, Service, until
from tests.test_batches import Row, as_csv, ended, post, scored


def large(customer: Row, count: int) -> str:
    header, line = as_csv([customer]).splitlines()
    return f"{header}\n" + f"{line}\n" * count


UPLOAD = (
    "import sys, requests\n"
    "answer = requests.post(sys.argv[1], data=open(sys.argv[2], 'rb'), headers={'content-type': sys.argv[3]})\n"
    "print(answer.headers['location'])"
)


@pytest.mark.parametrize(("kind", "count"), [("text/csv", 100_000), ("application/json", 100_000)])
def test_100_000_rows_hold_up_nobody(service: Service, customer: Row, tmp_path: Path, kind: str, count: int) -> None:
    """Neither the event loop while they are taken, nor a single prediction while they wait; nor do they fill memory."""
    api = psutil.Process(service.api.pid)
    ended(f"{service.url}{post(service, large(customer, 2000)).headers['location']}")
    (tmp_path / "body").write_text(large(customer, count) if kind == "text/csv" else json.dumps([customer] * count))
    before, most = api.memory_info().rss, 0
    slowest_s, began = 0.0, time.perf_counter()
    command = [sys.executable, "-c", UPLOAD, f"{service.url}/churn/batches", str(tmp_path / "body"), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as upload, requests.Session() as session:
        while upload.poll() is None:
            started = time.perf_counter()
            assert session.get(f"{service.url}/livez", timeout=30).ok
            slowest_s = max(slowest_s, time.perf_counter() - started)
            most = max(most, api.memory_info().rss)
            time.sleep(0.005)
        assert upload.stdout is not None
        where = f"{service.url}{upload.stdout.read().strip()}"
        took_s = time.perf_counter() - began
    for _ in range(3):
        assert service.ended(service.predict(customer)).status_code == 200
    assert requests.get(where, timeout=30).status_code == 202, "the batch was done first: this shows nothing"
    ended(where, within_s=60)
    assert len(scored(where)) == count
    most = max(most, api.memory_info().rss)
    assert slowest_s < took_s / 2, f"/livez took {slowest_s:.2f} s while a batch was taken in {took_s:.2f} s"
    assert most - before < 50 * 2**20, f"{(most - before) / 2**20:.1f} MiB"


def test_a_result_store_that_is_away_for_a_while_costs_no_row(service: Service, customer: Row) -> None:
    where = f"{service.url}{post(service, large(customer, 50_000)).headers['location']}"
    until(lambda: requests.get(where, timeout=30).json()["done"] > 0)
    with service.servers.store.paused():
        assert requests.get(where, timeout=30).status_code == 503
    assert ended(where, within_s=60)["failed"] == 0
    assert len(scored(where)) == 50_000


def test_the_benchmark_of_batches_runs(service: Service, customer: Row, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(large(customer, 100))
    command = [sys.executable, "-m", "benchmarks.bulk", str(tmp_path / "customers.csv"), "--url", service.url]
    run = subprocess.run(
        [*command, "--rounds", "1", "--times", "2"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [line.split(", ")[0] for line in run.stdout.splitlines()] == [
        "text/csv: 200 rows",
        "application/json: 200 rows",
    ]


@pytest.mark.skipif(not DATA.exists(), reason=f"no data set at {DATA}: set DATA")
def test_bankchurners_as_it_is_is_scored_as_the_model_does(service: Service) -> None:
    program = (
        "import sys, json, pandas as pd; from celery_task_app.ml.model import ChurnModel\n"
        "from celery_task_app.settings import settings\n"
        "table = pd.read_csv(sys.argv[1], keep_default_na=False).to_dict('records')\n"
        "print(json.dumps(ChurnModel(settings.model_path).churn_probabilities(table)))"
    )
    response = post(service, DATA.read_bytes())
    assert (response.json()["total"], response.json()["refused"]) == (10_127, 0)
    where = f"{service.url}{response.headers['location']}"
    ended(where)
    command = [sys.executable, "-c", program, str(DATA)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert [one["probability"] for one in scored(where)] == json.loads(run.stdout)
