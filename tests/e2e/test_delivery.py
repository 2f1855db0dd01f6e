"""Delivery: a message is redelivered until its predictions have ended, and changes none that has ended."""

import json
import time
from contextlib import closing
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest
import redis

from celery_task_app.worker import PREDICTIONS
from tests.harness import marked_model
from tests.harness.assertions import assert_failed, assert_predicted
from tests.harness.processes import until
from tests.harness.publishing import (
    Customers,
    mark_queued,
    prediction_message,
    prediction_store,
    publish,
    publish_alone,
    publish_dead_letter,
)
from tests.harness.service import Service


def test_a_killed_pool_process_loses_no_prediction(marked: Service, queued: Customers) -> None:
    publish_alone(marked.servers, queued)
    for child in psutil.Process(marked.worker.pid).children():
        child.kill()
    assert_predicted(marked, queued)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_valkey_redelivers_the_messages_of_a_lost_worker_after_a_minute(marked: Service, queued: Customers) -> None:
    with marked.worker.paused(), redis.Redis.from_url(marked.servers.broker_uri) as client:
        publish(marked.servers, prediction_message(queued))
        envelope = client.rpop(PREDICTIONS.name)
        tag = json.loads(envelope)["properties"]["delivery_tag"]
        client.hset("unacked", tag, json.dumps([json.loads(envelope), "", PREDICTIONS.name]))
        client.zadd("unacked_index", {tag: time.time() - 60})
    assert_predicted(marked, queued)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_worker_prefetches_two_messages_of_a_queue(marked: Service, queued: Customers) -> None:
    with marked.worker.paused():
        publish_alone(marked.servers, queued)
        until(lambda: marked.servers.depth(PREDICTIONS) == len(queued) - 2)
    assert_predicted(marked, queued)


def test_a_duplicate_message_changes_no_result(marked: Service, queued: Customers) -> None:
    publish(marked.servers, prediction_message(queued))
    assert_predicted(marked, queued)
    changed = {task_id: {**customer, "Total_Trans_Ct": 999} for task_id, customer in queued.items()}
    last = str(uuid4())
    mark_queued(marked.servers, [last])
    publish(marked.servers, prediction_message(changed))
    publish(marked.servers, prediction_message({last: changed[next(iter(changed))]}))
    assert marked.ended(last).json()["probability"] == 0.999
    assert_predicted(marked, queued)


def test_a_task_id_that_the_store_has_lost_is_predicted(marked: Service, queued: Customers) -> None:
    with closing(prediction_store(marked.servers)) as store:
        store.discard(list(queued))
    publish(marked.servers, prediction_message(queued))
    until(lambda: all(marked.result(task_id).status_code == 200 for task_id in queued))
    assert_predicted(marked, queued)


def test_a_dead_letter_gets_another_attempt(marked: Service, queued: Customers) -> None:
    publish_dead_letter(marked.servers, prediction_message(queued))
    assert_predicted(marked, queued)


def test_a_dead_letter_whose_attempt_is_lost_is_a_failure(marked: Service, queued: Customers) -> None:
    poisonous = list(queued)[3]
    queued[poisonous]["Customer_Age"] = marked_model.KILLS
    publish_dead_letter(marked.servers, prediction_message(queued))
    assert_failed(marked, poisonous, "TooManyAttempts")
    del queued[poisonous]
    assert_predicted(marked, queued)


def test_a_dead_letter_without_attempts_left_is_a_failure(marked: Service, queued: Customers) -> None:
    task_id, customer = queued.popitem()
    publish_dead_letter(marked.servers, prediction_message({task_id: customer}), retries=3)
    assert_failed(marked, task_id, "TooManyAttempts")


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_a_worker_replaces_connections_that_have_fallen_silent(marked: Service, queued: Customers) -> None:
    def connections() -> set[int]:
        """Return the worker's own ports of its connections to the broker."""
        port = urlsplit(marked.servers.broker_uri).port
        sockets = psutil.Process(marked.worker.pid).net_connections("tcp")
        return {one.laddr.port for one in sockets if one.raddr and one.raddr.port == port}

    before = connections()
    speaks = "lists:member(element(1, proc_lib:translate_initial_call(P)), [rabbit_reader, rabbit_heartbeat])"
    silence = f"[erlang:suspend_process(P) || P <- processes(), {speaks}], timer:sleep(60000)"
    marked.servers.rabbitmqctl("eval", f"register(silencer, spawn(fun() -> {silence} end)).")
    try:
        until(lambda: connections() - before)
    finally:
        marked.servers.rabbitmqctl("eval", "exit(whereis(silencer), kill).")
    publish(marked.servers, prediction_message(queued))
    assert_predicted(marked, queued)


def test_a_worker_stops_while_the_broker_is_frozen(marked: Service) -> None:
    children = psutil.Process(marked.worker.pid).children()
    with marked.servers.broker.paused():
        assert marked.worker.stop() == 0
    until(lambda: not any(child.is_running() for child in children))
    marked.worker.start()
    until(marked.answers)
