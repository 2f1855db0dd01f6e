"""Back-pressure: while too many customers wait in a queue, new requests get 429 with an estimated Retry-After.

The publishing thread reads the depth of the queue before it publishes, at most once a second; all requests within that
second use the result. If the depth cannot be read, nothing is refused: the next publish reports the fault.
"""

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from celery_task_app.errors import Overloaded, Unavailable

logger = logging.getLogger(__name__)

_PERIOD_S = 1
_REMEMBERED_MESSAGES = 1_000
_MAX_RETRY_AFTER_S = 60


class Backlog:
    """The estimated number of customers in one queue: its messages times the mean number of customers in a message.

    The messages in the queue are the most recently published ones, so the mean is taken over as many messages of this
    process.
    """

    def __init__(
        self, queue_name: str, high_water: int, depth: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Refuse beyond a number of customers.

        Args:
            queue_name: for the log.
            high_water: the number of customers beyond which requests are refused.
            depth: returns the number of messages in the queue, or raises Unavailable.
            clock: the time in seconds.
        """
        self._queue_name = queue_name
        self._high_water = high_water
        self._depth = depth
        self._clock = clock
        self._sizes: deque[int] = deque(maxlen=_REMEMBERED_MESSAGES)
        self._checked_at = -math.inf
        self._retry_after_s: int | None = None  # None: below the high-water mark
        # While requests are refused nothing is published, so the depth only falls. The rate is measured from the first
        # of the readings that found too many.
        self._full_since, self._waiting_then = 0.0, 0.0
        self._drained_per_s: float | None = None

    def refuse_if_full(self) -> None:
        """Raise Overloaded if the last check found too many customers, less than a second ago; reads nothing."""
        if (after_s := self._retry_after_s) is not None and self._clock() < self._checked_at + _PERIOD_S:
            raise Overloaded("too many customers wait to be predicted", after_s)

    def check(self) -> None:
        """Read the depth, if the last reading is older than a second. It may block for as long as `depth` does.

        Raises:
            Overloaded: too many customers wait.
        """
        now = self._clock()
        if now >= self._checked_at + _PERIOD_S:
            self._checked_at = now
            try:
                self._update(self._depth(), now)
            except Unavailable as error:
                logger.debug("depth not read queue=%s reason=%s", self._queue_name, error)
                self._retry_after_s = None
        self.refuse_if_full()

    def record_published(self, customers: int) -> None:
        """Remember the number of customers in a published message."""
        self._sizes.append(customers)

    def _update(self, messages: int, now: float) -> None:
        last = list(itertools.islice(reversed(self._sizes), messages)) or [1]
        mean = sum(last) / len(last)
        waiting = messages * mean
        if waiting <= self._high_water:
            self._retry_after_s = None
            return
        if self._retry_after_s is None:
            self._full_since, self._waiting_then = now, waiting
        elif now > self._full_since:
            # If the depth did not fall, the worker may be slow: it took at most one message in this time.
            self._drained_per_s = max(self._waiting_then - waiting, mean) / (now - self._full_since)
        wait_s = (waiting - self._high_water) / self._drained_per_s if self._drained_per_s else _PERIOD_S
        self._retry_after_s = min(max(math.ceil(wait_s), _PERIOD_S), _MAX_RETRY_AFTER_S)
