"""A real Prometheus scrapes the API, the worker and RabbitMQ: every alert and every panel finds its metrics."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import need, skip
from tests.harness import marked_model
from tests.harness.customers import Row
from tests.harness.monitoring import Prometheus, alerts, metric_names, monitored_servers, panels, running_prometheus
from tests.harness.processes import free_port, until
from tests.harness.service import Service, running_service

OF_PROMETHEUS = {"up", "ALERTS"}
MAY_BE_EMPTY = {'sum by (alertname) (ALERTS{alertstate="firing"})'}


@dataclass
class Monitored:
    """A service and a Prometheus that scrapes it."""

    service: Service
    prometheus: Prometheus


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """A service on RabbitMQ that has had one event of each kind which a panel shows only after its first event."""
    need("rabbitmq")
    if not shutil.which("prometheus"):
        skip("not installed: prometheus (Debian package of this name)")
    folder, port = tmp_path_factory.mktemp("monitored"), free_port()
    settings = {"METRICS_PORT": str(port), "MODEL_PATH": str(marked_model.save(folder))}
    with (
        monitored_servers(folder) as (servers, plugin_port),
        running_service(servers, folder, **settings) as service,
        running_prometheus(folder, {"api": [port], "worker": [port + 1], "rabbitmq": [plugin_port]}) as prometheus,
    ):
        yield Monitored(service, prometheus)


def test_the_api_the_worker_and_rabbitmq_are_scraped(monitored: Monitored) -> None:
    until(lambda: monitored.prometheus.health() == {"api": "up", "worker": "up", "rabbitmq": "up"})


def test_no_alert_is_raised_until_the_worker_ends(monitored: Monitored) -> None:
    calm = dict.fromkeys([alert["alert"] for alert in alerts()], "inactive")
    until(lambda: monitored.prometheus.alert_states() == calm)
    monitored.service.worker.stop()
    try:
        until(lambda: monitored.prometheus.alert_states()["ChurnNoWorker"] == "pending")
    finally:
        monitored.service.worker.start()
        monitored.service.await_answer("/readyz", monitored.service.worker)
    until(lambda: monitored.prometheus.alert_states() == calm)


def test_every_panel_shows_something(monitored: Monitored, customer: dict[str, Any], rows: list[Row]) -> None:
    def send() -> None:
        for refused in ({**customer, "Gender": "X"}, {}):
            monitored.service.post(refused)
        for age in (45, marked_model.RAISES):
            monitored.service.ended(monitored.service.predict({**customer, "Customer_Age": age}))
        monitored.service.post_batch("no rows", "application/json")
        monitored.service.batch_ended(monitored.service.batch_accepted(rows))

    queries = {query for panel in panels() for query in panel.queries} - MAY_BE_EMPTY

    def empty() -> set[str]:
        return {query for query in queries if not monitored.prometheus.query(query)}

    def all_have_values() -> bool:
        send()  # a rate needs two scrapes, and a change between them
        return not empty()

    with contextlib.suppress(AssertionError):
        until(all_have_values, at_most_s=1)
    assert empty() == set()


def test_every_metric_of_an_alert_or_a_panel_exists(monitored: Monitored, customer: dict[str, Any]) -> None:
    assert monitored.service.post({**customer, "Gender": "X"}).status_code == 422
    queries = [alert["expr"] for alert in alerts()] + [query for panel in panels() for query in panel.queries]
    named = set().union(*map(metric_names, queries))
    assert len(named) > 20

    def missing() -> set[str]:
        return named - set(monitored.prometheus.get("label/__name__/values")) - OF_PROMETHEUS

    with contextlib.suppress(AssertionError):
        until(lambda: not missing())
    assert missing() == set()
