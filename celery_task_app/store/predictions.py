"""Predictions in the result store: their states, who may change them, and how they are read.

A prediction is stored under Celery's own key and in Celery's own form, so `AsyncResult(id, app=app)` reads it too.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, cast

from celery_task_app.errors import Deleted, Expired, NotReplicated, PredictionError, Withdrawn
from celery_task_app.store.celery_meta import encode_error, encode_meta, key_of
from celery_task_app.store.connection import (
    AsyncStoreClient,
    StoreClient,
    load_counting_script,
    load_script,
    store_call,
    store_errors,
)
from celery_task_app.store.counts import PREDICTIONS
from celery_task_app.store.replication import run_script, run_script_async

COMPLETIONS = "churn:ended"
"""The channel to which every API process listens; `finish` publishes the terminal states there, as one JSON array."""

_QUEUED_PREFIX = b'{"status": "QUEUED"'  # the first bytes of a QUEUED marker, as `encode_meta` writes it
REVOKED_PREFIX = b'{"status": "REVOKED"'
"""The first bytes of the state of a prediction that was deleted or has expired."""


class State(StrEnum):
    """The state of a prediction, in Celery's words; all but QUEUED are terminal."""

    QUEUED = "QUEUED"  # the message was published, or is about to be
    SUCCESS = "SUCCESS"  # the probability is stored
    FAILURE = "FAILURE"  # the customer cannot be predicted
    REVOKED = "REVOKED"  # deleted, or expired


class WorkerTimes(NamedTuple):
    """Seconds of the stages of a message, as its worker measured them.

    Attributes:
        queue_s: from its QUEUED marker until a pool process took it, by the store's clock; at least 0.
        predict_s: of the model.
    """

    queue_s: float
    predict_s: float


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """The state of one task id in the result store.

    Attributes:
        state: QUEUED or a terminal state.
        probability: of churn, in [0, 1]; only for SUCCESS.
        model_version: of the model that computed the probability; only for SUCCESS.
        reasons: contributions of the features in log-odds, if the client asked for them; only for SUCCESS.
        error: class name of the error; only for FAILURE (a PredictionError) and REVOKED (a Withdrawn).
        is_overdue: the deadline had passed when the state was read, by the store's clock; only for QUEUED.
        waited_s: seconds since the QUEUED marker was written, by the store's clock; only for QUEUED, and None for a
            marker of version 0.1.0.
        times: of its message; only in a completion, and None if the worker did not report them.
    """

    state: State
    probability: float | None = None
    model_version: str | None = None
    reasons: Mapping[str, Any] | None = None
    error: str | None = None
    is_overdue: bool = False
    waited_s: float | None = field(default=None, compare=False)
    times: WorkerTimes | None = field(default=None, compare=False)

    @property
    def is_queued(self) -> bool:
        """Whether no terminal state is stored; the deadline may have passed."""
        return self.state is State.QUEUED


QUEUED = StoredPrediction(State.QUEUED)
"""The state of a prediction that was accepted just now."""


@dataclass(frozen=True, slots=True)
class ExplainedProbability:
    """A probability of churn in [0, 1], with the reasons that the model gives for it."""

    probability: float
    reasons: Mapping[str, Any]


Outcome = float | ExplainedProbability | PredictionError | Withdrawn
"""The end of a prediction: its probability of churn in [0, 1], or the error that took its place."""


