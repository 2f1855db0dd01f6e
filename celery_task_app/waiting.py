"""Waiting for predictions to end without asking again and again: one pub/sub connection for an API process.

Whoever stores how predictions have ended tells it to every API process. What is told is not kept: the keys of all that
is waited for are read each time that the subscription is confirmed, the first time and after a lost connection.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery_task_app.results import ENDED, Prediction, ResultReader, async_client, decode_news
from celery_task_app.settings import settings

logger = logging.getLogger(__name__)

Ended = asyncio.Future[Prediction | None]
"""How a prediction ended; None if this process stops before."""


class Waiting:
    """Those who wait, by the task id that each waits for."""

    def __init__(self, results: ResultReader, hear: Callable[[bytes], None]) -> None:
        """Begin to listen; whatever is told is passed on to `hear` too."""
        self._results = results
        self._hear = hear
        self._waiters: dict[str, list[Ended]] = {}
        self._places = settings.max_waiters
        self._listening = asyncio.create_task(self._listen())

    @property
    def is_full(self) -> bool:
        """Whether nobody else can wait here."""
        return self._places <= 0

    @contextmanager
    def end_of(self, task_id: str) -> Iterator[Ended]:
        """Listen for the end of a prediction; what ended before is not heard of, but can be read from now on."""
        ended: Ended = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(task_id, []).append(ended)
        self._places -= 1
        try:
            yield ended
        finally:
            self._places += 1
            self._waiters[task_id].remove(ended)
            if not self._waiters[task_id]:
                del self._waiters[task_id]

    def release(self) -> None:
        """Let everybody go: this process stops."""
        self._places = 0
        for task_id in self._waiters:
            self._tell(task_id, None)

    async def close(self) -> None:
        """Stop listening."""
        self.release()
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening

    async def _listen(self) -> None:
        is_known_to_be_lost = False
        while True:
            try:
                async with async_client() as client, client.pubsub() as pubsub:
                    await pubsub.subscribe(ENDED)
                    while True:
                        await self._take(await pubsub.get_message(timeout=5))
                        is_known_to_be_lost = False
            except Exception as lost:  # noqa: BLE001 - those who come later shall not wait in vain
                if not is_known_to_be_lost:
                    logger.warning("nothing is heard from the result store: %r", lost)
                is_known_to_be_lost = True
            await asyncio.sleep(0.5)

    async def _take(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        if message["type"] == "subscribe":
            await self._read_all()
        elif message["type"] == "message":
            self._hear(message["data"])
            if self._waiters:
                for task_id, end in decode_news(message["data"]).items():
                    self._tell(task_id, end)

    async def _read_all(self) -> None:
        """Tell those who wait for what has ended while nothing was heard."""
        task_ids = list(self._waiters)
        for task_id, known in zip(task_ids, await asyncio.gather(*map(self._results.fetch, task_ids)), strict=True):
            if known is not None and not known.is_queued:
                self._tell(task_id, known)

    def _tell(self, task_id: str, end: Prediction | None) -> None:
        for waiter in self._waiters.get(task_id, ()):
            if not waiter.done():
                waiter.set_result(end)
