"""The two kinds of messages in the queue. Each knows how to parse, split, look up and save itself.

The delivery policy, which is the same for both, is in consumer/delivery.py.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, cast

from kombu import Queue
from pydantic_core import from_json, to_json

from celery_task_app.errors import Expired, MalformedMessage, PredictionError
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.predictions import ExplainedProbability, Outcome, PredictionStore, WorkerTimes
from celery_task_app.worker import BATCHES, PREDICT_TASK, PREDICTIONS, SCORE_TASK

Id = TypeVar("Id", str, int)  # a task id, or the number of a row
LOGGED_IDS = 256
"""Most task ids in one log line; a message has more only if GROUP_MAX is greater."""

Features = Mapping[str, object]
"""A customer's features by name, as BankChurners.csv has them."""

# Up to 0.1.0 a request for reasons travelled among the features. Messages of that version may still be in the queue.
_EXPLAIN_FLAG = "?explain"


class Stores(NamedTuple):
    """The stores to which messages save their outcomes."""

    predictions: PredictionStore
    batches: BatchStore


class LookUp(NamedTuple, Generic[Id]):
    """The states of a message's predictions.

    Attributes:
        pending: ids without a terminal state.
        outcomes: of overdue predictions.
        waited_s: seconds since the first pending one was accepted, by the store's clock; None if it is not known.
    """

    pending: Sequence[Id]
    outcomes: Mapping[Id, Outcome]
    waited_s: float | None


class Model(Protocol):
    """The methods of ml.model.ChurnModel that messages call."""

    version: str
    explains: bool
    example: Features | None

    @property
    def has_trial(self) -> bool:
        """Whether `try_out` has a customer to predict."""

    def try_out(self) -> None:
        """Predict the golden rows or an example.

        Raises:
            ModelError: the model cannot predict them.
        """

    def churn_probabilities(self, customers: Sequence[Features]) -> list[float]:
        """Return the probability of churn of each customer."""

    def column_probabilities(self, columns: Mapping[str, Sequence[object]]) -> list[float]:
        """Return the probability of churn of each customer, given the values of each feature."""

    def reasons(self, customers: Sequence[Features]) -> list[dict[str, Any]]:
        """Return the reasons for the probability of each customer."""


