"""Throughput and cost by number of clients, API processes and pool processes: `python -m benchmarks.scale`.

All processes share the machine's cores, so the cores limit the throughput. The CPU milliseconds for each prediction
show which process would need more cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import stand

_COLUMNS = ("API processes", "pool processes", "clients", "predictions/s", "p50", "p99", "CPU ms a prediction")


def measure(servers: str, api_processes: int, pool_processes: int, clients: list[int], seconds: float) -> None:
    """Print a row for each number of clients."""
    settings = {"WORKER_CONCURRENCY": str(pool_processes), "WEB_CONCURRENCY": str(api_processes)}
    with (
        tempfile.TemporaryDirectory() as folder,
        stand.service_on(servers, Path(folder) / "service", **settings) as running,
    ):
        subject, _ = stand.service_subjects(running)
        for count in clients:
            one = stand.measure(subject, count, "--seconds", str(seconds))
            times = f"{one.p50_ms:.1f} ms", f"{one.p99_ms:.1f} ms"
            cells = api_processes, pool_processes, count, f"{one.predictions_per_s:,.0f}", *times, one.cpu_text
            print("|", *(f"{cell} |" for cell in cells), flush=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--pool-processes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    options = parser.parse_args()
    servers = stand.choose_servers(options.servers)
    print(f"{stand.describe_machine()}, shared with the clients; {stand.SERVERS[servers]}", file=sys.stderr)
    print("|", " | ".join(_COLUMNS), "|\n|" + "---|" * len(_COLUMNS))
    for processes in options.pool_processes:
        measure(servers, 1, processes, options.clients if processes == 1 else [128], options.seconds)
    measure(servers, 2, 2, [128], options.seconds)


if __name__ == "__main__":
    main()
