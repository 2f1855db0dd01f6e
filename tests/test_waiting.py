"""`Prefer: wait`: the answer comes the moment the prediction has ended, and nothing is left behind."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import requests

from celery_task_app.results import ENDED
from tests.processes import Service, redis_answers, running_servers, running_service, until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


def ask(service: Service, task_id: str, wait_s: int = 20) -> requests.Response:
    url = f"{service.url}/churn/result/{task_id}"
    return requests.get(url, headers={"Prefer": f"wait={wait_s}"}, timeout=30)


def post(service: Service, customer: dict[str, Any], wait_s: int = 20) -> requests.Response:
    headers = {"Prefer": f"wait={wait_s}"}
    return requests.post(f"{service.url}/churn/predict", json=customer, headers=headers, timeout=30)


@contextmanager
def held(service: Service, task_id: str) -> Iterator[HTTPConnection]:
    """A request that the API holds: it has read it and the key, for it has answered a request that came later."""
    with closing(HTTPConnection(urlsplit(service.url).netloc, timeout=30)) as client:
        client.request("GET", f"/churn/result/{task_id}", headers={"Prefer": "wait=20"})
        assert service.result(task_id).status_code == 202
        yield client


def test_a_post_that_waits_is_answered_with_the_prediction(service: Service, customer: dict[str, Any]) -> None:
    response = post(service, customer)
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert response.headers["vary"] == "Prefer"
    assert response.json() == service.result(response.json()["task_id"]).json()


def test_a_get_that_waits_is_answered_the_moment_it_ends(service: Service, customer: dict[str, Any]) -> None:
    with ExitStack() as stack:
        with service.worker.paused():
            client = stack.enter_context(held(service, service.predict(customer)))
        response = client.getresponse()
    assert (response.status, response.headers["preference-applied"]) == (200, "wait=20")


def test_what_has_ended_is_answered_at_once_and_applies_no_preference(
    service: Service, customer: dict[str, Any]
) -> None:
    task_id = service.predict(customer)
    service.ended(task_id)
    response = ask(service, task_id)
    assert response.status_code == 200
    assert "preference-applied" not in response.headers


def test_a_wait_ends_with_202_when_its_time_is_up(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        started = time.monotonic()
        response = post(service, customer, wait_s=1)
        assert 1 <= time.monotonic() - started < 15
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")
    assert ask(service, response.json()["task_id"]).status_code == 200


def test_an_unknown_id_is_not_waited_for(service: Service) -> None:
    assert ask(service, "00000000-0000-4000-8000-000000000000").status_code == 404


def test_many_wait_for_one_and_many_for_many(service: Service, customer: dict[str, Any]) -> None:
    with ExitStack() as stack:
        with service.worker.paused():
            ids = [service.predict(customer) for _ in range(20)]
            waiting = [stack.enter_context(held(service, task_id)) for task_id in [*ids, *ids[:1] * 20]]
        answers = [client.getresponse() for client in waiting]
    assert {(answer.status, answer.headers["preference-applied"]) for answer in answers} == {(200, "wait=20")}


def test_one_that_another_api_process_accepted_is_heard_of(
    service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    other = Service(service.servers, tmp_path, service.settings)
    other.api.start()
    try:
        until(other.answers, within_s=60)
        with ExitStack() as stack:
            with service.worker.paused():
                client = stack.enter_context(held(other, service.predict(customer)))
            response = client.getresponse()
        assert (response.status, response.headers["preference-applied"]) == (200, "wait=20")
    finally:
        other.stop()


def test_however_many_wait_one_channel_is_listened_to(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    answers = list(pool.map(lambda _: post(service, customer), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    with redis.Redis.from_url(service.servers.backend_uri) as client:
        assert client.pubsub_channels("celery-task-meta-*") == []
        assert client.pubsub_numsub(ENDED) == [(ENDED.encode(), 1)]


def test_a_deletion_is_told_to_who_waits(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        with held(service, task_id) as client:
            assert requests.delete(f"{service.url}/churn/result/{task_id}", timeout=30).status_code == 204
            assert client.getresponse().status == 410


class TestBreaking:
    """Each test has a service of its own, for it breaks it."""

    @pytest.fixture(params=["valkey", "rabbitmq"])
    def service(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
        with (
            running_servers(request.param, tmp_path) as own,
            running_service(own, tmp_path, MAX_WAITERS="2") as running,
        ):
            yield running

    def test_waits_survive_a_restart_of_the_store_and_places_are_given_back(
        self, service: Service, customer: dict[str, Any]
    ) -> None:
        with ExitStack() as stack:
            with service.worker.paused():
                # Two wait: the places are taken, and who comes then is answered at once.
                ids = [service.predict(customer) for _ in range(2)]
                waiting = [stack.enter_context(held(service, task_id)) for task_id in ids]
                response = ask(service, ids[0])
                assert response.status_code == 202
                assert "preference-applied" not in response.headers

                store = service.servers.store
                store.kill()
                store.start()
                until(lambda: redis_answers(urlsplit(service.servers.backend_uri).port))
            assert {client.getresponse().status for client in waiting} == {200}

        with ExitStack() as stack:
            with service.worker.paused():
                # Clients that go away give their places back.
                task_id = until(lambda: accepted(service, customer), within_s=30)
                for _ in range(2):
                    with held(service, task_id):
                        pass
                until(lambda: "preference-applied" in ask(service, task_id, wait_s=1).headers)

                # A server that stops keeps nobody waiting, and answers them all.
                client = stack.enter_context(held(service, task_id))
                started = time.monotonic()
                service.api.stop()
                assert time.monotonic() - started < 15
            assert client.getresponse().status == 202

    def test_who_waits_gets_the_id_though_the_store_goes_away_meanwhile(
        self, service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
    ) -> None:
        with service.worker.paused():
            waiting = pool.submit(post, service, customer, wait_s=5)
            with redis.Redis.from_url(service.servers.backend_uri) as client:
                until(lambda: client.keys("celery-task-meta-*"))
            until(lambda: any(service.servers.messages().values()))
            with service.servers.store.paused():
                answer = waiting.result(timeout=20)
        assert answer.status_code == 202, answer.text
        assert service.ended(answer.json()["task_id"]).status_code == 200


def accepted(service: Service, customer: dict[str, Any]) -> str:
    """Return the task id of a customer; nothing while the servers are not all back."""
    response = requests.post(f"{service.url}/churn/predict", json=customer, timeout=30)
    return str(response.json().get("task_id", ""))
