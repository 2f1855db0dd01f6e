"""What more processes on one host cost: the model loaded before they are forked (WARM_UP), and in each of them.

`python -m benchmarks.memory` starts the service for each case and prints the proportional set size of its worker:
memory that processes share counts once.
"""

import argparse
import tempfile
import time
from pathlib import Path

import requests

from benchmarks import stand
from test_client import CUSTOMER


def measured(servers: str, folder: Path, processes: int, *, warm_up: bool) -> tuple[float, float]:
    """Return the worker's memory in MB once every process has predicted, and the seconds that its first answer took."""
    settings = {"WORKER_CONCURRENCY": str(processes), "WARM_UP": str(warm_up).lower()}
    with stand.service(servers, folder, **settings) as running:
        started = time.perf_counter()
        headers = {"Prefer": "wait=20"}
        requests.post(f"{running.url}/churn/predict", json=CUSTOMER, headers=headers, timeout=30).raise_for_status()
        first_s = time.perf_counter() - started
        subject = stand.subjects_of(running)[0]
        # Many messages, so that every process gets its share: each of them is predicted by one.
        figures = stand.load(subject, 8 * processes, "--requests", "4000")
        return figures.pss_mb["worker"], first_s


def main() -> None:
    """Measure 1, 2 and 4 processes, both ways, and print a table for the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    servers = stand.choose_servers(options.servers)
    print("| processes | loaded before the fork | loaded in each | first answer of a fresh worker |\n|---|---|---|---|")
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            before, before_s = measured(servers, Path(folder) / "before", processes, warm_up=True)
            each, each_s = measured(servers, Path(folder) / "each", processes, warm_up=False)
        print(f"| {processes} | {before:.0f} MB | {each:.0f} MB | {before_s * 1000:.0f} ms, {each_s * 1000:.0f} ms |")


if __name__ == "__main__":
    main()
