"""The status of a worker and its pool processes: published, withdrawn, and replaced or stopped when they fail."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import billiard
import pytest
import redis
from kombu.asynchronous import Hub

from celery_task_app.consumer.healthcheck import find_problem
from celery_task_app.consumer.heartbeat import Heartbeat, WorkerHealth
from celery_task_app.consumer.lifecycle import check_model
from celery_task_app.errors import ModelError
from celery_task_app.ml.artifact import Artifact
from celery_task_app.store.worker_status import WorkerStatus
from celery_task_app.worker import BATCHES, PREDICTIONS
from tests.harness.processes import free_port, until
from tests.harness.servers import Servers
from tests.integration.test_worker_status import statuses

QUEUES = ["churn", "churn.batch"]

pytestmark = [
    pytest.mark.parametrize("servers", ["valkey"], indirect=True),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # pool processes are forked, as in a worker
]


class Clock:
    """The clock of this machine, which a test may advance."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(
    servers: Servers, client: redis.Redis, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> WorkerHealth:
    client.flushdb()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of the status file
    health = WorkerHealth(f"celery@{uuid4()}", servers.backend_uri, clock)
    health.artifact = Artifact("mine", "v1", "0" * 64, {}, explains=True, manifest={"limits": ["few"], "golden": [{}]})
    return health


@pytest.fixture
def stops() -> Iterator[list[int]]:
    """Record the requests to stop this process instead of obeying them."""
    requests: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, _: requests.append(number))
    yield requests
    signal.signal(signal.SIGTERM, earlier)


@contextlib.contextmanager
def pool_process(start: Callable[[], object]) -> Iterator[Any]:
    """Run a process that starts, and then waits until it is killed."""

    def run() -> None:
        start()
        signal.pause()

    process = billiard.Process(target=run)
    process.index = 1  # as Celery's pool numbers them
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()


def status(health: WorkerHealth, servers: Servers) -> WorkerStatus:
    health.publish(QUEUES)
    return statuses(servers.backend_uri)[f"{health.hostname}/{health.pid}"]


def test_a_worker_is_loaded_when_one_of_its_processes_is(servers: Servers, health: WorkerHealth) -> None:
    assert status(health, servers)["model"] == "not loaded yet"
    assert "not loaded yet" in find_problem()
    health.report_model_loaded()
    published = status(health, servers)
    assert (published["model"], published["detail"], published["queues"]) == ("loaded", "v1", QUEUES)
    assert (published["name"], published["sha256"], published["explains"]) == ("mine", "0" * 64, True)
    assert find_problem() == ""
    health.withdraw()
    assert statuses(servers.backend_uri) == {}
    assert "no worker" in find_problem()


def test_a_process_that_has_loaded_the_model_is_news_once(servers: Servers, health: WorkerHealth) -> None:
    loads = billiard.Event()

    def load() -> None:
        loads.wait()
        health.report_model_loaded()

    with pool_process(load):
        assert not health.check_pool()
        loads.set()
        until(health.check_pool)
        assert not health.check_pool()
        assert status(health, servers)["model"] == "loaded"


def test_three_processes_that_are_lost_while_they_load_stop_the_worker(
    servers: Servers, health: WorkerHealth, stops: list[int]
) -> None:
    for lost in range(3):
        assert (stops, health.has_failed) == ([], False), lost
        with pool_process(lambda: None):
            health.check_pool()
        health.check_pool()
    assert (stops, health.has_failed) == ([signal.SIGTERM], True)
    assert statuses(servers.backend_uri)[health.hostname]["model"] == "failed"
    health.report_model_loaded()  # at the next start
    assert health.hostname not in statuses(servers.backend_uri)


def test_a_frozen_process_is_stuck_and_then_killed(servers: Servers, health: WorkerHealth, clock: Clock) -> None:
    def load() -> None:
        health.report_model_loaded()
        health.start_progress_thread()

    with pool_process(load) as process:
        until(lambda: status(health, servers)["model"] == "loaded")
        os.kill(process.pid, signal.SIGSTOP)
        clock.ahead_s = 60
        assert [status(health, servers)["model"] for _ in range(2)] == ["stuck", "stuck"]
        assert "stuck" in find_problem()
        assert process.is_alive()
        health.publish(QUEUES)
        until(lambda: not process.is_alive())


def test_a_model_that_cannot_be_used_stops_the_worker_before_its_first_message(
    servers: Servers, health: WorkerHealth, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        check_model(health, tmp_path / "missing.joblib")
    assert stop.value.code == 1
    assert "missing.joblib" in statuses(servers.backend_uri)[health.hostname]["detail"]


def test_a_result_store_that_is_away_does_not_stop_a_worker(
    tmp_path: Path, health: WorkerHealth, stops: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    away = WorkerHealth("celery@away", f"redis://127.0.0.1:{free_port()}/0")
    (tmp_path / f"churn-worker-{os.getuid()}").touch()  # no folder: no status file can be written
    away.report_model_loaded()
    away.publish(QUEUES)
    assert not away.is_published
    away.withdraw()
    away.fail(ModelError("no model"))
    assert stops == [signal.SIGTERM]
    assert "worker status not published" in caplog.text
    assert "status file not written" in caplog.text


def test_a_status_that_was_not_published_is_published_by_the_next_check(servers: Servers, health: WorkerHealth) -> None:
    repeated: dict[float, Callable[[], None]] = {}
    timer = SimpleNamespace(call_after=lambda _after_s, _function: None, call_repeatedly=repeated.__setitem__)
    consumer = SimpleNamespace(timer=timer, task_consumer=SimpleNamespace(queues=[PREDICTIONS, BATCHES]))
    step = Heartbeat(consumer)
    step.health = health
    step.start(consumer)
    check = repeated[min(repeated)]
    check()
    assert statuses(servers.backend_uri) == {}
    health.is_published = False  # as after a failure
    check()
    assert statuses(servers.backend_uri) != {}
    assert health.is_published


def test_the_step_publishes_while_messages_are_consumed(servers: Servers, health: WorkerHealth) -> None:
    hub = Hub()
    queues = SimpleNamespace(queues=[PREDICTIONS, BATCHES])
    consumer = SimpleNamespace(timer=hub.timer, task_consumer=queues)
    step = Heartbeat(consumer)
    step.health = health
    step.stop(consumer)  # a consumer that never connected
    step.start(consumer)

    def is_published() -> bool:
        hub.fire_timers()
        return bool(statuses(servers.backend_uri))

    until(is_published)
    step.stop(consumer)
    assert statuses(servers.backend_uri) == {}
