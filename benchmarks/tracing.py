"""The cost of traces, by the share of requests that are traced: `python -m benchmarks.tracing`.

A service on servers of its own runs for each case; one of them at a time is loaded, in turn. A figure is the median of
the rounds. At the end each service is stopped once. The collector answers at once and keeps nothing; it shares the
cores. The hanging one accepts a connection, and never answers.
"""

import argparse
import contextlib
import socket
import tempfile
import time
from pathlib import Path

from benchmarks import stand
from tests.harness.processes import Process
from tests.harness.stub import running_stub

OFF = "off"


def environments(collector: str, hanging: str) -> dict[str, dict[str, str]]:
    """Return the variables of each case, given the addresses of the two collectors."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    share = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    return {
        OFF: {},
        "1 %": {**endpoint, **share},
        "all": endpoint,
        "all, hanging collector": {"OTEL_EXPORTER_OTLP_ENDPOINT": hanging},
    }


def stop_s(process: Process) -> float:
    """Stop a process, and return the seconds that it took."""
    started = time.monotonic()
    process.stop()
    return time.monotonic() - started


def main() -> None:
    """Print a row for each case and number of clients; the ratios are to the service without traces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, default="valkey")
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each load")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = stack.enter_context(running_stub())
        collector.status, collector.body = 200, ""
        hanging = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        cases = environments(collector.url, f"http://127.0.0.1:{hanging.getsockname()[1]}")
        subjects, services = [], []
        for number, (name, env) in enumerate(cases.items()):
            service = stack.enter_context(stand.service_on(options.servers, folder / str(number), **env))
            services.append(service)
            subjects.append(stand.Subject(name, service.url, stand.processes_of(service), can_freeze=False))
        for subject in subjects:  # the first predictions of a service take longer
            stand.run_load(subject, 32, "--requests", "1000")
        medians = stand.measure_alternating(subjects, options.clients, options.rounds, options.seconds)
        stops = [(stop_s(service.api), stop_s(service.worker)) for service in services]
    print(f"{stand.describe_machine()}, shared with the clients; {stand.SERVERS[options.servers]}\n")
    print("| clients | traces | predictions/s | ratio | p99 ms | ratio | CPU ms of the API | of the worker |")
    print("|---|---|---|---|---|---|---|---|")
    for figures in medians:
        base = next(one for one in medians if (one.subject, one.clients) == (OFF, figures.clients))
        rates = f"{figures.predictions_per_s:,.0f} | {figures.predictions_per_s / base.predictions_per_s:.2f}"
        times = f"{figures.p99_ms:.1f} | {figures.p99_ms / base.p99_ms:.2f}"
        costs = f"{figures.cpu_ms['API']:.3f} | {figures.cpu_ms['worker']:.3f}"
        print(f"| {figures.clients} | {figures.subject} | {rates} | {times} | {costs} |")
    print("\n| traces | stop of the API, s | of the worker |\n|---|---|---|")
    for name, (api, worker) in zip(cases, stops, strict=True):
        print(f"| {name} | {api:.1f} | {worker:.1f} |")


if __name__ == "__main__":
    main()
