"""The worker, which is held up for a second just before its event loop begins."""

import time
from typing import Any

from celery import bootsteps

from celery_task_app.heartbeat import Heartbeat
from celery_task_app.worker import app


class HeldUp(bootsteps.StartStopStep):
    requires = (Heartbeat,)

    def start(self, _consumer: Any) -> None:
        time.sleep(1)


app.steps["consumer"].add(HeldUp)
