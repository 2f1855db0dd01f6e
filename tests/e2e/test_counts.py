"""The service-wide counts, end to end: a ledger of kills, redeliveries and deletions equals them."""

import json
from typing import Any
from uuid import uuid4

import psutil

from celery_task_app.store.counts import ServiceCounts
from tests.harness import marked_model
from tests.harness.counts import read_counts
from tests.harness.customers import Row
from tests.harness.processes import until
from tests.harness.publishing import prediction_message, publish
from tests.harness.service import Service

Customer = dict[str, Any]


def read(service: Service) -> ServiceCounts:
    return read_counts(service.servers.backend_uri)


def await_accepted(service: Service, predictions: int, rows: int) -> ServiceCounts:
    """Wait until so many are counted as accepted; the API counts a message some milliseconds after its last 202."""
    until(lambda: read(service).predictions.accepted >= predictions)
    counts = read(service)
    assert (counts.predictions.accepted, counts.rows.accepted) == (predictions, rows)
    return counts


def test_each_accepted_customer_ends_once_whatever_happens(
    batches: Service, customer: Customer, rows: list[Row]
) -> None:
    before = read(batches)
    assert (before.predictions.waiting, before.rows.waiting) == (0, 0)
    with batches.worker.paused():
        customers = {}
        for number in range(40):
            sent = {**customer, "Total_Trans_Ct": 100 + number}
            customers[batches.predict(sent)] = sent
        poisonous = batches.predict({**customer, "Customer_Age": marked_model.KILLS})
        invalid = batches.predict({**customer, "Customer_Age": marked_model.IS_NAN})
        expiring = batches.predict(customer, Cancel_After="1")
        deleted = batches.predict(customer)
        kept = batches.batch_accepted(rows)
        removed = batches.batch_accepted(rows)
        counts = await_accepted(batches, before.predictions.accepted + 44, before.rows.accepted + 240)
        assert (counts.predictions.waiting, counts.rows.waiting) == (44, 240)
        assert counts.predictions.oldest_s > 0
        assert batches.delete(deleted).status_code == 204
        assert batches.delete_batch(removed).status_code == 204
        publish(batches.servers, prediction_message(customers))  # as if the broker had delivered all of them again
        until(lambda: batches.result(expiring).status_code == 410)
        publish(batches.servers, prediction_message({str(uuid4()): customer}))  # no API has accepted it
        batches.api.restart(batches.api.env)
    for child in psutil.Process(batches.worker.pid).children():
        child.kill()
    until(batches.answers)
    for task_id in customers:
        assert batches.ended(task_id, within_s=60).status_code == 200
    assert batches.ended(poisonous, within_s=60).status_code == 500
    assert batches.ended(invalid).status_code == 500
    batches.batch_ended(kept, within_s=60)
    assert batches.delete(next(iter(customers))).status_code == 204  # it has ended: it is not counted again
    until(batches.servers.is_empty)
    batches.worker.restart(batches.worker.env)
    until(batches.answers, within_s=60)

    after = read(batches)
    ended = {state: count - before.predictions.ended[state] for state, count in after.predictions.ended.items()}
    assert ended == {"success": 40, "failure": 2, "expired": 1, "deleted": 1}
    assert (after.predictions.accepted, after.predictions.waiting) == (before.predictions.accepted + 44, 0)
    row_states = {state: count - before.rows.ended[state] for state, count in after.rows.ended.items()}
    assert row_states == {"success": 120, "failure": 0, "expired": 0, "deleted": 120}
    assert (after.rows.accepted, after.rows.waiting) == (before.rows.accepted + 240, 0)


def test_a_refused_request_is_not_counted(batches: Service, customer: Customer, rows: list[Row]) -> None:
    before = read(batches)
    assert batches.post({**customer, "Customer_Age": -1}).status_code == 422
    with batches.servers.broker.paused():
        assert batches.post(customer).status_code == 503
        assert batches.post_batch(json.dumps(rows), "application/json").status_code == 503
    until(batches.answers)
    batches.ended(batches.predict(customer))
    until(batches.servers.is_empty)
    after = await_accepted(batches, before.predictions.accepted + 1, before.rows.accepted)
    assert after.predictions.waiting == after.rows.waiting == 0
