"""The delivery policy on real servers: which messages are predicted, split, given up or published anew."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import joblib
import numpy as np
import pandas as pd
import pytest
from kombu import Queue

from celery_task_app.consumer.delivery import MAX_RETRIES, DeliveryPolicy
from celery_task_app.errors import Deleted, ModelError, TrialFailed, Unavailable
from celery_task_app.messaging.messages import (
    ChunkMessage,
    Features,
    Model,
    PredictionMessage,
    PredictionRequest,
    Stores,
)
from celery_task_app.ml.model import ChurnModel
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.predictions import PredictionStore, State, StoredPrediction
from celery_task_app.worker import BATCHES, PREDICTIONS
from tests.conftest import MANIFEST
from tests.harness.processes import free_port
from tests.harness.proxy import Proxy, proxy
from tests.harness.servers import Servers
from tests.integration.in_process import opened_delivery
from tests.integration.queues import arguments, take_all

REASONS = {"base": 0.0, "up": [], "down": [], "others": 0.0}

pytestmark = pytest.mark.usefixtures("empty_queues")


class Pipeline:
    """A pipeline that returns Total_Trans_Ct / 1000. It fails for the gender `X`, and has no reasons for `Y`."""

    classes_ = (0, 1)
    calls: ClassVar[list[int]] = []
    """The number of customers in each call."""

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        self.calls.append(len(customers))
        if "X" in set(customers["Gender"]):
            raise ValueError("unknown gender")
        churn = customers["Total_Trans_Ct"].to_numpy(dtype=float) / 1000
        return np.column_stack((1 - churn, churn))

    def contributions(self, customers: pd.DataFrame) -> np.ndarray:
        if "Y" in set(customers["Gender"]):
            raise ValueError("no reasons for this gender")
        return np.zeros((len(customers), len(customers.columns) + 1))


def load_model(folder: Path, *, explains: bool = True) -> ChurnModel:
    path = folder / "pipeline.joblib"
    joblib.dump(Pipeline(), path)
    manifest = {
        "name": "pipeline",
        "version": "v1",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "libraries": {},
        "features": MANIFEST["features"],
        "explains": explains,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    Pipeline.calls.clear()
    return ChurnModel(path)


@pytest.fixture
def model(tmp_path: Path) -> ChurnModel:
    return load_model(tmp_path)


@pytest.fixture
def stores(prediction_store: PredictionStore, batch_store: BatchStore) -> Stores:
    return Stores(prediction_store, batch_store)


@pytest.fixture
def delivery(servers: Servers) -> Iterator[DeliveryPolicy]:
    with opened_delivery(servers.broker_uri, servers.backend_uri) as policy:
        yield policy


@pytest.fixture
def predictions(prediction_store: PredictionStore, customer: dict[str, Any]) -> PredictionMessage:
    """Five queued predictions; the reasons of the first are wanted."""
    requests = {
        str(uuid4()): PredictionRequest({**customer, "Total_Trans_Ct": number}, explain=number == 0)
        for number in range(5)
    }
    prediction_store.mark_queued(dict.fromkeys(requests, 3600))
    return PredictionMessage(requests)


@pytest.fixture
def chunk(batch_store: BatchStore, customer: dict[str, Any]) -> ChunkMessage:
    """Five pending rows of a batch."""
    batch_id = str(uuid4())
    batch_store.create(batch_id, 5, 1)
    columns = {name: [value] * 5 for name, value in customer.items()} | {"Total_Trans_Ct": list(range(5))}
    return ChunkMessage.from_columns(batch_id, 0, list(range(5)), columns)


def process(
    delivery: DeliveryPolicy,
    message: PredictionMessage | ChunkMessage,
    model: Model,
    retries: int = 0,
    kind: Literal["new", "redelivered", "dead letter"] = "new",
) -> None:
    delivery.process(
        message,
        model,
        retries=retries,
        is_redelivered=kind == "redelivered",
        is_dead_letter=kind == "dead letter",
    )


def taken(servers: Servers, queue: Queue) -> list[tuple[list[Any], int]]:
    """Take the messages of a queue; return the ids and the retries of each."""
    kind: type[PredictionMessage | ChunkMessage] = PredictionMessage if queue is PREDICTIONS else ChunkMessage
    messages = take_all(servers, queue)
    return [(list(kind.parse(arguments(one)).ids), one.headers["retries"]) for one in messages]


def test_predictions_are_stored_under_their_task_ids(
    servers: Servers,
    delivery: DeliveryPolicy,
    prediction_store: PredictionStore,
    predictions: PredictionMessage,
    model: ChurnModel,
) -> None:
    process(delivery, predictions, model)
    assert prediction_store.look_up(predictions.ids) == {
        task_id: StoredPrediction(
            State.SUCCESS, probability=number / 1000, model_version="v1", reasons=REASONS if number == 0 else None
        )
        for number, task_id in enumerate(predictions.ids)
    }
    assert Pipeline.calls == [5]
    assert taken(servers, PREDICTIONS) == []


def test_a_model_without_reasons_stores_none(
    delivery: DeliveryPolicy, prediction_store: PredictionStore, predictions: PredictionMessage, tmp_path: Path
) -> None:
    process(delivery, predictions, load_model(tmp_path, explains=False))
    stored = prediction_store.look_up(predictions.ids)
    assert {one.reasons for one in stored.values() if one is not None} == {None}


def test_a_customer_whose_reasons_fail_fails_alone(
    delivery: DeliveryPolicy, prediction_store: PredictionStore, customer: dict[str, Any], model: ChurnModel
) -> None:
    genders = dict(zip(map(str, (uuid4(), uuid4(), uuid4())), "FYM", strict=True))
    requests = {
        task_id: PredictionRequest({**customer, "Gender": gender}, explain=True) for task_id, gender in genders.items()
    }
    prediction_store.mark_queued(dict.fromkeys(requests, 3600))
    process(delivery, PredictionMessage(requests), model)
    stored = prediction_store.look_up(list(genders))
    errors = {genders[task_id]: one.error for task_id, one in stored.items() if one is not None}
    assert errors == {"F": None, "Y": "InvalidPrediction", "M": None}


def test_rows_are_stored_in_their_batch(
    servers: Servers, delivery: DeliveryPolicy, batch_store: BatchStore, chunk: ChunkMessage, model: ChurnModel
) -> None:
    process(delivery, chunk, model)
    assert batch_store.pending(chunk.batch_id, 0, chunk.rows) == set()
    assert Pipeline.calls == [5]
    assert taken(servers, BATCHES) == []


def test_a_faulty_customer_fails_alone(
    delivery: DeliveryPolicy, prediction_store: PredictionStore, predictions: PredictionMessage, model: ChurnModel
) -> None:
    faulty = predictions.ids[3]
    requests = dict(predictions.requests)
    requests[faulty] = PredictionRequest({**requests[faulty].features, "Gender": "X"})
    process(delivery, PredictionMessage(requests), model)
    stored = prediction_store.look_up(predictions.ids)
    assert stored.pop(faulty) == StoredPrediction(State.FAILURE, error="InvalidPrediction")
    assert {one.state for one in stored.values() if one is not None} == {State.SUCCESS}


def new_message(prediction_store: PredictionStore, *customers: dict[str, Any]) -> PredictionMessage:
    """Return a message with queued predictions."""
    requests = {str(uuid4()): PredictionRequest(customer) for customer in customers}
    prediction_store.mark_queued(dict.fromkeys(requests, 3600))
    return PredictionMessage(requests)


def states(prediction_store: PredictionStore, message: PredictionMessage) -> set[State]:
    stored = prediction_store.look_up(message.ids)
    return {prediction.state for prediction in stored.values() if prediction is not None}


def test_a_model_that_fails_for_three_whole_messages_in_a_row_has_failed(
    delivery: DeliveryPolicy, model: ChurnModel, prediction_store: PredictionStore, customer: dict[str, Any]
) -> None:
    bad = {**customer, "Gender": "X"}
    failed = [new_message(prediction_store, bad, bad) for _ in range(4)]
    process(delivery, failed[0], model)
    process(delivery, failed[1], model)
    process(delivery, new_message(prediction_store, bad, customer), model)  # one of its customers is predicted
    process(delivery, failed[2], model)
    process(delivery, failed[3], model)
    assert {State.FAILURE} == set().union(*(states(prediction_store, message) for message in failed))
    last = new_message(prediction_store, bad, bad)
    with pytest.raises(ModelError, match="every customer of 3 messages in a row"):
        process(delivery, last, model)
    assert states(prediction_store, last) == {State.QUEUED}


def test_a_model_that_fails_for_a_whole_message_and_for_its_example_has_failed(
    servers: Servers, model: ChurnModel, prediction_store: PredictionStore, customer: dict[str, Any]
) -> None:
    bad = {**customer, "Gender": "X"}
    message = new_message(prediction_store, bad)
    with (
        opened_delivery(servers.broker_uri, servers.backend_uri, bad) as delivery,
        pytest.raises(TrialFailed, match="unknown gender"),
    ):
        process(delivery, message, model)
    assert states(prediction_store, message) == {State.QUEUED}


def test_customers_who_fail_alone_do_not_stop_a_model_that_predicts_its_example(
    servers: Servers, model: ChurnModel, prediction_store: PredictionStore, customer: dict[str, Any]
) -> None:
    with opened_delivery(servers.broker_uri, servers.backend_uri, customer) as delivery:
        for _ in range(5):
            message = new_message(prediction_store, {**customer, "Gender": "X"})
            process(delivery, message, model)
            assert states(prediction_store, message) == {State.FAILURE}


def test_only_pending_predictions_are_computed(
    delivery: DeliveryPolicy, prediction_store: PredictionStore, predictions: PredictionMessage, model: ChurnModel
) -> None:
    finished, deleted, overdue, *pending = predictions.ids
    prediction_store.finish({finished: 0.9}, "v0")
    prediction_store.finish({deleted: Deleted("deleted by the client")})
    prediction_store.discard([overdue])
    prediction_store.mark_queued({overdue: -1})
    process(delivery, predictions, model)
    stored = prediction_store.look_up(predictions.ids)
    assert stored[finished] == StoredPrediction(State.SUCCESS, probability=0.9, model_version="v0")
    assert stored[deleted] == StoredPrediction(State.REVOKED, error="Deleted")
    assert stored[overdue] == StoredPrediction(State.REVOKED, error="Expired")
    assert Pipeline.calls == [len(pending)] == [2]


def test_a_prediction_without_a_marker_is_computed(
    delivery: DeliveryPolicy, prediction_store: PredictionStore, predictions: PredictionMessage, model: ChurnModel
) -> None:
    prediction_store.discard(predictions.ids)
    process(delivery, predictions, model)
    assert all(one is not None for one in prediction_store.look_up(predictions.ids).values())


def test_a_redelivered_message_is_split(
    servers: Servers, delivery: DeliveryPolicy, predictions: PredictionMessage, chunk: ChunkMessage, model: ChurnModel
) -> None:
    process(delivery, predictions, model, kind="redelivered")
    process(delivery, chunk, model, kind="redelivered")
    assert Pipeline.calls == []
    assert taken(servers, PREDICTIONS) == [([task_id], 0) for task_id in predictions.ids]
    assert taken(servers, BATCHES) == [([row], 0) for row in range(5)]


def test_a_redelivered_message_with_two_customers_is_split(
    servers: Servers, delivery: DeliveryPolicy, predictions: PredictionMessage, model: ChurnModel
) -> None:
    pair = PredictionMessage(dict(list(predictions.requests.items())[:2]))
    process(delivery, pair, model, kind="redelivered")
    assert taken(servers, PREDICTIONS) == [([task_id], 0) for task_id in pair.ids]


def test_a_retried_message_is_split_and_keeps_its_retries(
    servers: Servers, delivery: DeliveryPolicy, predictions: PredictionMessage, chunk: ChunkMessage, model: ChurnModel
) -> None:
    process(delivery, predictions, model, retries=2)
    process(delivery, chunk, model, retries=2)
    assert Pipeline.calls == []
    assert taken(servers, PREDICTIONS) == [([task_id], 2) for task_id in predictions.ids]
    assert taken(servers, BATCHES) == [([row], 2) for row in range(5)]


def test_a_split_prediction_keeps_its_request_for_reasons(
    servers: Servers, delivery: DeliveryPolicy, predictions: PredictionMessage
) -> None:
    delivery.split_and_requeue(predictions, 1)
    messages = [PredictionMessage.parse(arguments(message)) for message in take_all(servers, PREDICTIONS)]
    assert messages == list(predictions.split(predictions.ids))


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_single_prediction_is_computed_whatever_was_lost_before(
    delivery: DeliveryPolicy,
    prediction_store: PredictionStore,
    predictions: PredictionMessage,
    model: ChurnModel,
    retries: int,
) -> None:
    (single,) = predictions.split(predictions.ids[:1])
    process(delivery, single, model, retries=retries, kind="redelivered")
    assert Pipeline.calls == [1]
    stored = prediction_store.look_up(single.ids)[single.ids[0]]
    assert stored is not None
    assert stored.state is State.SUCCESS


def test_only_pending_predictions_are_requeued(
    servers: Servers,
    delivery: DeliveryPolicy,
    stores: Stores,
    predictions: PredictionMessage,
    chunk: ChunkMessage,
) -> None:
    finished, overdue, *pending = predictions.ids
    stores.predictions.finish({finished: 0.9}, "v0")
    stores.predictions.discard([overdue])
    stores.predictions.mark_queued({overdue: -1})
    stores.batches.finish(chunk.batch_id, 0, {1: 0.5}, "v0")
    delivery.split_and_requeue(predictions, 1)
    delivery.split_and_requeue(chunk, 1)
    assert taken(servers, PREDICTIONS) == [([task_id], 1) for task_id in pending]
    assert taken(servers, BATCHES) == [([row], 1) for row in (0, 2, 3, 4)]
    expired = StoredPrediction(State.REVOKED, error="Expired")
    assert stores.predictions.look_up([overdue]) == {overdue: expired}


def test_nothing_of_a_deleted_batch_is_requeued(
    servers: Servers, delivery: DeliveryPolicy, batch_store: BatchStore, chunk: ChunkMessage
) -> None:
    batch_store.delete(chunk.batch_id)
    delivery.split_and_requeue(chunk, 1)
    assert taken(servers, BATCHES) == []


def test_the_fourth_lost_attempt_is_a_failure(
    servers: Servers,
    delivery: DeliveryPolicy,
    stores: Stores,
    predictions: PredictionMessage,
    chunk: ChunkMessage,
) -> None:
    finished, *pending = predictions.ids
    stores.predictions.finish({finished: 0.9}, "v0")
    delivery.split_and_requeue(predictions, MAX_RETRIES + 1)
    delivery.split_and_requeue(chunk, MAX_RETRIES + 1)
    stored = stores.predictions.look_up(predictions.ids)
    assert stored.pop(finished) == StoredPrediction(State.SUCCESS, probability=0.9, model_version="v0")
    assert set(stored) == set(pending)
    assert set(stored.values()) == {StoredPrediction(State.FAILURE, error="TooManyAttempts")}
    assert stores.batches.pending(chunk.batch_id, 0, chunk.rows) == set()
    assert taken(servers, PREDICTIONS) == taken(servers, BATCHES) == []


@pytest.mark.parametrize("retries", [0, 2])
def test_a_dead_letter_gets_one_attempt_more(
    servers: Servers,
    delivery: DeliveryPolicy,
    predictions: PredictionMessage,
    chunk: ChunkMessage,
    model: ChurnModel,
    retries: int,
) -> None:
    process(delivery, predictions, model, retries=retries, kind="dead letter")
    process(delivery, chunk, model, retries=retries, kind="dead letter")
    assert Pipeline.calls == []
    assert taken(servers, PREDICTIONS) == [([task_id], MAX_RETRIES) for task_id in predictions.ids]
    assert taken(servers, BATCHES) == [([row], MAX_RETRIES) for row in range(5)]


def test_a_dead_letter_without_attempts_left_is_a_failure(
    servers: Servers,
    delivery: DeliveryPolicy,
    prediction_store: PredictionStore,
    predictions: PredictionMessage,
    model: ChurnModel,
) -> None:
    process(delivery, predictions, model, retries=MAX_RETRIES, kind="dead letter")
    failure = StoredPrediction(State.FAILURE, error="TooManyAttempts")
    assert set(prediction_store.look_up(predictions.ids).values()) == {failure}
    assert taken(servers, PREDICTIONS) == []


@pytest.mark.parametrize(
    ("kind", "retries", "published_retries"),
    [("new", 0, 0), ("redelivered", 0, 0), ("new", 2, 2), ("new", 4, 4), ("dead letter", 0, 3), ("dead letter", 3, 4)],
)
def test_a_message_whose_result_store_is_away_goes_whole_to_the_end_of_the_queue(
    servers: Servers,
    predictions: PredictionMessage,
    chunk: ChunkMessage,
    model: ChurnModel,
    kind: Literal["new", "redelivered", "dead letter"],
    retries: int,
    published_retries: int,
) -> None:
    with opened_delivery(servers.broker_uri, f"redis://127.0.0.1:{free_port()}/0") as delivery:
        process(delivery, predictions, model, retries=retries, kind=kind)
        process(delivery, chunk, model, retries=retries, kind=kind)
    assert Pipeline.calls == []
    assert taken(servers, PREDICTIONS) == [(predictions.ids, published_retries)]
    assert taken(servers, BATCHES) == [(chunk.ids, published_retries)]


@dataclass
class LastLookUp:
    """A model that closes the way to the result store when it predicts: after the look-up, before the outcomes."""

    store: Proxy
    version: str = "v1"
    explains: bool = False
    has_trial: bool = False
    example: Features | None = None

    def try_out(self) -> None:
        raise NotImplementedError

    def churn_probabilities(self, customers: Sequence[Features]) -> list[float]:
        self.store.close()
        return [0.5] * len(customers)

    def column_probabilities(self, columns: Mapping[str, Sequence[object]]) -> list[float]:
        raise NotImplementedError

    def reasons(self, customers: Sequence[Features]) -> list[dict[str, Any]]:
        raise NotImplementedError


def test_a_message_whose_outcomes_cannot_be_stored_goes_whole_to_the_end_of_the_queue(
    servers: Servers, predictions: PredictionMessage
) -> None:
    port = urlsplit(servers.backend_uri).port or 6379
    with proxy(port) as between:
        uri = servers.backend_uri.replace(f":{port}/", f":{between.port}/")
        with opened_delivery(servers.broker_uri, uri) as delivery:
            process(delivery, predictions, LastLookUp(between))
    assert taken(servers, PREDICTIONS) == [(predictions.ids, 0)]


def test_a_single_prediction_without_attempts_left_is_a_failure(
    delivery: DeliveryPolicy, prediction_store: PredictionStore, predictions: PredictionMessage, model: ChurnModel
) -> None:
    (single,) = predictions.split(predictions.ids[:1])
    process(delivery, single, model, retries=MAX_RETRIES + 1)
    assert prediction_store.look_up(single.ids) == {
        single.ids[0]: StoredPrediction(State.FAILURE, error="TooManyAttempts")
    }
    assert Pipeline.calls == []


@pytest.mark.parametrize("is_broker_away", [True, False])
def test_a_split_that_fails_is_unavailable(
    servers: Servers, predictions: PredictionMessage, is_broker_away: bool
) -> None:
    broker_uri = servers.broker_uri_at(free_port()) if is_broker_away else servers.broker_uri
    backend_uri = servers.backend_uri if is_broker_away else f"redis://127.0.0.1:{free_port()}/0"
    with opened_delivery(broker_uri, backend_uri) as delivery, pytest.raises(Unavailable):
        delivery.split_and_requeue(predictions, 1)
    assert taken(servers, PREDICTIONS) == []
