"""Several processes are one service: a client relies on nothing in the memory of one of them."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from api.http.problems import ProblemType
from celery_task_app.store.predictions import COMPLETIONS
from tests.harness import marked_model
from tests.harness.assertions import assert_problem
from tests.harness.metrics import Scrape, scrape
from tests.harness.processes import free_port, until
from tests.harness.servers import Servers
from tests.harness.service import Client, Service, running_api, running_service

# The processes share state through the result store. tests/e2e/test_workers.py has two workers on each broker.
pytestmark = pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)

APIS = 3
Customer = dict[str, Any]
Settings = dict[str, str]


class InTurn(Service):
    """A service whose requests go to several API processes in turn, as behind a proxy without sticky sessions."""

    def __init__(self, services: list[Service]) -> None:
        first = services[0]
        super().__init__(first.servers, first.folder, first.settings, first.celery_app, first.port)
        self.worker = first.worker
        self.metrics_ports = [int(service.settings["METRICS_PORT"]) for service in services]
        self._turn = itertools.cycle([Client(service.url) for service in services])

    def request(
        self, method: str, path: str, session: requests.Session | None = None, **options: Any
    ) -> requests.Response:
        return next(self._turn).request(method, path, session, **options)


@contextlib.contextmanager
def three_apis(servers: Servers, folder: Path, settings: Settings) -> Iterator[Service]:
    """Start three API processes, each on ports of its own, and a worker."""
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(running_service(servers, folder, METRICS_PORT=str(free_port()), **settings))]
        for number in range(1, APIS):
            other = folder / f"api-{number}"
            other.mkdir()
            services.append(stack.enter_context(running_api(servers, other, METRICS_PORT=str(free_port()), **settings)))
        yield InTurn(services)


@contextlib.contextmanager
def three_uvicorn_workers(servers: Servers, folder: Path, settings: Settings) -> Iterator[Service]:
    """Start `uvicorn --workers 3`, whose processes share a port, and a worker."""
    with running_service(servers, folder, WEB_CONCURRENCY=str(APIS), METRICS_PORT="0", **settings) as service:
        yield service


@pytest.fixture(scope="module", params=[three_apis, three_uvicorn_workers], ids=lambda start: start.__name__)
def service(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Service]:
    """Three API processes, and a worker with two pool processes."""
    servers.clear()
    folder = tmp_path_factory.mktemp("service")
    start: Callable[..., contextlib.AbstractContextManager[Service]] = request.param
    settings = {"WORKER_CONCURRENCY": "2", "MODEL_PATH": str(marked_model.save(folder))}
    with start(servers, folder, settings) as running, servers.redis() as client:
        until(lambda: client.pubsub_numsub(COMPLETIONS)[0][1] == APIS)  # all API processes have started
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_each_waiter_gets_its_own_prediction_from_any_process(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    def probability(number: int) -> float:
        response = service.post(customer | {"Total_Trans_Ct": number}, Prefer="wait=20")
        assert response.status_code == 200, response.text
        return float(response.json()["probability"]) * 1000

    assert list(pool.map(probability, range(300))) == pytest.approx(list(range(300)))
    used = [process.cpu_times().user for process in psutil.Process(service.worker.pid).children()]
    assert len(used) == 2
    assert min(used) > 0


def test_a_process_can_wait_for_a_prediction_of_another_one(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    def result(task_id: str) -> int:
        return service.result(task_id, Prefer="wait=20").status_code  # on a new connection, to any process

    task_ids = [service.predict(customer) for _ in range(10)]
    assert set(pool.map(result, task_ids * 10)) == {200}


def test_an_idempotency_key_is_one_prediction_in_all_processes(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    answers = list(pool.map(lambda _: service.post(customer, Idempotency_Key="scaling"), range(64)))
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_a_batch_is_one_batch_in_all_processes(service: Service, customer: Customer, pool: ThreadPoolExecutor) -> None:
    rows = [customer | {"Total_Trans_Ct": number % 1000} for number in range(5_000)]
    url = service.batch_accepted(rows)
    service.batch_ended(url)

    def results(_: int) -> requests.Response:
        return service.batch_results(url, "application/json")

    for answer in pool.map(results, range(8)):
        assert [row["probability"] for row in answer.json()] == [row["Total_Trans_Ct"] / 1000 for row in rows]
    assert service.delete_batch(url).status_code == 204
    for answer in pool.map(lambda _: service.batch(url), range(8)):
        assert_problem(answer, ProblemType.BATCH_DELETED)


def test_a_deletion_ends_the_waits_in_all_processes(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        waits = [pool.submit(service.result, task_id, Prefer="wait=25") for _ in range(12)]
        until(lambda: all(wait.running() for wait in waits))
        assert service.delete(task_id).status_code == 204
        for wait in waits:
            assert_problem(wait.result(20), ProblemType.DELETED)
    until(service.answers)


def test_all_processes_count_the_same_waiting_customers(
    service: Service, customer: Customer, pool: ThreadPoolExecutor
) -> None:
    def waiting(_: int) -> int:
        return int(service.get("/churn/queue").json()["predictions"]["waiting"])

    with service.worker.paused():
        task_ids = [service.predict(customer) for _ in range(9)]
        until(lambda: set(pool.map(waiting, range(12))) == {9})
    for task_id in task_ids:
        service.ended(task_id)
    until(lambda: set(pool.map(waiting, range(12))) == {0})


@pytest.mark.parametrize("service", [three_apis], indirect=True, ids=["three_apis"])
def test_service_wide_metrics_are_equal_and_the_others_add_up(service: InTurn, customer: Customer) -> None:
    def scrapes() -> list[Scrape]:
        return [scrape(port) for port in service.metrics_ports]

    def values(name: str, **labels: str) -> list[float]:
        return [found.value(name, **labels) for found in scrapes()]

    before, accepted_before = values("churn_submissions_total", outcome="accepted"), values("churn_accepted_total")
    for task_id in [service.predict(customer) for _ in range(30)]:
        service.ended(task_id)
    until(lambda: set(values("churn_accepted_total")) == {accepted_before[0] + 30})
    until(lambda: set(values("churn_waiting_customers")) == {0})
    after = values("churn_submissions_total", outcome="accepted")
    grown = [new - old for new, old in zip(after, before, strict=True)]
    assert sum(grown) == 30
    assert min(grown) > 0
