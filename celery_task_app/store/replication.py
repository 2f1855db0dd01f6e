"""Writes that replicas confirm, so that a fail-over of the result store does not lose them.

`WAIT` confirms the writes of one connection, so a write and its WAIT travel in one pipeline. WAIT knows when a replica
has a write, not which replica becomes the primary: a fail-over prefers the one that has received most.
"""

from collections.abc import Sequence
from typing import Any, cast

import redis
import redis.asyncio

from celery_task_app.errors import NotReplicated

_WITHIN_MS = 500  # less than a command may take
# WAIT waits for the last write of its connection. A script that is repeated may write nothing, so this message, which
# no client receives, is the write.
_CHANNEL = "churn:replicated"


def run_script(client: redis.Redis, script: Any, keys: Sequence[str], arguments: Sequence[Any], replicas: int) -> Any:
    """Run a script of a client; return its result when replicas have its writes.

    Args:
        client: of the result store.
        script: that the client has registered.
        keys: of the script.
        arguments: of the script.
        replicas: the number that must confirm; with 0 the script runs alone.

    Raises:
        NotReplicated: fewer replicas confirmed within half a second. The primary has the writes.
    """
    if not replicas:
        return script(keys, arguments)
    with client.pipeline(transaction=False) as pipeline:
        script(keys, arguments, client=pipeline)
        append_wait(pipeline, replicas)
        result, *waited = pipeline.execute()
    require_confirmed(waited, replicas)
    return result


async def run_script_async(
    client: redis.asyncio.Redis, script: Any, keys: Sequence[str], arguments: Sequence[Any], replicas: int
) -> Any:
    """Run a script of an asyncio client; see `run_script`."""
    if not replicas:
        return await script(keys, arguments)
    async with client.pipeline(transaction=False) as pipeline:
        await script(keys, arguments, client=pipeline)
        append_wait(pipeline, replicas)
        result, *waited = await pipeline.execute()
    require_confirmed(waited, replicas)
    return result


async def require_replicas(client: redis.asyncio.Redis, replicas: int) -> None:
    """Check that replicas confirm a write now.

    Raises:
        NotReplicated: fewer replicas confirmed.
    """
    async with client.pipeline(transaction=False) as pipeline:
        append_wait(pipeline, replicas)
        require_confirmed(await pipeline.execute(), replicas)


def append_wait(pipeline: Any, replicas: int) -> None:
    """Let a pipeline, blocking or not, wait until replicas have its writes; with 0 it does not wait."""
    if replicas:
        pipeline.publish(_CHANNEL, "")
        pipeline.wait(replicas, _WITHIN_MS)


def require_confirmed(waited: Sequence[object], replicas: int) -> None:
    """Check the last answers of a pipeline after `append_wait`.

    Raises:
        NotReplicated: fewer replicas confirmed.
    """
    if replicas and (confirmed := cast("int", waited[-1])) < replicas:
        raise NotReplicated(f"{confirmed} of {replicas} replicas of the result store confirmed within 0.5 s")
