"""Memory and start of the worker by number of pool processes, with and without WARM_UP: `python -m benchmarks.memory`.

With WARM_UP the model is loaded before the pool processes are forked, so that they share it. The figure is the
proportional set size of the worker, in which shared memory counts once.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks import stand
from tests.harness.customers import CUSTOMER
from tests.harness.service import Service

_ROWS = 1_000
_CHUNK_ROWS = 10  # many messages at once, so that each pool process gets one


def predict_batch(running: Service) -> None:
    """Send a batch, and wait until it has ended."""
    response = running.post_batch(json.dumps([CUSTOMER] * _ROWS), "application/json")
    running.batch_ended(running.batch_url(response))


def measure(servers: str, folder: Path, processes: int, *, warm_up: bool) -> tuple[float, float]:
    """Measure a fresh worker.

    Returns:
        The worker's memory in MB after each pool process has predicted, and the seconds from the start of a worker to
        its first prediction.
    """
    settings = {
        "WORKER_CONCURRENCY": str(processes),
        "WARM_UP": str(warm_up).lower(),
        "BATCH_CHUNK_ROWS": str(_CHUNK_ROWS),
    }
    with stand.service_on(servers, folder, **settings) as running:
        predict_batch(running)
        while not warm_up and running.worker.text().count("model loaded") < processes:
            predict_batch(running)
        memory_mb = stand.pss_mb(running.worker)
        running.worker.stop()
        started = time.perf_counter()
        running.worker.start()
        response = running.post(CUSTOMER, Prefer="wait=20")
        response.raise_for_status()
        return memory_mb, time.perf_counter() - started


def main() -> None:
    """Measure 1, 2 and 4 processes, with and without WARM_UP, and print a table for docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    servers = stand.choose_servers(options.servers)
    print("| pool processes | loaded before the fork | loaded in each | start until the first prediction |")
    print("|---|---|---|---|")
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            before, before_s = measure(servers, Path(folder) / "before", processes, warm_up=True)
            each, each_s = measure(servers, Path(folder) / "each", processes, warm_up=False)
        print(f"| {processes} | {before:.0f} MB | {each:.0f} MB | {before_s:.1f} s, {each_s:.1f} s |")


if __name__ == "__main__":
    main()
