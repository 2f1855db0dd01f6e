"""Predictions: POST /churn/predict queues one, GET /churn/result/{task_id} fetches it."""

import json
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest

from api.http.problems import ProblemType
from tests.conftest import MANIFEST
from tests.harness.assertions import assert_problem
from tests.harness.processes import ROOT
from tests.harness.service import Service

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def test_a_customer_is_accepted_with_a_task_id_and_its_location(service: Service, customer: dict[str, Any]) -> None:
    response = service.post(customer)
    task_id = response.json()["task_id"]
    assert response.status_code == 202
    assert response.json() == {"task_id": str(UUID(task_id)), "status": "Processing"}
    assert response.headers["location"] == f"/churn/result/{task_id}"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["retry-after"]) >= 1


def test_a_computed_prediction_is_200_with_its_probability(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    response = service.ended(task_id)
    body = response.json()
    assert response.status_code == 200
    assert body == {
        "task_id": task_id,
        "status": "Success",
        "probability": body["probability"],
        "model_version": MANIFEST["version"],
    }
    assert isinstance(body["probability"], float)
    assert 0 < body["probability"] < 0.05


def test_a_queued_prediction_is_202(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        response = service.result(task_id)
    assert response.status_code == 202
    assert response.json() == {"task_id": task_id, "status": "Processing"}
    assert int(response.headers["retry-after"]) >= 1
    assert service.ended(task_id).status_code == 200


@pytest.mark.parametrize("task_id", [UNKNOWN, "%00"])
def test_an_unknown_task_id_is_404(service: Service, task_id: str) -> None:
    assert_problem(service.result(task_id), ProblemType.UNKNOWN_TASK)


def test_a_task_id_in_capitals_is_the_same_task_id(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    assert service.ended(task_id.upper()).json()["task_id"] == task_id


def test_celerys_own_client_gets_the_result(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    program = (
        "import sys; from celery.result import AsyncResult; from celery_task_app.worker import app\n"
        "print(AsyncResult(sys.argv[1], app=app).get(timeout=20))"
    )
    env = {**service.api.env, "PATH": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, task_id]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.returncode) == (f"{service.ended(task_id).json()['probability']}\n", 0), run.stderr


def test_the_test_client_prints_the_probability_and_nothing_else(service: Service, customer: dict[str, Any]) -> None:
    probability = service.ended(service.predict(customer)).json()["probability"]
    command = [sys.executable, "test_client.py", "--url", service.url, "--interval", "0.1", "--attempts", "100"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.stderr, run.returncode) == (f"{probability}\n", "", 0)


def test_other_fields_are_ignored(service: Service, customer: dict[str, Any]) -> None:
    response = service.post_body(json.dumps(customer)[:-1] + r', "\ud800": "\ud800", "x": [NaN]}')
    assert response.status_code == 202
    assert service.ended(response.json()["task_id"]).status_code == 200


def test_the_model_is_described_with_the_version_of_its_predictions(service: Service, customer: dict[str, Any]) -> None:
    body = service.get("/churn/model").json()
    (in_use,) = body.pop("in_use")
    assert in_use == {"version": MANIFEST["version"], "sha256": MANIFEST["sha256"], "workers": 1}
    shown = set(body) - {"training"}
    assert {name: body[name] for name in shown} == {name: MANIFEST[name] for name in shown}
    assert {"description", "intended_use", "limits", "features", "scores", "spread", "calibration"} <= shown
    assert body["training"]["data_sha256"] == MANIFEST["training"]["data_sha256"]
    assert service.ended(service.predict(customer)).json()["model_version"] == body["version"]


def test_a_customers_values_are_in_no_log(service: Service, customer: dict[str, Any]) -> None:
    service.ended(service.predict({**customer, "Credit_Limit": 31415.9265}))
    assert "31415.9" not in service.api.text() + service.worker.text()
