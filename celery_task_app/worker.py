"""The Celery app and its configuration, one for both sides: the API publishes with it, the worker consumes with it.

What a task does is tasks.py's business; this module imports none of it.
"""

from celery import Celery
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from celery_task_app.settings import settings

PREDICT_TASK = "celery_task_app.tasks.predict_churn"
SCORE_TASK = "celery_task_app.chunk_task.score_chunk"

# RabbitMQ refuses to declare a queue with other arguments than it has: these are constants, not settings.
# On Valkey and Redis they mean nothing.
DEAD = Queue("churn.dead", routing_key="churn.dead", queue_arguments={"x-queue-type": "quorum"})
_ARGUMENTS = {
    "x-queue-type": "quorum",  # replicated where there is a cluster, and it counts deliveries
    "x-max-length": 100_000,  # messages; the backstop behind every other limit
    "x-overflow": "reject-publish",  # what is over it is refused, never dropped
    "x-delivery-limit": 20,  # a message that keeps killing its worker leaves the queue ...
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD.name,  # ... for one that the worker consumes too
    "x-dead-letter-strategy": "at-least-once",
}
PREDICTIONS = Queue("churn", routing_key="churn", queue_arguments=_ARGUMENTS)
# A queue of their own: a prefetch of two per queue (RabbitMQ), or the queues in turn (Valkey), and so a single
# prediction waits behind two chunks of a batch at most.
BATCHES = Queue("churn.batch", routing_key="churn.batch", queue_arguments=_ARGUMENTS)

# Read when a broker of this kind is connected to; RabbitMQ needs nothing of it.
TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "celery_task_app.valkey:Transport"

app = Celery(
    "churn",
    broker=settings.broker_uri,
    backend=settings.backend_uri,
    include=["celery_task_app.tasks", "celery_task_app.chunk_task"],
)

app.conf.update(
    # JSON only, as is Celery's default too: unpickling what comes from the wire would run it.
    accept_content=["json"],
    # Queues: all are consumed by the article's plain worker command. A misspelt name is an error, not a new queue.
    task_queues=[PREDICTIONS, BATCHES, DEAD],
    task_default_queue=PREDICTIONS.name,
    task_create_missing_queues=False,
    # Delivery: a message is acknowledged when its predictions are stored, and comes back if its worker dies.
    task_acks_late=True,
    task_reject_on_worker_lost=True,  # tasks.py decides otherwise, but not in a cold shutdown (SIGQUIT)
    worker_prefetch_multiplier=2,  # a crash redelivers little, and counts a delivery for little
    # Time: far below RabbitMQ's consumer timeout of 30 minutes.
    task_soft_time_limit=5,
    task_time_limit=10,
    worker_concurrency=settings.worker_concurrency,
    # The broker goes away and comes back: reconnect for ever, at the start too.
    broker_heartbeat=20,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "read_timeout": 5,  # s, of RabbitMQ; else whatever asks one that is frozen waits for ever
        # Valkey and Redis: what a worker that died had taken is delivered again after about a minute. They are asked
        # for it every 10 s times the throttle.
        "visibility_timeout": 60,
        "unacked_restore_throttle": 1,
    },
    # What Celery itself keeps in the result store: that a message's task is unknown.
    result_expires=settings.result_ttl_s,
    redis_socket_timeout=2,  # s; else a frozen store is waited for two minutes, by AsyncResult(id, app=app) too
)
