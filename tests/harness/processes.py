"""Programs on spare ports, each in its own session with its output in a file."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def free_port() -> int:
    """Return a free port below those that the kernel gives to clients: a stopped server must find its port free."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Yield a port that neither accepts nor refuses a connection: its backlog of one is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            yield int(listener.getsockname()[1])


def await_connections(port: int, count: int) -> None:
    """Wait until clients have connected to a port so many times; close each connection at once."""
    with contextlib.ExitStack() as stack:

        def listen() -> list[socket.socket]:
            with contextlib.suppress(OSError):  # a server that was killed may hold its port for some milliseconds
                return [stack.enter_context(socket.create_server(("127.0.0.1", port)))]
            return []

        (listener,) = until(listen)
        listener.settimeout(30)
        for _ in range(count):
            with contextlib.closing(listener.accept()[0]):
                pass


def until(condition: Callable[[], T], within_s: float = 30, every_s: float = 0.02, at_most_s: float = 0.2) -> T:
    """Return the first true value of a condition.

    Args:
        condition: it is called again and again.
        within_s: seconds after which the test fails.
        every_s: least seconds between two calls.
        at_most_s: most seconds; a pause is a tenth of the time so far, because other tests need the cores.

    Raises:
        AssertionError: no value was true in time.
    """
    started = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - started
        assert waited_s < within_s, f"not true within {within_s} s: {condition}"
        time.sleep(max(every_s, min(waited_s / 10, at_most_s)))
    return value


@dataclass
class Process:
    """A program that can be started, frozen, stopped, killed and started again.

    Attributes:
        command: its words.
        log: the file for its output.
        env: variables in addition to those of this process.
        cwd: its working directory. The commands of the service need the repository; a server writes files there.
        popen: the running program, or the last one.
    """

    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = ROOT
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
                start_new_session=True,
            )

    @contextlib.contextmanager
    def restarted_with(self, **env: str) -> Iterator[None]:
        """Restart the program with further variables in its environment; at the end restart it without them."""
        usual = self.env
        try:
            self.restart({**usual, **env})
            yield
        finally:
            self.restart(usual)

    def restart(self, env: Mapping[str, str]) -> None:
        """Stop the program as an operator does, unless it has ended; start it with an environment."""
        if self.is_running:
            with contextlib.suppress(subprocess.TimeoutExpired):  # It was killed, as a supervisor does.
                self.stop()
        self.env = env
        self.start()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start the program; stop it at the end, and require exit code 0."""
        self.start()
        try:
            yield
        except BaseException:
            self.kill()
            raise
        assert self.stop() == 0, self.text()[-3000:]

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and its children."""
        os.killpg(self.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze the program and its children."""
        self.signal(signal.SIGSTOP)
        try:
            until(self._is_frozen)  # on a busy machine a thread may run on for some milliseconds
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _is_frozen(self) -> bool:
        """Return whether each thread of the program and its children is stopped; true where there is no /proc."""
        paths: list[Path] = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError):  # the process has ended
                if os.getpgid(pid) == self.pid:
                    paths += Path(f"/proc/{pid}/task").glob("*/stat")
        states = set()
        for path in paths:
            with contextlib.suppress(OSError):  # the thread has ended
                states.add(path.read_text().rpartition(")")[2].split()[0])
        return states <= {"T", "Z", "X"}  # stopped, or ended

    def wait(self, within_s: float = 30) -> int:
        """Wait until the program ends by itself; return its exit code."""
        assert self.popen is not None
        return self.popen.wait(within_s)

    def stop(self, within_s: float = 20) -> int:
        """Send SIGTERM, as an operator does; return the exit code.

        Args:
            within_s: seconds after which the test fails. A worker that exits at its deadline, without its broker, is
                later than 20 s.
        """
        assert self.popen is not None
        with contextlib.suppress(ProcessLookupError):
            self.popen.terminate()
        try:
            return self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        assert self.popen is not None
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.popen.wait(10)

    def text(self) -> str:
        """Return the output of all its runs."""
        return self.log.read_text(errors="replace")
