"""Fail-overs of a result store behind Sentinels, under load: `python -m benchmarks.failover`.

It starts its own service and servers, and causes each kind of fail-over several times. A row tells for how long
predictions were refused, how accepted ones ended that the new primary did not know, and the counts of the service. The
exit code is 1 if an accepted prediction was lost outside the window of its kind, or ended in a wrong way. With
`--price` it measures a closed loop with RESULT_REPLICAS=0 and 1 instead.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import stand
from tests.harness.counts import read_counts
from tests.harness.failover import FAIL_OVERS, FailOver, fail_over, predicted_without_marker, replicated_service
from tests.harness.ledger import Ledger

COLUMNS = [
    "fail-over",
    "refused (median, most)",
    "accepted",
    "404",
    "410",
    "lost otherwise",
    "predicted without marker",
    "counted: accepted, ended, waiting",
]


def measure_losses(kind: FailOver, options: argparse.Namespace, folder: Path) -> tuple[list[str], bool]:
    """Cause fail-overs of one kind; return the cells of its row, and whether all ended as they may."""
    settings = {"RESULT_REPLICAS": str(options.confirm), **stand.QUIET}
    with replicated_service(options.servers, folder, options.replicas, **settings) as service:
        ledger = Ledger(service, kind.name, options.rate)
        refused_s = []
        with ledger.load():
            for number in range(options.times):
                refused_s.append(fail_over(kind, ledger, may_lose=not options.confirm))
                print(f"{kind.name} {number + 1}: refused for {refused_s[-1]:.1f} s", file=sys.stderr, flush=True)
        row = ledger.balance()
        counts = read_counts(service.servers.backend_uri).predictions
        print(*ledger.details, sep="\n", file=sys.stderr)
        cells = [
            kind.name,
            f"{median(refused_s):.1f} s, {max(refused_s):.1f} s",
            str(row.accepted),
            str(row.unknown),
            str(row.expired),
            str(row.lost + row.wrong),
            str(predicted_without_marker(service)),
            f"{counts.accepted}, {sum(counts.ended.values())}, {counts.waiting}",
        ]
        return cells, not (row.lost or row.wrong or row.other or row.left)


def measure_price(options: argparse.Namespace, folder: Path) -> None:
    """Print throughput and latency without and with a replica that confirms, alternating."""
    with contextlib.ExitStack() as stack:
        subjects = []
        for confirm in (0, 1):
            own = folder / str(confirm)
            own.mkdir()
            service = stack.enter_context(
                replicated_service(options.servers, own, options.replicas, RESULT_REPLICAS=str(confirm), **stand.QUIET)
            )
            processes = {"API": service.api, "worker": service.worker, "primary": service.servers.store}
            subjects.append(stand.Subject(f"RESULT_REPLICAS={confirm}", service.url, processes, can_freeze=False))
        print("| clients | setting | predictions per second | p50 | p99 | CPU ms per prediction |")
        print("|---|---|---|---|---|---|")
        for figures in stand.measure_alternating(subjects, (1, 32), options.times, options.seconds):
            speed = f"{figures.predictions_per_s:,.0f} | {figures.p50_ms:.1f} ms | {figures.p99_ms:.1f} ms"
            print(f"| {figures.clients} | `{figures.subject}` | {speed} | {figures.cpu_text} |")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--replicas", type=int, default=1, help="of the primary")
    parser.add_argument("--confirm", type=int, default=0, help="RESULT_REPLICAS; use two replicas with it")
    parser.add_argument("--times", type=int, default=10, help="fail-overs of each kind, or rounds with --price")
    parser.add_argument("--rate", type=float, default=50, help="predictions per second")
    parser.add_argument("--kind", default="", help="part of the name of the kinds")
    parser.add_argument("--price", action="store_true", help="measure the price of RESULT_REPLICAS")
    parser.add_argument("--seconds", type=float, default=6, help="of each load with --price")
    options = parser.parse_args()
    options.servers = stand.choose_servers(options.servers)
    print(f"{stand.SERVERS[options.servers]}, {options.replicas} replicas, RESULT_REPLICAS={options.confirm}")
    with tempfile.TemporaryDirectory() as name:
        if options.price:
            measure_price(options, Path(name))
            return
        is_clean = True
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        kinds = [kind for kind in FAIL_OVERS if options.kind in kind.name and kind.only_on in ("", options.servers)]
        for number, kind in enumerate(kinds):
            folder = Path(name, str(number))
            folder.mkdir()
            cells, is_right = measure_losses(kind, options, folder)
            is_clean = is_clean and is_right
            print(f"| {' | '.join(cells)} |", flush=True)
    sys.exit(not is_clean)


if __name__ == "__main__":
    main()