class PredictionStore:
    """The blocking side: the publisher marks ids as queued, the worker writes terminal states.

    Every method raises ResultStoreUnavailable within about two seconds if the store does not answer or refuses.
    """

    def __init__(self, client: StoreClient, result_ttl_s: int, replicas: int = 0) -> None:
        """Use a client of the result store.

        Args:
            client: of the result store.
            result_ttl_s: seconds that a terminal state is kept.
            replicas: of the store that must confirm markers and terminal states.
        """
        self._client = client
        self._result_ttl_s = result_ttl_s
        self._replicas = replicas
        self._mark_queued = client.register_script(load_counting_script("mark_queued"))
        self._accept = client.register_script(load_counting_script("accept_group"))
        self._discard = client.register_script(load_counting_script("discard"))
        self._read = client.register_script(load_script("read_states"))
        self._finish = client.register_script(load_counting_script("finish"))

    def mark_queued(self, lifetimes_s: Mapping[str, float], published_group: int = 0) -> int:
        """Write the QUEUED markers of new ids, in one round trip; an id that has a state keeps it.

        Args:
            lifetimes_s: by task id, the seconds from now until the prediction expires, by the store's clock.
            published_group: a group whose message was published; its predictions are counted as accepted now.

        Returns:
            The number of the group that these ids are; 0 if every id had a state. They are counted as accepted when
            the group is passed to `mark_queued` or `accept`, and at the latest when the first of them ends.

        Raises:
            NotReplicated: too few replicas have the markers, which are removed.
        """
        marker = encode_meta("", State.QUEUED, None, date_done=None, group=0, queued=0, deadline=0)
        arguments: list[str | float] = [self._result_ttl_s, published_group, marker, len(key_of(""))]
        arguments += lifetimes_s.values()
        keys = [*PREDICTIONS, *map(key_of, lifetimes_s)]
        try:
            with store_errors():
                return cast("int", run_script(self._client, self._mark_queued, keys, arguments, self._replicas))
        except NotReplicated:
            self.discard(list(lifetimes_s))
            raise

    def accept(self, published_group: int) -> None:
        """Count the predictions of a group as accepted, because their message was published."""
        with store_errors():
            self._accept([PREDICTIONS.counts], [published_group])

    def discard(self, task_ids: Sequence[str]) -> None:
        """Remove the markers of ids whose predictions were not accepted, and do not count them."""
        with store_errors():
            self._discard([*PREDICTIONS, *map(key_of, task_ids)])

    def look_up(self, task_ids: Sequence[str]) -> dict[str, StoredPrediction | None]:
        """Return the state of each id, in one round trip.

        Returns:
            By task id, its state; None if nothing is stored: the store may have lost the marker, and the prediction
            must be computed all the same.
        """
        with store_errors():
            time, values = cast("tuple[bytes, list[bytes | None]]", self._read(list(map(key_of, task_ids))))
        return {task_id: _decode(value, float(time)) for task_id, value in zip(task_ids, values, strict=True)}

    def finish(
        self, outcomes: Mapping[str, Outcome], model_version: str | None = None, times: WorkerTimes | None = None
    ) -> int:
        """Write how predictions ended, and publish their completions, in one round trip.

        Args:
            outcomes: by task id, its end. An id that has a terminal state keeps it.
            model_version: of the model that computed the probabilities.
            times: of the worker, for the waiters; they are not stored.

        Returns:
            The number of terminal states that were written.
        """
        if not outcomes:
            return 0
        with store_errors():
            keys, arguments = _finish_arguments(outcomes, model_version, self._result_ttl_s, times)
            return cast("int", run_script(self._client, self._finish, keys, arguments, self._replicas))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class AsyncPredictionStore:
    """The asyncio side, for the API: reads that arrive while one read is in flight share the next one."""

    def __init__(self, client: AsyncStoreClient, result_ttl_s: int, replicas: int = 0) -> None:
        """Use a client of the result store; the arguments are those of the blocking side."""
        self._client = client
        self._result_ttl_s = result_ttl_s
        self._replicas = replicas
        self._finish = client.register_script(load_counting_script("finish"))
        self._read = client.register_script(load_script("read_states"))
        self._requested: dict[str, asyncio.Future[tuple[float, bytes | None]]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def fetch(self, task_id: str) -> StoredPrediction | None:
        """Return the state of a task id; write that it expired if its deadline has passed.

        Returns:
            The state; None if the id was never issued or its TTL has ended.

        Raises:
            ResultStoreUnavailable: within 2.5 seconds.
        """
        if (answer := self._requested.get(task_id)) is None:
            answer = self._requested[task_id] = asyncio.get_running_loop().create_future()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_requested())
        async with store_call():
            time, value = await asyncio.shield(answer)
        stored = _decode(value, time)
        if stored is not None and stored.is_overdue:
            await self._write(task_id, Expired("not computed within its deadline"))
            return await self.fetch(task_id)  # a result may have been written first
        return stored

    async def delete(self, task_id: str) -> bool:
        """Write that a prediction is deleted, whether it was computed or not.

        Returns:
            Whether the id had a state.

        Raises:
            ResultStoreUnavailable: within 2.5 seconds.
        """
        return await self._write(task_id, Deleted("deleted by the client")) > 0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _write(self, task_id: str, outcome: Withdrawn) -> int:
        async with store_call():
            keys, arguments = _finish_arguments({task_id: outcome}, None, self._result_ttl_s)
            return cast("int", await run_script_async(self._client, self._finish, keys, arguments, self._replicas))

    async def _read_requested(self) -> None:
        while self._requested:
            requested, self._requested = self._requested, {}
            try:
                keys = list(map(key_of, requested))
                time, values = cast("tuple[bytes, list[bytes | None]]", await cast("Any", self._read(keys)))
            except Exception as error:  # noqa: BLE001 - each caller gets it; the next read may succeed
                for answer in requested.values():
                    answer.set_exception(error)
                    answer.exception()  # mark it as retrieved: the caller may have been cancelled
            else:
                for answer, value in zip(requested.values(), values, strict=True):
                    answer.set_result((float(time), value))
        self._reading = None


