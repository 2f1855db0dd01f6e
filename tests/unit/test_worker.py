"""The Celery app: its queues, and its transport for each kind of broker."""

import os
import ssl
import subprocess
import sys

import pytest
from celery.exceptions import QueueNotFound

from celery_task_app.messaging.publisher import publisher_connections
from celery_task_app.worker import BATCHES, DEAD, PREDICT_TASK, PREDICTIONS, app, broker_address
from tests.harness.processes import ROOT

TRANSPORT = "celery_task_app.messaging.redis_transport:Transport"


def test_a_misspelt_queue_is_an_error() -> None:
    with pytest.raises(QueueNotFound):
        app.send_task(PREDICT_TASK, kwargs={"customers": {}}, queue="chrun", ignore_result=True)


def test_a_worker_consumes_all_queues() -> None:
    assert set(app.amqp.queues) == {PREDICTIONS.name, BATCHES.name, DEAD.name}


def test_only_json_is_accepted() -> None:
    assert app.conf.accept_content == ["json"]


def test_rabbitmq_has_the_transport_of_kombu() -> None:
    uri = "amqp://guest:guest@localhost:5672//"
    assert broker_address(uri) == (uri, None, None)


def test_valkey_and_redis_have_a_transport_of_our_own() -> None:
    assert broker_address("redis://localhost:6379/0")[1:] == (TRANSPORT, None)


def test_tls_of_valkey_and_redis_requires_a_certificate() -> None:
    assert broker_address("rediss://localhost:6379/0")[1:] == (TRANSPORT, {"ssl_cert_reqs": ssl.CERT_REQUIRED})


def test_tls_of_rabbitmq_requires_a_certificate_for_its_host() -> None:
    address = broker_address("amqps://user:secret@broker.example//")
    assert address.ssl == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "broker.example"}


def test_tls_of_rabbitmq_has_parameters() -> None:
    address = broker_address("amqps://broker//?ssl_ca_certs=/ca.pem&ssl_cert_reqs=CERT_NONE")
    assert address == ("amqps://broker//", None, {"cert_reqs": ssl.CERT_NONE, "ca_certs": "/ca.pem"})


def test_every_address_of_a_cluster_is_used() -> None:
    connections = publisher_connections("amqp://one//;amqp://two//")
    assert [connection.hostname for connection in connections] == ["one", "two"]


def test_the_api_compares_the_certificate_of_each_address_with_its_host() -> None:
    connections = publisher_connections("amqps://one//;amqps://two//")
    assert [connection.ssl["server_hostname"] for connection in connections] == ["one", "two"]


def test_a_worker_leaves_a_frozen_node_sooner_if_there_are_others() -> None:
    code = (
        "from celery_task_app.worker import app; print(app.conf.broker_heartbeat, app.conf.broker_connection_timeout)"
    )
    read = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "BROKER_URI": uri},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for uri in ("amqp://one//", "amqp://one//;amqp://two//")
    ]
    assert read == [["20", "4"], ["4", "2"]]
