"""HTTP around the predictions: framework errors, documentation, liveness, the access log and the model's manifest."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.http.problems import ProblemType
from tests.harness.assertions import assert_problem
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_api(servers, tmp_path_factory.mktemp("http")) as api:
        yield api


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nope", 404, None),
        ("GET", "/churn/predict/", 404, None),
        ("GET", "/docs/assets/nope.js", 404, None),
        ("PUT", "/churn/predict", 405, "POST"),
        ("PATCH", "/churn/result/1", 405, "DELETE, GET, HEAD"),
        ("POST", "/livez", 405, "GET, HEAD"),
        ("DELETE", "/docs/assets/swagger-ui.css", 405, "GET, HEAD"),
    ],
)
def test_an_error_of_the_framework_is_a_problem(
    service: Service, method: str, path: str, status: int, allow: str | None
) -> None:
    response = service.request(method, path)
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "about:blank"
    assert response.headers.get("allow") == allow


def test_a_model_without_a_manifest_is_404_and_a_damaged_manifest_is_500(servers: Servers, tmp_path: Path) -> None:
    with running_api(servers, tmp_path, MODEL_PATH=str(tmp_path / "mine.joblib")) as api:
        assert_problem(api.get("/churn/model"), ProblemType.NO_MANIFEST)
        (tmp_path / "mine.json").write_text('{"name": "mine", "version": "1", "sha256": "0", "features": []}')
        assert api.get("/churn/model").json() == {"name": "mine", "version": "1", "sha256": "0", "features": []}
        (tmp_path / "mine.json").write_text('{"name": "mine"')
        assert_problem(api.get("/churn/model"), ProblemType.INTERNAL_ERROR)
        until(lambda: "ArtifactCorrupt: Manifest" in api.api.text())


def test_the_docs_load_nothing_from_another_host(service: Service) -> None:
    response = service.get("/docs")
    assert response.status_code == 200
    assert "http" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    addresses = re.findall(r"(?:src|href)=\"(.*?)\"", response.text) + re.findall(r"url: '(.*?)'", response.text)
    assert len(addresses) == 4
    for address in addresses:
        assert service.get(f"/{address}").ok


def test_a_running_process_is_alive(service: Service) -> None:
    response = service.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


def test_probes_are_not_in_the_access_log(service: Service, customer: dict[str, Any]) -> None:
    assert service.answers("/livez")
    service.get("/readyz")
    service.predict(customer)
    until(lambda: "POST /churn/predict" in service.api.text())
    assert "GET /livez" not in service.api.text()
    assert "GET /readyz" not in service.api.text()
