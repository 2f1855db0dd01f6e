"""Traces when the service starts and stops: the last spans, a collector that hangs, and no SDK without OTEL_*."""

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from celery_task_app.observability.tracing import STOP_WITHIN_S
from tests.harness.collector import CONSUMER, PRODUCER, SERVER, Collector
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

Customer = dict[str, Any]


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_spans_that_wait_to_be_exported_are_exported_when_the_service_stops(
    servers: Servers, collector: Collector, customer: Customer, tmp_path: Path
) -> None:
    slow = {**collector.env, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with running_service(servers, tmp_path, **slow) as service:
        service.ended(service.predict(customer))
        assert collector.spans() == []
    assert {span.kind for span in collector.spans()} == {SERVER, PRODUCER, CONSUMER}


def test_a_collector_that_hangs_changes_no_answer_and_delays_a_stop_by_its_limit(
    servers: Servers, customer: Customer, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and no process answers
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
        }
        with running_service(servers, tmp_path, **env) as service:
            assert all(service.ended(task_id).ok for task_id in [service.predict(customer) for _ in range(50)])
            assert service.batch_ended(service.batch_accepted([customer] * 3))["done"] == 3
            for process in (service.api, service.worker):
                started = time.monotonic()
                assert process.stop() == 0
                assert time.monotonic() - started < STOP_WITHIN_S + 5


def test_requests_are_not_traced_while_a_collector_hangs_and_are_traced_once_it_answers(
    servers: Servers, collector: Collector, customer: Customer, tmp_path: Path
) -> None:
    queue, batch, sent = 8, 2, 50
    sizes = {"OTEL_BSP_MAX_QUEUE_SIZE": str(queue), "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(batch)}
    with running_service(servers, tmp_path, **collector.env, **sizes) as service:
        collector.received.clear()
        collector.answers.clear()
        assert all(service.ended(task_id).ok for task_id in [service.predict(customer) for _ in range(sent)])
        accepted = [line for line in service.api.text().splitlines() if "method=POST" in line]
        traced = [line for line in accepted if "trace_id=" in line]
        assert len(accepted) == sent
        assert 0 < len(traced) <= queue + batch + 1  # the last one was in progress when the queue was full
        assert service.api.text().count("spans are dropped") == 1
        collector.answers.set()

        def is_traced() -> bool:
            contexts = {span.context for span in collector.spans(SERVER) if span.attributes.get("churn.id") == last}
            return any(contexts & set(span.links) for span in collector.spans(CONSUMER))

        until(lambda: collector.spans(SERVER))
        last = service.predict(customer)
        until(is_traced)


# redis-py imports the SDK's metrics if they are installed, and uses none of them.
REPORT = """
import atexit, runpy, sys
atexit.register(lambda: sys.__stdout__.write(f"main process loaded={'opentelemetry.sdk.trace' in sys.modules}\\n"))
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("is_on", [False, True])
@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_the_sdk_is_loaded_only_if_traces_are_on_and_never_before_the_fork(
    servers: Servers, collector: Collector, customer: Customer, tmp_path: Path, is_on: bool
) -> None:
    env = collector.env if is_on else {}
    service = Service(servers, tmp_path, env, "tests.harness.workers.reporting_modules")
    for process in (service.api, service.worker):
        process.command = [sys.executable, "-c", REPORT, *process.command[2:]]
    try:
        service.start()
        service.ended(service.predict(customer))
    finally:
        service.stop()
    assert f"main process loaded={is_on}" in service.api.text()
    assert "main process loaded=False" in service.worker.text()
    assert f"pool process loaded={is_on}" in service.worker.text()
