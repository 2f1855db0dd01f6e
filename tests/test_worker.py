"""A worker whose model can't be used: it says why in its log and in readiness, stops, and loses no message."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import psutil
import pytest
import requests
from celery.exceptions import QueueNotFound
from kombu import Connection, Queue
from lightgbm import LGBMClassifier

from celery_task_app.worker import DEAD, PREDICT_TASK, PREDICTIONS, app
from tests import marked_model
from tests.conftest import MANIFEST
from tests.processes import ROOT, Servers, Service, running_servers, running_service, until

ARTIFACTS = ROOT / "celery_task_app/ml/artifacts"


@pytest.fixture(scope="module")
def api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API that predictions are left with; its worker has been stopped."""
    with running_service(servers, tmp_path_factory.mktemp("api")) as service:
        service.worker.stop()
        yield service


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped artefact, to be spoilt."""
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


def orphan_and_truncate(model: Path) -> None:
    model.with_suffix(".json").unlink()
    truncate(model)


SPOILT = {
    "missing": (Path.unlink, "No model at"),
    "truncated": (truncate, "is not the file that"),
    "tampered": (tamper, "is not the file that"),
    "version": (age, "was made with scikit-learn 0.24.0"),
    "no model": (orphan_and_truncate, "can't be unpickled"),
}


def run_to_its_end(servers: Servers, model: Path, **settings: str) -> tuple[int, str]:
    """Start a worker that stops by itself; return its exit code and its log."""
    worker = Service(servers, model.parent, {"MODEL_PATH": str(model), **settings}).worker
    worker.start()
    assert worker.popen is not None
    return worker.popen.wait(30), worker.text()


def reasons(api: Service) -> list[str]:
    workers = requests.get(f"{api.url}/readyz", timeout=30).json()["workers"].values()
    return [sign["detail"] for sign in workers if sign["model"] == "failed"]


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_a_model_that_can_not_be_used_stops_the_worker_with_one_clear_error(
    api: Service, model: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(model)
    code, log = run_to_its_end(api.servers, model, WARM_UP="true")
    (error,) = [line.partition("the worker stops: ")[2] for line in log.splitlines() if "worker stops" in line]
    assert code == 1
    assert says in error
    assert str(model.parent) in error
    assert "Traceback" not in log
    assert reasons(api) == [error]


# Without WARM_UP, what only unpickling finds out is found out by a process of the pool, which tells the worker to stop.
def test_a_message_waits_for_a_worker_that_has_a_model(api: Service, model: Path, customer: dict[str, Any]) -> None:
    orphan_and_truncate(model)
    task_id = api.predict(customer)
    code, log = run_to_its_end(api.servers, model)
    assert (code, log.count("worker stops")) == (0, 1)
    assert api.result(task_id).status_code == 202

    healthy = Service(api.servers, model.parent, {}).worker
    healthy.start()
    try:
        assert api.ended(task_id).status_code == 200
        until(api.answers)
        assert reasons(api) == []
    finally:
        assert healthy.stop() == 0


def test_a_model_that_loads_too_slowly_fails_the_prediction_and_not_the_worker(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    path = tmp_path / "slow.joblib"
    joblib.dump(marked_model.SlowToLoad(), path)
    settings = {"MODEL_PATH": str(path), "WARM_UP": "false"}
    with running_service(servers, tmp_path, "tests.impatient_worker", **settings) as service:
        response = service.ended(service.predict(customer), within_s=60)
        assert (response.status_code, response.json()["type"]) == (500, "/problems/prediction-failed")
        assert service.answers("/readyz")


def test_a_process_that_is_forked_with_the_model_loaded_predicts(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    # OpenMP's threads do not survive a fork: if the model had started them before, a process that uses them would hang.
    settings = {"WORKER_CONCURRENCY": "2", "OMP_NUM_THREADS": "4"}
    with running_service(servers, tmp_path, "tests.late_worker", **settings) as service:
        for _ in range(3):
            for process in psutil.Process(service.worker.pid).children():
                process.kill()
            ids = [service.predict(customer) for _ in range(10)]
            assert {service.ended(task_id).status_code for task_id in ids} == {200}
        assert service.worker.text().count("model loaded") == 1


def test_a_model_that_predicts_with_many_threads_predicts_after_the_fork_too(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    # LightGBM's own default is a thread for each core. Its golden rows are predicted before the fork, elsewhere.
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
        answer = service.ended(service.predict(customer), within_s=60)
        assert answer.json()["probability"] == pytest.approx(probability)


def test_golden_rows_that_are_predicted_otherwise_stop_the_worker(api: Service, model: Path) -> None:
    golden = [row | {"probability": 0.5} for row in MANIFEST["golden"]]
    model.with_suffix(".json").write_text(json.dumps(MANIFEST | {"golden": golden}))
    code, log = run_to_its_end(api.servers, model, WARM_UP="true")
    assert code == 1
    assert "for golden row 0" in log


def test_a_message_that_reached_its_delivery_limit_is_predicted(
    api: Service, model: Path, customer: dict[str, Any]
) -> None:
    if api.servers.name == "valkey":
        pytest.skip("Valkey counts no deliveries")
    task_id = api.predict(customer)
    with Connection(api.servers.broker_uri) as connection:
        channel = connection.default_channel

        def returned() -> int:
            deliveries = 0
            while message := PREDICTIONS(channel).get():
                message.requeue()  # as if its worker had died
                deliveries += 1
            return deliveries

        assert returned() == 21
        until(lambda: DEAD(channel).queue_declare(passive=True).message_count == 1)

    worker = Service(api.servers, model.parent, {}).worker
    worker.start()
    try:
        assert api.ended(task_id).status_code == 200
        until(lambda: not any(api.servers.messages().values()))
    finally:
        assert worker.stop() == 0


def test_a_worker_hears_that_its_queue_was_deleted_while_messages_are_on_their_way(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    if servers.name == "valkey":
        pytest.skip("a queue is a list, gone whenever it is empty")
    deleted = threading.Event()

    def send(service: Service) -> None:
        while not deleted.is_set():
            requests.post(f"{service.url}/churn/predict", json=customer, timeout=30)

    with ThreadPoolExecutor() as clients, running_service(servers, tmp_path) as service:
        for _ in range(4):
            clients.submit(send, service)
        until(lambda: service.worker.text().count("succeeded") > 100)
        servers.rabbitmqctl("delete_queue", PREDICTIONS.name)
        deleted.set()
        assert service.ended(service.predict(customer), within_s=60).status_code == 200


def test_a_worker_waits_for_a_broker_that_starts_later(tmp_path: Path) -> None:
    with running_servers("valkey", tmp_path) as late, running_service(late, tmp_path) as service:
        assert service.worker.stop() == 0
        late.broker.kill()
        service.worker.start()
        until(lambda: "(1/None)" in service.worker.text())  # of how many attempts
        late.broker.start()
        until(service.answers)


def test_a_worker_waits_until_a_queue_is_as_it_should_be(api: Service, tmp_path: Path) -> None:
    if api.servers.name == "valkey":
        pytest.skip("a queue is a list, whatever its arguments")
    worker = Service(api.servers, tmp_path, {}).worker
    with Connection(api.servers.broker_uri) as connection:
        PREDICTIONS(connection.default_channel).delete()
        other = Queue(PREDICTIONS.name, channel=connection.default_channel, queue_arguments={"x-queue-type": "classic"})
        other.queue_declare()
        worker.start()
        until(lambda: "PRECONDITION_FAILED" in worker.text())
        other.delete()
    try:
        until(lambda: " ready." in worker.text())
    finally:
        assert worker.stop() == 0


def test_only_the_queues_that_are_used_are_declared(api: Service) -> None:
    if api.servers.name == "valkey":
        pytest.skip("a queue is a list, gone whenever it is empty")
    names = api.servers.rabbitmqctl("list_queues", "--no-table-headers", "name").split()
    assert {name for name in names if not name.startswith(("celery@", "celeryev"))} == {
        "churn",
        "churn.batch",
        "churn.dead",
    }


def test_a_misspelt_queue_is_an_error(here: Servers) -> None:
    with pytest.raises(QueueNotFound):
        app.send_task(PREDICT_TASK, kwargs={"customers": {}}, queue="chrun", ignore_result=True)
