"""Model files: a worker with an unusable model names the reason, stops, and loses no message."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import psutil
import pytest
from lightgbm import LGBMClassifier

from tests.conftest import MANIFEST
from tests.harness import marked_model
from tests.harness.processes import ROOT, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api, running_service

on_valkey = pytest.mark.parametrize("servers", ["valkey"], indirect=True)  # the broker makes no difference

ARTIFACTS = ROOT / "celery_task_app/ml/artifacts"


@pytest.fixture(scope="module")
def api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API without a worker, on which an earlier worker has declared the queues."""
    with running_api(servers, tmp_path_factory.mktemp("api")) as api:
        with api.worker.running():
            until(api.answers)
        yield api


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped model and its manifest, for a test to damage."""
    for file in ARTIFACTS.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "churn.joblib"


def truncate(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:1000])


def tamper(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1] + b"!")


def age(model: Path) -> None:
    libraries = MANIFEST["libraries"] | {"scikit-learn": "0.24.0"}
    model.with_suffix(".json").write_text(json.dumps(MANIFEST | {"libraries": libraries}))


def truncate_without_manifest(model: Path) -> None:
    model.with_suffix(".json").unlink()
    truncate(model)


DAMAGE = {
    "missing": (Path.unlink, "No model at"),
    "truncated": (truncate, "is not the file that"),
    "tampered": (tamper, "is not the file that"),
    "version": (age, "was made with scikit-learn 0.24.0"),
    "no model": (truncate_without_manifest, "can't be unpickled"),
}


def run_to_the_end(servers: Servers, model: Path, **settings: str) -> tuple[int, str]:
    """Start a worker that stops by itself; return its exit code and its log."""
    worker = Service(servers, model.parent, {"MODEL_PATH": str(model), **settings}).worker
    worker.start()
    return worker.wait(30), worker.text()


def failed_models(api: Service) -> list[str]:
    """Return the reasons of the workers that failed to load their model."""
    statuses = api.readiness()["workers"].values()
    return [status["detail"] for status in statuses if status["model"] == "failed"]


@on_valkey
@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_an_unusable_model_stops_the_worker_with_one_error(
    api: Service, model: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(model)
    code, log = run_to_the_end(api.servers, model)
    (error,) = [line.partition("the worker stops: ")[2] for line in log.splitlines() if "worker stops" in line]
    assert code == 1
    assert reason in error
    assert str(model.parent) in error
    assert "Traceback" not in log
    until(lambda: failed_models(api) == [error])  # readiness may be a second old


@on_valkey
def test_golden_rows_with_other_probabilities_stop_the_worker(api: Service, model: Path) -> None:
    golden = [row | {"probability": 0.5} for row in MANIFEST["golden"]]
    model.with_suffix(".json").write_text(json.dumps(MANIFEST | {"golden": golden}))
    code, log = run_to_the_end(api.servers, model)
    assert code == 1
    assert "for golden row 0" in log


# Without WARM_UP each pool process unpickles the model. The first one that cannot stops its worker.
def test_a_message_waits_for_a_worker_with_a_usable_model(api: Service, model: Path, customer: dict[str, Any]) -> None:
    truncate_without_manifest(model)
    task_id = api.predict(customer)
    code, log = run_to_the_end(api.servers, model, WARM_UP="false")
    assert (code, log.count("worker stops")) == (1, 1)
    assert api.result(task_id).status_code == 202

    with Service(api.servers, model.parent, {}).worker.running():
        assert api.ended(task_id).status_code == 200
        until(api.answers)
        until(lambda: failed_models(api) == [])


# Loading is no attempt: no customer pays for it.


def test_a_model_that_loads_longer_than_the_time_limits_predicts(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    path = str(marked_model.save(tmp_path, marked_model.SlowToLoad(5)))
    settings = {"MODEL_PATH": path, "WARM_UP": "false"}
    service = Service(servers, tmp_path, settings, "tests.harness.workers.impatient")  # a hard limit of 2 s
    with service.api.running(), service.worker.running():
        service.await_answer("/livez", service.api)
        task_id = service.predict(customer)
        batch = service.batch_accepted([customer])
        assert service.ended(task_id).status_code == 200
        assert service.batch_ended(batch)["failed"] == 0


def test_a_worker_whose_processes_end_while_they_load_stops_and_fails_no_prediction(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    path = str(marked_model.save(tmp_path, marked_model.KillsWhileLoading()))
    with running_api(servers, tmp_path) as api:
        task_id, batch = api.predict(customer), api.batch_accepted([customer])
        worker = Service(servers, tmp_path, {"MODEL_PATH": path, "WARM_UP": "false"}).worker
        worker.start()
        assert worker.wait(within_s=60) == 1
        assert "pool processes ended while they loaded the model" in worker.text()
        assert any("failed" in status["model"] for status in api.readiness()["workers"].values())
        assert api.result(task_id).status_code == 202
        with Service(servers, tmp_path, {}).worker.running():
            assert api.ended(task_id).status_code == 200
            assert api.batch_ended(batch)["failed"] == 0


@on_valkey
def test_a_process_that_is_forked_with_the_model_predicts(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    # OpenMP's threads do not survive a fork. If they had started before it, a process that needs them would hang.
    settings = {"WORKER_CONCURRENCY": "2", "OMP_NUM_THREADS": "4"}
    with running_service(servers, tmp_path, "tests.harness.workers.late", **settings) as service:
        for _ in range(3):
            for process in psutil.Process(service.worker.pid).children():
                process.kill()
            ids = [service.predict(customer) for _ in range(10)]
            assert {service.ended(task_id).status_code for task_id in ids} == {200}
        assert service.worker.text().count("model loaded") == 1


@on_valkey
def test_a_model_with_many_threads_predicts_after_the_fork(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    # LightGBM's default is a thread for each core. The golden rows are predicted in another process before the fork.
    table = pd.DataFrame({"Total_Trans_Ct": range(200), "Credit_Limit": [1000.0] * 200})
    model = LGBMClassifier(n_jobs=2, verbose=-1).fit(table, table["Total_Trans_Ct"] > 100)
    path = tmp_path / "many.joblib"
    joblib.dump(model, path)
    probability = model.predict_proba(table.iloc[[customer["Total_Trans_Ct"]]])[0, 1]
    manifest = {
        "name": "many",
        "version": "1",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "libraries": {},
        "features": [{"name": "Total_Trans_Ct", "type": "integer"}, {"name": "Credit_Limit", "type": "number"}],
        "golden": [{"customer": customer | {"Credit_Limit": 1000.0}, "probability": probability}],
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with running_service(servers, tmp_path, MODEL_PATH=str(path)) as service:
        response = service.ended(service.predict(customer), within_s=60)
        assert response.json()["probability"] == pytest.approx(probability)
