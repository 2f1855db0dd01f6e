"""Waiters have a limit, end with their connections, and survive a restart of the result store."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.test_long_polling import WAIT, waiter
from tests.harness.processes import until
from tests.harness.servers import Servers, redis_answers
from tests.harness.service import Service, running_service

Customer = dict[str, Any]


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two waiters at most."""
    with running_service(servers, tmp_path_factory.mktemp("waiters"), MAX_WAITERS="2") as running:
        yield running


def test_waiters_survive_a_restart_of_the_result_store_and_end_with_their_connections(
    service: Service, customer: Customer
) -> None:
    with ExitStack() as stack:
        with service.worker.paused():
            # Two waiters are the most; a third request is answered at once.
            ids = [service.predict(customer) for _ in range(2)]
            waiters = [stack.enter_context(waiter(service, task_id)) for task_id in ids]
            response = service.result(ids[0], Prefer=WAIT)
            assert response.status_code == 202
            assert "preference-applied" not in response.headers

            store = service.servers.store
            store.kill()
            store.start()
            until(lambda: redis_answers(urlsplit(service.servers.backend_uri).port))
        assert {client.getresponse().status for client in waiters} == {200}

    with ExitStack() as stack:
        with service.worker.paused():
            # A waiter ends when its client disconnects.
            task_id = until(lambda: task_id_if_accepted(service, customer))
            for _ in range(2):
                with waiter(service, task_id):
                    pass
            until(lambda: "preference-applied" in service.result(task_id, Prefer="wait=1").headers)

            # An API that stops answers its waiters at once.
            client = stack.enter_context(waiter(service, task_id))
            started = time.monotonic()
            service.api.stop()
            assert time.monotonic() - started < 15
        assert client.getresponse().status == 202
    service.api.start()
    until(service.answers)
    assert service.ended(task_id).status_code == 200


def test_a_waiting_post_returns_its_task_id_if_the_result_store_goes_away(service: Service, customer: Customer) -> None:
    with ThreadPoolExecutor() as pool, service.servers.redis() as client, service.worker.paused():
        until(service.servers.is_empty)
        stored = len(client.keys("celery-task-meta-*"))
        waiting = pool.submit(service.post, customer, Prefer="wait=5")
        until(lambda: len(client.keys("celery-task-meta-*")) > stored)
        until(lambda: not service.servers.is_empty())
        with service.servers.store.paused():
            answer = waiting.result(timeout=20)
    assert answer.status_code == 202, answer.text
    assert service.ended(answer.json()["task_id"]).status_code == 200


def task_id_if_accepted(service: Service, customer: Customer) -> str:
    """Return the task id of a customer, or nothing while the servers restart."""
    return str(service.post(customer).json().get("task_id", ""))
