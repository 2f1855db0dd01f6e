"""The worker with shorter time limits, for tests: `celery -A tests.impatient_worker worker`."""

from celery_task_app.worker import app

app.conf.update(task_soft_time_limit=1, task_time_limit=2)
