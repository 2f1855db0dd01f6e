"""No path is compared with its prefix in it: behind `--root-path` everything works as without, with keys too."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

KEY = {"Authorization": "Bearer a-key"}
OPEN = ("/", "/static/main.js", "/livez", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css")


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"API_KEYS": hashlib.sha256(b"a-key").hexdigest(), "UVICORN_ROOT_PATH": "/ml"}
    with running_api(servers, tmp_path_factory.mktemp("prefix"), **settings) as api:
        yield api


@pytest.mark.parametrize("path", OPEN)
def test_open_paths_need_no_key(service: Service, path: str) -> None:
    assert service.get(path).status_code == 200


def test_readiness_needs_no_key_and_other_paths_do(service: Service) -> None:
    assert service.get("/readyz").status_code == 503  # no worker
    assert service.get("/churn/model").status_code == 401


def test_locations_have_the_prefix(service: Service, customer: dict[str, Any]) -> None:
    prediction = service.post(customer, **KEY)
    assert prediction.headers["location"] == f"/ml/churn/result/{prediction.json()['task_id']}"
    options: dict[str, Any] = {"json": [customer], "headers": KEY}
    batch = service.request("POST", "/churn/batches", **options)
    assert batch.headers["location"] == f"/ml/churn/batches/{batch.json()['batch_id']}"
    progress = service.get(batch.headers["location"].removeprefix("/ml"), **KEY)
    assert progress.headers["location"] == batch.headers["location"]


def test_a_405_names_the_methods_of_the_path(service: Service) -> None:
    assert service.request("POST", "/churn/model", headers=KEY).headers["allow"] == "GET, HEAD"


def test_probes_are_not_in_the_access_log(service: Service) -> None:
    assert service.answers("/livez")
    service.get("/churn/nothing", **KEY)
    until(lambda: "path=/ml/churn/REDACTED" in service.api.text())  # a request is logged when its response is sent
    assert "/ml/livez" not in service.api.text()
