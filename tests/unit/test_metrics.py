"""Metrics without servers: closed sets of labels, a bounded number of series, and the port."""

import asyncio
import json
import random
import socket
import string
import timeit
import tomllib
from typing import Any

import pytest
import requests
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from api.http.problems import ProblemType
from api.http.request_metrics import create_api_metrics
from api.services import Services
from app import create_app
from celery_task_app.consumer.delivery import MessageSummary
from celery_task_app.errors import MetricsPortUnavailable
from celery_task_app.observability.exporter import MetricsServer
from celery_task_app.observability.metrics import (
    KINDS,
    MESSAGE_OUTCOMES,
    OTHER,
    VERSION,
    ApiMetrics,
    ServiceState,
    WorkerMetrics,
)
from celery_task_app.settings import Settings
from celery_task_app.store.counts import STATES, Counts, ServiceCounts, StoreMemory
from models import Customer
from tests.harness.customers import CUSTOMER
from tests.harness.metrics import Scrape, differences, documented
from tests.harness.processes import ROOT, free_port
from tests.unit.asgi import request

MOST_SERIES = 500
DIGEST = "0" * 64
METHODS = ("GET", "POST", "DELETE", OTHER)


def scraped(metrics: ApiMetrics | WorkerMetrics) -> Scrape:
    return Scrape(generate_latest(metrics.registry).decode())


def api_metrics() -> ApiMetrics:
    """Return the metrics of an API process, with the state of a service."""
    metrics = create_api_metrics()
    metrics.add_gauges(waiters=lambda: 3, unpublished=lambda: 4)
    counts = ServiceCounts(
        Counts(10, {"success": 5, "failure": 1, "expired": 1, "deleted": 1}, 2.5),
        Counts(0, dict.fromkeys(STATES, 0), 0),
        StoreMemory(2_000_000, 512_000_000),
    )
    state = ServiceState(counts, ["loaded", "loaded", "stuck"], {"churn": 2}, [("churn", "v1")])
    metrics.add_service_state(lambda: state)
    return metrics


def summary(**fields: Any) -> MessageSummary:
    numbers: dict[str, Any] = {"kind": "predictions", "customers": 2, "predict_s": 0.01, "store_s": 0.02}
    return MessageSummary(**numbers | fields)


# The service-wide metrics


def test_the_service_wide_metrics_are_those_of_the_result_store() -> None:
    found = scraped(api_metrics())
    assert found.value("churn_result_store_up") == 1
    assert found.value("churn_accepted_total") == 10
    assert found.value("churn_ended_total", state="success") == 5
    assert found.value("churn_waiting_customers") == 2
    assert found.value("churn_oldest_waiting_seconds") == 2.5
    assert found.value("churn_batch_rows_accepted_total") == found.value("churn_waiting_batch_rows") == 0
    assert found.value("churn_workers", state="loaded") == 2
    assert found.value("churn_workers", state="stuck") == 1
    assert found.value("churn_consuming_workers", queue="churn") == 2
    assert found.value("churn_model_info", name="churn", version="v1") == 1
    assert found.value("churn_result_store_memory_bytes") == 2_000_000
    assert found.value("churn_result_store_memory_limit_bytes") == 512_000_000


@pytest.mark.parametrize(("memory", "expected"), [(StoreMemory(7, 0), {"bytes"}), (None, set())])
def test_memory_without_a_limit_or_without_info_has_no_gauge_of_it(
    memory: StoreMemory | None, expected: set[str]
) -> None:
    counts = Counts(0, dict.fromkeys(STATES, 0), 0)
    metrics = create_api_metrics()
    metrics.add_service_state(lambda: ServiceState(ServiceCounts(counts, counts, memory), [], {}, []))
    prefix = "churn_result_store_memory_"
    found = scraped(metrics)
    assert {name.removeprefix(prefix) for name in found.families if name.startswith(prefix)} == expected
    assert found.value("churn_result_store_up") == 1
    assert "churn_accepted_total" in found.text


def test_without_the_result_store_they_are_missing_and_the_others_are_there() -> None:
    metrics = create_api_metrics()
    metrics.add_service_state(lambda: None)
    found = scraped(metrics)
    assert found.value("churn_result_store_up") == 0
    assert "churn_accepted_total" not in found.text
    assert found.value("churn_submissions_total", outcome="accepted") == 0
    assert 'churn_submissions_total{outcome="accepted"}' in found.text


def test_many_models_add_a_bounded_number_of_series() -> None:
    counts = Counts(0, dict.fromkeys(STATES, 0), 0)
    metrics = create_api_metrics()
    models = [("churn", str(number)) for number in range(1000)]
    metrics.add_service_state(lambda: ServiceState(ServiceCounts(counts, counts), [], {}, models))
    assert scraped(metrics).text.count("churn_model_info{") == 10


