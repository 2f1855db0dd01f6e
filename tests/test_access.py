"""API keys: without one nothing is answered, and what one client has sent no other can see."""

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
from pydantic import ValidationError

from celery_task_app.settings import Settings
from tests.processes import ROOT, Servers, Service, running_service, until
from tests.test_app import problem

OURS, THEIRS = "one-of-two-keys", "the-other-key"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = f"{digest(OURS)}, {digest(THEIRS).upper()}"
    with running_service(servers, tmp_path_factory.mktemp("access"), API_KEYS=keys) as running:
        yield running


def ask(service: Service, method: str, path: str, key: str, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
    return requests.request(method, service.url + path, headers=headers, timeout=5, **options)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", OURS, f"Basic {OURS}", f"Bearer {OURS}x", f"Bearer {digest(OURS)}"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/churn/predict"),
        ("GET", "/churn/result/00000000-0000-4000-8000-000000000000"),
        ("DELETE", "/churn/result/1"),
        ("GET", "/churn/model"),
        ("POST", "/churn/batches"),
        ("GET", "/nowhere"),
    ],
)
def test_without_a_key_it_is_401_whatever_is_asked(
    service: Service, method: str, path: str, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization is not None else {}
    response = requests.request(method, service.url + path, headers=headers, timeout=30)
    problem(response, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"])
def test_health_and_docs_are_open(service: Service, path: str) -> None:
    assert requests.get(service.url + path, timeout=30).ok


@pytest.mark.parametrize("path", ["/docs/assets/../../churn/model", "/docs/assets/%2e%2e/%2e%2e/churn/model", "//docs"])
def test_no_path_leads_around_the_key(service: Service, path: str) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        connection.request("GET", path)  # as it is: requests would tidy it
        assert connection.getresponse().status in (401, 404)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_prediction_belongs_to_the_key_that_asked_for_it(
    service: Service, customer: dict[str, Any], scheme: str
) -> None:
    headers = {"Authorization": f"{scheme} {OURS}", "Prefer": "wait=20"}
    accepted = ask(service, "POST", "/churn/predict", OURS, json=customer, headers=headers)
    task_id = accepted.json()["task_id"]
    assert accepted.status_code == 200
    assert (UUID(task_id).version, UUID(task_id).variant) == (4, "specified in RFC 4122")
    path = f"/churn/result/{task_id}"
    assert ask(service, "GET", path, OURS).json() == accepted.json()
    assert ask(service, "GET", path.upper().replace("/CHURN/RESULT", "/churn/result"), OURS).ok
    unknown = ask(service, "GET", "/churn/result/00000000-0000-4000-8000-000000000000", OURS)
    for method in ("GET", "DELETE"):
        problem(ask(service, method, path, THEIRS), "unknown-task")
    assert ask(service, "GET", path, THEIRS).json() == unknown.json()
    assert ask(service, "DELETE", path, OURS).status_code == 204


def test_a_batch_belongs_to_the_key_that_sent_it(service: Service, customer: dict[str, Any]) -> None:
    accepted = ask(service, "POST", "/churn/batches", OURS, json=[customer])
    assert accepted.status_code == 202
    path = accepted.headers["location"]
    until(lambda: ask(service, "GET", path, OURS).status_code == 200)
    for method, place in (("GET", path), ("GET", f"{path}/results"), ("DELETE", path)):
        problem(ask(service, method, place, THEIRS), "unknown-batch")
    assert "probability" in ask(service, "GET", f"{path}/results", OURS).text


def test_an_idempotency_key_is_the_clients_own(service: Service, customer: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "4711"}
    ids = [
        ask(service, "POST", "/churn/predict", key, json={**customer, "Customer_Age": age}, headers=headers).json()
        for key, age in ((OURS, 45), (OURS, 45), (THEIRS, 46))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_no_key_is_in_a_log(service: Service) -> None:
    ask(service, "GET", "/churn/model", OURS)
    ask(service, "GET", "/churn/model", "a-wrong-one")
    log = until(service.api.text)
    assert OURS not in log
    assert "a-wrong-one" not in log


def test_openapi_says_where_a_key_is_needed(service: Service) -> None:
    document = requests.get(f"{service.url}/openapi.json", timeout=30).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/churn/predict"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/readyz"]["get"]


@pytest.mark.parametrize(
    "command",
    [["test_client.py", "--interval", "0.1", "--attempts", "100"], ["-m", "celery_task_app.score", "c.csv"]],
    ids=["test_client.py", "score.py"],
)
def test_the_clients_take_a_key_from_a_file(
    service: Service, customer: dict[str, Any], tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "c.csv").write_text(f"{','.join(customer)}\n{','.join(map(str, customer.values()))}\n")
    (tmp_path / "key").write_text(f"{OURS}\n")
    words = [sys.executable, *(str(tmp_path / word) if word == "c.csv" else word for word in command)]
    words += ["--url", service.url]
    refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "This needs an API key" in refused.stderr
    words += ["--key-file", str(tmp_path / "key")]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search(r"\b0\.\d{8,}", run.stdout)  # the probability; no feature has so many digits


@pytest.mark.parametrize("keys", ["secret", "secret," + "0" * 64, "0" * 63])
def test_a_setting_that_is_no_digest_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("API_KEYS", keys)
    with pytest.raises(ValidationError, match="api_keys") as refused:
        Settings()
    assert keys not in str(refused.value)
