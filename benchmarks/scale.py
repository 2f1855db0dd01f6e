"""How throughput and cost grow: `python -m benchmarks.scale`, with clients, and with processes that predict and answer.

Where all share two cores the cores end it, and CPU milliseconds for each prediction, by process, show which of them
would need more.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import stand

_COLUMNS = ("API processes", "worker processes", "clients", "predictions/s", "p50", "p99", "CPU ms a prediction")


def measure(servers: str, api_processes: int, worker_processes: int, clients: list[int], seconds: float) -> None:
    """Print a row for each number of clients."""
    settings = {"WORKER_CONCURRENCY": str(worker_processes), "WEB_CONCURRENCY": str(api_processes)}
    with tempfile.TemporaryDirectory() as folder, stand.service(servers, Path(folder) / "own", **settings) as running:
        subject = stand.subjects_of(running)[0]
        for count in clients:
            one = stand.load(subject, count, "--seconds", str(seconds))
            cost = ", ".join(f"{part} {cost:.2f}" for part, cost in one.cpu_ms.items())
            times = f"{one.p50_ms:.1f} ms", f"{one.p99_ms:.1f} ms"
            cells = api_processes, worker_processes, count, f"{one.predictions_per_s:,.0f}", *times
            print("|", *(f"{cell} |" for cell in cells), f"{one.cpu_ms_in_all:.2f} ({cost}) |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--worker-processes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    options = parser.parse_args()
    servers = stand.choose_servers(options.servers)
    print(f"{stand.machine()}, shared with the clients; {stand.SERVERS[servers]}", file=sys.stderr)
    print("|", " | ".join(_COLUMNS), "|\n|" + "---|" * len(_COLUMNS))
    for processes in options.worker_processes:
        measure(servers, 1, processes, options.clients if processes == 1 else [128], options.seconds)
    measure(servers, 2, 2, [128], options.seconds)


if __name__ == "__main__":
    main()
