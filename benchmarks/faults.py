"""The effects of each fault on clients: `make faults` writes benchmarks/faults.md, `make soak` injects random faults.

The faults are those of tests/harness/faults.py, which the tests inject for a shorter time.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import psutil

from celery_task_app.store.counts import STATES
from tests.harness.faults import FAULTS, Fault, marked_service, strike
from tests.harness.ledger import Ledger, Row
from tests.harness.processes import Process, until

REPORT_JSON = Path(__file__).with_suffix(".json")
REPORT = REPORT_JSON.with_suffix(".md")
COLUMNS = (
    "fault",
    "servers",
    "sent",
    "accepted",
    "refused",
    "no response",
    "counted",
    "ended",
    "waiting",
    "lost",
    "wrong",
    "readiness",
    "slowest response",
    "slowest /livez",
    "ended after",
)
HEAD = """# Faults under load

`make faults` writes this page. Each fault is injected into a service of its own, on real servers, under 50 requests a
second. Another client fetches the predictions. `make soak` writes the last rows: it injects random faults, one after
the other, into one service.

- *Refused*: refused requests by status, each with a `Retry-After`.
- *No response*: requests while the API was down.
- *Counted*, *ended* and *waiting*: the growth of `churn_accepted_total` and `churn_ended_total`, and
  `churn_waiting_customers` at the end; the same of rows of batches. They equal the ledger, or the run fails. A fault
  may leave the outcome of a request unclear: a 503 after a lost confirm or after 2.5 s, or no response of a killed API.
  The service may count such a prediction; `547 (+2)` has two of them. At most every unclear response is one.
- *Lost*: accepted predictions that are unknown, or that never ended.
- *Wrong*: accepted predictions that ended with a wrong probability or a wrong failure.
- *Readiness*: a client asks `/readyz` each second, and `true` means that every answer was true until the next one.
  An answer 200 is a *false ready* if no prediction sent then was accepted and computed within 5 s. It also is one if a
  `Prefer: wait` request got no result although there was one. An answer 503 is a *false alarm* if every prediction
  sent then was accepted and computed within 1 s. The first two false answers in a row do not count, because a look
  takes time. Some faults are revealed only by the TTL of a status, the timeout of a ping or the hard time limit of a
  message; this time does not count either. A soak does not judge readiness, because the effects of one fault reach into
  the next.
- *Ended after*: seconds from the last request until every prediction had ended and every queue was empty.
  Unacknowledged messages count as queued.

