"""The worker with a model that fails on marked customers: each prediction has its own end."""

from typing import Any

import pytest

from tests.harness import marked_model
from tests.harness.assertions import assert_failed, assert_predicted
from tests.harness.publishing import Customers, prediction_message, publish, publish_alone, publish_arguments
from tests.harness.service import Service


def test_a_message_of_many_is_predicted_in_its_order(marked: Service, queued: Customers) -> None:
    publish(marked.servers, prediction_message(queued))
    assert_predicted(marked, queued)


def test_the_model_is_loaded_once_per_process(marked: Service, queued: Customers) -> None:
    loads = marked.worker.text().count("model loaded")
    publish_alone(marked.servers, queued)
    assert_predicted(marked, queued)
    assert marked.worker.text().count("model loaded") == loads


def test_the_version_of_a_model_without_a_manifest_is_its_hash(marked: Service, queued: Customers) -> None:
    publish(marked.servers, prediction_message(queued))
    (version,) = {marked.ended(task_id).json()["model_version"] for task_id in queued}
    assert len(version) == 12
    assert "no manifest" in marked.worker.text()


@pytest.mark.parametrize(
    ("age", "error", "lost_attempts"),
    [
        (marked_model.KILLS, "TooManyAttempts", 4),
        (marked_model.HANGS, "TooManyAttempts", 4),
        (marked_model.SLEEPS, "TooManyAttempts", 4),
        (marked_model.EXITS, "TooManyAttempts", 4),
        (marked_model.IS_NAN, "InvalidPrediction", 0),
        (marked_model.RAISES, "InvalidPrediction", 0),
        (marked_model.HAS_NO_SHAPE, "InvalidPrediction", 0),
    ],
    ids=["kills", "hangs", "sleeps", "exits", "NaN", "raises", "wrong shape"],
)
def test_a_poisonous_customer_fails_alone(
    marked: Service, queued: Customers, age: int, error: str, lost_attempts: int
) -> None:
    poisonous = list(queued)[7]
    queued[poisonous]["Customer_Age"] = age
    lost = marked.worker.text().count("attempt lost")
    publish(marked.servers, prediction_message(queued))
    assert_failed(marked, poisonous, error)
    del queued[poisonous]
    assert_predicted(marked, queued)
    assert marked.worker.text().count("attempt lost") - lost == lost_attempts


def test_a_customer_without_a_feature_fails_alone(marked: Service, queued: Customers) -> None:
    poisonous = next(iter(queued))
    del queued[poisonous]["Total_Trans_Ct"]
    publish(marked.servers, prediction_message(queued))
    assert_failed(marked, poisonous, "InvalidPrediction")
    del queued[poisonous]
    assert_predicted(marked, queued)


@pytest.mark.parametrize("kwargs", [{}, {"customers": 5}, {"customers": {}}, {"customers": {}, "more": 1}])
def test_a_malformed_message_affects_no_other(marked: Service, queued: Customers, kwargs: dict[str, Any]) -> None:
    publish_arguments(marked.servers, kwargs)
    publish(marked.servers, prediction_message(queued))
    assert_predicted(marked, queued)
    assert marked.worker.is_running
    assert "end of the queue" not in marked.worker.text()
