"""The worker, end to end, with a model that fails on marked customers (tests/marked_model.py)."""

import json
import signal
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psutil
import pytest
import redis
from kombu import Connection

from celery_task_app.results import ResultStore
from celery_task_app.submission import Publisher
from celery_task_app.worker import DEAD, PREDICT_TASK, PREDICTIONS, app
from tests import marked_model
from tests.processes import Servers, Service, running_service, until

Customers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("marked")
    path = str(marked_model.save(folder))
    with running_service(servers, folder, celery_app="tests.impatient_worker", MODEL_PATH=path) as running:
        yield running


@pytest.fixture
def customers(here: Servers, customer: dict[str, Any]) -> Customers:
    """Twenty customers, accepted, each with a probability of its own."""
    accepted = {str(uuid4()): {**customer, "Total_Trans_Ct": 100 + number} for number in range(20)}
    ResultStore().mark_queued(dict.fromkeys(accepted, time.time() + 3600))
    return accepted


def publish(customers: Customers, retries: int = 0) -> None:
    publisher = Publisher()
    publisher.publish(customers, retries)
    publisher.close()


def check_predicted(service: Service, customers: Customers) -> None:
    for task_id, customer in customers.items():
        response = service.ended(task_id)
        assert response.status_code == 200, response.text
        assert response.json()["probability"] == customer["Total_Trans_Ct"] / 1000


def check_failed(service: Service, task_id: str, error: str) -> None:
    response = service.ended(task_id, within_s=60)
    assert response.status_code == 500
    assert response.json()["type"] == "/problems/prediction-failed"
    assert error in response.json()["detail"]


def test_a_message_of_many_is_predicted_in_order(service: Service, customers: Customers) -> None:
    publish(customers)
    check_predicted(service, customers)


def test_the_model_is_loaded_once_per_process(service: Service, customers: Customers) -> None:
    loads = service.worker.text().count("model loaded")
    for task_id, customer in customers.items():
        publish({task_id: customer})
    check_predicted(service, customers)
    assert service.worker.text().count("model loaded") == loads


def test_a_foreign_model_without_a_manifest_is_named_by_its_hash(service: Service, customers: Customers) -> None:
    publish(customers)
    (version,) = {service.ended(task_id).json()["model_version"] for task_id in customers}
    assert len(version) == 12
    assert "no manifest" in service.worker.text()


@pytest.mark.parametrize(
    ("age", "error", "lost_attempts"),
    [
        (marked_model.KILLS, "TooManyAttempts", 4),
        (marked_model.HANGS, "TooManyAttempts", 4),
        (marked_model.SLEEPS, "TooManyAttempts", 4),
        (marked_model.IS_NAN, "InvalidPrediction", 0),
        (marked_model.RAISES, "InvalidPrediction", 0),
        (marked_model.HAS_NO_SHAPE, "InvalidPrediction", 0),
    ],
    ids=["kills", "hangs", "sleeps", "NaN", "raises", "wrong shape"],
)
def test_a_poisonous_customer_fails_alone(
    service: Service, customers: Customers, age: int, error: str, lost_attempts: int
) -> None:
    poisonous = list(customers)[7]
    customers[poisonous]["Customer_Age"] = age
    lost = service.worker.text().count("attempt lost")
    publish(customers)
    check_failed(service, poisonous, error)
    del customers[poisonous]
    check_predicted(service, customers)
    assert service.worker.text().count("attempt lost") - lost == lost_attempts


def test_a_customer_without_a_feature_fails_alone(service: Service, customers: Customers) -> None:
    poisonous = next(iter(customers))
    del customers[poisonous]["Total_Trans_Ct"]
    publish(customers)
    check_failed(service, poisonous, "InvalidPrediction")
    del customers[poisonous]
    check_predicted(service, customers)