The load, the servers and the service share one machine, so the times vary.
"""


def readiness_text(row: Row) -> str:
    """Return `true`, or for how long readiness was wrong."""
    if row.false_ready_s is None or row.false_alarm_s is None:
        return "not measured"
    false = {"false ready": row.false_ready_s, "false alarm": row.false_alarm_s}
    return ", ".join(f"{seconds:.0f} s {name}" for name, seconds in false.items() if seconds) or "true"


def count_texts(row: Row) -> list[str]:
    """Return the cells of the counts; empty for a row that was measured before they existed."""
    if not row.counted:
        return [""] * 3
    more = row.counted["accepted"] - row.accepted
    accepted = f"{row.counted['accepted']}" + (f" ({more:+})" if more else "")
    ended, waiting = ended_text(row.counted), str(row.counted["waiting"])
    if any(row.counted_rows.values()):
        accepted += f", {row.counted_rows['accepted']} rows"
        ended += f", {ended_text(row.counted_rows)} rows"
        waiting += f", {row.counted_rows['waiting']} rows" if row.counted_rows["waiting"] else ""
    return [accepted, ended, waiting]


def ended_text(counted: Mapping[str, int]) -> str:
    """Return the number of all terminal states, and those that are no success."""
    others = [f"{counted[state]} {state}" for state in STATES if state != "success" and counted[state]]
    return str(sum(counted[state] for state in STATES)) + (f" ({', '.join(others)})" if others else "")


def cells(row: Row) -> list[str]:
    """Return the cells of a row of the report."""
    if row.not_applicable:
        return [row.fault, row.servers, f"n/a: {row.not_applicable}", *[""] * (len(COLUMNS) - 3)]
    refused = ", ".join(f"{count} of {status}" for status, count in row.refused.items())
    wrong = ", ".join([str(row.wrong), *(f"{count} of {response}" for response, count in row.other.items())])
    readiness = readiness_text(row)
    lost = ", ".join([str(row.lost), *(f"{count} left in {queue}" for queue, count in row.left.items())])
    counts = [str(row.sent), str(row.accepted), refused or "0", str(row.unanswered), *count_texts(row)]
    effects = [lost, wrong, readiness]
    return [
        row.fault,
        row.servers,
        *counts,
        *effects,
        f"{row.slowest_ms} ms",
        f"{row.livez_ms} ms",
        f"{row.ended_s:.1f} s",
    ]


def update_report(rows: Iterable[Row]) -> None:
    """Replace the rows of the same faults, and of the soak on the same servers, in the report."""
    earlier = [Row(**row) for row in json.loads(REPORT_JSON.read_text())] if REPORT_JSON.exists() else []
    names = [fault.name for fault in FAULTS]
    by_fault = {(row.servers, row.fault if row.fault in names else "soak"): row for row in [*earlier, *rows]}
    ordered = sorted(
        by_fault.values(), key=lambda row: (names.index(row.fault) if row.fault in names else len(names), row.servers)
    )
    REPORT_JSON.write_text(json.dumps([asdict(row) for row in ordered], indent=1) + "\n")
    table = "\n".join(f"| {' | '.join(line)} |" for line in [COLUMNS, ["---"] * len(COLUMNS), *map(cells, ordered)])
    soaks = "\n".join(f"- {row.fault}, {row.servers}: {row.memory}." for row in ordered if row.memory)
    REPORT.write_text(
        "\n".join(filter(None, [HEAD, table, soaks and f"\nMemory (PSS) of the soaks:\n\n{soaks}"])) + "\n"
    )


def balance(ledger: Ledger) -> Row:
    """Return the row of a ledger; write everything that is wrong to standard error."""
    row = ledger.balance()
    for detail in filter(None, [row.imbalance, *ledger.verdict.details]):
        print(f"{row.fault}, {row.servers}: {detail}", file=sys.stderr)
    if not row.is_clean:
        print(*ledger.details[:5], ledger.service.worker.text()[-3000:], sep="\n", file=sys.stderr)
    return row


def measure(fault: Fault, servers: str, options: argparse.Namespace) -> Row:
    """Inject one fault into a fresh service, and return its row."""
    if obstacle := fault.obstacle(servers):
        return Row(servers, fault.name, not_applicable=obstacle)
    with tempfile.TemporaryDirectory() as folder, marked_service(servers, Path(folder)) as service:
        ledger = Ledger(service, fault.name, options.rate)
        end = time.monotonic() + options.seconds
        with ledger.load():
            strike(fault, ledger, fault.lasts_s)
            until(lambda: time.monotonic() > end, within_s=options.seconds)
        return balance(ledger)


class Memory:
    """The proportional set size (PSS) of a process and its children, in MiB.

    Attributes:
        now: at the last measurement.
        most: the largest measurement.
        growth: the largest growth of one process.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._first: dict[int, float] = {}
        self.now = self.most = self.growth = 0.0

    def measure(self) -> float:
        """Measure it, and return it in MiB."""
        main = psutil.Process(self._process.pid)
        sizes = {part.pid: part.memory_full_info().pss / 2**20 for part in [main, *main.children(recursive=True)]}
        self._first = {pid: self._first.get(pid, size) for pid, size in sizes.items()}
        self.growth = max([self.growth, *(size - self._first[pid] for pid, size in sizes.items())])
        self.now = sum(sizes.values())
        self.most = max(self.most, self.now)
        return self.now

    def __str__(self) -> str:
        """Return the figures as text."""
        return f"{self.now:.0f} MiB at the end, {self.most:.0f} at most, no process grew by more than {self.growth:.0f}"


def soak(servers: str, options: argparse.Namespace) -> Row:
    """Inject random faults into one service, each as briefly as possible, and measure its memory."""
    chance = random.Random(options.seed)
    possible = [fault for fault in FAULTS if not fault.obstacle(servers)]
    with tempfile.TemporaryDirectory() as folder, marked_service(servers, Path(folder)) as service:
        ledger = Ledger(service, "", options.rate)
        api, worker = Memory(service.api), Memory(service.worker)
        started, count = time.monotonic(), 0
        with ledger.load():
            while (elapsed_s := time.monotonic() - started) < options.minutes * 60:
                fault = chance.choice(possible)
                strike(fault, ledger, fault.shortest_s)
                ledger.wait_for_more(ledger.accepted, round(5 * options.rate))
                count += 1
                row = ledger.row
                predictions = f"{row.accepted} accepted, {row.lost} lost, {row.wrong} wrong, {ledger.pending} pending"
                sizes = f"API {api.measure():.0f} MiB, worker {worker.measure():.0f} MiB"
                print(f"{elapsed_s:5.0f} s  {predictions}  {sizes}  {fault.name}", flush=True)
        row = balance(ledger)
        row.false_ready_s = row.false_alarm_s = None  # the effects of one fault reach into the next
        row.fault = f"soak: {count} faults in {options.minutes:g} minutes"
        row.memory = f"API {api}; worker {worker}"
        return row


def main() -> int:
    """Inject faults, print and store a row for each; the exit code is 1 if a prediction was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", nargs="+", choices=["valkey", "rabbitmq"], default=["valkey", "rabbitmq"])
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with this text in their name")
    parser.add_argument("--rate", type=float, default=50, help="requests per second")
    parser.add_argument("--seconds", type=float, default=15, help="shortest load for each fault")
    parser.add_argument("--minutes", type=float, default=0, help="inject random faults for this time instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random faults")
    options = parser.parse_args()
    rows = []
    for servers in options.servers:
        for fault in [fault for fault in FAULTS if options.only in fault.name and not options.minutes]:
            rows.append(measure(fault, servers, options))
            print(" | ".join(cells(rows[-1])), flush=True)
        if options.minutes:
            rows.append(soak(servers, options))
            print(" | ".join(cells(rows[-1])), rows[-1].memory, sep="\n", flush=True)
    update_report(rows)
    return 0 if all(row.is_clean for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
