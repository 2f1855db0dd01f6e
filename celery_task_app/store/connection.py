"""Connections to the result store that fail within about two seconds, and the Lua scripts that run there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_task_app.errors import ResultStoreUnavailable

# A command waits one second and is retried once. The defaults wait 5 s (connection refused) to 59 s (server frozen).
_SOCKET: dict[str, Any] = {
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "health_check_interval": 15,
}

StoreClient = redis.Redis
"""A blocking client of the result store."""

AsyncStoreClient = redis.asyncio.Redis
"""An asyncio client of the result store."""

_SCRIPTS = Path(__file__).with_name("scripts")


def connect(uri: str) -> StoreClient:
    """Return a blocking client of the result store; it opens a connection at its first command."""
    return redis.Redis.from_url(uri, retry=Retry(NoBackoff(), 1), **_SOCKET)


def connect_async(uri: str) -> AsyncStoreClient:
    """Return an asyncio client of the result store; it opens a connection at its first command."""
    return redis.asyncio.Redis.from_url(uri, retry=AsyncRetry(NoBackoff(), 1), **_SOCKET)


def load_script(name: str) -> str:
    """Return the text of a Lua script of this package; its head documents KEYS, ARGV and the return value."""
    return (_SCRIPTS / f"{name}.lua").read_text()


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise ResultStoreUnavailable for any error of the result store, and for a timeout."""
    try:
        yield
    except (redis.RedisError, TimeoutError) as error:
        raise ResultStoreUnavailable(f"the result store cannot be used: {error!r}") from error
