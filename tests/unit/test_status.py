"""`make status`: the lines for the answers of /readyz and /churn/queue."""

from typing import Any

from celery_task_app.cli.status import lines

READINESS: dict[str, Any] = {
    "status": "ready",
    "broker": "up",
    "result_store": "up",
    "workers": {"celery@a/1": {"model": "loaded", "detail": "2eb71a7af843"}},
    "messages": {"churn": 12, "churn.batch": 0},
    "consumers": {"churn": 1, "churn.batch": 1},
    "warnings": [],
}
QUEUE: dict[str, Any] = {
    "predictions": {"waiting": 300, "oldest_s": 0.24, "drained_per_s": 1500.0},
    "batch_rows": {"waiting": 0, "oldest_s": 0.0, "drained_per_s": None},
    "estimated_s": 0.2,
    "workers": {"loaded": 1},
}
URL = "http://127.0.0.1:8000"


def test_each_part_has_a_line() -> None:
    assert lines(READINESS, QUEUE, URL, {}) == [
        "API          http://127.0.0.1:8000, ready",
        "worker       celery@a/1, model loaded (2eb71a7af843)",
        "queue        churn, messages: 12, consumers: 1",
        "queue        churn.batch, messages: 0, consumers: 1",
        "waiting      predictions: 300, oldest 0.2 s, 1500 a second end, a new one waits 0.2 s",
        "waiting      batch rows: 0",
        "broker       up",
        "result store up",
    ]


def test_a_service_that_is_not_ready_names_the_reason_and_its_warnings() -> None:
    away = {
        "status": 503,
        "detail": "The broker failed: refused.",
        "broker": "refused",
        "workers": {},
        "messages": {},
        "warnings": ["The clock of this API is +9.0 s off."],
    }
    addresses = {"BROKER_URI": "redis://127.0.0.1:6390/0"}
    assert lines(READINESS | away, None, URL, addresses) == [
        "API          http://127.0.0.1:8000, NOT READY: The broker failed: refused.",
        "worker       none",
        "broker       refused, redis://127.0.0.1:6390/0",
        "result store up",
        "warning      The clock of this API is +9.0 s off.",
    ]
