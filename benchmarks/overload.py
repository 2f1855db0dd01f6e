"""Ten times what the worker can do, for a minute: `python -m benchmarks.overload`. Starts its own service and servers.

Reports how fast the API refuses, that its memory stays flat, and that whatever it accepted is answered; the exit code
is 1 if something was not. Needs RabbitMQ and Redis, or `--servers valkey`.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.load import customers, percentile_ms
from tests import marked_model
from tests.processes import Service, running_servers, running_service

HIGH_WATER = 300
PER_S = 10 * round(1 / marked_model.SlowModel.PER_CUSTOMER_S)
CONNECTIONS = 64
SAMPLE_S = 5


@dataclass
class Book:
    """What was answered."""

    accepted: list[str] = field(default_factory=list)
    times_s: dict[int, list[float]] = field(default_factory=dict)
    retry_after_s: Counter[int] = field(default_factory=Counter)
    pss_mib: list[float] = field(default_factory=list)


async def _ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> tuple[int, bytes, bytes]:
    reader, writer = streams
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.split(b"\r\ncontent-length:", 1)[1].split(b"\r", 1)[0]
    return int(head[9:12]), head, await reader.readexactly(int(length))


async def offer(service: Service, seconds: float, book: Book) -> None:
    """Send PER_S customers a second, whatever the answers are: these clients ignore Retry-After."""
    start, bodies, numbers = time.perf_counter() + 0.5, customers(0), itertools.count()
    head = "POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def send() -> None:
        streams = await asyncio.open_connection("127.0.0.1", service.port)
        while (due := start + next(numbers) / PER_S) < start + seconds:
            await asyncio.sleep(due - time.perf_counter())
            body = next(bodies)
            begun = time.perf_counter()
            status, answer_head, answer = await _ask(streams, head.encode() % len(body) + body)
            book.times_s.setdefault(status, []).append(time.perf_counter() - begun)
            if status == 202:  # noqa: PLR2004 - HTTP's
                book.accepted.append(json.loads(answer)["task_id"])
            else:
                book.retry_after_s[int(answer_head.split(b"\r\nretry-after:", 1)[1].split(b"\r", 1)[0])] += 1
        streams[1].close()

    async def sample() -> None:
        api = psutil.Process(service.api.pid)
        while True:
            book.pss_mib.append(api.memory_full_info().pss / 2**20)
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    sampling.cancel()


async def unanswered(service: Service, task_ids: Sequence[str], within_s: float) -> list[str]:
    """Ask for each until it has a probability; return those that have none."""
    streams = await asyncio.open_connection("127.0.0.1", service.port)
    owed, deadline = list(task_ids), time.monotonic() + within_s
    while owed and time.monotonic() < deadline:
        status, _, _ = await _ask(streams, f"GET /churn/result/{owed[-1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if status == 200:  # noqa: PLR2004 - HTTP's
            owed.pop()
        else:
            await asyncio.sleep(0.1)
    streams[1].close()
    return owed


def main() -> int:
    """Run, report, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=["rabbitmq", "valkey"], default="rabbitmq", help="which to start")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    options = parser.parse_args()
    book = Book()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(marked_model.save(folder, marked_model.SlowModel()))
        limits = {"MODEL_PATH": model, "GROUP_MAX": "32", "QUEUE_HIGH_WATER": str(HIGH_WATER)}
        with running_servers(options.servers, folder) as servers, running_service(servers, folder, **limits) as service:
            asyncio.run(offer(service, options.seconds, book))
            lost = asyncio.run(unanswered(service, book.accepted, within_s=120))
    sent = sum(map(len, book.times_s.values()))
    print(
        f"{options.servers}: {sent / options.seconds:.0f} customers/s for {options.seconds:.0f} s, ten times capacity"
    )
    for status, times_s in sorted(book.times_s.items()):
        p50, p99, most = (percentile_ms(sorted(times_s), percent) for percent in (50, 99, 100))
        print(f"{status}          {len(times_s):6}  p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms")
    print(f"Retry-After  {min(book.retry_after_s)} to {max(book.retry_after_s)} s")
    print(f"API memory   {', '.join(f'{mib:.0f}' for mib in book.pss_mib)} MiB (PSS, every {SAMPLE_S} s)")
    print(f"unanswered   {len(lost)} of {len(book.accepted)} accepted")
    return int(bool(lost) or not book.times_s.keys() <= {202, 429})


if __name__ == "__main__":
    sys.exit(main())
