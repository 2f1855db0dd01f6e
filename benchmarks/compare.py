"""This service beside others, in one run: `make bench`; with the peers that batch dynamically: `make bench-peers`.

`synchronous` is a FastAPI app with the same model in its process, which keeps nothing; `ceiling` answers the same route
without a prediction. Of one process each, and so is the service's API and its worker.
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
from typing import Any

from benchmarks import stand
from benchmarks.stand import Figures, Subject
from tests.processes import ROOT

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"


@contextlib.contextmanager
def subjects(servers: str, folder: Path, *, peers: bool) -> Iterator[list[Subject]]:
    """Start everything that is compared."""
    with contextlib.ExitStack() as stack:
        running = stand.subjects_of(stack.enter_context(stand.service(servers, folder / "service")))
        for name in ("synchronous", "ceiling"):
            command = (sys.executable, "-m", "uvicorn", f"benchmarks.apps:{name}", "--port", "{port}")
            running.append(stack.enter_context(stand.peer(name, folder, command)))
        if peers:
            for name, client in PEERS.items():
                module = f"benchmarks.peers.{name.partition(',')[0].lower()}"
                peer = stand.peer(name, folder, (str(PEERS_PYTHON), "-m", module, "{port}"), client=client)
                running.append(stack.enter_context(peer))
        yield running


# The name, whose first word is the module of benchmarks.peers, and how the load generator talks to it.
PEERS = {
    "LitServe": ("--wait",),
    "BentoML": ("--wait", "--dialect", "bentoml"),
    "BentoML, task queue": ("--poll-ms", "10", "--dialect", "bentoml-task"),
}


def table(figures: Sequence[Figures]) -> str:
    """Return the figures for a person, with the ratios to the synchronous app and the others."""
    lines = []
    for clients in dict.fromkeys(one.clients for one in figures):
        rows = [one for one in figures if one.clients == clients]
        lines += [
            f"\n{clients} client{'s'[: clients - 1]}".ljust(26) + "     per s   p50 ms   p99 ms   CPU ms a prediction"
        ]
        for one in rows:
            cost = ", ".join(f"{part} {cost:.2f}" for part, cost in one.cpu_ms.items())
            lines.append(
                f"{one.subject:<26}{one.predictions_per_s:>9,.0f}{one.p50_ms:>9.1f}{one.p99_ms:>9.1f}   "
                f"{one.cpu_ms_in_all:.2f} ({cost})"
            )
        ours, *others = [one for one in rows if "polling" not in one.subject]
        against = ", ".join(f"{ours.predictions_per_s / one.predictions_per_s:.2f} of {one.subject}" for one in others)
        lines.append(f"{ours.subject}: {against}; p50 {ours.p50_ms / others[0].p50_ms:.2f} of {others[0].subject}")
    lines.append("\nMemory (PSS) after the load, MB")
    for one in figures:
        if one.clients == max(row.clients for row in figures):
            parts = ", ".join(f"{part} {size:.0f}" for part, size in one.pss_mb.items())
            lines.append(f"{one.subject:<26}{sum(one.pss_mb.values()):>9.0f}   ({parts})")
    return "\n".join(lines)


def plot(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Draw predictions a second by the number of clients."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - takes a second, and not everyone wants a picture

    every_clients = list(dict.fromkeys(one.clients for one in figures))
    names = list(dict.fromkeys(one.subject for one in figures))
    picture, axes = plt.subplots(figsize=(9, 4.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        heights = [one.predictions_per_s for one in figures if one.subject == name]
        places = [group + (number - (len(names) - 1) / 2) * width for group in range(len(every_clients))]
        bars = axes.bar(places, heights, width * 0.92, label=name, color=f"C{number}")
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
    axes.set_xticks(range(len(every_clients)), [f"{clients} client{'s'[: clients - 1]}" for clients in every_clients])
    axes.set_ylabel("predictions a second")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    picture.tight_layout()
    picture.savefig(path, dpi=130)
    plt.close(picture)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--peers", action="store_true", help="with LitServe and BentoML (`make bench-peers`)")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.png")
    return parser.parse_args()


def main() -> None:
    """Measure, and print and keep what was found."""
    options = _options()
    servers = stand.choose_servers(options.servers)
    title = f"One run on {stand.machine()}, shared with the clients; {stand.SERVERS[servers]}"
    print(title)
    with tempfile.TemporaryDirectory() as folder, subjects(servers, Path(folder), peers=options.peers) as running:
        figures = stand.in_turns(running, options.clients, options.rounds, options.seconds)
    print(table(figures))
    if options.out:
        options.out.parent.mkdir(exist_ok=True)
        kept: dict[str, object] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": stand.machine(),
            "servers": servers,
        }
        kept |= {"rounds": options.rounds, "seconds": options.seconds, "figures": [asdict(one) for one in figures]}
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
        plot(figures, title, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
