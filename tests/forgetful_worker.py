"""The worker with orphans that return on Valkey after 12 s, not 60, for tests: no less than a task may take."""

from celery_task_app.worker import app

app.conf.broker_transport_options |= {"visibility_timeout": 12, "unacked_restore_interval": 1}
