"""The Celery app: its queues, and its transport for each kind of broker."""

import ssl

import pytest
from celery.exceptions import QueueNotFound

from celery_task_app.messaging.publisher import publisher_connection
from celery_task_app.worker import BATCHES, DEAD, PREDICT_TASK, PREDICTIONS, app, broker_address

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
    connection = publisher_connection("amqp://one//;amqp://two//")
    assert connection.alt == ["amqp://one//", "amqp://two//"]
