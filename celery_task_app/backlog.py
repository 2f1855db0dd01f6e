"""How many customers wait in a queue, and the refusal of more where that is too many. HTTP codes are app.py's business.

The thread that publishes reads the queue's depth, once a second at most, just before it publishes; for a second, what
it found holds for everybody. A queue that can't be read refuses nobody: whoever publishes to it next hears why.
"""

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from kombu import Queue

from celery_task_app.errors import Overloaded, Unavailable

logger = logging.getLogger(__name__)

_PERIOD_S = 1
_REMEMBERED = 1_000  # messages
_MAX_RETRY_AFTER_S = 60


class Backlog:
    """The customers that wait in one queue, as one publisher estimates them: messages times their mean size.

    The messages that wait are the last that were published, so it is the mean of as many of this process's own.
    """

    def __init__(self, queue: Queue, high_water: int, depth: Callable[[Queue], int]) -> None:
        """Refuse beyond so many customers in a queue whose messages `depth` counts; it may raise Unavailable."""
        self._queue = queue
        self._high_water = high_water
        self._depth = depth
        self._sizes: deque[int] = deque(maxlen=_REMEMBERED)
        self._read_at = -math.inf
        self._retry_after_s: int | None = None  # None: there is room
        # What drains is seen while nobody publishes: from the first of the readings that all found too many.
        self._full_since, self._waiting_then = 0.0, 0.0
        self._drained_per_s: float | None = None

    def refuse_if_full(self) -> None:
        """Raise Overloaded if there were too many less than a second ago; reads nothing."""
        if (after_s := self._retry_after_s) is not None and time.monotonic() < self._read_at + _PERIOD_S:
            raise Overloaded("too many customers wait to be predicted", after_s)

    def read(self) -> None:
        """Read the depth, if that was not done within a second. May block for as long as `depth` does.

        Raises:
            Overloaded: too many wait.
        """
        now = time.monotonic()
        if now >= self._read_at + _PERIOD_S:
            self._read_at = now
            try:
                self._judge(self._depth(self._queue), now)
            except Unavailable as error:
                logger.debug("queue not read queue=%s reason=%s", self._queue.name, error)
                self._retry_after_s = None
        self.refuse_if_full()

    def published(self, customers: int) -> None:
        """Remember how many a message carried."""
        self._sizes.append(customers)

    def _judge(self, messages: int, now: float) -> None:
        last = list(itertools.islice(reversed(self._sizes), messages)) or [1]
        mean = sum(last) / len(last)
        waiting = messages * mean
        if waiting <= self._high_water:
            self._retry_after_s = None
            return
        if self._retry_after_s is None:
            self._full_since, self._waiting_then = now, waiting
        elif now > self._full_since:
            # If nothing was taken so far, it may be slow: at most one message in this time.
            self._drained_per_s = max(self._waiting_then - waiting, mean) / (now - self._full_since)
        wait_s = (waiting - self._high_water) / self._drained_per_s if self._drained_per_s else _PERIOD_S
        self._retry_after_s = min(max(math.ceil(wait_s), _PERIOD_S), _MAX_RETRY_AFTER_S)
