"""What each fault does to clients: `make faults` writes benchmarks/faults.md, `make soak` strikes faults at random.

The faults and the ledger are those of the tests (tests/faults.py), which strike more briefly.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import psutil

from tests.faults import FAULTS, Fault, Ledger, Row, marked_service, strike
from tests.processes import Process, until

KEPT = Path(__file__).with_suffix(".json")
PAGE = KEPT.with_suffix(".md")
COLUMNS = "fault,servers,sent,accepted,refused,no answer,lost,wrong,slowest answer,slowest /livez,ended after"
HEAD = """# Faults under load

Written by `make faults`: each fault strikes a service of its own, on real servers, under 50 requests a second, while
another client fetches the predictions. `make soak` (the last rows) strikes faults at random, one after the other, on
one service.

*Refused*: by status, each with a `Retry-After`. *No answer*: the API itself was away. *Lost*: accepted, and unknown or
without an end in the end. *Wrong*: accepted, and ended with another probability, or another failure, than it should.
*Ended after*: from the last request until every prediction had ended and every queue was empty, unacknowledged messages
included. The load, the servers and the service share the machine, and its noise is in the times.
"""


def cells(row: Row) -> list[str]:
    """Return what the table says of a row."""
    if row.not_applicable:
        return [row.fault, row.servers, f"n/a: {row.not_applicable}", *[""] * 8]
    refused = ", ".join(f"{count} of {status}" for status, count in row.refused.items())
    wrong = ", ".join([str(row.wrong), *(f"{count} of {answer}" for answer, count in row.other.items())])
    lost = ", ".join([str(row.lost), *(f"{count} left in {queue}" for queue, count in row.left.items())])
    counts = [str(row.sent), str(row.accepted), refused or "0", str(row.unanswered), lost, wrong]
    return [row.fault, row.servers, *counts, f"{row.slowest_ms} ms", f"{row.livez_ms} ms", f"{row.ended_s:.1f} s"]


def keep(rows: Iterable[Row]) -> None:
    """Put rows in place of those of the same faults in the report."""
    before = [Row(**row) for row in json.loads(KEPT.read_text())] if KEPT.exists() else []
    known = {(row.servers, row.fault): row for row in [*before, *rows]}
    names = [fault.name for fault in FAULTS]
    order = sorted(known.values(), key=lambda row: (names.index(row.fault) if row.fault in names else 99, row.servers))
    KEPT.write_text(json.dumps([asdict(row) for row in order], indent=1) + "\n")
    lines = [COLUMNS.split(","), ["---"] * len(COLUMNS.split(",")), *map(cells, order)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    soaks = "\n".join(f"- {row.fault}, {row.servers}: {row.memory}." for row in order if row.memory)
    PAGE.write_text("\n".join(filter(None, [HEAD, table, soaks and f"\nMemory (PSS) of the soaks:\n\n{soaks}"])) + "\n")


def told(ledger: Ledger) -> Row:
    """Balance the ledger, and say so if something is wrong."""
    row = ledger.balance()
    if not row.is_clean:
        print(*ledger.details[:5], ledger.service.worker.text()[-3000:], sep="\n", file=sys.stderr)
    return row


def measured(fault: Fault, servers: str, options: argparse.Namespace) -> Row:
    """Strike one fault on a fresh service, and return what it did."""
    if not fault.is_possible(servers):
        return Row(servers, fault.name, not_applicable=fault.not_on_valkey)
    with tempfile.TemporaryDirectory() as folder, marked_service(servers, Path(folder)) as service:
        ledger = Ledger(service, fault.name, options.rate)
        end = time.monotonic() + options.seconds
        with ledger.load():
            strike(fault, ledger, fault.lasts_s)
            until(lambda: time.monotonic() > end, within_s=options.seconds)
        return told(ledger)


class Memory:
    """The memory of one part of the service: its own share of it (PSS), in MiB."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._first: dict[int, float] = {}
        self.now = self.most = self.growth = 0.0
        """The sum over its processes, the most that this was, and the most that any one process has grown."""

    def look(self) -> str:
        """Measure it, and return what it is."""
        main = psutil.Process(self._process.pid)
        sizes = {part.pid: part.memory_full_info().pss / 2**20 for part in [main, *main.children(recursive=True)]}
        self._first = {pid: self._first.get(pid, size) for pid, size in sizes.items()}
        self.growth = max([self.growth, *(size - self._first[pid] for pid, size in sizes.items())])
        self.now = sum(sizes.values())
        self.most = max(self.most, self.now)
        return f"{self.now:.0f} MiB"

    def __str__(self) -> str:
        """Return it for a person."""
        return f"{self.now:.0f} MiB at the end, {self.most:.0f} at most, no process grew by more than {self.growth:.0f}"


def soaked(servers: str, options: argparse.Namespace) -> Row:
    """Strike faults at random on one service, as briefly as it takes to bite, and watch its memory."""
    chance = random.Random(options.seed)
    possible = [fault for fault in FAULTS if fault.is_possible(servers)]
    with tempfile.TemporaryDirectory() as folder, marked_service(servers, Path(folder)) as service:
        ledger = Ledger(service, "", options.rate)
        api, worker = Memory(service.api), Memory(service.worker)
        began, strikes = time.monotonic(), 0
        with ledger.load():
            while (passed := time.monotonic() - began) < options.minutes * 60:
                fault = chance.choice(possible)
                strike(fault, ledger)
                ledger.more(ledger.accepted, round(5 * options.rate))
                strikes += 1
                row, sizes = ledger.row, f"API {api.look()}, worker {worker.look()}"
                said = f"{row.accepted} accepted, {row.lost} lost, {row.wrong} wrong, {ledger.owed} owed"
                print(f"{passed:5.0f} s  {said}  {sizes}  {fault.name}", flush=True)
        row = told(ledger)
        row.fault = f"soak: {strikes} faults in {options.minutes:g} minutes"
        row.memory = f"API {api}; worker {worker}"
        return row


def main() -> int:
    """Measure, print a line for each row, and keep the report; the exit code is 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", nargs="+", choices=["valkey", "rabbitmq"], default=["valkey", "rabbitmq"])
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with this in their name")
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--seconds", type=float, default=15, help="of load for each fault, or as long as that lasts")
    parser.add_argument("--minutes", type=float, default=0, help="soak for so long instead")
    parser.add_argument("--seed", type=int, default=0, help="of the soak's choice")
    options = parser.parse_args()
    rows = []
    for servers in options.servers:
        for fault in [fault for fault in FAULTS if options.only in fault.name and not options.minutes]:
            rows.append(measured(fault, servers, options))
            print(" | ".join(cells(rows[-1])), flush=True)
        if options.minutes:
            rows.append(soaked(servers, options))
            print(" | ".join(cells(rows[-1])), rows[-1].memory, sep="\n", flush=True)
    keep(rows)
    return 0 if all(row.is_clean for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
