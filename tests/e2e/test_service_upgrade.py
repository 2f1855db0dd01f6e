"""A rolling upgrade of the service under load, and the way back: an older version and this one on the same servers.

The older code runs from an archive of its commit, with the libraries that are installed here. API processes and workers
are replaced one at a time, in the order of docs/operations.md.
"""

import io
import itertools
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from celery_task_app.store.counts import STATES
from tests.conftest import need_commit
from tests.harness import marked_model
from tests.harness.counts import read_counts
from tests.harness.customers import CUSTOMER, marked_results
from tests.harness.ledger import Ledger
from tests.harness.processes import ROOT, Process, free_port, until
from tests.harness.servers import Servers
from tests.harness.service import Client, Service

RELEASE, RECENT = "6c5fb51", "785924b"
"""The last release, 0.1.0, and a commit before 0.2.0: some services are upgraded from commit to commit."""

PER_SECOND = 20
PER_CUSTOMER_S = 0.002  # so that a batch is in progress at most times
ROWS, CHUNK_ROWS = 300, 20
AT_ONCE = 8  # requests with the same Idempotency-Key
STOPS_WITHIN_S = 10  # the default of `docker stop`


class Api(Client):
    """An API process.

    Attributes:
        is_replaced: it stops or starts.
        faults: its responses 429 and 5xx, and its connection errors unless it was being replaced.
    """

    def __init__(self, port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.is_replaced = False
        self.faults: list[str] = []

    def request(
        self, method: str, path: str, session: requests.Session | None = None, **options: Any
    ) -> requests.Response:
        was_replaced = self.is_replaced
        try:
            response = super().request(method, path, session, **options)
        except requests.ConnectionError as error:
            if not (was_replaced or self.is_replaced):
                self.faults.append(f"{method} {path}: {error}")
            raise
        is_starting = path == "/readyz" and (was_replaced or self.is_replaced)
        if response.status_code >= HTTPStatus.TOO_MANY_REQUESTS and not is_starting:
            self.faults.append(f"{method} {path}: {response.status_code} {response.text}")
        return response


class Gateway(Service):
    """A service of several API processes in turn, behind a gateway that asks another one after a connection error."""

    def __init__(self, servers: Servers, folder: Path, ports: list[int]) -> None:
        super().__init__(servers, folder, {}, port=ports[0])
        self.apis = list(map(Api, ports))
        self._turn = itertools.count()

    def request(
        self, method: str, path: str, session: requests.Session | None = None, **options: Any
    ) -> requests.Response:
        first = next(self._turn) % len(self.apis)
        *others, last = self.apis[first:] + self.apis[:first]
        for api in others:
            with suppress(requests.ConnectionError):
                return api.request(method, path, session, **options)
        return last.request(method, path, session, **options)


class Load:
    """Predictions and long-polls of a ledger, and one batch after the other, all through the gateway.

    Attributes:
        ledger: of the predictions and rows.
        batches: the number of batches that have ended.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.ledger = Ledger(gateway, "rolling upgrade", PER_SECOND, is_counting=False)
        self.batches = 0
        self._gateway = gateway
        self._stopped = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Load the service until the block ends; every batch must end with its results."""
        with ThreadPoolExecutor(1) as pool, self.ledger.load():
            batches = pool.submit(self._send_batches)
            try:
                yield
            finally:
                self._stopped.set()
            batches.result()

    def wait_for_all_accepted(self) -> None:
        """Wait until all predictions and rows have ended that are accepted now; the load goes on."""
        batches, task_ids = self.batches + 1, self.ledger.pending_ids
        until(lambda: self.batches >= batches and not task_ids & self.ledger.pending_ids, within_s=60)

    def _send_batches(self) -> None:
        while not self._stopped.is_set():
            rows = [CUSTOMER | {"Total_Trans_Ct": (self.batches + row) % 1000} for row in range(ROWS)]
            url = self._gateway.batch_accepted(rows)
            self.ledger.expect_rows(ROWS)
            assert self._gateway.batch_ended(url, within_s=100)["failed"] == 0
            assert self._gateway.batch_rows(url) == marked_results(rows)
            self.batches += 1


class Fleet:
    """Two API processes and two workers. Each is replaced by the one of another version in the same place.

    Attributes:
        gateway: leads to both API processes.
        services: by version, the API and the worker of each place.
        running: the processes that run, by part and place.
    """

    def __init__(self, servers: Servers, folder: Path, checkouts: Mapping[str, Path]) -> None:
        ports = [free_port(), free_port()]
        self.gateway = Gateway(servers, folder, ports)
        self.services: dict[str, list[Service]] = {}
        self.running: dict[tuple[str, int], Process] = {}
        self._bound: dict[str, tuple[dict[str, Any], str]] = {}  # customer and task id by Idempotency-Key
        self._numbers = itertools.count()
        for version, checkout in checkouts.items():
            model = folder / version
            model.mkdir()
            path = marked_model.save_explaining(model, version, marked_model.ExplainingModel(PER_CUSTOMER_S))
            settings = {"MODEL_PATH": str(path), "BATCH_CHUNK_ROWS": str(CHUNK_ROWS), "WARM_UP": "true"}
            self.services[version] = [
                service_in(checkout, servers, model / f"{place}", settings, port) for place, port in enumerate(ports)
            ]

    @contextmanager
    def started(self, version: str) -> Iterator[None]:
        """Run a version in each place; stop the processes at the end, which may be those of another version."""
        try:
            for place, service in enumerate(self.services[version]):
                self._start("api", place, service.api)
                self._start("worker", place, service.worker)
            for service in self.services[version]:
                service.await_answer("/readyz", service.api, service.worker)
            for place in range(len(self.gateway.apis)):
                self._wait_for_worker(place)
            yield
        except BaseException:
            for process in self.running.values():
                sys.stderr.write(f"--- {process.log}\n{process.text()[-3000:]}\n")
            raise
        finally:
            for process in self.running.values():
                process.kill()

    def replace_worker(self, place: int, version: str) -> None:
        """Stop a worker; start another one, and wait until it is loaded."""
        self._replace("worker", place, self.services[version][place].worker)
        self._wait_for_worker(place)

    def replace_api(self, place: int, version: str) -> None:
        """Stop an API process; start another one on its port, and wait until it is ready."""
        service, api = self.services[version][place], self.gateway.apis[place]
        api.is_replaced = True
        self._replace("api", place, service.api)
        service.await_answer("/readyz", service.api)
        api.is_replaced = False

    def check(self, *model_versions: str) -> None:
        """Require that both API processes answer as one service, with results of these versions of the model."""
        for api, other in itertools.permutations(self.gateway.apis):
            customer, key = CUSTOMER | {"Total_Trans_Ct": next(self._numbers)}, str(uuid4())
            predict = partial(Client.predict, customer=customer, Idempotency_Key=key)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                (task_id,) = set(pool.map(predict, [api, other] * (AT_ONCE // 2)))
            self._bound[key] = customer, task_id

            explained = other.ended(task_id_of(api.post(customer, {"explain": "true"}))).json()
            assert explained["probability"] == probability_of(customer)
            assert explained["reasons"]["base"] == 0
            assert explained["model_version"] in model_versions

            deleted = api.predict(customer)
            other.ended(deleted)
            assert other.delete(deleted).status_code == 204
            assert {one.result(deleted).status_code for one in (api, other)} == {410}
        for api in self.gateway.apis:
            for key, (customer, task_id) in self._bound.items():
                assert api.predict(customer, Idempotency_Key=key) == task_id
                assert api.ended(task_id).json()["probability"] == probability_of(customer)

    def lost_attempts(self) -> list[str]:
        """Return the lines of the logs of all workers about attempts and messages that they lost."""
        workers = [service.worker for services in self.services.values() for service in services]
        return [line for worker in workers for line in re.findall(r".*(?:attempt lost|dropped).*", worker.text())]

    def _start(self, part: str, place: int, process: Process) -> None:
        process.start()
        self.running[part, place] = process

    def _replace(self, part: str, place: int, process: Process) -> None:
        assert self.running[part, place].stop(STOPS_WITHIN_S) == 0
        self._start(part, place, process)

    def _wait_for_worker(self, place: int) -> None:
        """Wait until an API reports that the worker in a place is loaded."""
        worker = self.running["worker", place]

        def is_loaded() -> bool:
            assert worker.is_running, worker.text()[-3000:]
            statuses = self.gateway.readiness()["workers"].items()
            return any(name.endswith(f"/{worker.pid}") and status["model"] == "loaded" for name, status in statuses)

        until(is_loaded, within_s=60)


def service_in(checkout: Path, servers: Servers, folder: Path, settings: Mapping[str, str], port: int) -> Service:
    """Return a service that runs the code of a checkout; its worker has the name of its folder."""
    folder.mkdir()
    service = Service(servers, folder, settings, port=port)
    # 0.1.0 has remote control, which needs a name for each worker of a host.
    service.worker.command = [*service.worker.command, "-n", f"{folder.name}@%h"]
    service.api.cwd = service.worker.cwd = checkout
    return service


def task_id_of(response: requests.Response) -> str:
    assert response.status_code == 202, response.text
    return str(response.json()["task_id"])


def probability_of(customer: Mapping[str, Any]) -> float:
    return float(customer["Total_Trans_Ct"] / 1000)


def checkout_of(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a new folder, with the models of these tests; return the folder."""
    need_commit(commit)
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    harness = folder / "tests" / "harness"
    harness.mkdir(exist_ok=True)
    for name in ("__init__.py", "marked_model.py"):
        shutil.copy(ROOT / "tests" / "harness" / name, harness / name)
    return folder


@pytest.mark.parametrize(
    ("servers", "commit"), [("valkey", RELEASE), ("rabbitmq", RELEASE), ("rabbitmq", RECENT)], indirect=["servers"]
)
def test_a_version_is_upgraded_and_rolled_back_under_load(servers: Servers, tmp_path: Path, commit: str) -> None:
    servers.clear()
    fleet = Fleet(servers, tmp_path, {"old": checkout_of(commit, tmp_path / "checkout"), "new": ROOT})
    load = Load(fleet.gateway)
    with fleet.started("old"):
        with load.running():
            fleet.check("old")
            fleet.replace_worker(0, "new")
            fleet.check("old", "new")
            fleet.replace_worker(1, "new")
            fleet.replace_api(0, "new")
            fleet.check("new")
            fleet.replace_api(1, "new")
            fleet.check("new")

            fleet.replace_api(0, "old")
            fleet.check("new")
            fleet.replace_api(1, "old")
            load.wait_for_all_accepted()
            fleet.replace_worker(0, "old")
            fleet.check("old", "new")
            fleet.replace_worker(1, "old")
            fleet.check("old")
        row = load.ledger.balance()
    assert row.is_clean, [row, *load.ledger.details]
    assert row.unanswered == 0
    assert [api.faults for api in fleet.gateway.apis] == [[], []]
    assert fleet.lost_attempts() == []
    counts = read_counts(servers.backend_uri)
    for kind in (counts.predictions, counts.rows):  # of those that an API of this version has accepted
        assert kind.accepted > 0
        assert kind.ended == dict.fromkeys(STATES, 0) | {"success": kind.accepted}
