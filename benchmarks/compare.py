"""The service and other services, measured in one run: `make bench`; with LitServe and BentoML: `make bench-peers`.

`synchronous` and `ceiling` are the FastAPI apps of apps.py. Each app has one process; the service has one API process
and one pool process.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import stand
from benchmarks.stand import Figures, Subject
from tests.harness.processes import ROOT

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"

PEERS = {
    "LitServe": ("--wait",),
    "BentoML": ("--wait", "--dialect", "bentoml"),
    "BentoML, task queue": ("--poll-ms", "10", "--dialect", "bentoml-task"),
}
"""By name, the options of the load generator. The first word of a name is its module in benchmarks/peers."""


@contextlib.contextmanager
def running_subjects(servers_name: str, folder: Path, *, peers: bool) -> Iterator[list[Subject]]:
    """Start every subject of the comparison."""
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(stand.service_on(servers_name, folder / "service"))
        subjects = list(stand.service_subjects(service))
        for name in ("synchronous", "ceiling"):
            command = (sys.executable, "-m", "uvicorn", f"benchmarks.apps:{name}", "--port", "{port}")
            subjects.append(stack.enter_context(stand.running_peer(name, folder, command)))
        for name, client_options in PEERS.items() if peers else ():
            module = f"benchmarks.peers.{name.partition(',')[0].lower()}"
            peer = stand.running_peer(
                name, folder, (str(PEERS_PYTHON), "-m", module, "{port}"), client_options=client_options
            )
            subjects.append(stack.enter_context(peer))
        yield subjects


def format_table(figures: Sequence[Figures]) -> str:
    """Return the figures as text, with the ratios of the service to each other subject."""
    lines = []
    for clients in dict.fromkeys(one.clients for one in figures):
        rows = [one for one in figures if one.clients == clients]
        lines += [
            f"\n{clients} client{'s'[: clients - 1]}".ljust(26) + "     per s   p50 ms   p99 ms   CPU ms a prediction"
        ]
        lines += [
            f"{one.subject:<26}{one.predictions_per_s:>9,.0f}{one.p50_ms:>9.1f}{one.p99_ms:>9.1f}   {one.cpu_text}"
            for one in rows
        ]
        ours, *others = [one for one in rows if "polling" not in one.subject]
        ratios = ", ".join(f"{ours.predictions_per_s / one.predictions_per_s:.2f} of {one.subject}" for one in others)
        lines.append(f"{ours.subject}: {ratios}; p50 {ours.p50_ms / others[0].p50_ms:.2f} of {others[0].subject}")
    lines.append("\nMemory (PSS) after the load, MB")
    for one in figures:
        if one.clients == max(row.clients for row in figures):
            parts = ", ".join(f"{part} {size:.0f}" for part, size in one.pss_mb.items())
            lines.append(f"{one.subject:<26}{sum(one.pss_mb.values()):>9.0f}   ({parts})")
    return "\n".join(lines)


def plot(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Draw predictions per second by number of clients."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - takes a second, and only --out needs it

    clients_of_groups = list(dict.fromkeys(one.clients for one in figures))
    names = list(dict.fromkeys(one.subject for one in figures))
    picture, axes = plt.subplots(figsize=(9, 4.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        heights = [one.predictions_per_s for one in figures if one.subject == name]
        places = [group + (number - (len(names) - 1) / 2) * width for group in range(len(clients_of_groups))]
        bars = axes.bar(places, heights, width * 0.92, label=name, color=f"C{number}")
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
    labels = [f"{clients} client{'s'[: clients - 1]}" for clients in clients_of_groups]
    axes.set_xticks(range(len(clients_of_groups)), labels)
    axes.set_ylabel("predictions per second")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    picture.tight_layout()
    picture.savefig(path, dpi=130)
    plt.close(picture)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--peers", action="store_true", help="measure LitServe and BentoML too (`make bench-peers`)")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.png")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, and write it to --out."""
    options = _parse_options()
    servers = stand.choose_servers(options.servers)
    machine = stand.describe_machine()
    title = f"One run on {machine}, shared with the clients; {stand.SERVERS[servers]}"
    print(title)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_subjects(servers, Path(folder), peers=options.peers) as subjects,
    ):
        figures = stand.measure_alternating(subjects, options.clients, options.rounds, options.seconds)
    print(format_table(figures))
    if options.out:
        options.out.parent.mkdir(exist_ok=True)
        report: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "machine": machine}
        report |= {"servers": servers, "rounds": options.rounds, "seconds": options.seconds}
        report["figures"] = [asdict(one) for one in figures]
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        plot(figures, title, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
