"""Ready means ready: each reason why a prediction or a batch would not be computed makes the service unready."""

from typing import Any, Literal

import pytest

from api.readiness import Readiness
from celery_task_app.store.worker_status import WorkerStatus

Model = Literal["loaded", "not loaded yet", "failed", "stuck"]
BOTH = ["churn", "churn.batch", "churn.dead"]


def worker(model: Model = "loaded", queues: list[str] | None = BOTH) -> WorkerStatus:
    """Return a status; without queues that of a worker of version 0.1.0."""
    status = WorkerStatus(model=model, detail="v1")
    return status if queues is None else WorkerStatus(**status, queues=queues)


def problems(**parts: Any) -> list[str]:
    return Readiness(
        **{"workers": {"celery@a/1": worker()}, "consumers": {"churn": 1, "churn.batch": 1}, **parts}
    ).problems


def test_a_service_whose_parts_all_work_is_ready() -> None:
    assert problems() == []
    assert problems(consumers={}) == []  # Valkey does not count consumers


@pytest.mark.parametrize("part", ["broker", "result_store", "subscription", "submissions"])
def test_a_part_that_failed_is_named_with_its_reason(part: str) -> None:
    (problem,) = problems(**{part: "the reason."})
    assert problem.endswith(" failed: the reason.")
    assert part.rsplit("_", maxsplit=1)[-1].removesuffix("s") in problem


@pytest.mark.parametrize(
    "workers", [{}, {"a": worker("failed")}, {"a": worker("stuck")}, {"a": worker("not loaded yet")}]
)
def test_without_a_worker_that_can_predict_both_queues_are_named(workers: dict[str, WorkerStatus]) -> None:
    first, second = problems(workers=workers)
    assert "`churn`" in first
    assert "`churn.batch`" in second


@pytest.mark.parametrize("queue", ["churn", "churn.batch"])
def test_a_queue_that_no_worker_consumes_is_named(queue: str) -> None:
    (problem,) = problems(workers={"a": worker(queues=[name for name in BOTH if name != queue])})
    assert f"`{queue}`" in problem


def test_two_workers_may_share_the_queues() -> None:
    assert problems(workers={"a": worker(queues=["churn"]), "b": worker(queues=["churn.batch"])}) == []


@pytest.mark.parametrize(("model", "is_ready"), [("loaded", True), ("not loaded yet", True), ("failed", False)])
def test_a_worker_of_version_0_1_0_consumes_all_queues_and_loads_its_model_late(model: Model, is_ready: bool) -> None:
    assert (problems(workers={"a": worker(model, queues=None)}) == []) is is_ready


@pytest.mark.parametrize("parts", [{"workers": {}, "consumers": {"churn": 0}}, {"workers": {"a": worker("failed")}}])
def test_predictions_are_accepted_without_a_worker(parts: dict[str, Any]) -> None:
    assert problems(**parts) != []
    assert Readiness(**parts).acceptance_problems == []
    (problem,) = Readiness(**parts, broker="the reason").acceptance_problems
    assert problem == "The broker failed: the reason."


def test_predictions_that_do_not_end_make_the_service_unready_but_are_accepted() -> None:
    stalled: dict[str, Any] = {"completions": "none has ended since one was published 11 s ago"}
    assert problems(**stalled) == ["Predictions are not computed: none has ended since one was published 11 s ago."]
    assert len(problems(**stalled, consumers={"churn": 0, "churn.batch": 1})) == 1  # the cause, and not its effect
    assert Readiness(**stalled).acceptance_problems == []


def test_a_queue_without_a_consumer_at_the_broker_is_named() -> None:
    (problem,) = problems(consumers={"churn": 0, "churn.batch": 1})
    assert "`churn`" in problem
    assert "leader" in problem
