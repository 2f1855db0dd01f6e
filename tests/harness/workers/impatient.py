"""The worker with a fifth of its time limits, and a second to stop."""

from celery_task_app.consumer import lifecycle
from celery_task_app.worker import app

lifecycle.STOP_WITHIN_S = 1
app.conf.update(
    task_soft_time_limit=app.conf.task_soft_time_limit / 5,
    task_time_limit=app.conf.task_time_limit / 5,
    broker_heartbeat=app.conf.broker_heartbeat // 5,
)
app.conf.broker_transport_options["read_timeout"] /= 5
