"""The clocks of hosts differ: the store's clock alone decides whether a prediction has expired."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.http.problems import ProblemType
from tests.conftest import need_libfaketime
from tests.harness.assertions import assert_problem
from tests.harness.clocks import clock_env
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

# kombu compares times on Valkey; on RabbitMQ no time but the store's counts.
pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API that is two hours behind, and a worker that is two hours ahead."""
    need_libfaketime()
    service = Service(servers, tmp_path_factory.mktemp("clocks"), {})
    service.api.env = {**service.api.env, **clock_env("-2h")}
    service.worker.env = {**service.worker.env, **clock_env("+2h")}
    try:
        service.start()
        yield service
    finally:
        service.stop()


def test_no_prediction_expires_early(service: Service, customer: dict[str, Any]) -> None:
    assert service.post(customer, Prefer="wait=20").status_code == 200
    assert service.post(customer, Prefer="wait=20", Cancel_After="20").status_code == 200


def test_an_api_that_is_ahead_expires_no_id_of_another(
    service: Service, customer: dict[str, Any], tmp_path: Path
) -> None:
    with service.worker.paused(), running_api(service.servers, tmp_path, **clock_env("+2h")) as ahead:
        task_id = service.predict(customer)
        assert ahead.result(task_id).status_code == 202
    assert service.ended(task_id).status_code == 200


def test_a_prediction_expires_by_the_stores_clock(service: Service, customer: dict[str, Any]) -> None:
    with service.worker.paused():
        task_id = service.predict(customer, Cancel_After="1")
        assert_problem(service.ended(task_id), ProblemType.EXPIRED)
