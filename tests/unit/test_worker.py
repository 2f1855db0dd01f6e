"""The Celery app: its queues, and its transport for each kind of broker."""

import ssl

import pytest
from celery.exceptions import QueueNotFound

from celery_task_app.worker import BATCHES, DEAD, PREDICT_TASK, PREDICTIONS, app, transport_for

TRANSPORT = "celery_task_app.messaging.redis_transport:Transport"


def test_a_misspelt_queue_is_an_error() -> None:
    with pytest.raises(QueueNotFound):
        app.send_task(PREDICT_TASK, kwargs={"customers": {}}, queue="chrun", ignore_result=True)


def test_a_worker_consumes_all_queues() -> None:
    assert set(app.amqp.queues) == {PREDICTIONS.name, BATCHES.name, DEAD.name}


def test_only_json_is_accepted() -> None:
    assert app.conf.accept_content == ["json"]


@pytest.mark.parametrize("uri", ["amqp://guest:guest@localhost:5672//", "amqps://broker//"])
def test_rabbitmq_has_the_transport_of_kombu(uri: str) -> None:
    assert transport_for(uri) == (None, None)


def test_valkey_and_redis_have_a_transport_of_our_own() -> None:
    assert transport_for("redis://localhost:6379/0") == (TRANSPORT, None)


def test_tls_of_valkey_and_redis_requires_a_certificate() -> None:
    assert transport_for("rediss://localhost:6379/0") == (TRANSPORT, {"ssl_cert_reqs": ssl.CERT_REQUIRED})
