"""The Celery app and its configuration, for both processes: the API publishes with it, the worker consumes with it.

The tasks are in tasks.py, which this module names but does not import.
"""

import ssl
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu import Queue

from celery_task_app.settings import settings
from celery_task_app.store.sentinel import celery_backend

# Task names are part of the wire format: workers and API processes of other versions use them too.
PREDICT_TASK = "celery_task_app.tasks.predict_churn"
SCORE_TASK = "celery_task_app.chunk_task.score_chunk"

# RabbitMQ refuses to declare a queue with other arguments than it has, so these are constants, not settings.
# Valkey and Redis ignore them.
DEAD = Queue("churn.dead", routing_key="churn.dead", queue_arguments={"x-queue-type": "quorum"})
_ARGUMENTS = {
    "x-queue-type": "quorum",  # replicated in a cluster, and counts deliveries
    "x-max-length": 100_000,  # messages; the last limit if every other one fails
    "x-overflow": "reject-publish",  # refuse a message beyond the limit, never drop one
    "x-delivery-limit": 20,  # a message that keeps killing its worker is dead-lettered ...
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD.name,  # ... to a queue that the worker consumes too
    "x-dead-letter-strategy": "at-least-once",
}
PREDICTIONS = Queue("churn", routing_key="churn", queue_arguments=_ARGUMENTS)
# Batches have their own queue, so that a single prediction waits behind at most two chunks: the prefetch is two per
# queue on RabbitMQ, and Valkey takes from the queues in turn.
BATCHES = Queue("churn.batch", routing_key="churn.batch", queue_arguments=_ARGUMENTS)


class BrokerAddress(NamedTuple):
    """Arguments of Celery's `connection_for_write`."""

    url: str
    transport: str | None
    ssl: dict[str, Any] | None


def broker_address(uri: str) -> BrokerAddress:
    """Return kombu's arguments for an address of the broker.

    Valkey and Redis get our transport; messaging/redis_transport.py says why. kombu enables TLS by the name `rediss`,
    which a class path hides, so it is enabled here; parameters in the address (`?ssl_cert_reqs=none`) take precedence.
    For `amqps` kombu checks no host name by default, and reads no parameters of TLS; this function sets both.
    """
    scheme = uri.partition("://")[0]
    if scheme in ("redis", "rediss"):
        tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED} if scheme == "rediss" else None
        return BrokerAddress(uri, "celery_task_app.messaging.redis_transport:Transport", tls)
    if scheme != "amqps":
        return BrokerAddress(uri, None, None)
    plain, queries = zip(
        *((part, query) for part, _, query in (one.partition("?") for one in uri.split(";"))), strict=True
    )
    given = {name.removeprefix("ssl_"): value for query in queries for name, value in parse_qsl(query)}
    check = given.pop("cert_reqs", "required").removeprefix("CERT_").lower()
    options: dict[str, Any] = {**given, "cert_reqs": ssl.VerifyMode[f"CERT_{check.upper()}"]}
    if check == "required" and len(plain) == 1:  # kombu would compare all hosts with the name of the first
        options["server_hostname"] = urlsplit(plain[0]).hostname
    return BrokerAddress(";".join(plain), None, options)


_address = broker_address(settings.broker_uri)
_has_other_nodes = ";" in _address.url

app = Celery(
    "churn",
    broker=_address.url,
    include=["celery_task_app.tasks"],
)

app.conf.update(
    **celery_backend(settings.backend_uri),
    # JSON only, which is Celery's default too: unpickling a message would run code that it contains.
    accept_content=["json"],
    # Queues: the article's plain worker command consumes all of them. A misspelt name is an error, not a new queue.
    task_queues=[PREDICTIONS, BATCHES, DEAD],
    task_default_queue=PREDICTIONS.name,
    task_create_missing_queues=False,
    # Delivery: a message is acknowledged when its outcomes are stored, and is redelivered if its worker dies.
    task_acks_late=True,
    task_reject_on_worker_lost=True,  # consumer/request.py decides otherwise, but not in a cold shutdown (SIGQUIT)
    worker_prefetch_multiplier=2,  # few messages are redelivered, and counted as delivered, after a crash
    # Our consumer: no delayed delivery, no message bodies in the log.
    worker_consumer="celery_task_app.consumer.consumer:Consumer",
    # Remote control is off: any program that reaches the broker could stop the worker, and two workers of one host
    # would need names of their own.
    worker_enable_remote_control=settings.remote_control,
    # A pool process loads the model before it takes a message, and stops its worker if that takes too long. Celery
    # kills the process a little later, in case it cannot.
    worker_proc_alive_timeout=settings.model_load_timeout_s + 10,
    # Time limits of a message; RabbitMQ's own consumer timeout is 30 minutes.
    task_soft_time_limit=5,
    task_time_limit=10,
    worker_concurrency=settings.worker_concurrency,
    # The broker may stop and start: reconnect for ever, at the start too.
    broker_transport=_address.transport,
    broker_use_ssl=_address.ssl or False,
    # With other nodes at hand, a worker leaves a frozen one after 8 to 10 s, and waits 2 s for it when it reconnects.
    broker_heartbeat=4 if _has_other_nodes else 20,
    broker_connection_timeout=2 if _has_other_nodes else 4,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "read_timeout": 5,  # s, RabbitMQ; without it a request to a frozen broker waits for ever
        # Valkey and Redis: messages of a dead worker are redelivered after about a minute. The worker looks for them
        # every 10 s times the throttle.
        "visibility_timeout": 60,
        "unacked_restore_throttle": 1,
    },
    # Celery itself stores only one kind of result here: that the task of a message is unknown.
    result_expires=settings.result_ttl_s,
    redis_socket_timeout=2,  # s; without it AsyncResult(id, app=app) waits two minutes for a frozen store
)
