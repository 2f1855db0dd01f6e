"""The HTTP contract, end to end: each row on both back-ends, through the real API, queue, worker and result store."""

import json
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
import requests

from app import PROBLEMS, app
from tests.conftest import MANIFEST
from tests.processes import ROOT, Service, until


def problem(response: requests.Response, kind: str) -> dict[str, Any]:
    """Check that an answer is a problem of a kind; return its body."""
    status, title = PROBLEMS[kind]
    body: dict[str, Any] = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert (body["type"], body["title"], body["status"]) == (f"/problems/{kind}", title, status)
    return body


def post(service: Service, body: bytes | str) -> requests.Response:
    headers = {"content-type": "application/json"}
    return requests.post(f"{service.url}/churn/predict", data=body, headers=headers, timeout=5)


def test_a_customer_is_accepted_with_an_id_and_told_where_to_ask(service: Service, customer: dict[str, Any]) -> None:
    response = requests.post(f"{service.url}/churn/predict", json=customer, timeout=5)
    task_id = response.json()["task_id"]
    assert response.status_code == 202
    assert response.json() == {"task_id": str(UUID(task_id)), "status": "Processing"}
    assert response.headers["location"] == f"/churn/result/{task_id}"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["retry-after"]) >= 1


def test_the_probability_can_be_fetched(service: Service, customer: dict[str, Any]) -> None:
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


def test_an_id_in_capitals_is_the_same_id(service: Service, customer: dict[str, Any]) -> None:
    task_id = service.predict(customer)
    assert service.ended(task_id.upper()).json()["task_id"] == task_id


def test_the_test_client_prints_the_same_number_and_nothing_else(service: Service, customer: dict[str, Any]) -> None:
    probability = service.ended(service.predict(customer)).json()["probability"]
    command = [sys.executable, "test_client.py", "--url", service.url, "--interval", "0.1", "--attempts", "100"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.stderr, run.returncode) == (f"{probability}\n", "", 0)


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


@pytest.mark.parametrize("task_id", ["00000000-0000-4000-8000-000000000000", "1", "x" * 10_000, "%00", "00000000-0000"])
def test_an_unknown_task_id_is_404(service: Service, task_id: str) -> None:
    problem(service.result(task_id), "unknown-task")


def test_what_waits_is_processing(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = service.predict(customer)
        response = service.result(task_id)
    assert response.status_code == 202
    assert response.json() == {"task_id": task_id, "status": "Processing"}
    assert int(response.headers["retry-after"]) >= 1
    assert service.ended(task_id).status_code == 200


INVALID = {
    "missing": ("{}", 19),
    "nan": ('{"Credit_Limit": NaN}', 19),
    "infinity": ('{"Credit_Limit": -Infinity}', 19),
    "too large a float": ('{"Credit_Limit": 1e999}', 19),
    "a large integer": ('{"Credit_Limit": ' + "9" * 400 + "}", 19),
    "true": ('{"Customer_Age": true}', 19),
    "text for a number": ('{"Customer_Age": "45"}', 19),
    "null": ('{"Gender": null}', 19),
    "a lone surrogate": ('{"Gender": "\\ud800"}', 19),
    "an array": ("[]", 1),
    "a string": ('"Gender"', 1),
    "nothing": ("", 1),
}


@pytest.mark.parametrize(("body", "faults"), INVALID.values(), ids=INVALID.keys())
def test_invalid_features_are_all_named_and_none_is_repeated(service: Service, body: str, faults: int) -> None:
    errors = problem(post(service, body), "invalid-features")["errors"]
    assert len(errors) == faults
    assert all(set(error) == {"pointer", "code", "message"} for error in errors)


def test_a_fault_says_where_and_what(service: Service, customer: dict[str, Any]) -> None:
    body = {**customer, "Gender": "somebody's secret", "Customer_Age": 7}
    response = post(service, json.dumps(body))
    pointers = [error["pointer"] for error in problem(response, "invalid-features")["errors"]]
    assert pointers == ["#/Customer_Age", "#/Gender"]
    assert "secret" not in response.text


@pytest.mark.parametrize("body", [b"{", b"{'Gender': 1}", b'{"Gender": "M",}', b"\x00"])
def test_what_is_not_json_is_400(service: Service, body: bytes) -> None:
    problem(post(service, body), "not-json")


@pytest.mark.parametrize(
    "body", [b"\xff\xfe\xfd", b'{"Customer_Age": ' + b"9" * 5000 + b"}", b"[" * 100_000], ids=["UTF-8", "5000", "deep"]
)
def test_what_can_not_be_parsed_is_400(service: Service, body: bytes) -> None:
    response = post(service, body)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("PUT", "/churn/predict", 405)])
def test_what_the_framework_refuses_is_a_problem_too(service: Service, method: str, path: str, status: int) -> None:
    response = requests.request(method, service.url + path, timeout=5)
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"


def test_the_process_says_that_it_lives(service: Service) -> None:
    response = requests.get(f"{service.url}/livez", timeout=5)
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


def test_readiness_names_each_part(service: Service) -> None:
    def loaded() -> dict[str, Any] | None:
        body = requests.get(f"{service.url}/readyz", timeout=5).json()
        return body if [sign["model"] for sign in body["workers"].values()] == ["loaded"] else None

    body = until(loaded)  # type: ignore[arg-type]
    ((name, sign),) = body.pop("workers").items()
    assert body == {"status": "ready", "broker": "up", "result_store": "up"}
    assert name.startswith("celery@")
    assert sign == {"model": "loaded", "detail": MANIFEST["version"]}


def test_a_frozen_worker_is_missed_within_20_s(service: Service) -> None:
    with service.worker.paused():
        until(lambda: not service.answers("/readyz"), within_s=20)
        body = problem(requests.get(f"{service.url}/readyz", timeout=5), "not-ready")
        assert (body["broker"], body["result_store"], body["workers"]) == ("up", "up", {})
    until(service.answers)


def test_probes_are_not_in_the_access_log(service: Service, customer: dict[str, Any]) -> None:
    service.predict(customer)
    service.answers("/livez")
    assert "POST /churn/predict" in until(service.api.text)
    assert "/livez" not in service.api.text()
    assert "/readyz" not in service.api.text()


def test_a_customers_values_are_in_no_log(service: Service, customer: dict[str, Any]) -> None:
    service.ended(service.predict({**customer, "Credit_Limit": 31415.9265}))
    assert "31415" not in service.api.text() + service.worker.text()


def test_openapi_documents_each_answer_of_the_contract() -> None:
    paths = app.openapi()["paths"]
    assert {"202", "400", "422", "429", "503"} <= set(paths["/churn/predict"]["post"]["responses"])
    assert {"200", "202", "404", "500", "503"} <= set(paths["/churn/result/{task_id}"]["get"]["responses"])
    assert {"200", "503"} <= set(paths["/readyz"]["get"]["responses"])
