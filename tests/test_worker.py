"""A worker whose model can't be used: it says why in its log and in readiness, stops, and loses no message."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from celery_task_app.worker import app
from tests.conftest import MANIFEST
from tests.processes import ROOT, Servers, Service, running_service, until

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
    workers = requests.get(f"{api.url}/readyz", timeout=5).json()["workers"].values()
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


def test_a_process_that_is_forked_with_the_model_loaded_predicts(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    # OpenMP's threads do not survive a fork: if the model had started them before, a process that uses them would hang.
    settings = {"WORKER_CONCURRENCY": "2", "OMP_NUM_THREADS": "4"}
    with running_service(servers, tmp_path, **settings) as service:
        for _ in range(3):
            for process in psutil.Process(service.worker.pid).children():
                process.kill()
            ids = [service.predict(customer) for _ in range(10)]
            assert {service.ended(task_id).status_code for task_id in ids} == {200}
        assert service.worker.text().count("model loaded") == 1


def test_delivery_is_at_least_once() -> None:
    conf = app.conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.broker_transport_options["confirm_publish"]
    assert conf.broker_connection_max_retries is None
    assert not conf.task_create_missing_queues


def test_nothing_but_json_is_taken_from_the_wire() -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"
