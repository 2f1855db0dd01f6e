"""The cost of scrapes for clients: `python -m benchmarks.scrapes`.

Rounds of the same load alternate: without scrapes, and with scrapes of both processes at each period. A ratio is the
median of the ratios of the rounds.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests

from benchmarks import stand
from tests.harness.metrics import scrape
from tests.harness.processes import free_port

Times = dict[str, list[float]]
"""The milliseconds of each scrape, by process."""


@contextlib.contextmanager
def scraped(ports: Mapping[str, int], period_s: float, times_ms: Times) -> Iterator[None]:
    """Scrape the processes at each period, and record the times; without a period do nothing."""
    if not period_s:
        yield
        return
    ended = threading.Event()

    def scrape_all() -> None:
        due = time.monotonic()
        while not ended.wait(max(0.0, due - time.monotonic())):
            due += period_s
            for process, port in ports.items():
                started = time.perf_counter()
                requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).raise_for_status()
                times_ms[process].append(1000 * (time.perf_counter() - started))

    thread = threading.Thread(target=scrape_all)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def report(rounds: list[dict[float, stand.Figures]], times_ms: Mapping[float, Times]) -> Iterator[str]:
    """Yield the lines of a table of ratios, and of a table of the times of scrapes."""
    yield "| scrapes | predictions/s | p50 ms | p99 ms | CPU ms of the API |"
    yield "|---|---|---|---|---|"
    for period_s in rounds[0]:
        cells = [f"each {period_s:g} s" if period_s else "none"]
        for name in ("predictions_per_s", "p50_ms", "p99_ms", "cpu_ms"):
            values = [{key: figure(one, name) for key, one in variants.items()} for variants in rounds]
            middle = statistics.median(one[period_s] for one in values)
            ratio = statistics.median(one[period_s] / one[0.0] for one in values)
            cells.append(f"{middle:,.2f}" + (f", ratio {ratio:.3f}" if period_s else ""))
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield "| scrape of | each | number | p50 ms | max ms |"
    yield "|---|---|---|---|---|"
    for period_s, times in times_ms.items():
        for process, values_ms in times.items():
            middle, most = statistics.median(values_ms), max(values_ms)
            yield f"| {process} | {period_s:g} s | {len(values_ms)} | {middle:.1f} | {most:.1f} |"


def figure(figures: stand.Figures, name: str) -> float:
    """Return a figure by the name of its attribute; of the CPU time, that of the API."""
    return figures.cpu_ms["API"] if name == "cpu_ms" else float(getattr(figures, name))


def main() -> None:
    """Measure, and print both tables and the number of series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, default="rabbitmq", help="the servers to start")
    parser.add_argument("--clients", type=int, default=32, help="clients that send `Prefer: wait`")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4, help="of each load")
    parser.add_argument("--periods", type=float, nargs="+", default=[1, 0.1], help="seconds between two scrapes")
    options = parser.parse_args()
    port = free_port()
    ports = {"API": port, "worker": port + 1}
    variants = (0.0, *options.periods)
    times_ms: dict[float, Times] = {period_s: {process: [] for process in ports} for period_s in options.periods}
    rounds: list[dict[float, stand.Figures]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        stand.service_on(options.servers, Path(folder, "service"), METRICS_PORT=str(port)) as service,
    ):
        subject = stand.service_subjects(service)[0]
        stand.run_load(subject, options.clients, "--requests", "1000")  # the first predictions take longer
        for number in range(options.rounds):
            measured = {}
            for period_s in variants[:: -1 if number % 2 else 1]:
                with scraped(ports, period_s, times_ms.get(period_s, {})):
                    measured[period_s] = stand.measure(subject, options.clients, "--seconds", str(options.seconds))
            rounds.append(measured)
        series = {process: len(scrape(number).series) for process, number in ports.items()}
    print(
        f"{stand.describe_machine()}, shared with the clients and the scraper; {stand.SERVERS[options.servers]}; ",
        end="",
    )
    print(f"{options.clients} clients that wait; {options.rounds} rounds of {options.seconds:g} s\n")
    print(*report(rounds, times_ms), sep="\n")
    print("\nseries: " + ", ".join(f"{process} {count}" for process, count in series.items()))


if __name__ == "__main__":
    main()