# The metrics of an API process


def test_a_request_is_counted_by_route_method_and_status() -> None:
    metrics = create_api_metrics()
    for seconds in (0.001, 0.2, 100):
        metrics.requests.record("/churn/predict", "POST", 202, seconds)
    metrics.requests.record("/livez", "HEAD", 200, 0.001)
    metrics.requests.record(OTHER, "BREW", 404, 0.001)
    found = scraped(metrics)
    labels = {"route": "/churn/predict", "method": "POST", "status": "202"}
    assert found.value("churn_http_requests_total", **labels) == 3
    assert found.value("churn_http_request_seconds_total", **labels) == pytest.approx(100.201)
    assert found.value("churn_http_requests_total", route="/livez", method="GET", status="200") == 1
    assert found.value("churn_http_requests_total", route="other", method="other", status="404") == 1
    duration = "churn_http_request_duration_seconds"
    buckets = {le: found.value(f"{duration}_bucket", route="/churn/predict", le=le) for le in ("0.005", "0.5", "+Inf")}
    assert buckets == {"0.005": 1, "0.5": 2, "+Inf": 3}
    assert found.value(f"{duration}_sum", route="/churn/predict") == pytest.approx(100.201)
    assert found.value(f"{duration}_count", route="/churn/predict") == 3


def test_a_published_message_counts_its_customers_as_accepted() -> None:
    metrics = create_api_metrics()
    metrics.record_published(3, 0.002)
    metrics.record_published(256, 0.002)
    found = scraped(metrics)
    assert found.value("churn_submissions_total", outcome="accepted") == 259
    assert found.value("churn_message_customers_bucket", le="4.0") == 1
    assert found.value("churn_message_customers_sum") == 259
    assert found.value("churn_publish_seconds_count") == 2


def test_an_unknown_outcome_feature_or_code_adds_no_series() -> None:
    metrics = create_api_metrics()
    metrics.record_submission("no problem of ours")
    metrics.record_batch("no problem of ours")
    for place in ("a secret", 5, None, [1]):
        metrics.record_fault(place, "a secret code")
    found = scraped(metrics)
    assert found.value("churn_refused_inputs_total", feature=OTHER, code=OTHER) == 4
    assert "secret" not in found.text
    assert "no problem" not in found.text


def test_the_largest_possible_number_of_series_is_below_500() -> None:
    metrics = api_metrics()
    app = create_app(Settings())
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            for status in operation["responses"]:
                metrics.requests.record(path, method.upper(), int(status), 0.1)
    for route in app.routes:
        metrics.requests.record(getattr(route, "path", OTHER), "GET", 200, 0.1)
    for method in ("GET", "POST", "DELETE", "PUT"):
        for status in (401, 404, 405):
            metrics.requests.record(OTHER, method, status, 0.1)
    for feature, schema in Customer.model_json_schema()["properties"].items():
        codes = (
            ["missing", "literal_error"] if "enum" in schema else ["missing", "greater_than_equal", "less_than_equal"]
        )
        codes += {"integer": ["int_type"], "number": ["float_type", "finite_number"]}.get(schema["type"], [])
        for code in codes:
            metrics.record_fault(feature, code)
    metrics.record_fault(None, "model_type")
    assert 300 < len(scraped(metrics).series) < MOST_SERIES
    assert min(timeit.repeat(lambda: generate_latest(metrics.registry), number=1, repeat=5)) < 0.05


# Requests of clients


async def send(app: FastAPI, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
    """Send a request to an app without a server; return the status."""
    return (await request(app, method, path, body, {"content-type": "application/json", **headers})).status


def services() -> Services:
    absent: Any = None
    return Services(0, 16_384, *[absent] * 9)


def random_word(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_letters + string.digits, k=draw.randint(1, 20)))


def test_20_000_random_paths_methods_and_keys_add_no_series() -> None:
    app = create_app(Settings(metrics_port=1, api_keys=DIGEST))
    draw = random.Random(0)
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]

    async def send_all(count: int) -> set[int]:
        statuses = set()
        for number in range(count):
            prefix = draw.choice(
                ["/", "/churn/", "/churn/result/", "/churn/batches/", "/docs/", "/livez/", "/metrics/"]
            )
            method = random_word(draw).upper() if number % 3 == 0 else draw.choice(methods)
            headers = {"authorization": f"Bearer {random_word(draw)}", "idempotency-key": random_word(draw)}
            path = f"{prefix}{random_word(draw)}?{random_word(draw)}={random_word(draw)}"
            statuses.add(await send(app, method, path, headers, random_word(draw).encode()))
        return statuses

    assert asyncio.run(send_all(500)) == {401}
    before = scraped(app.state.metrics)
    asyncio.run(send_all(20_000))
    after = scraped(app.state.metrics)
    assert after.series == before.series
    assert len(after.series) < MOST_SERIES
    total = sum(after.value("churn_http_requests_total", route="other", method=one, status="401") for one in METHODS)
    assert total == 20_500


