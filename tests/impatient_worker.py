"""The worker with a fifth of the time for everything, and less to stop: `celery -A tests.impatient_worker worker`."""

from celery_task_app import tasks
from celery_task_app.worker import app

tasks.STOP_WITHIN_S = 1
app.conf.update(
    task_soft_time_limit=app.conf.task_soft_time_limit / 5,
    task_time_limit=app.conf.task_time_limit / 5,
    broker_heartbeat=app.conf.broker_heartbeat // 5,
)
app.conf.broker_transport_options["read_timeout"] /= 5
