"""`Prefer: wait`: the answer comes the moment the prediction has ended, and nothing is left behind."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import requests
from starlette.requests import Request

from app import _preferred_wait_s
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


def channels(service: Service) -> set[str]:
    with redis.Redis.from_url(service.servers.backend_uri) as client:
        return {name.decode() for name in client.pubsub_channels("celery-task-meta-*")}


def is_listened_to(service: Service, task_id: str) -> bool:
    return f"celery-task-meta-{task_id}" in channels(service)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([], 0),
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10; why=not"], 10),
        (["wait=10, wait=20"], 10),
        (["wait=1000"], 25),
        (["wait=99999999999999999999999"], 25),
        (["wait=0"], 0),
        (["wait"], 0),
        (["wait="], 0),
        (["wait=-1"], 0),
        (["wait=1.5"], 0),
        (["wait=²"], 0),
        (["wait=soon"], 0),
        (["awaits=5"], 0),
    ],
)
def test_prefer_is_read_as_the_rfc_says_and_capped(headers: list[str], wait_s: int) -> None:
    raw = [(b"prefer", header.encode("latin-1")) for header in headers]
    assert _preferred_wait_s(Request({"type": "http", "headers": raw})) == wait_s


def test_a_post_that_waits_is_answered_with_the_prediction(service: Service, customer: dict[str, Any]) -> None:
    response = post(service, customer)
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert response.headers["vary"] == "Prefer"
    assert response.json() == service.result(response.json()["task_id"]).json()


def test_a_get_that_waits_is_answered_the_moment_it_ends(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        waiting = pool.submit(ask, service, task_id)
        until(lambda: is_listened_to(service, task_id))
    response = waiting.result(timeout=10)
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=20")


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
        assert 1 <= time.monotonic() - started < 3
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")
    assert ask(service, response.json()["task_id"]).status_code == 200


def test_an_unknown_id_is_not_waited_for(service: Service) -> None:
    assert ask(service, "00000000-0000-4000-8000-000000000000").status_code == 404


def test_many_wait_for_one_and_many_for_many(
    service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
) -> None:
    with service.worker.paused():
        ids = [service.predict(customer) for _ in range(20)]
        waiting = [pool.submit(ask, service, task_id) for task_id in [*ids, *ids[:1] * 20]]
        until(lambda: all(is_listened_to(service, task_id) for task_id in ids))
    assert {answer.result(timeout=10).status_code for answer in waiting} == {200}


def test_no_subscription_is_left(service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor) -> None:
    answers = list(pool.map(lambda _: post(service, customer), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    until(lambda: not channels(service), within_s=5)


def test_a_deletion_is_told_to_who_waits(service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        waiting = pool.submit(ask, service, task_id)
        until(lambda: is_listened_to(service, task_id))
        assert requests.delete(f"{service.url}/churn/result/{task_id}", timeout=5).status_code == 204
        assert waiting.result(timeout=5).status_code == 410


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
        self, service: Service, customer: dict[str, Any], pool: ThreadPoolExecutor
    ) -> None:
        with service.worker.paused():
            # Two wait: the places are taken, and who comes then is answered at once.
            ids = [service.predict(customer) for _ in range(2)]
            waiting: list[Future[requests.Response]] = [pool.submit(ask, service, task_id) for task_id in ids]
            until(lambda: len(channels(service)) == 2)
            response = ask(service, ids[0])
            assert response.status_code == 202
            assert "preference-applied" not in response.headers

            store = service.servers.store
            store.kill()
            store.start()
            until(lambda: redis_answers(urlsplit(service.servers.backend_uri).port))
            until(lambda: all(is_listened_to(service, task_id) for task_id in ids))
        assert {answer.result(timeout=20).status_code for answer in waiting} == {200}

        # A client that goes away gives its place back.
        with service.worker.paused():
            task_id = service.predict(customer)
            host, _, port = service.url.removeprefix("http://").partition(":")
            head = f"GET /churn/result/{task_id} HTTP/1.1\r\nHost: x\r\nPrefer: wait=20\r\n\r\n".encode()
            for _ in range(3):
                with socket.create_connection((host, int(port))) as client:
                    client.sendall(head)
                    until(lambda: is_listened_to(service, task_id))
                until(lambda: not channels(service), within_s=5)
            waiting = [pool.submit(ask, service, task_id)]
            until(lambda: is_listened_to(service, task_id))

            # A server that stops keeps nobody waiting, and answers them all.
            started = time.monotonic()
            service.api.stop()
            assert time.monotonic() - started < 5
            assert waiting[0].result(timeout=5).status_code == 202
