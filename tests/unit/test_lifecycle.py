"""Start and stop of a worker: its name, and the options that Celery and billiard do not have."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import billiard.pool
import psutil
import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_task_app.consumer.lifecycle import (
    SoftTimeLimit,
    limit_logs_of_celery,
    limit_stop_of_pool_processes,
    name_worker_by_process,
)
from tests.harness.processes import until


def test_a_worker_without_a_name_gets_its_process_id() -> None:
    worker, named = SimpleNamespace(hostname="celery@host"), SimpleNamespace(hostname="mine@host")
    name_worker_by_process(worker)
    name_worker_by_process(named)
    assert (worker.hostname, named.hostname) == (f"celery-{os.getpid()}@host", "mine@host")


def test_a_pool_process_waits_a_second_for_a_missing_receipt() -> None:
    limit_stop_of_pool_processes()
    assert 0.1 * billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT == 1


def test_the_soft_time_limit_is_raised_once_and_only_while_a_message_runs() -> None:
    limit = SoftTimeLimit()
    limit.handle_signal(10, None)
    for _ in range(2):
        with limit:
            with pytest.raises(SoftTimeLimitExceeded):
                limit.handle_signal(10, None)
            limit.handle_signal(10, None)
        limit.handle_signal(10, None)


def test_pool_processes_get_the_handler_of_the_soft_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billiard.pool, "soft_timeout_sighandler", None)
    limit = SoftTimeLimit()
    limit.replace_handler()
    with limit, pytest.raises(SoftTimeLimitExceeded):
        billiard.pool.soft_timeout_sighandler(10, None)


def test_the_pool_logs_no_arguments_of_tasks() -> None:
    limit_logs_of_celery()
    assert not logging.getLogger("celery.pool").isEnabledFor(logging.DEBUG)


def test_a_stop_has_a_deadline() -> None:
    program = "import time; from celery_task_app.consumer.lifecycle import exit_in_time; exit_in_time(3, 0.01)"
    run = subprocess.run([sys.executable, "-c", f"{program}; time.sleep(60)"], check=False, timeout=50)
    assert run.returncode == 3


def test_the_trial_of_a_model_ends_with_a_killed_worker() -> None:
    imports = "import functools, time, types; from celery_task_app.consumer.lifecycle import warm_up"
    trial_of_600_s = "functools.partial(time.sleep, 600)"
    program = f"{imports}; warm_up(types.SimpleNamespace(), lambda: None, {trial_of_600_s}, within_s=600)"
    worker = subprocess.Popen([sys.executable, "-c", program])
    try:
        (trial,) = until(lambda: psutil.Process(worker.pid).children())
    finally:
        worker.kill()
        worker.wait()
    try:
        until(lambda: not trial.is_running() or trial.status() == psutil.STATUS_ZOMBIE)
    finally:
        if trial.is_running():
            trial.kill()
