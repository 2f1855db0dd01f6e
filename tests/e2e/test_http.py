"""HTTP around the predictions: the access log and the model's manifest. tests/unit/test_app.py has the other routes."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("http")
    with running_api(servers, folder, MODEL_PATH=str(folder / "mine.joblib")) as api:
        yield api


def test_probes_are_not_in_the_access_log(service: Service, customer: dict[str, Any]) -> None:
    assert service.answers("/livez")
    service.get("/readyz")
    service.predict(customer)
    until(lambda: "POST /churn/predict" in service.api.text())
    assert "GET /livez" not in service.api.text()
    assert "GET /readyz" not in service.api.text()
