"""The measurements of `python -m benchmarks.capacity`: loads, servers that are driven directly, batches, a start."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from benchmarks import stand
from benchmarks.bulk import run_batch
from benchmarks.capacity_drive import SUBSCRIBERS
from benchmarks.capacity_model import Cost, fit
from benchmarks.load import WARM_UP_S, customers
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import PredictionStore
from tests.harness.cluster import running_cluster
from tests.harness.customers import CUSTOMER
from tests.harness.processes import ROOT, Process, until
from tests.harness.servers import Servers, running_servers
from tests.harness.service import Service, running_api

SIZES = (1, 16, 256)  # customers in a message
DRIVERS = 2
BATCH_ROWS = 20_000
_TICK_S = 0.01  # the resolution of CPU times
_FINISHED = " message outcome=predicted "  # in the log line of a finished message


@dataclass
class Load:
    """One measured load.

    Attributes:
        apis: API processes.
        workers: workers with one pool process each.
        clients: clients that wait.
        predictions_per_s: finished predictions per second.
        p50_ms: median time of a prediction for its client.
        p99_ms: its 99th percentile.
        message_customers: mean number of customers in a message.
        cpu_ms: CPU milliseconds for each prediction, by name of capacity_model.PARTS.
    """

    apis: int
    workers: int
    clients: int
    predictions_per_s: float
    p50_ms: float
    p99_ms: float
    message_customers: float
    cpu_ms: dict[str, float]


@dataclass
class Limit:
    """A server that was driven directly, with messages of one size.

    Attributes:
        server: `store`, `broker`, or the `leader` and `both followers` of a cluster of three nodes.
        customers: in each message.
        messages_per_s: that the drivers sent.
        cpu_ms: CPU milliseconds of the server for each message.
        cores: that the server used.
    """

    server: str
    customers: int
    messages_per_s: float
    cpu_ms: float
    cores: float


def cpu_by_part(running: Service, workers: Sequence[Process]) -> dict[str, float]:
    """Return the CPU seconds of each part without the client. The main thread of an API process is its event loop."""
    used = dict.fromkeys(("loop", "publisher", "consumer", "pool"), 0.0)
    for process in stand.process_tree(running.api):
        with contextlib.suppress(psutil.NoSuchProcess):
            for thread in process.threads():
                part = "loop" if thread.id == process.pid else "publisher"
                used[part] += thread.user_time + thread.system_time
    for worker in workers:
        for process in stand.process_tree(worker):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used["consumer" if process.pid == worker.pid else "pool"] += times.user + times.system
    servers = {part: process for part, process in stand.processes_of(running).items() if part in ("broker", "store")}
    return used | {"store": 0.0} | {part: stand.cpu_s(process) for part, process in servers.items()}


def count_messages(workers: Sequence[Process]) -> int:
    """Return the number of messages that the workers have finished."""
    return sum(worker.text().count(_FINISHED) for worker in workers)


def measure_load(running: Service, workers: Sequence[Process], apis: int, clients: int, seconds: float) -> Load:
    """Load a service with clients that wait."""
    subject, _ = stand.service_subjects(running)
    before, messages = cpu_by_part(running, workers), count_messages(workers)
    report = stand.run_load(subject, clients, "--seconds", str(seconds))
    after = cpu_by_part(running, workers)
    messages = count_messages(workers) - messages
    count = report["predictions"] + report["warm_up_predictions"]
    cpu_ms = {part: 1000 * (after[part] - before[part]) / count for part in before}
    return Load(
        apis,
        len(workers),
        clients,
        report["predictions_per_s"],
        report["p50_ms"],
        report["p99_ms"],
        count / messages,
        {"client": 1000 * report["client_cpu_s"] / count} | cpu_ms,
    )


@contextlib.contextmanager
def running_stack(servers_name: str, apis: int, workers: int) -> Iterator[tuple[Service, list[Process]]]:
    """Start a stack with API processes, and workers with one pool process each."""
    settings = {"WEB_CONCURRENCY": str(apis), "WORKER_CONCURRENCY": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        stand.service_on(servers_name, Path(folder) / "stack", **settings) as running,
        contextlib.ExitStack() as stack,
    ):
        every = [running.worker]
        for number in range(1, workers):
            worker = Process(running.worker.command, running.folder / f"worker{number}.log", running.worker.env)
            stack.enter_context(worker.running())
            every.append(worker)
        until(lambda: all(" ready." in worker.text() for worker in every), within_s=60)
        yield running, every


def measure_loads(
    servers_name: str, stacks: Sequence[tuple[int, int]], clients: Sequence[int], rounds: int, seconds: float
) -> list[Load]:
    """Measure each stack, as (API processes, workers), with each number of clients.

    Returns:
        Of each load the round with the most predictions a second: other programs disturbed it least.
    """
    measured: dict[tuple[int, int, int], list[Load]] = {}
    for number in range(1, rounds + 1):
        for apis, workers in stacks:
            with running_stack(servers_name, apis, workers) as (running, every):
                for count in clients:
                    load = measure_load(running, every, apis, count, seconds)
                    measured.setdefault((apis, workers, count), []).append(load)
                    line = f"round {number} of {rounds}: {apis} API, {workers} workers, {count} clients measured"
                    print(line, file=sys.stderr, flush=True)
    return [max(loads, key=lambda one: one.predictions_per_s) for loads in measured.values()]


def measure_foreign(servers_name: str, few: int, many: int, seconds: float) -> Cost:
    """Return the CPU of an API process with a waiter, for messages of another API process.

    Args:
        servers_name: a key of `stand.SERVERS`.
        few: clients of the other process in the first load.
        many: clients in the second load.
        seconds: of each load.
    """
    points = []
    with (
        running_stack(servers_name, 1, 1) as (running, every),
        tempfile.TemporaryDirectory() as folder,
        running_api(running.servers, Path(folder), **stand.QUIET) as idle,
    ):
        for clients in (few, many):
            with waiting(idle):
                unloaded_s = stand.cpu_s(idle.api)
                time.sleep(1)
                before = stand.cpu_s(idle.api)
                unloaded_s, began = before - unloaded_s, time.perf_counter()
                load = measure_load(running, every, 1, clients, seconds)
                unloaded_s *= time.perf_counter() - began
                used_ms = 1000 * max(0.0, stand.cpu_s(idle.api) - before - unloaded_s)
            points.append((load.message_customers, used_ms / (load.predictions_per_s * (seconds + WARM_UP_S))))
    return fit(*points)


@contextlib.contextmanager
def waiting(service: Service) -> Iterator[None]:
    """Let a request wait for an id that no worker predicts."""
    task_id = str(uuid4())
    with closing(PredictionStore(connect(service.servers.backend_uri), result_ttl_s=600)) as store:
        store.mark_queued({task_id: 600})
    waiter = threading.Thread(target=service.result, args=(task_id,), kwargs={"Prefer": "wait=25"})
    waiter.start()
    yield
    service.delete(task_id)
    waiter.join()


def measure_limits(servers_name: str, seconds: float) -> tuple[list[Limit], float]:
    """Drive a broker and a result store directly, and with RabbitMQ a cluster of three nodes too.

    Returns:
        The limits, and the CPU milliseconds of the result store for each further API process and message.
    """
    limits = []
    with tempfile.TemporaryDirectory() as folder, running_servers(servers_name, Path(folder)) as servers:
        for size in SIZES:
            limits += drive(servers, "store", size, seconds, {"store": [servers.store]})
            limits += drive(servers, "publish", size, seconds, {"broker": [servers.broker]})
        with running_driver(servers, "subscribe", 1, 600):
            time.sleep(1)
            (with_subscribers,) = drive(servers, "store", SIZES[1], seconds, {"store": [servers.store]})
    alone = next(one for one in limits if (one.server, one.customers) == ("store", SIZES[1]))
    if servers_name == "rabbitmq":
        with tempfile.TemporaryDirectory() as folder, running_cluster(Path(folder)) as cluster:
            drive(cluster, "publish", 1, 1, {})  # declares the queue
            leader = cluster.leader().process
            parts = {
                "leader": [leader],
                "both followers": [one.process for one in cluster.nodes if one.process != leader],
            }
            for size in (SIZES[0], SIZES[-1]):
                limits += drive(cluster, "publish", size, seconds, parts)
    return limits, max(0.0, (with_subscribers.cpu_ms - alone.cpu_ms) / SUBSCRIBERS)


def drive(
    servers: Servers, kind: str, size: int, seconds: float, parts: Mapping[str, Sequence[Process]]
) -> list[Limit]:
    """Drive a server with several processes, and return the cost of a message for each part of it."""

    def used_s() -> dict[str, float]:
        return {name: sum(map(stand.cpu_s, processes)) for name, processes in parts.items()}

    with contextlib.ExitStack() as stack:
        if kind == "publish":
            for _ in range(DRIVERS):
                stack.enter_context(running_driver(servers, "consume", size, 600))
        drivers = [stack.enter_context(running_driver(servers, kind, size, seconds)) for _ in range(DRIVERS)]
        for driver in drivers:  # each says when it begins
            assert driver.stdout is not None
            driver.stdout.readline()
        before, began = used_s(), time.perf_counter()
        messages = sum(int(driver.communicate()[0]) for driver in drivers)
        after, elapsed_s = used_s(), time.perf_counter() - began
    used = {name: max(_TICK_S, after[name] - cpu_s) for name, cpu_s in before.items()}
    return [
        Limit(name, size, messages / elapsed_s, 1000 * cpu_s / messages, cpu_s / elapsed_s)
        for name, cpu_s in used.items()
    ]


@contextlib.contextmanager
def running_driver(servers: Servers, kind: str, size: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Start a process that drives a server; end it if it still runs."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.capacity_drive",
        kind,
        "--size",
        str(size),
        "--seconds",
        str(seconds),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | servers.env, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        if process.poll() is None:
            process.kill()


def measure_batches(servers_name: str, rows: int) -> dict[str, float]:
    """Return the CPU milliseconds for each row of a batch, by part."""
    names = list(CUSTOMER)
    table = "\n".join(
        [",".join(names)]
        + [",".join(str(json.loads(one)[name]) for name in names) for one in itertools.islice(customers(1), rows)]
    )
    with running_stack(servers_name, 1, 1) as (running, every):
        run_batch(running.url, table.encode(), "text/csv")  # loads the model and the code
        before = cpu_by_part(running, every)
        run_batch(running.url, table.encode(), "text/csv")
        after = cpu_by_part(running, every)
    return {part: 1000 * (after[part] - before[part]) / rows for part in before}


def measure_start(servers_name: str) -> float:
    """Return the seconds from the start of a worker until a prediction that waits for it has ended."""
    with running_stack(servers_name, 1, 1) as (running, (worker,)):
        worker.stop()
        began = time.perf_counter()
        worker.start()
        running.post(CUSTOMER, Prefer="wait=20").raise_for_status()
        return time.perf_counter() - began
