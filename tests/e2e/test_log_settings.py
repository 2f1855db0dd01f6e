"""The settings of the log: its format, its level, and no line for each request.

No other worker runs on the same servers, so it is this worker that logs a message.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import running_api, running_service


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_with_json_each_line_of_the_api_and_of_our_worker_is_an_object(
    servers: Servers, customer: dict[str, Any], tmp_path: Path
) -> None:
    with running_service(servers, tmp_path, LOG_FORMAT="json") as service:
        answer = service.post(customer, Prefer="wait=20")
        task_id = answer.json()["task_id"]
        until(lambda: task_id in service.worker.text())
    in_api = [json.loads(line) for line in service.api.text().splitlines()]  # each line
    (request,) = (line for line in in_api if line.get("task_id") == task_id)
    assert (request["event"], request["status"], request["level"]) == ("request", answer.status_code, "info")
    assert request["request_id"] == answer.headers["x-request-id"]
    in_worker = [json.loads(line) for line in service.worker.text().splitlines() if line.startswith("{")]
    (message,) = (line for line in in_worker if line.get("message_id") == request["message_id"])
    assert (message["event"], message["task_ids"], message["customers"]) == ("message", task_id, 1)
    assert " INFO " not in service.worker.text()


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_without_an_access_log_requests_have_no_lines_and_ids_all_the_same(servers: Servers, tmp_path: Path) -> None:
    with running_api(servers, tmp_path, UVICORN_ACCESS_LOG="false") as api:
        assert api.get("/nothing", X_Request_ID="mine-3").headers["x-request-id"] == "mine-3"
    assert "mine-3" not in api.api.text()
    assert "Uvicorn running" in api.api.text()


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_log_level_leaves_out_lines_of_both_processes(
    servers: Servers, customer: dict[str, Any], tmp_path: Path
) -> None:
    with running_service(servers, tmp_path, LOG_LEVEL="warning") as service:  # the worker has `-l info`
        assert service.ended(service.predict(customer)).status_code == 200
    assert " INFO " not in service.api.text() + service.worker.text()
