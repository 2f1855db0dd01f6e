"""Connections to the result store that fail within about two seconds, and the Lua scripts that run there."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_task_app.errors import ResultStoreUnavailable
from celery_task_app.store.replication import require_replicas
from celery_task_app.store.sentinel import SCHEME, connect_async_by_sentinel, connect_by_sentinel

# TCP notices within about 5 s that a host is gone; by default after 2 hours, or 15 minutes if data was sent.
_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 5_000}.items()
    if hasattr(socket, name)  # macOS has other names
}
# A command waits one second and is retried once. The defaults wait 5 s (connection refused) to 59 s (server frozen).
_OPTIONS: dict[str, Any] = {
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "socket_keepalive": True,
    "socket_keepalive_options": _KEEPALIVE,
    "health_check_interval": 15,
}
# A connection to a primary that does not answer costs this time twice, and the question to the Sentinels comes before.
_BEHIND_SENTINEL = {**_OPTIONS, "socket_timeout": 0.75, "socket_connect_timeout": 0.75}
_CONNECTIONS = 32  # of one asyncio client; more requests than these wait for a connection
_CALL_WITHIN_S = 2.5
_CANCEL_AGAIN_S = 0.1

StoreClient = redis.Redis
"""A blocking client of the result store."""

AsyncStoreClient = redis.asyncio.Redis
"""An asyncio client of the result store."""

_SCRIPTS = Path(__file__).with_name("scripts")


def connect(uri: str) -> StoreClient:
    """Return a blocking client of the result store; it opens a connection at its first command."""
    if uri.startswith(f"{SCHEME}://"):
        return connect_by_sentinel(uri, **_BEHIND_SENTINEL)
    return redis.Redis.from_url(uri, retry=Retry(NoBackoff(), 1), **_OPTIONS)


def connect_async(uri: str) -> AsyncStoreClient:
    """Return an asyncio client of the result store; it opens a connection at its first command.

    A command waits for a connection if all are in use; redis-py's default pool raises an error beyond 100 connections.
    """
    limits = {"max_connections": _CONNECTIONS, "timeout": _CALL_WITHIN_S}
    if uri.startswith(f"{SCHEME}://"):
        return connect_async_by_sentinel(uri, **limits, **_BEHIND_SENTINEL)
    pool = redis.asyncio.BlockingConnectionPool.from_url(uri, retry=AsyncRetry(NoBackoff(), 1), **limits, **_OPTIONS)
    return redis.asyncio.Redis.from_pool(pool)


def load_script(name: str) -> str:
    """Return the text of a Lua script of this package; its head documents KEYS, ARGV and the return value."""
    return (_SCRIPTS / f"{name}.lua").read_text()


def load_counting_script(name: str) -> str:
    """Return the text of a Lua script that counts customers, with the functions of scripts/counts.lua before it."""
    return f"{load_script('counts')}\n{load_script(name)}"


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise ResultStoreUnavailable for any error of the result store, and for a timeout."""
    try:
        yield
    except (redis.RedisError, TimeoutError) as error:
        raise ResultStoreUnavailable(f"the result store cannot be used: {error!r}") from error


@asynccontextmanager
async def store_call() -> AsyncIterator[None]:
    """Raise ResultStoreUnavailable for any error of the result store, or after 2.5 seconds."""
    with store_errors():
        async with asyncio.timeout(_CALL_WITHIN_S):
            yield


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task that uses an `AsyncStoreClient`, until it has ended.

    redis-py may swallow a cancellation while it connects. The process of an endless task would then never end.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)


def clock_skew_s(client: StoreClient) -> float:
    """Return the seconds by which the clock of this host is ahead of the result store's.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    before = time.time()
    with store_errors():
        answer = client.time()
    return _skew_s(before, *answer)


async def check_store(client: AsyncStoreClient, key: str, text: str, ttl_s: int, replicas: int = 0) -> float:
    """Check that the result store can be written; return the seconds by which this host's clock is ahead of it.

    Args:
        client: of the result store.
        key: it is written, because a store that is full or read-only answers reads.
        text: its value.
        ttl_s: seconds until it disappears.
        replicas: of the store that must confirm it.

    Raises:
        ResultStoreUnavailable: it does not answer, has too few replicas, or is a Redis Cluster, which refuses scripts
            with several keys.
    """
    async with store_call():
        before = time.time()
        skew_s = _skew_s(before, *await client.time())
        cluster = await client.info("cluster")
    if cluster.get("cluster_enabled"):
        raise ResultStoreUnavailable("it is a Redis Cluster, which is not supported: use a server without cluster mode")
    async with store_call():
        await client.set(key, text, ex=ttl_s)
        if replicas:
            await require_replicas(client, replicas)
    return skew_s


def _skew_s(before: float, seconds: int, microseconds: int) -> float:
    """Return the skew, given the time before the request and the answer of TIME."""
    return (before + time.time()) / 2 - (seconds + microseconds / 1e6)
