"""The worker with a visibility timeout of 12 s on Valkey instead of 60 s; a task may take 10 s."""

from celery_task_app.worker import app

app.conf.broker_transport_options |= {"visibility_timeout": 12, "unacked_restore_interval": 1}
