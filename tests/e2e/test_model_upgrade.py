"""Upgrade and roll back of the model under load: workers are replaced one by one, and no prediction is lost."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from celery_task_app.cli.package import package
from celery_task_app.cli.score.__main__ import main
from celery_task_app.ml.artifact import read_manifest, write_artifact
from tests.harness import clients, marked_model
from tests.harness.customers import as_csv
from tests.harness.processes import Process, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

Customer = dict[str, Any]
NUMBERS = 400  # the old model's probabilities are below 0.4, the new model's above 0.6
CHUNK_ROWS, ROWS = 20, 1_000
PER_CUSTOMER_S = 0.005
PROBABILITY: dict[str, Callable[[int], float]] = {
    "1": lambda number: number / 1000,
    "2": lambda number: 1 - number / 1000,
}


def packaged(folder: Path, model: object, version: str) -> Path:
    """Package a model, as an operator does, into a folder of its own; return the model file."""
    folder.mkdir()
    sample = folder / "sample.csv"
    sample.write_text("Customer_Age,Total_Trans_Ct\n45,42\n50,300\n")
    saved = marked_model.save(folder, model, "churn.joblib")
    package(saved, sample, folder, name="churn", version=version)
    return saved


def replace_file(model: Path) -> None:
    model.write_bytes(model.read_bytes() + b"!")


def break_model(model: Path) -> None:
    (model.parent / "broken").touch()


def use_a_missing_library(model: Path) -> None:
    content = b"cno_such_library\nModel\n."
    write_artifact(model, content, read_manifest(model) | {"sha256": hashlib.sha256(content).hexdigest()})


BAD = {
    "is not the file that": replace_file,
    "can't predict the golden rows": break_model,
    "install no_such_library for the worker": use_a_missing_library,
}


class Load:
    """Clients that send customers, and a client that reads the readiness, until the block ends.

    Attributes:
        accepted: the Total_Trans_Ct of each accepted customer, by task id.
        statuses: of all responses.
    """

    def __init__(self, service: Service, customer: Customer) -> None:
        self.accepted: dict[str, int] = {}
        self.statuses: Counter[tuple[str, int]] = Counter()
        self._service = service
        self._customer = customer
        self._stopped = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(5) as pool:
            clients = [*(pool.submit(self._send, client) for client in range(4)), pool.submit(self._look)]
            try:
                yield
            finally:
                self._stopped.set()
            for client in clients:
                client.result()

    def wait_for_more(self) -> None:
        goal = len(self.accepted) + 20
        until(lambda: len(self.accepted) >= goal)

    def versions(self) -> set[str]:
        """Require that no response failed, and that each result is that of its version; return the versions."""
        assert self.statuses.keys() == {("POST", 202), ("GET /readyz", 200)}
        versions = set()
        for task_id, number in self.accepted.items():
            result = self._service.ended(task_id).json()
            assert result["probability"] == PROBABILITY[result["model_version"]](number)
            versions.add(result["model_version"])
        return versions

    def _send(self, number: int) -> None:
        while not self._stopped.wait(0.1):
            response = self._service.post(self._customer | {"Total_Trans_Ct": number % NUMBERS})
            self.statuses["POST", response.status_code] += 1
            self.accepted[response.json()["task_id"]] = number % NUMBERS
            number += 4

    def _look(self) -> None:
        while not self._stopped.wait(0.2):
            self.statuses["GET /readyz", self._service.get("/readyz").status_code] += 1


@dataclass
class Fleet:
    """The workers of one service, each with its own folder.

    Attributes:
        service: its worker has the old model.
        folder: of the models and the logs.
        workers: the other workers.
    """

    service: Service
    folder: Path
    workers: list[Process] = field(default_factory=list)

    def start(self, model: Path) -> Process:
        """Start a worker more."""
        folder = self.folder / f"worker {len(self.workers)}"
        folder.mkdir()
        worker = Service(self.service.servers, folder, {"MODEL_PATH": str(model)}).worker
        worker.start()
        self.workers.append(worker)
        return worker

    def stop(self, worker: Process) -> None:
        assert worker.stop(within_s=10) == 0

    def await_versions(self, **workers: int) -> None:
        """Wait until so many workers have loaded a model of each version: `v1=2`."""

        def versions() -> Counter[str]:
            statuses = self.service.readiness()["workers"].values()
            return Counter(f"v{status['detail']}" for status in statuses if status["model"] == "loaded")

        until(lambda: versions() == workers)

    def version_of_a_prediction(self, customer: Customer) -> str:
        response = self.service.post(customer, Prefer="wait=20")
        assert response.status_code == 200
        return str(response.json()["model_version"])

    def kill(self) -> None:
        for worker in self.workers:
            if worker.is_running:
                worker.kill()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(tmp_path_factory.mktemp("models") / "1", marked_model.SlowModel(PER_CUSTOMER_S), "1")


@pytest.fixture(scope="module")
def service(servers: Servers, old: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose worker has the old model."""
    settings = {"MODEL_PATH": str(old), "BATCH_CHUNK_ROWS": str(CHUNK_ROWS)}
    with running_service(servers, tmp_path_factory.mktemp("service"), **settings) as running:
        yield running


