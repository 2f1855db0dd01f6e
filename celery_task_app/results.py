"""One prediction as a client sees it: its states, and how they are kept in the result store.

A state is stored under Celery's own key for the task id and in Celery's own form, so that `AsyncResult(id, app=app)`
reads it too. HTTP codes are app.py's business.
"""

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_task_app.errors import Deleted, Expired, PredictionError, ResultStoreUnavailable, Withdrawn
from celery_task_app.settings import settings
from celery_task_app.worker import app


class State(StrEnum):
    """Celery's words, and QUEUED: the broker is asked, or was asked, to take this prediction."""

    QUEUED = "QUEUED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the result store knows of one task id.

    Attributes:
        state: where the prediction is.
        probability: of churn, in [0, 1]; only of a SUCCESS.
        model_version: of the model that computed it; only of a SUCCESS.
        reasons: what made the probability, if they were asked for; only of a SUCCESS.
        error: the name of the error that ended a FAILURE, or of what Withdrawn it (REVOKED).
        deadline: when it expires, in seconds since the epoch; only while it is QUEUED.
    """

    state: State
    probability: float | None = None
    model_version: str | None = None
    reasons: Mapping[str, Any] | None = None
    error: str | None = None
    deadline: float = math.inf

    @property
    def is_queued(self) -> bool:
        """Whether it has not ended; it may be overdue."""
        return self.state is State.QUEUED

    @property
    def is_overdue(self) -> bool:
        """Whether it has not ended, and its deadline has passed."""
        return self.deadline < time.time()


QUEUED = Prediction(State.QUEUED)
"""What is known of a prediction that was accepted just now."""

# A command waits a second at most, twice: the defaults wait from 5 s (refused) to 59 s (hung).
_SOCKET: dict[str, Any] = {
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "health_check_interval": 15,
}

_READ_WITHIN_S = 2.5

ENDED = "churn:ended"
"""The channel on which every API process hears of predictions that have ended: one message for all that ended together,
a JSON array of the states as they are stored. Celery's own client listens to the channel that has the name of the key.
"""

# Makes ids known that are not; each has a life and a marker of its own.
_MARK = """
for i, key in ipairs(KEYS) do
    redis.call('SET', key, ARGV[2 * i], 'NX', 'EX', ARGV[2 * i - 1])
