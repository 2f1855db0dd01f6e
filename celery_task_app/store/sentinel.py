"""A result store behind Redis Sentinel: its address, its clients, and the same address for Celery's own backend.

redis-py asks the Sentinels for the primary when it opens a connection. A primary that was replaced while it was healthy
keeps its clients for some ten seconds, and loses their writes. So the pools here ask once a second too.
"""

import time
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

SCHEME = "sentinel"

_PORT = 26_379
_ASK_WITHIN_S = 0.75  # all Sentinels together; each has its part
_ASK_EVERY_S = 1.0
_NO_ANSWER = (redis.ConnectionError, redis.TimeoutError)


class SentinelAddress(NamedTuple):
    """The parts of an address `sentinel://[user:password@]host:port;sentinel://host:port/DB?master_name=NAME&…`.

    Attributes:
        sentinels: host and port of each Sentinel.
        master_name: the name under which the Sentinels know the store.
        store: options of redis-py for a connection to the store, without those of TLS.
        sentinel: the same for a connection to a Sentinel.
        tls: options of redis-py for TLS, of both; empty without TLS.
    """

    sentinels: list[tuple[str, int]]
    master_name: str
    store: dict[str, Any]
    sentinel: dict[str, Any]
    tls: dict[str, Any]

    @classmethod
    def parse(cls, uri: str) -> "SentinelAddress":
        """Return the parts of an address that the settings have checked."""
        parts = [urlsplit(one) for one in uri.split(";")]
        query = dict(parse_qsl(parts[-1].query))
        store: dict[str, Any] = {"db": int(parts[-1].path.strip("/") or 0)}
        for part in parts:
            store |= {
                name: unquote(value)
                for name, value in (("username", part.username), ("password", part.password))
                if value
            }
        share_s = _ASK_WITHIN_S / len(parts)
        sentinel: dict[str, Any] = {"socket_timeout": share_s, "socket_connect_timeout": share_s}
        sentinel |= {
            name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query
        }
        return cls(
            [(part.hostname or "", part.port or _PORT) for part in parts],
            query["master_name"],
            store,
            sentinel,
            {name: value for name, value in query.items() if name.startswith("ssl_")},
        )

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """Options of redis-py for a client of a Sentinel."""
        return {**self.sentinel, **self._tls}

    @property
    def store_options(self) -> dict[str, Any]:
        """Options of redis-py for a client of the store."""
        return {**self.store, **self._tls}

    @property
    def _tls(self) -> dict[str, Any]:
        return {"ssl": True, **self.tls} if self.tls else {}


def connect_by_sentinel(uri: str, **options: Any) -> redis.Redis:
    """Return a blocking client of the primary that the Sentinels report.

    Args:
        uri: an address that the settings have checked.
        options: of redis-py, for the connections to the primary.
    """
    address = SentinelAddress.parse(uri)
    sentinel_options = {**address.sentinel_options, "retry": Retry(NoBackoff(), 0)}
    manager = cast("Any", redis.sentinel.Sentinel)(
        address.sentinels, sentinel_kwargs=sentinel_options, **address.store_options
    )
    client: redis.Redis = manager.master_for(
        address.master_name, connection_pool_class=_Pool, retry=Retry(NoBackoff(), 1), **options
    )
    return client


def connect_async_by_sentinel(uri: str, **options: Any) -> redis.asyncio.Redis:
    """Return an asyncio client of the primary that the Sentinels report; see `connect_by_sentinel`."""
    address = SentinelAddress.parse(uri)
    sentinel_options = {**address.sentinel_options, "retry": AsyncRetry(NoBackoff(), 0)}
    manager = cast("Any", redis.asyncio.sentinel.Sentinel)(
        address.sentinels, sentinel_kwargs=sentinel_options, **address.store_options
    )
    client: redis.asyncio.Redis = manager.master_for(
        address.master_name, connection_pool_class=_AsyncPool, retry=AsyncRetry(NoBackoff(), 1), **options
    )
    return client


def celery_backend(uri: str) -> dict[str, Any]:
    """Return Celery's configuration of its result backend for an address: it reads the master's name apart from it."""
    if not uri.startswith(f"{SCHEME}://"):
        return {"result_backend": uri}
    address = SentinelAddress.parse(uri)
    login = urlsplit(uri.partition(";")[0]).netloc.rpartition("@")[0]
    first, *others = (f"{SCHEME}://{login and f'{login}@'}{host}:{port}" for host, port in address.sentinels)
    tls = {"redis_backend_use_ssl": address.tls} if address.tls else {}
    return {
        "result_backend": ";".join([f"{first}/{address.store['db']}", *others]),
        "result_backend_transport_options": {
            "master_name": address.master_name,
            "sentinel_kwargs": address.sentinel_options,
        },
        **tls,
    }


class _Pool(redis.sentinel.SentinelConnectionPool):
    """Connections to the primary; a connection to a former primary is closed within a second."""

    _ask_at = 0.0

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Return a connection; at most once a second, ask the Sentinels for the primary before."""
        if time.monotonic() >= self._ask_at:
            with suppress(*_NO_ANSWER):  # the primary may be well all the same
                # It closes the idle connections if there is another primary.
                self.get_master_address()  # type: ignore[no-untyped-call] # redis-py
            self._ask_at = time.monotonic() + _ASK_EVERY_S
        return super().get_connection(*arguments, **options)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections, or the idle ones; a client that is closed closes those to the Sentinels too."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            self.sentinel_manager.close()


class _AsyncPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """The same for asyncio; a command waits for a connection if all are in use."""

    _ask_at = 0.0

    async def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Return a connection; at most once a second, ask the Sentinels for the primary before."""
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_EVERY_S  # before the question: one of many commands asks
            with suppress(*_NO_ANSWER):
                await self.get_master_address()
        return await super().get_connection(*arguments, **options)  # type: ignore[no-untyped-call] # redis-py

    async def get_master_address(self) -> Any:
        """Return the address of the primary; if it is another one, use no connection to the former one again."""
        former = self.master_address
        address = await super().get_master_address()  # type: ignore[no-untyped-call] # it closes the idle ones
        if former not in (None, address):
            await self.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call] # redis-py
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections, or the idle ones; a client that is closed closes those to the Sentinels too."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()
