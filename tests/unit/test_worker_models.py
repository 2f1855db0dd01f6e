"""The models in use: counted by the statuses of workers."""

from typing import Literal

from api.worker_models import ModelInUse, find_differences, models_in_use
from celery_task_app.ml.schema import CustomerSchema, Feature
from celery_task_app.store.worker_status import WorkerStatus


def status(version: str, model: Literal["loaded", "failed", "stuck"] = "loaded") -> WorkerStatus:
    return WorkerStatus(model=model, detail=version, queues=["churn"], sha256=version * 8)


def test_the_model_of_most_workers_is_the_first() -> None:
    workers = [status("1"), status("2"), status("2"), status("3", "failed"), status("3", "stuck")]
    assert models_in_use(workers) == [ModelInUse("2", "22222222", 2), ModelInUse("1", "11111111", 1)]


def test_of_models_with_as_many_workers_the_last_version_is_the_first() -> None:
    assert [model.version for model in models_in_use([status("1"), status("2")])] == ["2", "1"]


def test_a_worker_that_does_not_report_its_digest_is_counted() -> None:
    assert models_in_use([WorkerStatus(model="loaded", detail="1")]) == [ModelInUse("1", None, 1)]


def test_a_model_that_needs_another_feature_differs() -> None:
    schema = CustomerSchema({"age": Feature("integer")}, None)
    assert find_differences({"features": [{"name": "age", "type": "integer"}]}, schema) == []
    (difference,) = find_differences({"features": [{"name": "shoe_size", "type": "number"}]}, schema)
    assert "shoe_size" in difference