end
"""

# A marker is told by its first bytes, here and in the script below.
_QUEUED_PREFIX = b'{"status": "QUEUED"'

# Writes what is missing or still queued, and nothing else: a redelivery changes no answer that was given.
# One call for all: 0.40 ms for 64 ids, where a pipeline takes 1.10.
_STORE = """
local ended = {}
for i, key in ipairs(KEYS) do
    local known = redis.call('GET', key)
    if not known or string.sub(known, 1, #ARGV[2]) == ARGV[2] then
        redis.call('SET', key, ARGV[i + 3], 'EX', ARGV[3])
        redis.call('PUBLISH', key, ARGV[i + 3])
        ended[#ended + 1] = ARGV[i + 3]
    end
end
if #ended > 0 then
    redis.call('PUBLISH', ARGV[1], '[' .. table.concat(ended, ',') .. ']')
end
"""

# Puts a tombstone where anything is known, and tells of it as the script above does.
_DELETE = """
if not redis.call('SET', KEYS[1], ARGV[2], 'XX', 'EX', ARGV[3]) then
    return 0
end
redis.call('PUBLISH', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[1], '[' .. ARGV[2] .. ']')
return 1
"""


def blocking_client() -> redis.Redis:
    """Return a client of the result store that fails within about two seconds where it can't work."""
    return redis.Redis.from_url(settings.backend_uri, retry=Retry(NoBackoff(), 1), **_SOCKET)


def async_client() -> redis.asyncio.Redis:
    """Return the same for asyncio."""
    return redis.asyncio.Redis.from_url(settings.backend_uri, retry=AsyncRetry(NoBackoff(), 1), **_SOCKET)


@dataclass(frozen=True, slots=True)
class Explained:
    """A probability with its reasons, as the ML model returns them."""

    probability: float
    reasons: Mapping[str, Any]


Outcome = float | Explained | PredictionError | Withdrawn
"""How a prediction ends: its probability of churn in [0, 1], or what made it impossible, or that it was withdrawn."""


class ResultStore:
    """The blocking side: the publisher marks ids as queued, the worker stores what became of them.

    Every method raises ResultStoreUnavailable within about two seconds if the store does not answer or refuses.
    """

    def __init__(self) -> None:
        self._client = blocking_client()
        self._mark = self._client.register_script(_MARK)
        self._store = self._client.register_script(_STORE)

    def mark_queued(self, deadlines: Mapping[str, float]) -> None:
        """Make the ids known, in one round trip; an id that has a state keeps it.

        Args:
            deadlines: by task id, when it expires, in seconds since the epoch.
        """
        lives_and_markers: list[int | str] = []
        for task_id, deadline in deadlines.items():
            lives_and_markers += (
                math.ceil(deadline - time.time()) + settings.result_ttl_s,
                _encode(task_id, State.QUEUED, None, date_done=None, deadline=deadline),
            )
        with store_errors():
            self._mark(list(map(key_of, deadlines)), lives_and_markers)

    def forget(self, task_ids: Sequence[str]) -> None:
        """Take the ids back: they were never accepted."""
        with store_errors():
            self._client.unlink(*map(key_of, task_ids))

    def look_up(self, task_ids: Sequence[str]) -> dict[str, Prediction | None]:
        """Return what is known of each id, in one round trip.

        None is an id without any state: the store may have lost it, and its prediction is still owed.
        """
        with store_errors():
            values = cast("list[bytes | None]", self._client.mget(list(map(key_of, task_ids))))
        known = (None if value is None else decode(value) for value in values)
        return dict(zip(task_ids, known, strict=True))

    def store(self, outcomes: Mapping[str, Outcome], model_version: str | None = None) -> None:
        """Store how each prediction ended, and tell who waits for it, in one round trip.

        Args:
            outcomes: by task id, how it ended. An id that has ended already keeps what it has.
            model_version: of the model that computed the probabilities.
        """
        if outcomes:
            now = _now()
            values = [_outcome(task_id, outcome, model_version, now) for task_id, outcome in outcomes.items()]
            with store_errors():
                self._store(list(map(key_of, outcomes)), [ENDED, _QUEUED_PREFIX, settings.result_ttl_s, *values])


class ResultReader:
    """The API's side: what is asked for while one read is on its way shares the next."""

    def __init__(self) -> None:
        self._client = async_client()
        self._store = self._client.register_script(_STORE)
        self._delete = self._client.register_script(_DELETE)
        self._asked: dict[str, asyncio.Future[bytes | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def fetch(self, task_id: str) -> Prediction | None:
        """Return what is known of a task id; None if it was never issued or its life is over.

        Raises:
            ResultStoreUnavailable: within 2.5 seconds.
        """
        if (answer := self._asked.get(task_id)) is None:
            answer = self._asked[task_id] = asyncio.get_running_loop().create_future()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
        with store_errors():
            async with asyncio.timeout(_READ_WITHIN_S):
                value = await asyncio.shield(answer)
        known = None if value is None else decode(value)
        if known is not None and known.is_overdue:
            return await self._expire(task_id)
        return known

    async def _expire(self, task_id: str) -> Prediction | None:
        """Write that it has expired, unless it has ended meanwhile; return what is known then."""
        expired = _outcome(task_id, Expired("not computed within its deadline"), None, _now())
        with store_errors():
            await self._store(keys=[key_of(task_id)], args=[ENDED, _QUEUED_PREFIX, settings.result_ttl_s, expired])
        return await self.fetch(task_id)

    async def delete(self, task_id: str) -> bool:
        """Withdraw what waits and erase what is done, for good; return whether the id was known.

        Raises:
            ResultStoreUnavailable: within 2.5 seconds.
        """
        tombstone = _outcome(task_id, Deleted("deleted by the client"), None, _now())
        with store_errors():
            async with asyncio.timeout(_READ_WITHIN_S):
                known = await self._delete(keys=[key_of(task_id)], args=[ENDED, tombstone, settings.result_ttl_s])
        return bool(known)

    async def close(self) -> None:
        """Give the connection back."""
        await self._client.aclose()

    async def _read(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                values = cast("list[bytes | None]", await self._client.mget(list(map(key_of, asked))))
            except Exception as error:  # noqa: BLE001 - it belongs to those who asked; the next may fare better
                for answer in asked.values():
                    answer.set_exception(error)
                    answer.exception()  # seen: whoever asked may be gone
            else:
                for answer, value in zip(asked.values(), values, strict=True):
                    answer.set_result(value)
        self._reading = None


key_of = app.backend.get_key_for_task
"""The key of a task id."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Whatever the result store has against a call, or that it took too long, is ResultStoreUnavailable."""
    try:
        yield
    except (redis.RedisError, TimeoutError) as error:
        raise ResultStoreUnavailable(f"the result store can't be used: {error!r}") from error


def _encode(task_id: str, state: State, result: object, date_done: str | None, **more: object) -> str:
    """Return a state in the form that Celery's Redis backend writes; the status comes first."""
    meta = {"status": state, "result": result, "traceback": None, "children": [], "date_done": date_done}
    return json.dumps({**meta, **more, "task_id": task_id})


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _outcome(task_id: str, outcome: Outcome, model_version: str | None, date_done: str) -> str:
    if isinstance(outcome, Exception):
        kind = type(outcome)
        reason = {"exc_type": kind.__name__, "exc_message": [str(outcome)], "exc_module": kind.__module__}
        state = State.REVOKED if isinstance(outcome, Withdrawn) else State.FAILURE
        return _encode(task_id, state, reason, date_done)
    if isinstance(outcome, Explained):
        more = {"model_version": model_version, "reasons": outcome.reasons}
        return _encode(task_id, State.SUCCESS, outcome.probability, date_done, **more)
    return _encode(task_id, State.SUCCESS, outcome, date_done, model_version=model_version)


def decode(value: bytes) -> Prediction:
    """Return what a stored state says."""
    return _prediction(json.loads(value))


def decode_news(news: bytes) -> dict[str, Prediction]:
    """Return what was told on the channel ENDED, by task id."""
    return {meta["task_id"]: _prediction(meta) for meta in json.loads(news)}


def _prediction(meta: Mapping[str, Any]) -> Prediction:
    match State(meta["status"]):
        case State.QUEUED:
            return Prediction(State.QUEUED, deadline=meta["deadline"])
        case State.SUCCESS:
            return Prediction(State.SUCCESS, meta["result"], meta["model_version"], meta.get("reasons"))
        case ended:
            return Prediction(ended, error=meta["result"]["exc_type"])
