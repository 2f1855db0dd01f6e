"""Another checkout of the service and this one, measured alternating in one run: `python -m benchmarks.versions`.

Each service runs from its own folder, on servers of its own. Only one of them is loaded at a time, by the load
generator of this checkout; the other one is idle. A ratio is the median of the ratios of the rounds.
"""

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import stand
from benchmarks.bulk import run_batch
from tests.harness.processes import ROOT, free_port
from tests.harness.servers import running_servers
from tests.harness.service import Service

LOADS = ((1, "waiting"), (32, "waiting"), (128, "waiting"), (32, "polling"))
IMPORT_ROUNDS = 10
BASE, THIS = "base", "this"

Figures = dict[str, float]
"""The figures of one version by name, such as `predictions/s`."""


def python_of(checkout: Path) -> str:
    """Return the interpreter of a checkout: that of its .venv, or the current one."""
    python = checkout / ".venv" / "bin" / "python"
    return str(python) if python.exists() else sys.executable


def commit_of(checkout: Path) -> str:
    """Return the abbreviated commit of a checkout; it ends in `-dirty` if files differ from the commit."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def running_version(checkout: Path, servers_name: str, folder: Path, *, is_logging_requests: bool) -> Iterator[Service]:
    """Run the service of a checkout on servers of its own."""
    folder.mkdir()
    with running_servers(servers_name, folder) as servers:
        # With metrics, which cost something; a version without them ignores the variable.
        settings = {"WARM_UP": "true", "METRICS_PORT": str(free_port())}
        service = Service(servers, folder, settings if is_logging_requests else {**stand.QUIET, **settings})
        for process in (service.api, service.worker):
            in_checkout = ["env", "--chdir", str(checkout), f"PYTHONPATH={checkout}", python_of(checkout)]
            process.command = [*in_checkout, *process.command[1:]]
        try:
            service.start()
            yield service
        finally:
            service.stop()


def import_cpu_s(checkout: Path, bytecode: Path) -> float:
    """Return the CPU seconds of `import app` in a fresh process.

    Args:
        checkout: the folder of app.py.
        bytecode: a folder for compiled modules, so that the checkout stays unchanged.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(bytecode)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python_of(checkout), "-c", "import app"], cwd=checkout, env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_import(checkouts: Mapping[str, Path]) -> list[dict[str, Figures]]:
    """Return the CPU time of `import app` for each round and version."""
    with tempfile.TemporaryDirectory() as bytecode:
        for checkout in checkouts.values():
            import_cpu_s(checkout, Path(bytecode))  # compiles the modules
        return alternate(
            IMPORT_ROUNDS,
            checkouts,
            lambda name: {"import app, CPU ms": 1000 * import_cpu_s(checkouts[name], Path(bytecode))},
        )


def alternate(
    rounds: int, versions: Mapping[str, object], measure: Callable[[str], Figures]
) -> list[dict[str, Figures]]:
    """Measure each version in each round; the order changes from round to round."""
    return [{name: measure(name) for name in list(versions)[:: -1 if number % 2 else 1]} for number in range(rounds)]


def measure_load(service: Service, name: str, clients: int, mode: str, seconds: float) -> Figures:
    """Load a service; return its figures."""
    waiting, polling = stand.service_subjects(service, name)
    figures = stand.measure(waiting if mode == "waiting" else polling, clients, "--seconds", str(seconds))
    stand.log_progress(service.servers.name, figures)
    label = f"{clients} client{'s'[: clients - 1]} {mode}"
    return {
        f"{label}: predictions/s": figures.predictions_per_s,
        f"{label}: p50 ms": figures.p50_ms,
        f"{label}: p99 ms": figures.p99_ms,
        f"{label}: CPU ms a prediction": figures.total_cpu_ms,
        f"{label}: CPU ms of the API": figures.cpu_ms["API"],
        f"{label}: CPU ms of the worker": figures.cpu_ms["worker"],
    }


def measure_batch(service: Service, table: bytes) -> Figures:
    """Send a CSV batch; return its figure."""
    batch = run_batch(service.url, table, "text/csv")
    return {"CSV batch: rows/s": batch.rows / batch.results_s}


def measure_services(
    checkouts: Mapping[str, Path], servers_name: str, options: argparse.Namespace
) -> Iterator[list[dict[str, Figures]]]:
    """Run both services; yield the rounds of each load, of the batch and of the memory."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(
                running_version(
                    checkout, servers_name, Path(folder) / name, is_logging_requests=name in options.log_requests
                )
            )
            for name, checkout in checkouts.items()
        }
        for name, service in services.items():  # the first predictions of a service take longer
            stand.run_load(stand.service_subjects(service, name)[0], 32, "--requests", "1000")
        for clients, mode in options.loads:
            yield alternate(
                options.rounds,
                services,
                lambda name, clients=clients, mode=mode: measure_load(  # type: ignore[misc]
                    services[name], name, clients, mode, options.seconds
                ),
            )
        if options.data:
            table = options.data.read_bytes()
            yield alternate(options.rounds, services, lambda name: measure_batch(services[name], table))
        yield alternate(1, services, lambda name: {"API memory, MB (PSS)": stand.pss_mb(services[name].api)})


def print_rows(rounds: list[dict[str, Figures]]) -> None:
    """Print a row for each figure: the median of each version, and the median of the rounds' ratios."""
    for figure in rounds[0][BASE]:
        base, this = (statistics.median(versions[name][figure] for versions in rounds) for name in (BASE, THIS))
        ratio = statistics.median(versions[THIS][figure] / versions[BASE][figure] for versions in rounds)
        print(f"| {figure} | {base:,.2f} | {this:,.2f} | {ratio:.3f} |", flush=True)


def main() -> None:
    """Measure both versions, and print a table for each pair of servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--servers", nargs="+", choices=stand.SERVERS, default=list(stand.SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each load")
    parser.add_argument(
        "--log-requests", nargs="+", choices=(BASE, THIS), default=[], help="versions that log each request"
    )
    parser.add_argument(
        "--clients", nargs="+", type=int, help="measure these numbers of waiting clients, in place of all loads"
    )
    parser.add_argument("--data", type=Path, help="BankChurners.csv, for the batch")
    options = parser.parse_args()
    options.loads = [(clients, "waiting") for clients in options.clients or ()] or LOADS
    checkouts = {BASE: options.base.resolve(), THIS: ROOT}
    header = "| figure | base | this | this / base, median of the rounds |\n|---|---|---|---|"
    commits = ", ".join(f"{name} {commit_of(checkout)}" for name, checkout in checkouts.items())
    print(f"{stand.describe_machine()}, shared with the clients; {commits}\n\n{header}")
    print_rows(measure_import(checkouts))
    for servers_name in options.servers:
        print(f"\n{stand.SERVERS[servers_name]}\n\n{header}")
        for rounds in measure_services(checkouts, servers_name, options):
            print_rows(rounds)


if __name__ == "__main__":
    main()
