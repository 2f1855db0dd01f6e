"""HTTP around the predictions: the access log and the model's manifest. tests/unit/test_app.py has the other routes."""

from collections.abc import Iterator
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
    folder = tmp_path_factory.mktemp("http")
    with running_api(servers, folder, MODEL_PATH=str(folder / "mine.joblib")) as api:
        yield api


def test_a_damaged_manifest_is_500_and_named_in_the_log(service: Service) -> None:
    (service.folder / "mine.json").write_text('{"name": "mine"')
    assert_problem(service.get("/churn/model"), ProblemType.INTERNAL_ERROR)
    until(lambda: "ArtifactCorrupt: Manifest" in service.api.text())


def test_probes_are_not_in_the_access_log(service: Service, customer: dict[str, Any]) -> None:
    assert service.answers("/livez")
    service.get("/readyz")
    service.predict(customer)
    until(lambda: "POST /churn/predict" in service.api.text())
    assert "GET /livez" not in service.api.text()
    assert "GET /readyz" not in service.api.text()
