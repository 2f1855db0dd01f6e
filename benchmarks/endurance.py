"""Growth over 100,000 predictions: `python -m benchmarks.endurance` measures memory, and looks for left-over keys.

The exit code is 1 if the memory of the API or the worker grew too much from the second quarter to the last, or if the
result store holds anything except results with a TTL and the status of the worker.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import redis

from benchmarks import stand
from celery_task_app.store.celery_meta import key_of
from celery_task_app.store.predictions import COMPLETIONS

_PARTS = 8
_STATUS_KEYS = (
    "churn:worker",
    "churn:model",
    "churn:schema",
    "churn:counts",
)  # of store/{worker_status,model_cards,customer_schema,counts}.py


def left_over(backend_uri: str) -> list[str]:
    """Return the channels and keys that should not exist after all predictions have ended."""
    with redis.Redis.from_url(backend_uri, decode_responses=True) as client:
        channels = [channel for channel in client.pubsub_channels() if channel != COMPLETIONS]
        keys = [key for key in client.scan_iter(count=10_000) if not key.startswith(_STATUS_KEYS)]
        return channels + [key for key in keys if not key.startswith(key_of("")) or client.ttl(key) < 0]


def main() -> None:
    """Predict in eight parts; print the memory after each part, and the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--growth", type=float, default=1.05, help="largest accepted ratio of memory")
    options = parser.parse_args()
    servers = stand.choose_servers(options.servers)
    print(f"{options.predictions:,} predictions, {options.clients} waiting clients; {stand.SERVERS[servers]}")
    with tempfile.TemporaryDirectory() as folder, stand.service_on(servers, Path(folder) / "service") as running:
        subject, _ = stand.service_subjects(running)
        sizes: list[dict[str, float]] = []
        for part in range(1, _PARTS + 1):
            figures = stand.measure(subject, options.clients, "--requests", str(options.predictions // _PARTS))
            sizes.append({name: figures.pss_mb[name] for name in ("API", "worker")})
            memory = ", ".join(f"{name} {size:.1f} MB" for name, size in sizes[-1].items())
            print(f"after {part}/{_PARTS}: {memory}; {figures.predictions_per_s:,.0f} predictions/s", flush=True)
        rest = left_over(running.servers.backend_uri)
    growth = {name: sum(size[name] for size in sizes[6:]) / sum(size[name] for size in sizes[2:4]) for name in sizes[0]}
    print("last quarter / second quarter: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in growth.items()))
    print(f"left in the result store beside the results: {', '.join(rest) or 'nothing'}")
    sys.exit(bool(rest) or any(ratio > options.growth for ratio in growth.values()))


if __name__ == "__main__":
    main()
