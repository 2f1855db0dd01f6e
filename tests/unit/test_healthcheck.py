"""The health check of a worker: it repeats the status that the worker wrote, needs no node name, and costs little."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from celery_task_app.consumer.healthcheck import (
    MAX_AGE_S,
    find_hang,
    find_problem,
    remove_status,
    status_folder,
    write_status,
)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_no_status_is_a_problem() -> None:
    assert find_problem() == "no worker of this host consumes messages"


def test_a_worker_that_can_predict_is_healthy() -> None:
    write_status(1, "stuck")
    write_status(2, "")
    assert find_problem() == ""


def test_a_worker_that_cannot_predict_is_named() -> None:
    write_status(1, "not loaded yet")
    assert find_problem() == "worker 1: not loaded yet"


def test_a_removed_or_old_status_does_not_count() -> None:
    write_status(1, "")
    remove_status(1)
    assert find_problem() == "no worker of this host consumes messages"
    write_old_status(2)
    assert "no status for" in find_problem()


def write_old_status(pid: int) -> None:
    write_status(pid, "")
    old = {"monotonic": time.monotonic() - MAX_AGE_S - 1, "problem": ""}
    (status_folder() / str(pid)).write_text(json.dumps(old))


def test_a_running_process_that_writes_no_status_any_more_hangs() -> None:
    write_old_status(os.getpid())
    assert find_hang() == f"worker {os.getpid()} has written no status for 16 s"


def test_a_worker_without_the_broker_and_one_that_replaces_its_processes_do_not_hang() -> None:
    assert find_hang() == ""
    write_status(os.getpid(), "stuck")
    assert find_hang() == ""


def test_the_status_of_a_killed_worker_is_no_hang() -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    write_old_status(killed.pid)
    assert find_hang() == ""
    write_old_status(os.getpid())
    write_status(1, "")  # a worker of this host writes its status
    assert find_hang() == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"monotonic": "x"}'])
def test_a_damaged_status_is_no_status(content: str) -> None:
    write_status(1, "")
    (status_folder() / "1").write_text(content)
    assert find_problem() == "no worker of this host consumes messages"


def test_only_the_owner_reads_the_statuses() -> None:
    write_status(1, "")
    assert status_folder().stat().st_mode & 0o077 == 0


def test_the_command_prints_one_sentence_and_loads_no_library() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "celery_task_app.consumer.healthcheck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Unhealthy: no worker of this host consumes messages."
    assert not {"redis", "celery", "pydantic", "asyncio"} & {
        line.split("|")[-1].strip() for line in done.stderr.splitlines()
    }