class Message(Protocol[Id]):
    """The interface of a message. Its ids are task ids, or row numbers of a batch."""

    kind: ClassVar[str]
    """`predictions` or `rows`, for metrics and log lines."""
    task_name: ClassVar[str]
    """The Celery task that consumes the message."""
    queue: ClassVar[Queue]

    @classmethod
    def parse(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the message that has these keyword arguments of its Celery task.

        Raises:
            MalformedMessage: they are not those of such a message.
        """

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for the Celery task: the inverse of `parse`."""

    @property
    def task_id(self) -> str | None:
        """The id of the only prediction, which is the id of its message too; else None, and the publisher makes one."""

    @property
    def ids(self) -> Sequence[Id]:
        """The ids of all predictions in the message."""

    @property
    def log_fields(self) -> Mapping[str, object]:
        """The ids for a log line, of the first LOGGED_IDS predictions."""

    def split(self, ids: Sequence[Id]) -> Iterator[Self]:
        """Yield a message of its own for each of these ids."""

    def look_up(self, stores: Stores) -> LookUp[Id]:
        """Return the ids without a terminal state, and the outcomes of overdue predictions.

        Raises:
            ResultStoreUnavailable: within about two seconds.
        """

    def predict(self, model: Model, ids: Sequence[Id]) -> list[float]:
        """Return the probabilities of churn for these ids.

        Raises:
            PredictionError: at least one of them cannot be predicted.
        """

    @property
    def explained_ids(self) -> Sequence[Id]:
        """The ids whose clients asked for reasons."""

    @property
    def traceparents(self) -> Mapping[str, str]:
        """By task id or batch id, the `traceparent` of its request, if that request is traced."""

    def explain(self, model: Model, probabilities: Mapping[Id, float]) -> Sequence[ExplainedProbability]:
        """Return the probabilities of some ids with their reasons.

        Raises:
            PredictionError: at least one of them cannot be explained.
        """

    def save(
        self,
        stores: Stores,
        outcomes: Mapping[Id, Outcome],
        model_version: str | None,
        times: WorkerTimes | None = None,
    ) -> None:
        """Write the outcomes to the store; an id that has a terminal state keeps it.

        Args:
            stores: of the outcomes.
            outcomes: by id, its end.
            model_version: of the model that computed the probabilities.
            times: for the clients that wait for one of the predictions.

        Raises:
            ResultStoreUnavailable: within about two seconds.
        """


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """One customer to be predicted.

    Attributes:
        features: the customer.
        explain: whether the client asked for reasons.
        traceparent: of the span of the request; empty if it is not traced.
    """

    features: Features
    explain: bool = False
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class PredictionMessage:
    """Predictions that travel together: 1 to 256 requests by task id."""

    requests: Mapping[str, PredictionRequest]

    kind: ClassVar[str] = "predictions"
    task_name: ClassVar[str] = PREDICT_TASK
    queue: ClassVar[Queue] = PREDICTIONS

    @classmethod
    def parse(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the message of `{"customers": {task_id: features}, "explain": [task_id, ...], "traces": {}}`.

        `traces` has the `traceparent` of each traced request by its task id. See Message.
        """
        customers, explain, traces = kwargs.get("customers"), kwargs.get("explain", []), kwargs.get("traces", {})
        if not kwargs.keys() <= {"customers", "explain", "traces"} or not isinstance(customers, dict) or not customers:
            raise MalformedMessage("it has no customers, or other arguments")
        if not all(isinstance(features, dict) for features in customers.values()):
            raise MalformedMessage("a customer is not an object")
        if not isinstance(explain, list):
            raise MalformedMessage("`explain` is not a list")
        if not isinstance(traces, dict) or not all(isinstance(text, str) for text in traces.values()):
            raise MalformedMessage("`traces` is not an object of texts")
        return cls(
            {
                task_id: _parse_request(features, task_id in explain, traces.get(task_id, ""))
                for task_id, features in customers.items()
            }
        )

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for the Celery task; see Message."""
        kwargs: dict[str, Any] = {
            "customers": {task_id: request.features for task_id, request in self.requests.items()}
        }
        if explain := self.explained_ids:
            kwargs["explain"] = explain
        if traces := self.traceparents:
            kwargs["traces"] = traces
        return kwargs

    @property
    def task_id(self) -> str | None:
        """The task id for Celery; see Message."""
        return next(iter(self.requests)) if len(self.requests) == 1 else None

    @property
    def ids(self) -> Sequence[str]:
        """The task ids."""
        return list(self.requests)

    @property
    def log_fields(self) -> Mapping[str, object]:
        """The task ids for a log line; see Message."""
        return {"task_ids": ",".join(itertools.islice(self.requests, LOGGED_IDS))}

    def split(self, ids: Sequence[str]) -> Iterator[Self]:
        """Yield a message of its own for each task id."""
        for task_id in ids:
            yield type(self)({task_id: self.requests[task_id]})

    def look_up(self, stores: Stores) -> LookUp[str]:
        """Return the pending task ids, and those that have expired; see Message."""
        pending: list[str] = []
        expired: dict[str, Outcome] = {}
        found = stores.predictions.look_up(self.ids)
        for task_id, stored in found.items():
            if stored is not None and stored.is_overdue:
                expired[task_id] = Expired("not computed within its deadline")
            elif stored is None or stored.is_queued:
                pending.append(task_id)
        first = found[pending[0]] if pending else None
        return LookUp(pending, expired, first.waited_s if first else None)

    def predict(self, model: Model, ids: Sequence[str]) -> list[float]:
        """Return the probabilities of churn for these task ids; see Message."""
        return model.churn_probabilities([self.requests[task_id].features for task_id in ids])

    @property
    def explained_ids(self) -> Sequence[str]:
        """The task ids whose clients asked for reasons."""
        return [task_id for task_id, request in self.requests.items() if request.explain]

    @property
    def traceparents(self) -> Mapping[str, str]:
        """By task id, the `traceparent` of each traced request."""
        return {task_id: request.traceparent for task_id, request in self.requests.items() if request.traceparent}

    def explain(self, model: Model, probabilities: Mapping[str, float]) -> Sequence[ExplainedProbability]:
        """Return the probabilities with their reasons; see Message."""
        reasons = model.reasons([self.requests[task_id].features for task_id in probabilities])
        return list(map(ExplainedProbability, probabilities.values(), reasons))

    def save(
        self,
        stores: Stores,
        outcomes: Mapping[str, Outcome],
        model_version: str | None,
        times: WorkerTimes | None = None,
    ) -> None:
        """Write the outcomes under their task ids; see Message."""
        stores.predictions.finish(outcomes, model_version, times)


@dataclass(frozen=True)
class ChunkMessage:
    """A chunk of a batch, column by column.

    Attributes:
        batch_id: the batch of the chunk.
        chunk: the number of the chunk.
        content: JSON text, `{"rows": [n row numbers], "customers": {feature: [n values]}}`. It stays text in the API,
            which spools it to a file before it publishes it.
        traceparent: of the span of the request; empty if it is not traced.
    """

    batch_id: str
    chunk: int
    content: str
    traceparent: str = ""

    kind: ClassVar[str] = "rows"
    task_name: ClassVar[str] = SCORE_TASK
    queue: ClassVar[Queue] = BATCHES

    @classmethod
    def from_columns(
        cls,
        batch_id: str,
        chunk: int,
        rows: list[int],
        columns: Mapping[str, Sequence[object]],
        traceparent: str = "",
    ) -> Self:
        """Return the message of n rows.

        Args:
            batch_id: the batch of the chunk.
            chunk: the number of the chunk.
            rows: n row numbers of the batch.
            columns: by feature, the n values of these rows.
            traceparent: of the span of the request, if it is traced.
        """
        return cls(batch_id, chunk, encode_chunk(rows, columns).decode(), traceparent)

    @classmethod
    def parse(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the message of `{"batch_id", "chunk", "content"}`, perhaps with `"traceparent"`; see Message."""
        if kwargs.keys() - {"traceparent"} != {"batch_id", "chunk", "content"}:
            raise MalformedMessage("it needs batch_id, chunk and content")
        if not isinstance(kwargs["batch_id"], str) or not isinstance(kwargs["chunk"], int):
            raise MalformedMessage("batch_id is not a string, or chunk is not a number")
        if not isinstance(kwargs.get("traceparent", ""), str):
            raise MalformedMessage("traceparent is not a string")
        message = cls(**kwargs)
        try:
            rows, columns = message.rows, list(message.columns.values())
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise MalformedMessage("its content is not a chunk") from error
        if not isinstance(rows, list) or not rows or not all(isinstance(row, int) for row in rows):
            raise MalformedMessage("its rows are not a list of numbers")
        if not columns or not all(isinstance(values, list) and len(values) == len(rows) for values in columns):
            raise MalformedMessage("a column is not a list with one value for each row")
        return message

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for the Celery task; see Message."""
        traced = {"traceparent": self.traceparent} if self.traceparent else {}
        return {"batch_id": self.batch_id, "chunk": self.chunk, "content": self.content, **traced}

    @property
    def rows(self) -> list[int]:
        """The n row numbers."""
        rows: list[int] = self._decoded["rows"]
        return rows

    @property
    def columns(self) -> dict[str, list[object]]:
        """By feature, the n values of the rows."""
        columns: dict[str, list[object]] = self._decoded["customers"]
        return columns

    @property
    def task_id(self) -> None:
        """A chunk has no task id."""

    @property
    def ids(self) -> Sequence[int]:
        """The row numbers."""
        return self.rows

    @property
    def log_fields(self) -> Mapping[str, object]:
        """The batch and the chunk for a log line."""
        return {"batch_id": self.batch_id, "chunk": self.chunk}

    def split(self, ids: Sequence[int]) -> Iterator[Self]:
        """Yield a message of its own for each row."""
        for row in ids:
            yield self.from_columns(self.batch_id, self.chunk, [row], self._columns_of([row]), self.traceparent)

    def look_up(self, stores: Stores) -> LookUp[int]:
        """Return the pending rows; a row has no deadline. See Message."""
        pending, waited_s = stores.batches.look_up(self.batch_id, self.chunk, self.rows)
        return LookUp(self.rows if len(pending) == len(self.rows) else sorted(pending), {}, waited_s)

    def predict(self, model: Model, ids: Sequence[int]) -> list[float]:
        """Return the probabilities of churn for these rows; see Message."""
        return model.column_probabilities(self._columns_of(ids))

    @property
    def explained_ids(self) -> Sequence[int]:
        """Rows of a batch have no reasons."""
        return ()

    @property
    def traceparents(self) -> Mapping[str, str]:
        """By the batch id, the `traceparent` of its request, if that is traced."""
        return {self.batch_id: self.traceparent} if self.traceparent else {}

    def explain(self, model: Model, probabilities: Mapping[int, float]) -> Sequence[ExplainedProbability]:  # noqa: ARG002
        """Return nothing: rows of a batch have no reasons."""
        return []

    def save(
        self,
        stores: Stores,
        outcomes: Mapping[int, Outcome],
        model_version: str | None,
        times: WorkerTimes | None = None,  # noqa: ARG002 - no client waits for a row
    ) -> None:
        """Write the outcomes of rows of the chunk; see Message."""
        rows = cast("Mapping[int, float | PredictionError]", outcomes)  # rows neither expire nor have reasons
        stores.batches.finish(self.batch_id, self.chunk, rows, model_version)

    @cached_property
    def _decoded(self) -> dict[str, Any]:
        decoded: dict[str, Any] = from_json(self.content)
        return decoded

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: place for place, row in enumerate(self.rows)}

    def _columns_of(self, rows: Sequence[int]) -> dict[str, list[object]]:
        """Return the values of some rows only."""
        if len(rows) == len(self.rows):
            return self.columns
        places = [self._places[row] for row in rows]
        return {name: [values[place] for place in places] for name, values in self.columns.items()}


def _parse_request(features: Features, explain: bool, traceparent: str) -> PredictionRequest:
    if _EXPLAIN_FLAG in features:
        features, explain = {name: value for name, value in features.items() if name != _EXPLAIN_FLAG}, True
    return PredictionRequest(features, explain, traceparent)


def encode_chunk(rows: list[int], columns: Mapping[str, Sequence[object]]) -> bytes:
    """Return the content of a ChunkMessage: n row numbers, and by feature the n values of these rows."""
    return to_json({"rows": rows, "customers": columns})
