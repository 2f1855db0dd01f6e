"""The health check of a worker container: `python -m celery_task_app.consumer.healthcheck`.

It exits with 0 if a worker of this host can predict, else with 1.
"""

import asyncio
import socket
import sys

from celery_task_app.settings import settings
from celery_task_app.store.connection import connect_async
from celery_task_app.store.worker_status import can_predict, list_worker_statuses


async def is_worker_healthy(backend_uri: str, host: str) -> bool:
    """Return whether a worker of the host publishes that it can predict."""
    async with connect_async(backend_uri) as client:
        statuses = await list_worker_statuses(client)
    return any(name.startswith(f"celery@{host}/") and can_predict(status) for name, status in statuses.items())


if __name__ == "__main__":
    sys.exit(not asyncio.run(is_worker_healthy(settings.backend_uri, socket.gethostname())))
