"""The test stand: what is measured, started on spare ports, and what it costs while clients load it.

Clients, subjects and servers share the cores, so a figure means something only beside another of the same run.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.processes import ROOT, Process, Service, free_port, missing_programs, running_servers, running_service, until

# What a gateway's log says already; the subjects that are uvicorn's read this as `--no-access-log`.
QUIET = {"UVICORN_ACCESS_LOG": "false"}


@dataclass
class Subject:
    """One thing to measure."""

    name: str
    url: str
    parts: Mapping[str, Process]
    """The processes that are counted as its own, by what they are."""
    client: Sequence[str] = ("--wait",)
    """Options of the load generator."""
    is_frozen_meanwhile: bool = True
    """Whether it is stopped while another is measured; not what has connections that must not fall silent."""


@dataclass
class Figures:
    """What one subject did for so many clients; medians over the rounds."""

    subject: str
    clients: int
    predictions_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]
    """CPU milliseconds for each prediction, by process; `client` is the load generator's own."""
    pss_mb: dict[str, float] = field(default_factory=dict)
    """Proportional set size in MB, by process, after the load."""

    @property
    def cpu_ms_in_all(self) -> float:
        """Of the subject's processes, without the client."""
        return sum(cost for part, cost in self.cpu_ms.items() if part != "client")


def tree(process: Process) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def cpu_s(process: Process) -> float:
    """Return the CPU seconds that a process and its children have used."""
    used = 0.0
    for one in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            used += times.user + times.system
    return used


def pss_mb(process: Process) -> float:
    """Return the memory of a process and its children in MB, what they share counted once."""
    used = 0
    for one in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += one.memory_full_info().pss
    return used / 1e6


def command(subject: Subject, clients: int, *length: str) -> list[str]:
    """Return what loads a subject, in a process of its own, and prints what it found as JSON."""
    options = ["--url", subject.url, "--clients", str(clients), "--json", *subject.client, *length]
    return [sys.executable, "-m", "benchmarks.load", *options]


def loaded(subject: Subject, clients: int, *length: str) -> dict[str, Any]:
    """Load a subject, and return the load generator's report.

    Args:
        subject: what is loaded; it is running.
        clients: how many send at the same time.
        length: `--seconds N` or `--requests N`.

    Raises:
        SystemExit: there was an error; a figure that leaves some predictions out is none.
    """
    run = subprocess.run(command(subject, clients, *length), cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{subject.name}, {clients} clients:\n{run.stdout}{run.stderr}")
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def load(subject: Subject, clients: int, *length: str) -> Figures:
    """Load a subject as `loaded` does, and return what that brought and cost."""
    before = {part: cpu_s(process) for part, process in subject.parts.items()}
    report = loaded(subject, clients, *length)
    after = {part: cpu_s(process) for part, process in subject.parts.items()}
    count = report["predictions"] + report["warm_up_predictions"]
    return Figures(
        subject.name,
        clients,
        report["predictions_per_s"],
        report["p50_ms"],
        report["p99_ms"],
        {"client": 1000 * report["client_cpu_s"] / count}
        | {part: 1000 * (after[part] - before[part]) / count for part in before},
        {part: pss_mb(process) for part, process in subject.parts.items()},
    )


@contextlib.contextmanager
def only(subject: Subject, subjects: Sequence[Subject]) -> Iterator[None]:
    """Freeze all others that can be frozen."""
    others = [one for one in subjects if one.is_frozen_meanwhile and one.url != subject.url]
    frozen = [part for other in others for process in other.parts.values() for part in tree(process)]
    for part in frozen:
        part.suspend()
    try:
        yield
    finally:
        for part in frozen:
            part.resume()


def in_turns(subjects: Sequence[Subject], clients: Sequence[int], rounds: int, seconds: float) -> list[Figures]:
    """Measure every subject with every number of clients, alternating, and return the medians."""
    seen: dict[tuple[int, str], list[Figures]] = {}
    for number in range(1, rounds + 1):
        for count in clients:
            for subject in subjects:
                with only(subject, subjects):
                    figures = load(subject, count, "--seconds", str(seconds))
                seen.setdefault((count, subject.name), []).append(figures)
                note = f"round {number} of {rounds}, {count} clients: {subject.name} {figures.predictions_per_s:,.0f}/s"
                print(note, file=sys.stderr, flush=True)
    return [median(rounds) for rounds in seen.values()]


def median(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""

    def middle(name: str) -> Any:
        values = [getattr(figures, name) for figures in rounds]
        if isinstance(values[0], dict):
            return {part: statistics.median(value[part] for value in values) for part in values[0]}
        return statistics.median(values)

    figures = ("predictions_per_s", "p50_ms", "p99_ms", "cpu_ms", "pss_mb")
    return Figures(rounds[0].subject, rounds[0].clients, *map(middle, figures))


def choose_servers(wanted: str | None) -> str:
    """Return `rabbitmq` if its programs and Redis's are installed, else `valkey`, unless one is wanted."""
    if wanted:
        return wanted
    return "valkey" if missing_programs() else "rabbitmq"


SERVERS = {"rabbitmq": "RabbitMQ + Redis", "valkey": "embedded Valkey"}


@contextlib.contextmanager
def service(name: str, folder: Path, **settings: str) -> Iterator[Service]:
    """Start the service on servers of its own."""
    folder.mkdir()
    with (
        running_servers(name, folder) as servers,
        running_service(servers, folder, **QUIET, **settings) as running,
    ):
        yield running


def subjects_of(running: Service) -> list[Subject]:
    """Return the service as what its clients make of it: one that waits, and one that polls."""
    servers = running.servers
    parts = {"API": running.api, "worker": running.worker, "broker": servers.broker}
    if servers.store is not servers.broker:
        parts["store"] = servers.store
    return [
        Subject("this service, waiting", running.url, parts, is_frozen_meanwhile=False),
        Subject("this service, polling", running.url, parts, ("--poll-ms", "10"), is_frozen_meanwhile=False),
    ]


@contextlib.contextmanager
def peer(name: str, folder: Path, program: Sequence[str], *, client: Sequence[str] = ("--wait",)) -> Iterator[Subject]:
    """Start a peer that listens on the port that `{port}` in its command stands for."""
    port = free_port()
    log = folder / f"{name.replace(' ', '-')}.log"
    process = Process([part.format(port=port) for part in program], log, {**QUIET, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"

    def listens() -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(url, timeout=5).status_code < 500  # noqa: PLR2004 - HTTP's
        return False

    process.start()
    try:
        until(listens, within_s=120, every_s=0.2)
        yield Subject(name, url, {"API": process}, client)
    finally:
        for one in reversed(tree(process)):  # BentoML's are in sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()


def machine() -> str:
    """Return what a reader of figures must know of the machine."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {sys.version.split()[0]}"