@pytest.fixture
def fleet(service: Service, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(service, tmp_path)
    yield fleet
    fleet.kill()


def test_a_bad_model_never_takes_a_message_while_the_old_worker_goes_on(
    fleet: Fleet, tmp_path: Path, customer: Customer
) -> None:
    failing = {}
    with (load := Load(fleet.service, customer)).running():
        for number, (reason, damage) in enumerate(BAD.items(), 3):
            folder = tmp_path / str(number)
            model = packaged(folder, marked_model.BreaksModel(folder / "broken"), str(number))
            damage(model)
            failing[reason] = fleet.start(model)
        for reason, worker in failing.items():
            assert worker.wait() == 1
            assert reason in worker.text()
        load.wait_for_more()
    assert load.versions() == {"1"}


def test_a_model_is_upgraded_and_rolled_back_under_load_without_a_gap(
    fleet: Fleet, old: Path, tmp_path: Path, customer: Customer
) -> None:
    service, new = fleet.service, packaged(tmp_path / "2", marked_model.InvertedModel(PER_CUSTOMER_S), "2")
    second_old = fleet.start(old)
    fleet.await_versions(v1=2)
    with (load := Load(service, customer)).running():
        load.wait_for_more()
        first_new = fleet.start(new)
        fleet.await_versions(v1=2, v2=1)
        customers = [customer | {"Total_Trans_Ct": row % NUMBERS} for row in range(ROWS)]
        batch = service.batch_accepted(customers)
        fleet.stop(service.worker)
        second_new = fleet.start(new)
        fleet.await_versions(v1=1, v2=2)
        fleet.stop(second_old)
        fleet.await_versions(v2=2)
        assert fleet.version_of_a_prediction(customer) == "2"
        load.wait_for_more()

        service.worker.start()
        fleet.await_versions(v1=1, v2=2)
        fleet.stop(first_new)
        fleet.stop(second_new)
        fleet.await_versions(v1=1)
        assert fleet.version_of_a_prediction(customer) == "1"
        load.wait_for_more()
    assert load.versions() == {"1", "2"}

    progress, rows = service.batch_ended(batch), service.batch_rows(batch)
    expected = {
        version: sum(row["probability"] == probability(row["row"] % NUMBERS) for row in rows)
        for version, probability in PROBABILITY.items()
    }
    assert progress["model_versions"] == expected
    assert (sum(expected.values()), progress["failed"]) == (ROWS, 0)
    assert all(expected.values())
    (tmp_path / "customers.csv").write_text(as_csv(customers))
    score = ("--url", service.url, "--resume", batch.rpartition("/")[2], tmp_path / "customers.csv")
    counts = f"1 ({expected['1']} rows), 2 ({expected['2']} rows)"
    assert counts in clients.run(main, *score).stderr
    until(service.servers.is_empty)