def test_without_keys_random_paths_and_methods_add_no_series() -> None:
    app = create_app(Settings(metrics_port=1))
    draw = random.Random(1)

    async def send_all(count: int) -> None:
        for _ in range(count):
            method = draw.choice(["GET", "POST", "PUT", random_word(draw).upper()])
            await send(app, method, f"/{random_word(draw)}", {}, b"")

    asyncio.run(send_all(200))
    before = scraped(app.state.metrics)
    asyncio.run(send_all(2_000))
    assert scraped(app.state.metrics).series == before.series


def test_a_refused_customer_is_counted_by_problem_feature_and_code() -> None:
    app = create_app(Settings(metrics_port=1))
    app.state.services = services()
    bodies = [
        (json.dumps({**CUSTOMER, "Gender": "X", "Customer_Age": -1}).encode(), 422),
        (json.dumps({name: value for name, value in CUSTOMER.items() if name != "Gender"}).encode(), 422),
        (b"[1]", 422),
        (b"{", 400),
    ]
    for body, status in bodies:
        assert asyncio.run(send(app, "POST", "/churn/predict", {}, body)) == status
    found = scraped(app.state.metrics)
    assert found.value("churn_submissions_total", outcome="invalid-features") == 3
    assert found.value("churn_submissions_total", outcome="not-json") == 1
    assert found.value("churn_refused_inputs_total", feature="Gender", code="literal_error") == 1
    assert found.value("churn_refused_inputs_total", feature="Gender", code="missing") == 1
    assert found.value("churn_refused_inputs_total", feature="Customer_Age", code="greater_than_equal") == 1
    assert found.value("churn_refused_inputs_total", feature=OTHER, code=OTHER) == 1
    assert found.value("churn_http_requests_total", route="/churn/predict", method="POST", status="422") == 3


def test_a_submission_without_a_key_is_counted_as_unauthorized() -> None:
    app = create_app(Settings(metrics_port=1, api_keys=DIGEST))
    for path in ("/churn/predict", "/churn/batches", "/churn/batches"):
        assert asyncio.run(send(app, "POST", path, {}, b"{}")) == 401
    found = scraped(app.state.metrics)
    assert found.value("churn_submissions_total", outcome="unauthorized") == 1
    assert found.value("churn_batches_total", outcome="unauthorized") == 2


def test_no_series_is_there_twice() -> None:
    """The framework answers 404 as an int, and our problems as an HTTPStatus."""
    app = create_app(Settings(metrics_port=1))
    app.state.services = services()
    for method, path in (("GET", "/unknown"), ("POST", "/churn/predict"), ("POST", "/livez")):
        asyncio.run(send(app, method, path, {}, b"{"))
    lines = [line.rpartition(" ")[0] for line in scraped(app.state.metrics).text.splitlines() if line[0] != "#"]
    assert len(set(lines)) == len(lines)
    assert 'status="404"' in scraped(app.state.metrics).text


def test_a_defect_is_counted_as_500() -> None:
    app = create_app(Settings(metrics_port=1))
    app.state.services = services()  # the services are missing
    asyncio.run(send(app, "GET", "/readyz", {}, b""))
    found = scraped(app.state.metrics)
    assert found.value("churn_http_requests_total", route="/readyz", method="GET", status="500") == 1


def test_every_refusal_is_an_outcome_of_submissions_or_batches() -> None:
    found = scraped(create_api_metrics()).text
    slugs = {kind.slug for kind in ProblemType}
    paths: dict[str, dict[str, Any]] = create_app(Settings()).openapi()["paths"]
    after_acceptance = {"deleted", "expired", "prediction-failed"}
    for path, name in (("/churn/predict", "churn_submissions_total"), ("/churn/batches", "churn_batches_total")):
        documented_slugs = {
            slug
            for response in paths[path]["post"]["responses"].values()
            for slug in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
        }
        outcomes = {slug for slug in slugs if f'{name}{{outcome="{slug}"}}' in found}
        assert outcomes == documented_slugs - after_acceptance


# The metrics of a worker


def test_a_summary_is_read_as_it_was_written() -> None:
    whole = summary(outcome="split", retries=2, is_dead_letter=True, waited_s=0.5, load_s=1.5)
    for one in (whole, summary(), summary(kind="rows", waited_s=0.0)):
        assert MessageSummary.from_text(one.to_text()) == one
        assert MessageSummary.from_text(repr(one.to_text())) == one  # as Celery passes it on
    with pytest.raises(ValueError, match="not a summary"):
        MessageSummary.from_text("None")


