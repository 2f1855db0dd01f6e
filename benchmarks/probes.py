"""The cost of health probes for predictions: `python -m benchmarks.probes`.

60 clients ask `/readyz`, each as soon as it has its answer, at no more than 600 requests a second in all, because they
share the cores with the service. Loads with and without them alternate; a ratio is the median of the rounds.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import stand
from tests.harness.servers import running_servers
from tests.harness.service import running_service

PROBES = 60
PROBES_PER_S = 600
CLIENTS = 8
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def probe(port: int) -> None:
    """Ask again and again on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
        await asyncio.sleep(PROBES / PROBES_PER_S)


def flood(port: int) -> None:
    """Run all probing clients in this process."""

    async def run() -> None:
        await asyncio.gather(*(probe(port) for _ in range(PROBES)))

    asyncio.run(run())


@contextlib.contextmanager
def flooded(url: str) -> Iterator[None]:
    """Probe a service until the block ends."""
    port = urlsplit(url).port
    process = multiprocessing.get_context("spawn").Process(target=flood, args=(port,))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Print the percentiles with and without probes, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, default="valkey")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each load")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_servers(options.servers, Path(folder)) as servers,
        running_service(servers, Path(folder), **stand.QUIET) as service,
    ):
        subject = stand.service_subjects(service, "waiting")[0]
        stand.run_load(subject, CLIENTS, "--requests", "500")
        rounds = []
        for _ in range(options.rounds):
            quiet = stand.measure(subject, CLIENTS, "--seconds", str(options.seconds))
            with flooded(service.url):
                loud = stand.measure(subject, CLIENTS, "--seconds", str(options.seconds))
            rounds.append((quiet, loud))
            print(f"p50 {quiet.p50_ms:.1f} and {loud.p50_ms:.1f} ms, p99 {quiet.p99_ms:.1f} and {loud.p99_ms:.1f} ms")
        for name in ("p50_ms", "p99_ms"):
            ratio = statistics.median(getattr(loud, name) / getattr(quiet, name) for quiet, loud in rounds)
            print(f"{name}: {ratio:.2f} times with probes, median of the rounds")


if __name__ == "__main__":
    main()
