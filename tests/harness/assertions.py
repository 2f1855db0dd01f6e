"""Assertions about responses and predictions."""

from collections.abc import Mapping
from typing import Any

import requests

from api.http.problems import ProblemType
from tests.harness.service import Service


def assert_problem(response: requests.Response, problem_type: ProblemType) -> dict[str, Any]:
    """Require a problem of this type (RFC 9457); return its body."""
    body: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, body["status"]) == (problem_type.status, problem_type.status), body
    assert (body["type"], body["title"]) == (f"/problems/{problem_type.slug}", problem_type.title)
    return body


def assert_predicted(service: Service, customers: Mapping[str, Mapping[str, Any]]) -> None:
    """Require that each task id ends with the probability of the marked model."""
    for task_id, customer in customers.items():
        response = service.ended(task_id)
        assert response.status_code == 200, response.text
        assert response.json()["probability"] == customer["Total_Trans_Ct"] / 1000


def assert_failed(service: Service, task_id: str, error: str) -> None:
    """Require that a task id ends with a failure that names the error."""
    response = service.ended(task_id, within_s=60)
    assert error in assert_problem(response, ProblemType.PREDICTION_FAILED)["detail"]