def test_a_process_that_is_killed_loses_nothing(service: Service, customers: Customers) -> None:
    for task_id, customer in customers.items():
        publish({task_id: customer})
    for child in psutil.Process(service.worker.pid).children():
        child.send_signal(signal.SIGKILL)
    check_predicted(service, customers)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_what_a_lost_worker_had_taken_returns_after_a_minute(service: Service, customers: Customers) -> None:
    with service.worker.paused(), redis.Redis.from_url(service.servers.broker_uri) as client:
        publish(customers)
        envelope = client.rpop(PREDICTIONS.name)
        tag = json.loads(envelope)["properties"]["delivery_tag"]
        client.hset("unacked", tag, json.dumps([json.loads(envelope), "", PREDICTIONS.name]))
        client.zadd("unacked_index", {tag: time.time() - 60})
    check_predicted(service, customers)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_worker_takes_two_messages_of_a_queue_at_most(service: Service, customers: Customers) -> None:
    with service.worker.paused(), Connection(service.servers.broker_uri) as connection:
        for task_id, customer in customers.items():
            publish({task_id: customer})
        queue = PREDICTIONS(connection.default_channel)
        until(lambda: queue.queue_declare(passive=True).message_count == len(customers) - 2)
    check_predicted(service, customers)


def test_a_message_that_comes_twice_is_answered_once(service: Service, customers: Customers) -> None:
    publish(customers)
    check_predicted(service, customers)
    changed = {task_id: {**customer, "Total_Trans_Ct": 999} for task_id, customer in customers.items()}
    last = str(uuid4())
    ResultStore().mark_queued({last: time.time() + 3600})
    publish(changed)
    publish({last: changed[next(iter(changed))]})
    assert service.ended(last).json()["probability"] == 0.999
    check_predicted(service, customers)


def test_an_id_that_the_store_has_lost_is_predicted(service: Service, customers: Customers) -> None:
    ResultStore().forget(list(customers))
    publish(customers)
    until(lambda: all(service.result(task_id).status_code == 200 for task_id in customers))
    check_predicted(service, customers)


@pytest.mark.parametrize("kwargs", [{}, {"customers": 5}, {"customers": {}}, {"customers": {}, "more": 1}])
def test_a_message_that_makes_no_sense_hurts_nobody(
    service: Service, customers: Customers, kwargs: dict[str, Any]
) -> None:
    with Connection(service.servers.broker_uri) as connection:
        app.send_task(PREDICT_TASK, kwargs=kwargs, ignore_result=True, connection=connection)
    publish(customers)
    check_predicted(service, customers)
    assert service.worker.popen is not None
    assert service.worker.popen.poll() is None
    assert "end of the queue" not in service.worker.text()


def test_a_dead_letter_gets_one_attempt_more(service: Service, customers: Customers) -> None:
    dead_letter(service.servers, customers, retries=0)
    check_predicted(service, customers)


def test_a_dead_letter_that_fails_again_is_a_failure(service: Service, customers: Customers) -> None:
    poisonous = list(customers)[3]
    customers[poisonous]["Customer_Age"] = marked_model.KILLS
    dead_letter(service.servers, customers, retries=0)
    check_failed(service, poisonous, "TooManyAttempts")
    del customers[poisonous]
    check_predicted(service, customers)


def test_a_dead_letter_that_had_all_its_attempts_is_a_failure(service: Service, customers: Customers) -> None:
    task_id, customer = customers.popitem()
    dead_letter(service.servers, {task_id: customer}, retries=3)
    check_failed(service, task_id, "TooManyAttempts")


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_worker_whose_connections_fell_silent_makes_others(service: Service) -> None:
    def connections() -> int:
        return service.worker.text().count("mingle: all alone")

    before = connections()
    speaks = "lists:member(element(1, proc_lib:translate_initial_call(P)), [rabbit_reader, rabbit_heartbeat])"
    silence = f"[erlang:suspend_process(P) || P <- processes(), {speaks}], timer:sleep(60000)"
    service.servers.rabbitmqctl("eval", f"register(silencer, spawn(fun() -> {silence} end)).")
    try:
        until(lambda: connections() > before)
    finally:
        service.servers.rabbitmqctl("eval", "exit(whereis(silencer), kill).")


def test_a_worker_that_is_stopped_while_the_broker_is_frozen_ends(service: Service) -> None:
    children = psutil.Process(service.worker.pid).children()
    with service.servers.broker.paused():
        assert service.worker.stop() == 0
    until(lambda: not any(child.is_running() for child in children))
    service.worker.start()
    until(service.answers)


def dead_letter(servers: Servers, customers: Customers, retries: int) -> None:
    """Put a message where RabbitMQ puts one that reached its delivery limit."""
    with servers.connection() as connection:
        options = {"queue": DEAD, "retries": retries, "ignore_result": True, "connection": connection}
        app.send_task(PREDICT_TASK, kwargs={"customers": customers}, task_id=str(uuid4()), **options)
