"""The worker whose pool processes print at their end whether they have loaded the SDK of OpenTelemetry for traces."""

import os
import sys

from celery.signals import worker_process_shutdown

from celery_task_app.worker import app

__all__ = ["app"]


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # Celery has no types
def report(**_: object) -> None:
    os.write(1, f"pool process loaded={'opentelemetry.sdk.trace' in sys.modules}\n".encode())
