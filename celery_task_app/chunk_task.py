"""The task that scores a chunk of a batch: as the task that predicts does, with a batch's keys and a batch's queue."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cached_property
from typing import Any

from pydantic_core import from_json

from celery_task_app.batches import BatchStore
from celery_task_app.errors import PredictionError, ResultStoreUnavailable
from celery_task_app.submission import Publisher
from celery_task_app.tasks import MAX_RETRIES, STORE_PATIENCE_S, PredictTask, given_up, outcomes_of, patiently
from celery_task_app.worker import BATCHES, DEAD, SCORE_TASK, app

logger = logging.getLogger(__name__)


class ChunkTask(PredictTask):
    """Base of the task that scores a chunk; the model is the one that PredictTask has loaded."""

    abstract = True

    @cached_property
    def batches(self) -> BatchStore:
        """The result store, on a connection of this process's own."""
        return BatchStore()

    @staticmethod
    def makes_sense(kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a message's arguments hold customers that can be sent again."""
        try:
            _customers(kwargs["content"])
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        return kwargs.keys() == {"batch_id", "chunk", "content"}

    def send_apart(self, kwargs: Mapping[str, Any], retries: int) -> None:
        """Send each row that is still owed in a message of its own, or store the failure of all after four attempts.

        Raises:
            Unavailable: the broker, or the result store, did not take it.
        """
        batch_id, chunk = kwargs["batch_id"], kwargs["chunk"]
        customers = _customers(kwargs["content"])
        store = BatchStore()
        owed = store.owed(batch_id, chunk, list(customers))
        if retries > MAX_RETRIES:
            logger.error("given up batch_id=%s rows=%s", batch_id, ",".join(map(str, sorted(owed))))
            outcomes: dict[int, float | PredictionError] = dict.fromkeys(sorted(owed), given_up(retries))
            store.store(batch_id, chunk, outcomes, None)
            return
        with closing(Publisher()) as publisher:
            for row in sorted(owed):
                columns = {name: [value] for name, value in customers[row].items()}
                content = json.dumps({"rows": [row], "customers": columns})
                one = {"batch_id": batch_id, "chunk": chunk, "content": content}
                publisher.send(SCORE_TASK, BATCHES, one, retries)


@app.task(bind=True, base=ChunkTask, name=SCORE_TASK, ignore_result=True)
def score_chunk(self: ChunkTask, batch_id: str, chunk: int, content: str) -> None:
    """Score a chunk, and store its results under one key.

    Args:
        self: the task.
        batch_id: of the batch that it belongs to.
        chunk: its number.
        content: JSON, `{"rows": [n numbers], "customers": {feature: [n values]}}`. As text, because it is published as
            it was spooled.
    """
    message = {"batch_id": batch_id, "chunk": chunk, "content": content}
    retries, delivery = self.request.retries, self.request.delivery_info
    customers = _customers(content)
    if delivery["routing_key"] == DEAD.name:
        self.send_apart(message, max(retries + 1, MAX_RETRIES))
    elif len(customers) > 1 and (retries or delivery["redelivered"]):
        self.send_apart(message, retries)
    else:
        deadline = time.monotonic() + STORE_PATIENCE_S
        try:
            owed = patiently(deadline, lambda: self.batches.owed(batch_id, chunk, list(customers)))
            if owed:
                outcomes = outcomes_of(self.model, {row: customers[row] for row in customers if row in owed})
                patiently(deadline, lambda: self.batches.store(batch_id, chunk, outcomes, self.model.version))
        except ResultStoreUnavailable as error:
            logger.warning("chunk goes to the end of the queue batch_id=%s reason=%s", batch_id, error)
            with closing(Publisher()) as publisher:
                publisher.send(SCORE_TASK, BATCHES, message, retries)


def _customers(content: str) -> dict[int, dict[str, object]]:
    """Return a chunk's customers by row."""
    chunk = from_json(content)
    return dict(zip(chunk["rows"], _rows(chunk["customers"]), strict=True))


def _rows(columns: Mapping[str, list[object]]) -> Iterator[dict[str, object]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
