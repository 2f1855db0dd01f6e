"""The effects of a RabbitMQ cluster's faults on clients: `make faults-cluster` writes benchmarks/faults-cluster.md.

The faults are those of tests/harness/cluster_faults.py. Each kind has a cluster of its own, and strikes ten times.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults import balance, readiness_text
from tests.harness.cluster_faults import FAULTS, service_on_cluster
from tests.harness.faults import Fault, strike
from tests.harness.ledger import Ledger, Row
from tests.harness.processes import until

REPORT_JSON = Path(__file__).with_name("faults-cluster.json")
REPORT = REPORT_JSON.with_suffix(".md")
ENDED_WITHIN_S = 900  # after a strike
MOST_REFUSAL_S = 5  # in a row, while two of three nodes are well
COLUMNS = (
    "fault",
    "strikes",
    "sent",
    "accepted",
    "refused",
    "longest refusals in a row",
    "lost",
    "wrong",
    "readiness",
    "slowest response",
    "ended after",
)
HEAD = """# Faults of a broker of several nodes

`make faults-cluster` writes this page. Three nodes of RabbitMQ 3.10 form a cluster, with the settings of
[operations](../docs/operations.md#a-broker-of-several-nodes). One API and one worker have all three addresses. Each
fault strikes as often as the column *strikes* says, under 50 requests a second. Another client fetches the predictions.
Between two strikes the load pauses until every prediction has ended.

- *Longest refusals in a row*: of each strike, the seconds from the first refused request to the next accepted one. The
  largest and the median are shown, and the number of strikes with a refusal.
- The other columns are those of [faults.md](faults.md).

The load, the cluster and the service share one machine with two cores. A run of the whole command on a quiet machine
wrote all rows (2026-11-27).
"""


@dataclass
class Kind:
    """The strikes of one kind."""

    row: Row
    refusals_s: list[float]
    refuses: bool

    @property
    def is_clean(self) -> bool:
        """Whether the ledger balances, no refusal was wrong, and the refusals were short."""
        is_short = self.refuses or max(self.refusals_s, default=0) <= MOST_REFUSAL_S
        return self.row.is_clean and is_short and set(self.row.refused) <= {503}

    def cells(self) -> list[str]:
        """Return the cells of this kind."""
        row = self.row
        if row.not_applicable:
            return [row.fault, f"n/a: {row.not_applicable}", *[""] * (len(COLUMNS) - 2)]
        refused = ", ".join(f"{count} of {status}" for status, count in row.refused.items())
        ordered = sorted(self.refusals_s)
        runs = f"{ordered[-1]:.1f} s, median {ordered[len(ordered) // 2]:.1f} s, {sum(map(bool, ordered))} strikes"
        lost = ", ".join([str(row.lost), *(f"{count} left in {queue}" for queue, count in row.left.items())])
        wrong = ", ".join([str(row.wrong), *(f"{count} of {response}" for response, count in row.other.items())])
        wrong += f", counted: {row.imbalance}" if row.imbalance else ""
        counts = [str(len(ordered)), str(row.sent), str(row.accepted), refused or "0"]
        times = [f"{row.slowest_ms} ms", f"{row.ended_s:.1f} s"]
        return [row.fault, *counts, runs if ordered[-1] else "0", lost, wrong, readiness_text(row), *times]


def measure(fault: Fault, options: argparse.Namespace) -> Kind:
    """Strike a service on a fresh cluster again and again."""
    if obstacle := fault.obstacle("rabbitmq"):
        return Kind(Row("rabbitmq", fault.name, not_applicable=obstacle), [], fault.refuses)
    with tempfile.TemporaryDirectory() as folder, service_on_cluster(Path(folder)) as service:
        ledger = Ledger(service, fault.name, options.rate)
        refusals_s = []
        with ledger.load():
            for number in range(options.strikes):
                started = time.monotonic()
                ledger.paused.clear()
                strike(fault, ledger, fault.lasts_s)
                ledger.paused.set()
                refusals_s.append(round(ledger.longest_refusal_s(started), 1))
                print(
                    f"{fault.name}: strike {number + 1} took {time.monotonic() - started:.0f} s, "
                    f"refused for {refusals_s[-1]} s, {dict(ledger.refused)}, {ledger.pending} pending",
                    flush=True,
                )
                until(lambda: not ledger.pending, ENDED_WITHIN_S, every_s=0.5)
        return Kind(balance(ledger), refusals_s, fault.refuses)


def update_report(kinds: Iterable[Kind]) -> None:
    """Replace the rows of the same faults in the report."""
    earlier = json.loads(REPORT_JSON.read_text()) if REPORT_JSON.exists() else []
    read = [Kind(Row(**one["row"]), one["refusals_s"], one["refuses"]) for one in earlier]
    by_fault = {kind.row.fault: kind for kind in [*read, *kinds]}
    ordered = [by_fault[fault.name] for fault in FAULTS if fault.name in by_fault]
    REPORT_JSON.write_text(json.dumps([asdict(kind) for kind in ordered], indent=1) + "\n")
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(kind.cells() for kind in ordered)]
    REPORT.write_text(HEAD + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def main() -> int:
    """Strike, print and store a row for each kind; the exit code is 1 if a kind is not clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with this text in their name")
    parser.add_argument("--rate", type=float, default=50, help="requests per second")
    parser.add_argument("--strikes", type=int, default=10, help="of each kind")
    parser.add_argument("--no-report", action="store_true", help="print only")
    options = parser.parse_args()
    kinds = []
    for fault in [fault for fault in FAULTS if options.only in fault.name]:
        kinds.append(measure(fault, options))
        print(" | ".join(kinds[-1].cells()), flush=True)
        if not options.no_report:
            update_report(kinds)
    return 0 if all(kind.is_clean for kind in kinds) else 1


if __name__ == "__main__":
    sys.exit(main())