def test_a_summary_has_no_blank_and_no_quote_in_a_value() -> None:
    text = summary(waited_s=1e-9).to_text()
    assert len(text.split(" ")) == 11
    assert "'" not in text
    assert all(part.count("=") == 1 for part in text.split(" "))


def test_the_main_process_records_the_summaries_of_its_pool_processes() -> None:
    metrics = WorkerMetrics()
    metrics.record(summary(waited_s=0.5))
    metrics.record(summary(retries=1, is_dead_letter=True))
    metrics.record(summary(kind="rows", customers=1000))
    metrics.record(summary(outcome="split", customers=0, retries=1))
    metrics.record_lost("predictions", 0)
    metrics.record_requeued("rows")
    metrics.record_model_load(1.5)
    found = scraped(metrics)

    def messages(kind: str, outcome: str) -> float:
        return found.value("churn_worker_messages_total", kind=kind, outcome=outcome)

    assert [messages("predictions", outcome) for outcome in ("predicted", "split", "lost")] == [2, 1, 1]
    assert [messages("rows", outcome) for outcome in ("predicted", "requeued")] == [1, 1]
    assert found.value("churn_worker_customers_total", kind="predictions") == 4
    assert found.value("churn_worker_customers_total", kind="rows") == 1000
    assert found.value("churn_worker_retries_total", kind="predictions") == 1
    assert found.value("churn_dead_letters_total", kind="predictions") == 1
    assert found.value("churn_queue_wait_seconds_count", kind="predictions") == 1
    assert found.value("churn_predict_seconds_count", kind="predictions") == 2
    assert found.value("churn_store_seconds_count", kind="predictions") == 3
    assert found.value("churn_model_load_seconds") == 1.5


def test_a_worker_has_a_series_for_each_kind_and_outcome_from_the_start() -> None:
    text = scraped(WorkerMetrics()).text
    for kind in KINDS:
        for outcome in MESSAGE_OUTCOMES:
            assert f'churn_worker_messages_total{{kind="{kind}",outcome="{outcome}"}} 0.0' in text
    assert len(scraped(WorkerMetrics()).series) < MOST_SERIES


# The documentation


def test_the_page_has_every_metric_with_its_type_labels_and_help() -> None:
    metrics = api_metrics()
    metrics.requests.record("/livez", "GET", 200, 0.1)
    metrics.record_fault("Gender", "missing")
    assert differences(scraped(metrics).families, documented("API")) == []
    worker = WorkerMetrics()
    worker.add_processes(lambda: 4)
    assert differences(scraped(worker).families, documented("worker")) == []
    assert scraped(worker).value("churn_worker_processes") == 4


def test_the_version_is_that_of_the_project() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


# The exporter


def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("one", "A gauge.", registry=registry).set(1)
    return registry


def test_the_exporter_answers_get_and_head_of_its_path_only() -> None:
    port = free_port()
    server = MetricsServer(registry(), "127.0.0.1", port)
    server.start()
    server.start()
    try:
        url = f"http://127.0.0.1:{port}"
        response = requests.get(f"{url}/metrics?x=1", timeout=30)
        assert (response.status_code, response.text.splitlines()[-1]) == (200, "one 1.0")
        assert response.headers["content-type"].startswith("text/plain")
        assert requests.head(f"{url}/metrics", timeout=30).headers["content-length"] == str(len(response.content))
        assert requests.get(f"{url}/", timeout=30).status_code == 404
        assert requests.post(f"{url}/metrics", timeout=30).status_code == 501
    finally:
        server.close()
        server.close()
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_start_of_the_exporter_reads_no_metric() -> None:
    # The event loop starts it; the state of the queue, which a scrape reads, needs this event loop.
    reads: list[str] = []
    metrics = CollectorRegistry()
    server = MetricsServer(metrics, "127.0.0.1", free_port())
    try:
        Gauge("one", "A gauge.", registry=metrics).set_function(lambda: reads.append("one") or 1.0)  # type: ignore[func-returns-value]
        server.start()
        assert reads == []
    finally:
        server.close()


def test_two_processes_cannot_share_a_port() -> None:
    port = free_port()
    first = MetricsServer(registry(), "127.0.0.1", port)
    try:
        with pytest.raises(MetricsPortUnavailable, match=rf":{port}, which cannot be used.*METRICS_PORT=0"):
            MetricsServer(registry(), "127.0.0.1", port)
    finally:
        first.close()


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(MetricsPortUnavailable, match=r"203\.0\.113\.1"):
        MetricsServer(registry(), "203.0.113.1", free_port())
