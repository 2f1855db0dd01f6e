"""The health check of a worker container: `python -m celery_task_app.consumer.healthcheck`.

It exits with 0 if a worker of this host consumes messages and can predict, else with 1 and a sentence. With `--hang` it
exits with 1 only if a restart would help. Each worker writes its status to a file, and this module imports only the
standard library: 0.03 s of CPU time instead of 0.4 s with a client of the result store.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

MAX_AGE_S = 15
"""A status that is older does not count; a worker writes it every 5 s."""


def status_folder() -> Path:
    """Return the folder of this user's status files, one for each worker."""
    return Path(gettempdir(), f"churn-worker-{os.getuid()}")


def write_status(pid: int, problem: str) -> None:
    """Write the status of a worker; an empty problem says that it can predict.

    Raises:
        OSError: the file cannot be written.
    """
    folder = status_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
        raise PermissionError(f"{folder} is not a folder of this user only: remove it")
    new = folder / f".{pid}"
    new.write_text(json.dumps({"monotonic": time.monotonic(), "problem": problem}))
    new.replace(folder / str(pid))


def remove_status(pid: int) -> None:
    """Remove the status of a worker that consumes no messages any more."""
    (status_folder() / str(pid)).unlink(missing_ok=True)


def find_problem() -> str:
    """Return why no worker of this host can predict; an empty text if one can."""
    problem, stale = "", "no worker of this host consumes messages"
    for pid, age_s, reported in _read_statuses():
        if age_s > MAX_AGE_S:
            stale = f"worker {pid} has written no status for {age_s:.0f} s"
        elif not reported:
            return ""
        else:
            problem = f"worker {pid}: {reported}"
    return problem or stale


def find_hang() -> str:
    """Return which worker of this host must be restarted; an empty text if none must.

    A worker that has lost the broker removes its status and connects again by itself, and it replaces pool processes
    that are stuck. Only a main process that hangs neither writes its status nor removes it.
    """
    hang = ""
    for pid, age_s, _ in _read_statuses():
        if age_s <= MAX_AGE_S:
            return ""
        if _is_running(pid):  # the file of a worker that was killed stays
            hang = f"worker {pid} has written no status for {age_s:.0f} s"
    return hang


def _read_statuses() -> Iterator[tuple[int, float, str]]:
    """Yield the pid, the age in seconds and the problem of each status of this host."""
    for path in status_folder().glob("[0-9]*"):
        try:
            status = json.loads(path.read_text())
            pid, age_s, problem = int(path.name), time.monotonic() - status["monotonic"], status["problem"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if age_s >= 0:
            yield pid, age_s, problem


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    if reason := find_hang() if "--hang" in sys.argv[1:] else find_problem():
        sys.exit(f"Unhealthy: {reason}.")
