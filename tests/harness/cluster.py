"""A real cluster of three RabbitMQ nodes on this machine, and Redis. Each node has a loopback address of its own.

The addresses make one node separable from the others: `separated` drops the packets between two nodes.
"""

import contextlib
import functools
import itertools
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from celery_task_app.worker import PREDICTIONS
from tests.harness.processes import Process, free_port, until
from tests.harness.servers import (
    Servers,
    epmd_has_ended,
    rabbitmq_answers,
    rabbitmq_program,
    start_redis,
)

NODES = 3
MEMBER = f"'%2F_{PREDICTIONS.name}'"  # the replica of the queue of predictions
STARTS_WITHIN_S = 120
COMMAND_WITHIN_S = 30


@dataclass
class Node:
    """One node of the cluster."""

    address: str
    port: int
    process: Process

    @property
    def name(self) -> str:
        return self.process.env["RABBITMQ_NODENAME"]

    @property
    def uri(self) -> str:
        return f"amqp://guest:guest@{self.address}:{self.port}//"

    @property
    def is_well(self) -> bool:
        """Whether the node runs, is not frozen, and accepts clients; a node without a majority accepts none."""
        return self.process.is_running and not is_stopped(self.process) and rabbitmq_answers(self.uri)

    def control(self, *arguments: str, program: str = "rabbitmqctl") -> str:
        """Run a command of RabbitMQ on this node; return its output.

        Raises:
            subprocess.SubprocessError: it failed, or took too long.
        """
        command = [str(rabbitmq_program(program)), "--quiet", "--longnames", *arguments]
        env = {**os.environ, **self.process.env}
        done = subprocess.run(
            command, cwd=self.process.cwd, env=env, capture_output=True, text=True, check=True, timeout=COMMAND_WITHIN_S
        )
        return done.stdout

    def evaluate(self, expression: str) -> str:
        """Return the value of an Erlang expression on this node; rabbitmqctl needs a second or more to start.

        Raises:
            subprocess.SubprocessError: it failed, or took too long.
        """
        cookie = Path(self.process.env["HOME"], ".erlang.cookie").read_text().strip()
        command = ["erl_call", "-name", self.name, "-c", cookie, "-e"]
        env = {**os.environ, **self.process.env}
        done = subprocess.run(
            command,
            input=f"{expression}.\n",
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=COMMAND_WITHIN_S,
        )
        return done.stdout

    @contextlib.contextmanager
    def separated(self, others: Sequence["Node"]) -> Iterator[None]:
        """Drop every packet between this node and others, in both directions; clients reach all of them. Needs root."""
        pairs = [pair for other in others for pair in ((self.address, other.address), (other.address, self.address))]
        with contextlib.ExitStack() as stack:
            for source, target in pairs:
                rule = ["INPUT", "-s", source, "-d", target, "-j", "DROP"]
                iptables("-I", *rule)
                stack.callback(iptables, "-D", *rule)
            yield


