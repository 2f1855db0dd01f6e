"""The log answers where a prediction is: its task id leads from the request to the message, the worker and the end."""

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness import marked_model
from tests.harness.processes import Process, free_port, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api

PREDICTIONS = 320


def lines(process: Process, event: str) -> list[dict[str, str]]:
    """Return the fields of the lines of an event; values have no blanks, except that of the last field."""
    found = []
    for line in process.text().splitlines():
        _time, _level, _logger, text = [*line.split(" ", 3), "", "", ""][:4]
        if text.startswith(f"{event} "):
            found.append(dict(field.split("=", 1) for field in text.split(" ") if "=" in field))
    return found


def by_field(found: list[dict[str, str]], name: str, values: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the lines by the value of a field, once there is one for each value; else nothing."""
    by_value = {line[name]: line for line in found if name in line}
    return by_value if by_value.keys() >= set(values) else {}


def test_each_task_id_leads_from_its_request_to_its_worker(marked: Service, customer: dict[str, Any]) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: marked.post(customer, Prefer="wait=20"), range(PREDICTIONS)))
    task_ids = {answer.json()["task_id"]: answer.headers["x-request-id"] for answer in answers}
    assert len(task_ids) == PREDICTIONS
    requests = until(lambda: by_field(lines(marked.api, "request"), "task_id", task_ids))
    message_ids = {requests[task_id]["message_id"] for task_id in task_ids}
    by_id = until(lambda: by_field(lines(marked.worker, "message"), "message_id", message_ids))
    for task_id, request_id in task_ids.items():
        request = requests[task_id]
        assert (request["status"], request["request_id"], request["customers"]) == ("200", request_id, "1")
        message = by_id[request["message_id"]]
        assert task_id in message["task_ids"].split(",")
        assert (message["outcome"], message["retries"]) == ("predicted", "0")
        assert message["worker"].startswith("celery")
        assert all(float(message[name]) >= 0 for name in ("queue_ms", "predict_ms", "store_ms"))
    sizes: Counter[str] = Counter(requests[task_id]["message_id"] for task_id in task_ids)
    assert {message_id: int(by_id[message_id]["customers"]) for message_id in sizes} == sizes


def test_a_failure_of_the_model_is_logged_with_type_and_place_and_without_its_text(
    marked: Service, customer: dict[str, Any]
) -> None:
    task_id = marked.predict({**customer, "Customer_Age": marked_model.RAISES})
    assert marked.ended(task_id).status_code == 500
    (message,) = until(lambda: [line for line in lines(marked.worker, "message") if line["message_id"] == task_id])
    assert (message["outcome"], message["customers"], message["failed"]) == ("predicted", "1", "1")
    (failed,) = (line for line in lines(marked.worker, "prediction failed") if line["id"] == task_id)
    assert failed["type"] == "ValueError"
    assert "harness/marked_model.py:" in failed["stack"]
    assert "a customer's value" not in marked.worker.text()
    until(lambda: any(line.get("problem") == "prediction-failed" for line in of_task(marked, task_id)))


def of_task(service: Service, task_id: str) -> list[dict[str, str]]:
    """Return the lines of the requests with a task id."""
    return [line for line in lines(service.api, "request") if line.get("task_id") == task_id]


def test_a_lost_attempt_names_its_predictions(marked: Service, customer: dict[str, Any]) -> None:
    task_id = marked.predict({**customer, "Customer_Age": marked_model.KILLS})
    assert marked.ended(task_id, within_s=60).status_code == 500
    lost = [line for line in lines(marked.worker, "attempt lost") if task_id in line["task_ids"]]
    assert len(lost) == 4
    (given_up,) = (line for line in lines(marked.worker, "attempts exhausted") if task_id in line["task_ids"])
    assert given_up["pending"] == "1"


@pytest.mark.parametrize("cancelled_by", ["deletion", "deadline"])
def test_a_message_without_a_pending_customer_is_skipped(
    marked: Service, customer: dict[str, Any], cancelled_by: str
) -> None:
    with marked.worker.paused():
        task_id = marked.predict(customer, Cancel_After="1")
        if cancelled_by == "deletion":
            assert marked.delete(task_id).status_code == 204
        else:
            time.sleep(1.2)
    (message,) = until(lambda: [line for line in lines(marked.worker, "message") if line["message_id"] == task_id])
    expired = "0" if cancelled_by == "deletion" else "1"
    assert (message["outcome"], message["customers"], message["expired"]) == ("skipped", "0", expired)


def test_a_batch_is_found_in_both_logs(marked: Service, customer: dict[str, Any]) -> None:
    url = marked.batch_accepted([customer, {**customer, "Customer_Age": -1}, customer])
    marked.batch_ended(url)
    batch_id = url.rpartition("/")[2]
    accepted = next(line for line in lines(marked.api, "request") if line.get("batch_id") == batch_id)
    assert (accepted["status"], accepted["customers"], accepted["refused_rows"]) == ("202", "2", "1")
    (chunk,) = until(lambda: [line for line in lines(marked.worker, "message") if line.get("batch_id") == batch_id])
    assert (chunk["chunk"], chunk["customers"], chunk["outcome"]) == ("0", "2", "predicted")


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_an_outage_has_one_line_a_second_with_its_cause(
    servers: Servers, customer: dict[str, Any], tmp_path: Path
) -> None:
    with running_api(servers, tmp_path, BROKER_URI=f"amqp://localhost:{free_port()}//") as api:
        statuses = [api.post(customer).status_code for _ in range(5)]
    causes = [line for line in api.api.text().splitlines() if " unavailable requests_total=" in line]
    assert statuses == [503] * 5
    assert 1 <= len(causes) <= 5
    assert "reason=the broker did not confirm" in causes[0]
    assert "Traceback" not in api.api.text()
