"""API keys: a client sees nothing of another client. tests/unit/test_auth.py has all cases of a missing key."""

import contextlib
import hashlib
import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests

from api.http.problems import ProblemType
from tests.harness.assertions import assert_problem
from tests.harness.customers import as_csv
from tests.harness.processes import ROOT, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

OURS, THEIRS = "one-of-two-keys", "the-other-key"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = f"{digest(OURS)}, {digest(THEIRS).upper()}"
    with running_service(servers, tmp_path_factory.mktemp("access"), API_KEYS=keys) as running:
        yield running


def request(service: Service, method: str, path: str, key: str, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
    return service.request(method, path, headers=headers, **options)


@pytest.mark.parametrize("key", [None, f"{OURS}x"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/churn/predict"), ("DELETE", "/churn/result/1")])
def test_a_request_without_a_valid_key_is_401(service: Service, method: str, path: str, key: str | None) -> None:
    response = service.request(method, path) if key is None else request(service, method, path, key)
    assert_problem(response, ProblemType.UNAUTHORIZED)
    assert response.headers["www-authenticate"] == "Bearer"


def test_health_and_docs_need_no_key(service: Service) -> None:
    for path in ("/livez", "/readyz", "/", "/static/main.js", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"):
        assert service.get(path).ok


def test_no_path_avoids_the_key(service: Service) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        connection.request("GET", "/docs/assets/%2e%2e/%2e%2e/churn/model")  # `requests` would normalise the path
        assert connection.getresponse().status in (401, 404)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_prediction_belongs_to_its_key(service: Service, customer: dict[str, Any], scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {OURS}", "Prefer": "wait=20"}
    accepted = request(service, "POST", "/churn/predict", OURS, json=customer, headers=headers)
    task_id = accepted.json()["task_id"]
    assert accepted.status_code == 200
    assert (UUID(task_id).version, UUID(task_id).variant) == (4, "specified in RFC 4122")
    path = f"/churn/result/{task_id}"
    assert request(service, "GET", path, OURS).json() == accepted.json()
    assert request(service, "GET", path.upper().replace("/CHURN/RESULT", "/churn/result"), OURS).ok
    unknown = request(service, "GET", "/churn/result/00000000-0000-4000-8000-000000000000", OURS)
    for method in ("GET", "DELETE"):
        assert_problem(request(service, method, path, THEIRS), ProblemType.UNKNOWN_TASK)
    assert request(service, "GET", path, THEIRS).json() == unknown.json()
    assert request(service, "DELETE", path, OURS).status_code == 204


def test_a_batch_belongs_to_its_key(service: Service, customer: dict[str, Any]) -> None:
    accepted = request(service, "POST", "/churn/batches", OURS, json=[customer])
    assert accepted.status_code == 202
    path = accepted.headers["location"]
    until(lambda: request(service, "GET", path, OURS).status_code == 200)
    for method, place in (("GET", path), ("GET", f"{path}/results"), ("DELETE", path)):
        assert_problem(request(service, method, place, THEIRS), ProblemType.UNKNOWN_BATCH)
    assert "probability" in request(service, "GET", f"{path}/results", OURS).text


def test_two_clients_can_use_the_same_idempotency_key(service: Service, customer: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "4711"}
    ids = [
        request(service, "POST", "/churn/predict", key, json={**customer, "Customer_Age": age}, headers=headers).json()
        for key, age in ((OURS, 45), (OURS, 45), (THEIRS, 46))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_no_key_is_in_a_log(service: Service) -> None:
    request(service, "GET", "/churn/model", OURS)
    request(service, "GET", "/churn/model", "a-wrong-one")
    log = until(service.api.text)
    assert OURS not in log
    assert "a-wrong-one" not in log


def test_openapi_requires_the_key(service: Service) -> None:
    document = service.get("/openapi.json").json()
    assert document["paths"]["/churn/predict"]["post"]["security"] == [{"key": []}]


@pytest.mark.parametrize(
    "command",
    [["test_client.py", "--interval", "0.1", "--attempts", "100"], ["-m", "celery_task_app.cli.score", "c.csv"]],
    ids=["test_client", "score"],
)
def test_a_client_reads_its_key_from_a_file(
    service: Service, customer: dict[str, Any], tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "c.csv").write_text(as_csv([customer]))
    (tmp_path / "key").write_text(f"{OURS}\n")
    words = [sys.executable, *(str(tmp_path / word) if word == "c.csv" else word for word in command)]
    words += ["--url", service.url]
    refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "API key" in refused.stderr
    words += ["--key-file", str(tmp_path / "key")]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search(r"\b0\.\d{8,}", run.stdout)  # the probability: no feature has so many digits
