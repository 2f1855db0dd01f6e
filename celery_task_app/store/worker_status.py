"""The status of each worker in the result store, which readiness reads.

A status has a TTL, so a worker that stops publishing it disappears. `celery inspect ping` would go through the broker,
which may be the part that fails.
"""

import json
from typing import Literal, NotRequired, TypedDict, cast

from celery_task_app.store.connection import AsyncStoreClient, StoreClient, store_call, store_errors

_NAMES = "churn:workers"  # a set: the names of workers whose status may still exist
_KEY = "churn:worker:{}"


class WorkerStatus(TypedDict):
    """The status that a worker publishes."""

    model: Literal["loaded", "not loaded yet", "failed", "stuck", "unfit"]
    """`failed`: the model cannot be used. `stuck`: no pool process runs. `unfit`: an API finds that the model cannot
    predict all of its customers; no worker publishes it."""
    detail: str
    """The version of the model, or the reason why the worker cannot predict."""
    queues: NotRequired[list[str]]
    """The names of the queues that the worker consumes. Workers up to 0.1.0 consume all, and do not name them."""
    name: NotRequired[str]
    """The name of the model; workers up to 0.1.0 do not report it."""
    sha256: NotRequired[str]
    """SHA-256 of the model file; workers up to 0.1.0 do not report it."""
    explains: NotRequired[bool]
    """Whether the model gives reasons."""
    clock_skew_s: NotRequired[float]
    """The seconds by which the worker's clock is ahead of the result store's."""


def can_predict(status: WorkerStatus, queue: str) -> bool:
    """Return whether a worker predicts the messages of a queue.

    A worker up to 0.1.0 loads its model at its first message, so "not loaded yet" means that it can.
    """
    if (queues := status.get("queues")) is None:
        return status["model"] in {"loaded", "not loaded yet"}
    return status["model"] == "loaded" and queue in queues


def publish_status(client: StoreClient, name: str, status: WorkerStatus, ttl_s: int) -> None:
    """Write the status of a worker.

    Args:
        client: of the result store.
        name: `celery@HOST/PID`; `celery@HOST` for a worker that stops because its model failed.
        status: replaces the last one.
        ttl_s: seconds until it disappears.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    with store_errors():
        client.sadd(_NAMES, name)
        client.set(_KEY.format(name), json.dumps(status), ex=ttl_s)


def withdraw_status(client: StoreClient, name: str) -> None:
    """Remove the status of a worker.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    with store_errors():
        client.delete(_KEY.format(name))


async def list_worker_statuses(client: AsyncStoreClient) -> dict[str, WorkerStatus]:
    """Return the status of each live worker by its name.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    async with store_call():
        names = sorted(name.decode() for name in cast("set[bytes]", await client.smembers(_NAMES)))
        values = await client.mget([_KEY.format(name) for name in names]) if names else []
        if expired := [name for name, value in zip(names, values, strict=True) if value is None]:
            await client.srem(_NAMES, *expired)
    return {name: json.loads(value) for name, value in zip(names, values, strict=True) if value is not None}
