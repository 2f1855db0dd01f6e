"""The HTTP contract, end to end: each row on both back-ends, through the real API, queue, worker and result store."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests

from app import app
from celery_task_app.problems import PROBLEMS, Problem
from celery_task_app.settings import Settings
from test_client import CUSTOMER
from tests.conftest import MANIFEST
from tests.processes import ROOT, Servers, Service, until


def problem(response: requests.Response, kind: str) -> dict[str, Any]:
    """Check that an answer is a problem of a kind; return its body."""
    status, title = PROBLEMS[kind]
    body: dict[str, Any] = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert (body["type"], body["title"], body["status"]) == (f"/problems/{kind}", title, status)
    return body


def post(service: Service, body: bytes | str | Iterator[bytes]) -> requests.Response:
    headers = {"content-type": "application/json"}
    return requests.post(f"{service.url}/churn/predict", data=body, headers=headers, timeout=30)


def test_a_customer_is_accepted_with_an_id_and_told_where_to_ask(service: Service, customer: dict[str, Any]) -> None:
    response = requests.post(f"{service.url}/churn/predict", json=customer, timeout=30)
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


NOT_JSON = {
    "cut short": b"{",
    "other quotes": b"{'Gender': 1}",
    "a comma too many": b'{"Gender": "M",}',
    "a control character": b"\x00",
    "two values": b"{}{}",
    "not UTF-8": b"\xff\xfe\xfd",
    "UTF-16": '{"Gender": "M"}'.encode("utf-16"),
    "half a character": b'{"Gender": "\xc3"}',
    "5,000 digits": b'{"Customer_Age": ' + b"9" * 5000 + b"}",
    "10,000 deep": b"[" * 10_000,
    "2,000 objects deep": b'{"a":' * 2_000,
    "a name twice": b'{"Customer_Age": 20, "Customer_Age": 45}',
    "a name twice, inside": b'{"a": [{"b": 1, "\\u0062": 2}]}',
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_strictly_json_is_400(service: Service, body: bytes) -> None:
    problem(post(service, body), "not-json")


def test_what_is_wrong_with_the_json_is_said_without_repeating_it(service: Service) -> None:
    response = post(service, b'{"secret": 1, "secret": 2}')
    assert problem(response, "not-json")["detail"] == "An object has two members of one name."
    assert problem(post(service, b'{"secret": secret}'), "not-json")["detail"] == "Expecting value at character 11."
    assert "secret" not in response.text


@pytest.mark.parametrize("more", ['"\\ud800": 1', '"x": "\\ud800"', '"CLIENTNUM": 768805383', '"x": NaN', '"x": [{}]'])
def test_whatever_other_fields_hold_is_ignored(service: Service, customer: dict[str, Any], more: str) -> None:
    assert post(service, json.dumps(customer)[:-1] + f", {more}}}").status_code == 202


@pytest.mark.parametrize("content_type", ["text/csv", "application/x-www-form-urlencoded", "json", "", None])
def test_another_content_type_is_415(service: Service, customer: dict[str, Any], content_type: str | None) -> None:
    headers = {"content-type": content_type}
    response = requests.post(f"{service.url}/churn/predict", json.dumps(customer), headers=headers, timeout=30)  # type: ignore[arg-type]
    problem(response, "not-json-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
def test_every_name_of_json_is_taken(service: Service, customer: dict[str, Any], content_type: str) -> None:
    headers = {"content-type": content_type}
    response = requests.post(f"{service.url}/churn/predict", json.dumps(customer), headers=headers, timeout=30)
    assert response.status_code == 202


LIMIT = Settings().body_max_bytes


def in_pieces(body: bytes) -> Iterator[bytes]:
    """As a body of unknown length is sent: in chunks, without Content-Length."""
    yield from (body[start : start + 1_000] for start in range(0, len(body), 1_000))


@pytest.mark.parametrize("send", [bytes, in_pieces], ids=["Content-Length", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, 10_000_000])
def test_a_body_over_the_limit_is_413(service: Service, size: int, send: Callable[[bytes], Any]) -> None:
    problem(post(service, send(b" " * size)), "too-large")


@pytest.mark.parametrize("send", [bytes, in_pieces], ids=["Content-Length", "chunked"])
def test_a_body_of_just_the_limit_is_taken(
    service: Service, customer: dict[str, Any], send: Callable[[bytes], Any]
) -> None:
    assert post(service, send(json.dumps(customer).encode().ljust(LIMIT))).status_code == 202


def test_a_client_that_goes_away_before_its_body_is_whole_is_no_defect(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(b"POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: 100\r\n\r\n{")
    until(lambda: '"POST /churn/predict HTTP/1.1" 400' in service.api.text())
    assert "Traceback" not in service.api.text()


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nope", 404, None),
        ("GET", "/churn/predict/", 404, None),
        ("GET", "/docs/assets/nope.js", 404, None),
        ("PUT", "/churn/predict", 405, "POST"),
        ("PATCH", "/churn/result/1", 405, "DELETE, GET"),
        ("POST", "/livez", 405, "GET"),
        ("DELETE", "/docs/assets/swagger-ui.css", 405, "GET, HEAD"),
    ],
)
def test_what_the_framework_refuses_is_a_problem_too(
    service: Service, method: str, path: str, status: int, allow: str | None
) -> None:
    response = requests.request(method, service.url + path, timeout=30)
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "about:blank"
    assert response.headers.get("allow") == allow


def test_the_model_is_described(service: Service, customer: dict[str, Any]) -> None:
    body = requests.get(f"{service.url}/churn/model", timeout=30).json()
    shown = set(body) - {"training"}
    assert {name: body[name] for name in shown} == {name: MANIFEST[name] for name in shown}
    assert {"description", "intended_use", "limits", "features", "scores", "spread", "calibration"} <= shown
    assert body["training"]["data_sha256"] == MANIFEST["training"]["data_sha256"]
    assert service.ended(service.predict(customer)).json()["model_version"] == body["version"]


def test_what_is_not_known_of_a_model_is_said_and_what_is_damaged_is_a_defect(servers: Servers, tmp_path: Path) -> None:
    alone = Service(servers, tmp_path, {"MODEL_PATH": str(tmp_path / "mine.joblib")})
    alone.api.start()
    try:
        until(lambda: alone.answers("/livez"))
        problem(requests.get(f"{alone.url}/churn/model", timeout=30), "no-manifest")
        (tmp_path / "mine.json").write_text('{"name": "mine", "version": "1", "sha256": "0", "features": []}')
        body = requests.get(f"{alone.url}/churn/model", timeout=30).json()
        assert body == {"name": "mine", "version": "1", "sha256": "0", "features": []}
        (tmp_path / "mine.json").write_text('{"name": "mine"')
        problem(requests.get(f"{alone.url}/churn/model", timeout=30), "internal-error")
        until(lambda: "ArtifactCorrupt: Manifest" in alone.api.text())
    finally:
        alone.stop()


def test_the_docs_need_no_other_host(service: Service) -> None:
    response = requests.get(f"{service.url}/docs", timeout=30)
    assert response.status_code == 200
    assert "http" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    addresses = re.findall(r"(?:src|href)=\"(.*?)\"", response.text) + re.findall(r"url: '(.*?)'", response.text)
    assert len(addresses) == 4
    for address in addresses:
        assert requests.get(f"{service.url}/{address}", timeout=30).ok


def test_the_process_says_that_it_lives(service: Service) -> None:
    response = requests.get(f"{service.url}/livez", timeout=30)
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


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


def operations() -> list[dict[str, Any]]:
    return [operation for path in app.openapi()["paths"].values() for operation in path.values()]


def test_openapi_has_an_operation_id_and_a_tag_for_each_operation() -> None:
    ids = [operation["operationId"] for operation in operations()]
    assert {"predict_churn", "get_churn_result", "get_churn_model", "get_liveness", "get_readiness"} <= set(ids)
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)+", name) for name in ids)
    assert all(operation["tags"] for operation in operations())


def test_openapi_has_an_example_of_each_answer_and_each_problem() -> None:
    schemas = app.openapi()["components"]["schemas"]
    shown = set()
    for operation in operations():
        for status, answer in operation["responses"].items():
            for content_type, content in answer.get("content", {}).items():
                if content_type == "application/problem+json":
                    examples = [Problem.model_validate(example["value"]) for example in content["examples"].values()]
                    assert {str(example.status) for example in examples} == {status}
                    shown |= {example.type.removeprefix("/problems/") for example in examples}
                elif content_type == "application/json":
                    schema = content["schema"]
                    assert schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)["examples"]
    assert shown == set(PROBLEMS)
    assert schemas["Customer"]["examples"] == [CUSTOMER]


def test_openapi_names_the_limits_of_each_feature() -> None:
    for feature in app.openapi()["components"]["schemas"]["Customer"]["properties"].values():
        assert "enum" in feature or {"minimum", "maximum"} <= set(feature)


def test_openapi_knows_nothing_that_no_route_answers() -> None:
    assert "HTTPValidationError" not in json.dumps(app.openapi())