def is_from_worker(message: bytes) -> bool:
    """Tell whether a worker published a message on the channel COMPLETIONS, and not an API that ends a prediction."""
    return message.startswith(b'[{"times": ')


def decode_completions(message: bytes) -> dict[str, StoredPrediction]:
    """Return the terminal states of a message on the channel COMPLETIONS, by task id."""
    metas = json.loads(message)
    times = metas[0].get("times")
    worker_times = WorkerTimes(*times) if times else None
    return {meta["task_id"]: _from_meta(meta, times=worker_times) for meta in metas}


def _finish_arguments(
    outcomes: Mapping[str, Outcome], model_version: str | None, ttl_s: int, times: WorkerTimes | None = None
) -> tuple[list[str], list[bytes | str | int]]:
    """Return KEYS and ARGV of scripts/finish.lua, which is the one way in which a prediction ends.

    A deletion replaces any state; all other outcomes are written only where nothing or a QUEUED marker is stored.
    """
    is_deletion = all(isinstance(outcome, Deleted) for outcome in outcomes.values())
    now = datetime.now(UTC).isoformat()
    states = [_encode_outcome(task_id, outcome, model_version, now) for task_id, outcome in outcomes.items()]
    writable = b"" if is_deletion else _QUEUED_PREFIX
    keys = [*PREDICTIONS, *map(key_of, outcomes)]
    return keys, [COMPLETIONS, ttl_s, writable, json.dumps(times) if times else "", *states]


def _encode_outcome(task_id: str, outcome: Outcome, model_version: str | None, date_done: str) -> str:
    if isinstance(outcome, Exception):
        state = State.REVOKED if isinstance(outcome, Withdrawn) else State.FAILURE
        return encode_meta(task_id, state, encode_error(outcome), date_done)
    if isinstance(outcome, ExplainedProbability):
        more = {"model_version": model_version, "reasons": outcome.reasons}
        return encode_meta(task_id, State.SUCCESS, outcome.probability, date_done, **more)
    return encode_meta(task_id, State.SUCCESS, outcome, date_done, model_version=model_version)


def _decode(value: bytes | None, now: float) -> StoredPrediction | None:
    """Return a state; None if there is none, or if another Celery app wrote it under this key."""
    if value is None:
        return None
    try:
        return _from_meta(json.loads(value), now)
    except (ValueError, LookupError, TypeError):
        return None


def _from_meta(meta: Mapping[str, Any], now: float = 0, times: WorkerTimes | None = None) -> StoredPrediction:
    match State(meta["status"]):
        case State.QUEUED:
            waited_s = max(0.0, now - meta["queued"]) if "queued" in meta else None
            return StoredPrediction(State.QUEUED, is_overdue=meta["deadline"] < now, waited_s=waited_s)
        case State.SUCCESS:
            reasons = meta.get("reasons")
            return StoredPrediction(State.SUCCESS, meta["result"], meta["model_version"], reasons, times=times)
        case ended:
            return StoredPrediction(ended, error=meta["result"]["exc_type"], times=times)
