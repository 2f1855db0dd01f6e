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
from tests.processes import Service, until


def score(running: Service, rows: list[dict[str, object]]) -> None:
    """Send a batch, and return when it is done."""
    accepted = requests.post(f"{running.url}/churn/batches", json=rows, timeout=30)
    until(lambda: requests.get(running.url + accepted.headers["Location"], timeout=5).json()["status"] == "Success")


def measured(servers: str, folder: Path, processes: int, *, warm_up: bool) -> tuple[float, float]:
    """Return the worker's memory in MB once every process has predicted, and the seconds that its first answer took."""
    settings = {"WORKER_CONCURRENCY": str(processes), "WARM_UP": str(warm_up).lower(), "BATCH_CHUNK_ROWS": "10"}
    with stand.service(servers, folder, **settings) as running:
        started = time.perf_counter()
        headers = {"Prefer": "wait=20"}
        requests.post(f"{running.url}/churn/predict", json=CUSTOMER, headers=headers, timeout=30).raise_for_status()
        first_s = time.perf_counter() - started
        while True:
            # A batch is many messages at once, so that no process goes without.
            score(running, [CUSTOMER] * 1_000)
            if warm_up or running.worker.text().count("model loaded") == processes:
                return stand.pss_mb(running.worker), first_s


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
