"""Waiters for completions (`Prefer: wait`): one pub/sub connection for an API process, and no polling.

Pub/sub is not durable, so every (re)subscription is followed by one read of all awaited keys.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_task_app.errors import ResultStoreUnavailable
from celery_task_app.store.connection import AsyncStoreClient, end_task
from celery_task_app.store.predictions import (
    COMPLETIONS,
    AsyncPredictionStore,
    StoredPrediction,
    decode_completions,
    is_from_worker,
)

logger = logging.getLogger(__name__)

_RECONNECT_PAUSE_S = 0.5
_PING_AFTER_S = 1
_LOST_AFTER_S = 3  # without a message or an answer to a ping: the network has dropped the connection silently

Completion = asyncio.Future[StoredPrediction | None]
"""The terminal state of an awaited prediction; None if this process stops first."""


class CompletionListener:
    """The waiters of one API process, and the subscription to the channel of completions.

    Example:
        with completions.subscribe(task_id) as completion:
            await group_commit.submit(task_id, request)
            await asyncio.wait({completion}, timeout=5)
    """

    def __init__(
        self,
        connect: Callable[[], AsyncStoreClient],
        predictions: AsyncPredictionStore,
        *,
        max_waiters: int,
        on_completion: Callable[[bytes], None],
    ) -> None:
        """Start to listen.

        Args:
            connect: returns a client of the result store for the subscription.
            predictions: reads the awaited predictions after each (re)subscription.
            max_waiters: most waiters at a time.
            on_completion: is called with each message of the channel, and with an empty one after each subscription:
                messages may be lost before it.
        """
        self._connect = connect
        self._predictions = predictions
        self._on_completion = on_completion
        self._waiters: dict[str, list[Completion]] = {}
        self._max_waiters = self._free = max_waiters
        self._is_released = False
        self._is_subscribed = False
        self._computed_at = -math.inf
        self._listening = asyncio.create_task(self._listen())

    @property
    def is_full(self) -> bool:
        """Whether no more waiters are admitted."""
        return self._is_released or self._free <= 0

    @property
    def waiters(self) -> int:
        """The number of waiters."""
        return self._max_waiters - self._free

    @property
    def is_subscribed(self) -> bool:
        """Whether the result store answers on the subscription; without it no waiter learns of a completion."""
        return self._is_subscribed

    def has_computed(self, within_s: float) -> bool:
        """Tell whether a worker has completed predictions, of any API process, within the last seconds."""
        return time.monotonic() - self._computed_at < within_s

    @contextmanager
    def subscribe(self, task_id: str) -> Iterator[Completion]:
        """Register a waiter. Read the state afterwards: completions before the registration are not delivered."""
        completion: Completion = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(task_id, []).append(completion)
        self._free -= 1
        try:
            yield completion
        finally:
            self._free += 1
            self._waiters[task_id].remove(completion)
            if not self._waiters[task_id]:
                del self._waiters[task_id]

    def release(self) -> None:
        """Resolve all waiters without a completion, and admit no more: this process stops."""
        self._is_released = True
        for task_id in self._waiters:
            self._resolve(task_id, None)

    async def close(self) -> None:
        """Release all waiters, and stop to listen."""
        self.release()
        await end_task(self._listening)

    async def _listen(self) -> None:
        is_loss_logged = False
        while True:
            reason = "no answer to a ping"
            try:
                await self._receive()
            except Exception as error:  # noqa: BLE001 - keep the listener alive: later waiters depend on it
                reason = repr(error)
            if self._is_subscribed or not is_loss_logged:
                logger.warning("subscription to completions lost: %s", reason)
            is_loss_logged, self._is_subscribed = True, False
            await asyncio.sleep(_RECONNECT_PAUSE_S)

    async def _receive(self) -> None:
        """Subscribe, and handle messages until the result store answers no ping."""
        async with self._connect() as client, client.pubsub() as pubsub:
            await pubsub.subscribe(COMPLETIONS)
            heard = time.monotonic()
            while time.monotonic() - heard < _LOST_AFTER_S:
                message = await pubsub.get_message(timeout=_PING_AFTER_S)
                if message is None:
                    await client.ping()  # behind Sentinels, it finds out whether another server is the primary now
                    if pubsub.connection and pubsub.connection.should_reconnect():
                        raise ResultStoreUnavailable("another server is the primary now")
                    await pubsub.ping()
                else:
                    heard = time.monotonic()
                    await self._handle(message)

    async def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            await self._read_awaited()
            self._on_completion(b"")
            self._is_subscribed = True
        elif message["type"] == "message":
            if is_from_worker(message["data"]):
                self._computed_at = time.monotonic()
            self._on_completion(message["data"])
            if self._waiters:
                for task_id, stored in decode_completions(message["data"]).items():
                    self._resolve(task_id, stored)

    async def _read_awaited(self) -> None:
        """Resolve the waiters whose predictions ended while there was no subscription."""
        task_ids = list(self._waiters)
        states = await asyncio.gather(*map(self._predictions.fetch, task_ids))
        for task_id, stored in zip(task_ids, states, strict=True):
            if stored is not None and not stored.is_queued:
                self._resolve(task_id, stored)

    def _resolve(self, task_id: str, stored: StoredPrediction | None) -> None:
        for completion in self._waiters.get(task_id, ()):
            if not completion.done():
                completion.set_result(stored)