def is_stopped(process: Process) -> bool:
    """Tell whether a program is frozen."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    return False


def iptables(*arguments: str) -> None:
    """Change the rules of the packet filter; wait for another program that changes them."""
    subprocess.run(["iptables", "--wait", "10", *arguments], check=True, capture_output=True, timeout=COMMAND_WITHIN_S)


@functools.cache
def can_separate() -> bool:
    """Tell whether `Node.separated` works here: it needs root, and Linux."""
    rule = ["INPUT", "-s", "127.255.0.1", "-d", "127.255.0.2", "-j", "DROP"]
    try:
        iptables("-I", *rule)
        iptables("-D", *rule)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


@dataclass
class Cluster(Servers):
    """Three nodes and a result store; `broker` is the first node."""

    nodes: list[Node] = field(default_factory=list)

    def well(self, *without: Node) -> list[Node]:
        """Return the nodes that accept clients, but none of those given."""
        return [node for node in self.nodes if node not in without and node.is_well]

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run a command on a node that accepts clients."""
        for node in self.nodes:
            if node.is_well:
                with contextlib.suppress(subprocess.SubprocessError):
                    return node.control(*arguments)
        raise AssertionError(f"no node runs {arguments}")

    def messages(self) -> dict[str, int]:
        """Count the messages of each queue, in any state."""
        lines = self.rabbitmqctl("list_queues", "--no-table-headers", "name", "messages").splitlines()
        return {
            name: int(count or 0)
            for name, count in (line.split("\t") for line in lines)
            if name.startswith(PREDICTIONS.name)
        }

    def leader(self) -> Node:
        """Wait until the queue of predictions has a leader that is well; return it."""

        def leaders() -> list[Node]:
            # `list_queues` may name an earlier leader.
            found = re.search(r"@[\d.]+", self._evaluate(f"element(3, ra:members({{{MEMBER}, node()}}))"))
            return [node for node in self.nodes if found and f"@{node.address}" == found[0] and node.is_well]

        return until(leaders, within_s=60, every_s=0.2)[0]

    def lead(self, node: Node) -> None:
        """Make a node the leader of the queue of predictions."""

        def leads() -> bool:
            leader = self.leader()
            if leader is node:
                return True
            leader.evaluate(f"ra:transfer_leadership({{{MEMBER}, node()}}, {{{MEMBER}, '{node.name}'}})")
            return False

        until(leads, within_s=60, every_s=0.5)

    def is_whole(self) -> bool:
        """Tell whether every node accepts clients, each queue has all its replicas, and they have all messages.

        A replica whose node has just returned is online, but may get no messages for some seconds more. If another
        node fails then, RabbitMQ has no majority that confirms.
        """
        if len(self.well()) < NODES:
            return False
        online = "length(proplists:get_value(online, rabbit_quorum_queue:info(Queue, [online])))"
        fewest = self._evaluate(f"lists:min([{online} || Queue <- rabbit_amqqueue:list()])")
        if fewest != f"{{ok, {NODES}}}":
            return False
        written = self._indexes("Log Index")
        committed = self._indexes("Commit Index")
        return len(written) == len(committed) == NODES and min(committed) >= max(written)

    def _indexes(self, name: str) -> list[int]:
        """Return this index of each replica of the queue of predictions."""
        status = f'rabbit_quorum_queue:status(<<"/">>, <<"{PREDICTIONS.name}">>)'
        return [
            int(found)
            for found in re.findall(
                r"\d+", self._evaluate(f'[proplists:get_value(<<"{name}">>, Replica) || Replica <- {status}]')
            )
        ]

    def node_of(self, process: Process) -> Node:
        """Return the node that a process of the service is connected to; wait for a connection."""
        by_address = {(node.address, node.port): node for node in self.nodes}

        def connections() -> set[tuple[int, Any]]:
            every = psutil.Process(process.pid).net_connections("tcp")
            return {(one.laddr.port, tuple(one.raddr)) for one in every if one.status == psutil.CONN_ESTABLISHED}

        def lasting() -> list[Node]:
            earlier = connections()
            time.sleep(1)  # longer than the connection of a look of /readyz
            return [by_address[remote] for _, remote in earlier & connections() if remote in by_address]

        return until(lasting)[0]

    def _evaluate(self, expression: str) -> str:
        """Return the value of an Erlang expression on a node that accepts clients; empty if there is none."""
        for node in self.nodes:
            if node.is_well:
                with contextlib.suppress(subprocess.SubprocessError):
                    return node.evaluate(expression)
        return ""


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start three nodes of RabbitMQ 3.10, and Redis.

    Args:
        folder: of their logs and files.
    """
    store, store_port = start_redis(folder / "redis", "redis-server")
    epmd_port = free_port()
    nodes = list(itertools.islice(new_nodes(folder, epmd_port), NODES))
    try:
        # The first node forms the cluster, and the others join it.
        for group in (nodes[:1], nodes[1:]):
            for node in group:
                node.process.start()
            for node in group:
                until(lambda node=node: node.is_well, within_s=STARTS_WITHIN_S, every_s=0.2)  # type: ignore[misc]
        uris = ";".join(node.uri for node in nodes)
        yield Cluster("rabbitmq", nodes[0].process, store, uris, f"redis://127.0.0.1:{store_port}/0", nodes=nodes)
    finally:
        for node in nodes:
            if node.process.popen:
                with contextlib.suppress(ProcessLookupError):
                    node.process.signal(signal.SIGCONT)
                node.process.kill()
        until(lambda: epmd_has_ended(epmd_port))
        store.kill()


def new_nodes(folder: Path, epmd_port: int) -> Iterator[Node]:
    """Return the nodes of a cluster, which are not running yet. They share a home, and so Erlang's cookie."""
    network = f"127.{random.randrange(1, 250)}.{random.randrange(1, 250)}"
    addresses = [f"{network}.{number}" for number in range(1, NODES + 1)]
    ports = [free_port() for _ in addresses]
    names = [f"churn-{port}@{address}" for port, address in zip(ports, addresses, strict=True)]
    configuration = folder / "rabbitmq.conf"
    members = [f"cluster_formation.classic_config.nodes.{number} = {name}" for number, name in enumerate(names, 1)]
    configuration.write_text("\n".join([*SETTINGS, *members]) + "\n")
    advanced = folder / "advanced.config"
    advanced.write_text(ADVANCED_SETTINGS)
    for name, address, port in zip(names, addresses, ports, strict=True):
        home = folder / address
        home.mkdir()
        tuple_ = f"{{{address.replace('.', ',')}}}"
        env: dict[str, Any] = {
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODE_IP_ADDRESS": address,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(advanced),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "ERL_EPMD_PORT": str(epmd_port),
            # As in servers.py. The node also sends from its own address, so that the packet filter knows it.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none"
            f" -kernel inet_dist_use_interface {tuple_} inet_dist_connect_options [{{ip,{tuple_}}}]",
            "HOME": str(folder),
        }
        server = Process([str(rabbitmq_program("rabbitmq-server"))], home / "server.log", env, cwd=home)
        yield Node(address, port, server)


# docs/operations.md recommends these settings of RabbitMQ.
SETTINGS = [
    "cluster_partition_handling = pause_minority",
    "cluster_formation.peer_discovery_backend = classic_config",
    "net_ticktime = 10",
]
ADVANCED_SETTINGS = "[{aten, [{poll_interval, 1000}]}].\n"
