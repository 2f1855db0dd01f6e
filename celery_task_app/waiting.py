"""Waiting for a prediction to end without asking again and again: one pub/sub connection for an API process.

The end of a prediction is announced on the channel of its key. Announcements are not kept, so the key is read each time
that a subscription is confirmed: after the first, and after every one that a lost connection made necessary.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine

import redis.asyncio.client

from celery_task_app.errors import ResultStoreUnavailable
from celery_task_app.results import Prediction, ResultReader, async_client, decode, key_of
from celery_task_app.settings import settings

logger = logging.getLogger(__name__)

_ALWAYS = b"churn:waiting"  # a channel without news, so that there is always one to listen to
_PREFIX = key_of("?")[:-1]


class Waiting:
    """Those who wait, by the task id that each waits for."""

    def __init__(self, results: ResultReader) -> None:
        self._results = results
        self._waiters: dict[str, set[asyncio.Future[Prediction | None]]] = {}
        self._subscribed: set[str] = set()
        self._changed = asyncio.Event()
        self._places = settings.max_waiters
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._listen())

    @property
    def is_full(self) -> bool:
        """Whether nobody else can wait here."""
        return self._places <= 0

    async def end_of(self, task_id: str, within_s: float) -> Prediction | None:
        """Return how the prediction ended; None if it has not in time, or this process stops."""
        waiter: asyncio.Future[Prediction | None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(task_id, set()).add(waiter)
        self._places -= 1
        if task_id in self._subscribed:
            self._start(self._read(task_id))  # no confirmation will come
        self._changed.set()
        try:
            async with asyncio.timeout(within_s):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._places += 1
            self._waiters[task_id].discard(waiter)
            if not self._waiters[task_id]:
                del self._waiters[task_id]
                self._changed.set()

    def release(self) -> None:
        """Let everybody go: this process stops."""
        self._places = 0
        for task_id in self._waiters:
            self._tell(task_id, None)

    async def close(self) -> None:
        """Stop listening."""
        self.release()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        is_known_to_be_lost = False
        while True:
            try:
                async with async_client() as client, client.pubsub() as pubsub:
                    await pubsub.subscribe(_ALWAYS)
                    is_known_to_be_lost = False
                    self._subscribed = set()
                    self._changed.set()
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._subscribe(pubsub))
                        group.create_task(self._hear(pubsub))
            except* Exception as lost:  # noqa: BLE001 - those who come later shall not wait in vain
                if not is_known_to_be_lost:
                    logger.warning("nothing is heard from the result store: %r", lost.exceptions[0])
                is_known_to_be_lost = True
            await asyncio.sleep(0.5)

    async def _subscribe(self, pubsub: redis.asyncio.client.PubSub) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            before, self._subscribed = self._subscribed, set(self._waiters)
            if new := self._subscribed - before:
                await pubsub.subscribe(*map(key_of, new))
            if old := before - self._subscribed:
                await pubsub.unsubscribe(*map(key_of, old))

    async def _hear(self, pubsub: redis.asyncio.client.PubSub) -> None:
        while True:
            news = await pubsub.get_message(timeout=5)
            if news is None or news["channel"] == _ALWAYS:
                continue
            task_id = news["channel"].removeprefix(_PREFIX).decode()
            if news["type"] == "subscribe":
                self._start(self._read(task_id))
            elif news["type"] == "message":
                self._tell(task_id, decode(news["data"]))

    async def _read(self, task_id: str) -> None:
        with contextlib.suppress(ResultStoreUnavailable):  # then a new subscription will be confirmed
            known = await self._results.fetch(task_id)
            if known is not None and not known.is_queued:
                self._tell(task_id, known)

    def _tell(self, task_id: str, end: Prediction | None) -> None:
        for waiter in self._waiters.get(task_id, ()):
            if not waiter.done():
                waiter.set_result(end)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
