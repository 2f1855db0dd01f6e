"""The worker with a delay of a second between its first heartbeat and its event loop."""

import time
from typing import Any

from celery import bootsteps

from celery_task_app.consumer.heartbeat import Heartbeat
from celery_task_app.worker import app


class Delay(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types.
    """A bootstep that sleeps."""

    requires = (Heartbeat,)

    def start(self, _consumer: Any) -> None:
        time.sleep(1)


app.steps["consumer"].add(Delay)
