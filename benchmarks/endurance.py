"""Does anything grow? `python -m benchmarks.endurance` makes 100,000 predictions, and looks at what they leave behind.

The exit code is 1 if the memory of the API or the worker grew too much from the second quarter to the last, or if
anything but the results, which live their time, was left in the result store.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import redis

from benchmarks import stand


def left_over(backend_uri: str) -> list[str]:
    """Return what is in the result store, or listened to, that is neither a result nor a worker's sign of life."""
    with redis.Redis.from_url(backend_uri, decode_responses=True) as client:
        channels = [channel for channel in client.pubsub_channels() if channel != "churn:ended"]
        keys = [key for key in client.scan_iter(count=10_000) if not key.startswith("churn:worker")]
        return channels + [key for key in keys if not key.startswith("celery-task-meta-") or client.ttl(key) < 0]


def main() -> None:
    """Predict in eight parts, print the memory after each, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--growth", type=float, default=1.05, help="how much memory may be, of what it was")
    options = parser.parse_args()
    servers = stand.choose_servers(options.servers)
    print(f"{options.predictions:,} predictions, {options.clients} clients that wait; {stand.SERVERS[servers]}")
    with tempfile.TemporaryDirectory() as folder, stand.service(servers, Path(folder) / "own") as running:
        subject = stand.subjects_of(running)[0]
        sizes: list[dict[str, float]] = []
        for part in range(1, 9):
            figures = stand.load(subject, options.clients, "--requests", str(options.predictions // 8))
            sizes.append({name: figures.pss_mb[name] for name in ("API", "worker")})
            memory = ", ".join(f"{name} {size:.1f} MB" for name, size in sizes[-1].items())
            print(f"after {part}/8: {memory}; {figures.predictions_per_s:,.0f} predictions/s", flush=True)
        rest = left_over(running.servers.backend_uri)
    grown = {name: sum(size[name] for size in sizes[6:]) / sum(size[name] for size in sizes[2:4]) for name in sizes[0]}
    print("last quarter against the second: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in grown.items()))
    print(f"left in the result store beside the results: {', '.join(rest) or 'nothing'}")
    sys.exit(bool(rest) or any(ratio > options.growth for ratio in grown.values()))


if __name__ == "__main__":
    main()
