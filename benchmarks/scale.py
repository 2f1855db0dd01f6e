"""The cost of a prediction by clients, workers and rows, with pinned processes: `python -m benchmarks.scale`.

Each part has a core of its own in turn: the API, then the workers, then a synchronous app with as many processes. All
other processes share the other cores. So the CPU microseconds for each prediction show how a part grows. Linux only.
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks import stand
from benchmarks.bulk import run_batch
from benchmarks.load import customers
from tests.harness.customers import CUSTOMER
from tests.harness.processes import Process, until

_COLUMNS = (
    "alone on a core",
    "API processes",
    "workers",
    "load",
    "predictions/s",
    "p50, p99",
    "CPU µs a prediction",
    "with its core: predictions/s",
)


def pin(process: Process, cores: Iterable[int]) -> None:
    """Let every thread of a process and its descendants run on these cores only; later threads inherit it."""
    for one in stand.process_tree(process):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            for thread in one.threads():
                os.sched_setaffinity(thread.id, cores)


@contextlib.contextmanager
def pinned(alone: str, processes: Sequence[tuple[str, Process]]) -> Iterator[None]:
    """Give a part the first core, and all other processes and the load generator the other cores."""
    every = os.sched_getaffinity(0)
    first, *others = sorted(every)
    for part, process in processes:
        pin(process, [first] if part == alone else others)
    os.sched_setaffinity(0, others)  # the load generator inherits it
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def table_of(rows: int) -> bytes:
    """Return customers as CSV."""
    drawn = [json.loads(one) for one in itertools.islice(customers(1), rows)]
    lines = [",".join(CUSTOMER), *(",".join(str(one[name]) for name in CUSTOMER) for one in drawn)]
    return "\n".join(lines).encode()


def print_row(alone: str, apis: int, workers: int, load: str, one: stand.Figures) -> None:
    """Print a row of the table."""
    own = 1000 / one.cpu_ms[alone] if one.cpu_ms[alone] else 0
    times = f"{one.p50_ms:.1f}, {one.p99_ms:.1f} ms"
    costs = [f"{part} {1000 * cost:,.0f}" for part, cost in one.cpu_ms.items()]
    cost = f"{1000 * one.total_cpu_ms:,.0f} ({', '.join(costs)})"
    cells = alone, apis, workers or "-", load, f"{one.predictions_per_s:,.0f}", times, cost, f"{own:,.0f}"
    print("|", *(f"{cell} |" for cell in cells), flush=True)


def measure_batches(subject: stand.Subject, rows: int, seconds: float) -> stand.Figures:
    """Send batches of so many rows one after the other; the times are those of a batch."""
    table = table_of(rows)
    run_batch(subject.url, table, "text/csv")
    before = {part: stand.cpu_s(process) for part, process in subject.processes.items()}
    own, began, times = time.process_time(), time.perf_counter(), []
    while time.perf_counter() - began < seconds:
        times.append(run_batch(subject.url, table, "text/csv").results_s)
    elapsed_s, count = time.perf_counter() - began, rows * len(times)
    cpu_ms = {"client": 1000 * (time.process_time() - own) / count} | {
        part: 1000 * (stand.cpu_s(process) - before[part]) / count for part, process in subject.processes.items()
    }
    times.sort()
    return stand.Figures(
        subject.name, 1, count / elapsed_s, 1000 * times[len(times) // 2], 1000 * times[-1 - len(times) // 100], cpu_ms
    )


def sum_by_part(figures: stand.Figures) -> stand.Figures:
    """Return the figures with one cost for each part: `worker 1` and `worker 4` are `worker`."""
    costs: dict[str, float] = {}
    for name, cost_ms in figures.cpu_ms.items():
        part = name.partition(" ")[0]
        costs[part] = costs.get(part, 0) + cost_ms
    return replace(figures, cpu_ms=costs)


def measure_service(  # noqa: PLR0913, PLR0917 - one row of the plan
    servers: str, alone: str, apis: int, workers: int, clients: Sequence[int], rows: Sequence[int], seconds: float
) -> None:
    """Print a row for each number of clients, and for each number of rows in a batch."""
    settings = {"WEB_CONCURRENCY": str(apis), "WORKER_CONCURRENCY": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        stand.service_on(servers, Path(folder) / "service", **settings) as running,
        contextlib.ExitStack() as stack,
    ):
        parts = list(stand.processes_of(running).items())
        for number in range(1, workers):
            worker = Process(running.worker.command, running.folder / f"worker{number}.log", running.worker.env)
            stack.enter_context(worker.running())
            until(lambda log=worker: " ready." in log.text(), within_s=60)  # type: ignore[misc]
            parts.append(("worker", worker))
        subject = stand.Subject(
            "service", running.url, {f"{part} {number}": one for number, (part, one) in enumerate(parts)}
        )
        with pinned(alone, parts):
            for count in clients:
                one = sum_by_part(stand.measure(subject, count, "--seconds", str(seconds)))
                print_row(alone, apis, workers, f"{count} client{'s'[: count - 1]}", one)
            for count in rows:
                one = sum_by_part(measure_batches(subject, count, seconds))
                print_row(alone, apis, workers, f"batches of {count:,} rows", one)


def measure_synchronous(processes: int, clients: Sequence[int], seconds: float) -> None:
    """Print a row for each number of clients of the synchronous app."""
    command = [sys.executable, "-m", "uvicorn", "benchmarks.apps:synchronous", "--port", "{port}"]
    command += ["--workers", str(processes)]
    with (
        tempfile.TemporaryDirectory() as folder,
        stand.running_peer("synchronous", Path(folder), command) as subject,
        pinned("API", list(subject.processes.items())),
    ):
        for count in clients:
            one = stand.measure(subject, count, "--seconds", str(seconds))
            one.cpu_ms["synchronous app"] = one.cpu_ms.pop("API")
            print_row("synchronous app", processes, 0, f"{count} client{'s'[: count - 1]}", one)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--rows", type=int, nargs="*", default=[10, 1_000, 10_000], help="of a batch")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) == 1:
        parser.error("needs two cores")
    servers = stand.choose_servers(options.servers)
    print(f"{stand.describe_machine()}; {stand.SERVERS[servers]}", file=sys.stderr)
    print("|", " | ".join(_COLUMNS), "|\n|" + "---|" * len(_COLUMNS))
    some = sorted(options.clients)[-2:-1] or options.clients
    for alone in ("API", "worker"):
        measure_service(servers, alone, 1, 1, options.clients, options.rows, options.seconds)
    for workers in options.workers:
        if workers > 1:
            measure_service(servers, "worker", 1, workers, some, (), options.seconds)
            measure_service(servers, "API", workers, 1, some, (), options.seconds)
    for processes in options.workers:
        measure_synchronous(processes, options.clients if processes == 1 else some, options.seconds)


if __name__ == "__main__":
    main()
