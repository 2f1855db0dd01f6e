"""The test stand: starts the subjects of a measurement on spare ports, loads them, and reads their CPU time and memory.

Clients, subjects and servers share the machine's cores. So compare a figure only with figures of the same run.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.harness.processes import ROOT, Process, free_port, until
from tests.harness.servers import missing_programs, running_servers
from tests.harness.service import Service, running_service

SERVERS = {"rabbitmq": "RabbitMQ + Redis", "valkey": "embedded Valkey"}
"""The servers that a measurement can start, with their names for a reader."""

QUIET = {"UVICORN_ACCESS_LOG": "false"}
"""The environment of each subject that is a uvicorn server: no access log."""


@dataclass
class Subject:
    """One service to measure.

    Attributes:
        name: for the report.
        url: its address.
        processes: its processes by part (`API`, `worker`, `broker`, `store`).
        client_options: options of the load generator.
        can_freeze: whether it may be frozen while another subject is measured. A frozen broker connection is closed.
    """

    name: str
    url: str
    processes: Mapping[str, Process]
    client_options: Sequence[str] = ("--wait",)
    can_freeze: bool = True


@dataclass
class Figures:
    """The figures of one subject under one number of clients.

    Attributes:
        subject: its name.
        clients: number of clients.
        predictions_per_s: finished predictions per second.
        p50_ms: median time from the POST to the probability.
        p99_ms: its 99th percentile.
        cpu_ms: CPU milliseconds for each prediction, by part; `client` is the load generator.
        pss_mb: proportional set size in MB after the load, by part.
    """

    subject: str
    clients: int
    predictions_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]
    pss_mb: dict[str, float] = field(default_factory=dict)

    @property
    def total_cpu_ms(self) -> float:
        """CPU milliseconds for each prediction of all parts, without the client."""
        return sum(cost for part, cost in self.cpu_ms.items() if part != "client")

    @property
    def cpu_text(self) -> str:
        """CPU milliseconds for each prediction, in total and by part."""
        return f"{self.total_cpu_ms:.2f} ({', '.join(f'{part} {cost:.2f}' for part, cost in self.cpu_ms.items())})"


def process_tree(process: Process) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def cpu_s(process: Process) -> float:
    """Return the CPU seconds of a process and its descendants."""
    used = 0.0
    for one in process_tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            used += times.user + times.system
    return used


def pss_mb(process: Process) -> float:
    """Return the proportional set size of a process and its descendants in MB; shared memory counts once."""
    used = 0
    for one in process_tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += one.memory_full_info().pss
    return used / 1e6


def load_command(subject: Subject, clients: int, *length: str) -> list[str]:
    """Return the command that loads a subject and prints its report as JSON."""
    options = ["--url", subject.url, "--clients", str(clients), "--json", *subject.client_options, *length]
    return [sys.executable, "-m", "benchmarks.load", *options]


def run_load(subject: Subject, clients: int, *length: str) -> dict[str, Any]:
    """Load a subject, and return the report of the load generator.

    Args:
        subject: it is running.
        clients: number of clients.
        length: `--seconds N` or `--requests N`.

    Raises:
        SystemExit: a prediction failed, so the figures would leave predictions out.
    """
    command = load_command(subject, clients, *length)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{subject.name}, {clients} clients:\n{run.stdout}{run.stderr}")
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def measure(subject: Subject, clients: int, *length: str) -> Figures:
    """Load a subject as `run_load` does, and return its figures."""
    before = {part: cpu_s(process) for part, process in subject.processes.items()}
    report = run_load(subject, clients, *length)
    after = {part: cpu_s(process) for part, process in subject.processes.items()}
    count = report["predictions"] + report["warm_up_predictions"]
    return Figures(
        subject.name,
        clients,
        report["predictions_per_s"],
        report["p50_ms"],
        report["p99_ms"],
        {"client": 1000 * report["client_cpu_s"] / count}
        | {part: 1000 * (after[part] - before[part]) / count for part in before},
        {part: pss_mb(process) for part, process in subject.processes.items()},
    )


@contextlib.contextmanager
def others_frozen(subject: Subject, subjects: Sequence[Subject]) -> Iterator[None]:
    """Freeze every other subject that can be frozen."""
    others = [other for other in subjects if other.can_freeze and other.url != subject.url]
    frozen = [part for other in others for process in other.processes.values() for part in process_tree(process)]
    for part in frozen:
        part.suspend()
    try:
        yield
    finally:
        for part in frozen:
            part.resume()


def measure_alternating(
    subjects: Sequence[Subject], clients: Sequence[int], rounds: int, seconds: float
) -> list[Figures]:
    """Measure each subject with each number of clients, alternating in each round; return the medians."""
    measured: dict[tuple[int, str], list[Figures]] = {}
    for number in range(1, rounds + 1):
        for count in clients:
            for subject in subjects:
                with others_frozen(subject, subjects):
                    figures = measure(subject, count, "--seconds", str(seconds))
                measured.setdefault((count, subject.name), []).append(figures)
                log_progress(f"round {number} of {rounds}", figures)
    return list(map(median, measured.values()))


def log_progress(round_label: str, figures: Figures) -> None:
    """Write one measurement to standard error."""
    line = f"{round_label}, {figures.clients} clients: {figures.subject} {figures.predictions_per_s:,.0f}/s"
    print(line, file=sys.stderr, flush=True)


def median(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""

    def of(name: str) -> Any:
        values = [getattr(figures, name) for figures in rounds]
        if isinstance(values[0], dict):
            return {part: statistics.median(value[part] for value in values) for part in values[0]}
        return statistics.median(values)

    names = ("predictions_per_s", "p50_ms", "p99_ms", "cpu_ms", "pss_mb")
    return Figures(rounds[0].subject, rounds[0].clients, *map(of, names))


def choose_servers(wanted: str | None) -> str:
    """Return the wanted servers; by default `rabbitmq` if RabbitMQ and Redis are installed, else `valkey`."""
    if wanted:
        return wanted
    return "valkey" if missing_programs() else "rabbitmq"


@contextlib.contextmanager
def service_on(servers_name: str, folder: Path, **settings: str) -> Iterator[Service]:
    """Run the service on servers of its own.

    Args:
        servers_name: a key of SERVERS.
        folder: a new folder for logs and files of the servers.
        settings: environment variables of the API and the worker.
    """
    folder.mkdir()
    with (
        running_servers(servers_name, folder) as servers,
        running_service(servers, folder, **QUIET, **settings) as running,
    ):
        yield running


def processes_of(running: Service) -> dict[str, Process]:
    """Return the processes of the service and its servers, by part."""
    servers = running.servers
    processes = {"API": running.api, "worker": running.worker, "broker": servers.broker}
    if servers.store is not servers.broker:
        processes["store"] = servers.store
    return processes


def service_subjects(running: Service, name: str = "this service") -> tuple[Subject, Subject]:
    """Return the service as two subjects: with clients that wait (`Prefer: wait`), and with clients that poll."""
    processes = processes_of(running)
    return (
        Subject(f"{name}, waiting", running.url, processes, can_freeze=False),
        Subject(f"{name}, polling", running.url, processes, ("--poll-ms", "10"), can_freeze=False),
    )


@contextlib.contextmanager
def running_peer(
    name: str, folder: Path, program: Sequence[str], *, client_options: Sequence[str] = ("--wait",)
) -> Iterator[Subject]:
    """Start a peer, and wait until it answers.

    Args:
        name: for the report.
        folder: its log is written here.
        program: its command; `{port}` is replaced by a free port.
        client_options: options of the load generator.
    """
    port = free_port()
    log = folder / f"{name.replace(' ', '-')}.log"
    process = Process([part.format(port=port) for part in program], log, {**QUIET, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(url, timeout=5).status_code < HTTPStatus.INTERNAL_SERVER_ERROR
        return False

    process.start()
    try:
        until(answers, within_s=120, every_s=0.2)
        yield Subject(name, url, {"API": process}, client_options)
    finally:
        for one in reversed(process_tree(process)):  # BentoML starts processes in sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()


def describe_machine() -> str:
    """Return the number of cores, the memory and the Python version."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {sys.version.split()[0]}"
