"""Ten times the capacity of the worker, for a minute: `python -m benchmarks.overload`.

It starts its own service and servers: RabbitMQ and Redis, or `--servers valkey`. It prints the times of the refusals,
the memory of the API, and the number of accepted predictions without a result. The exit code is 1 if such a prediction
exists, or if the API answered with another status than 202 and 429.
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
from http import HTTPStatus
from pathlib import Path

import psutil

from benchmarks.load import customers, percentile_ms
from tests.harness import marked_model
from tests.harness.servers import running_servers
from tests.harness.service import Service, running_service

HIGH_WATER = 300
PER_S = 10 * round(1 / marked_model.SlowModel.per_customer_s)
CONNECTIONS = 64
SAMPLE_S = 5

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Responses:
    """The responses to an overload.

    Attributes:
        accepted: the task ids of the 202s.
        times_s: response times, by status.
        retry_after_s: the Retry-After of the refusals, counted.
        pss_mib: the API's memory, every SAMPLE_S seconds.
    """

    accepted: list[str] = field(default_factory=list)
    times_s: dict[int, list[float]] = field(default_factory=dict)
    retry_after_s: Counter[int] = field(default_factory=Counter)
    pss_mib: list[float] = field(default_factory=list)


async def _request(streams: Streams, request: bytes) -> tuple[int, bytes, bytes]:
    """Send a request; return the status, the head in lower case, and the body."""
    reader, writer = streams
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.split(b"\r\ncontent-length:", 1)[1].split(b"\r", 1)[0]
    return int(head[9:12]), head, await reader.readexactly(int(length))


async def send_constantly(service: Service, seconds: float, responses: Responses) -> None:
    """Send PER_S customers a second at any response: these clients ignore Retry-After."""
    start, bodies, numbers = time.perf_counter() + 0.5, customers(0), itertools.count()
    head = "POST /churn/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def send() -> None:
        streams = await asyncio.open_connection("127.0.0.1", service.port)
        while (due := start + next(numbers) / PER_S) < start + seconds:
            await asyncio.sleep(due - time.perf_counter())
            body = next(bodies)
            sent = time.perf_counter()
            status, response_head, content = await _request(streams, head.encode() % len(body) + body)
            responses.times_s.setdefault(status, []).append(time.perf_counter() - sent)
            if status == HTTPStatus.ACCEPTED:
                responses.accepted.append(json.loads(content)["task_id"])
            else:
                retry_after = response_head.split(b"\r\nretry-after:", 1)[1].split(b"\r", 1)[0]
                responses.retry_after_s[int(retry_after)] += 1
        streams[1].close()

    async def sample() -> None:
        api = psutil.Process(service.api.pid)
        while True:
            responses.pss_mib.append(api.memory_full_info().pss / 2**20)
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    sampling.cancel()


async def without_result(service: Service, task_ids: Sequence[str], within_s: float) -> list[str]:
    """Fetch each prediction until it has a probability; return the task ids that have none in time."""
    streams = await asyncio.open_connection("127.0.0.1", service.port)
    pending, deadline = list(task_ids), time.monotonic() + within_s
    while pending and time.monotonic() < deadline:
        request = f"GET /churn/result/{pending[-1]} HTTP/1.1\r\nHost: x\r\n\r\n"
        status, _, _ = await _request(streams, request.encode())
        if status == HTTPStatus.OK:
            pending.pop()
        else:
            await asyncio.sleep(0.1)
    streams[1].close()
    return pending


def main() -> int:
    """Overload the service, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=["rabbitmq", "valkey"], default="rabbitmq", help="the servers to start")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    options = parser.parse_args()
    responses = Responses()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(marked_model.save(folder, marked_model.SlowModel()))
        limits = {"MODEL_PATH": model, "GROUP_MAX": "32", "QUEUE_HIGH_WATER": str(HIGH_WATER)}
        with running_servers(options.servers, folder) as servers, running_service(servers, folder, **limits) as service:
            asyncio.run(send_constantly(service, options.seconds, responses))
            lost = asyncio.run(without_result(service, responses.accepted, within_s=120))
    sent = sum(map(len, responses.times_s.values()))
    per_s = sent / options.seconds
    print(f"{options.servers}: {per_s:.0f} customers/s for {options.seconds:.0f} s, ten times the capacity")
    for status, times_s in sorted(responses.times_s.items()):
        p50, p99, most = (percentile_ms(sorted(times_s), percent) for percent in (50, 99, 100))
        print(f"{status}            {len(times_s):6}  p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms")
    if responses.retry_after_s:
        print(f"Retry-After    {min(responses.retry_after_s)} to {max(responses.retry_after_s)} s")
    print(f"API memory     {', '.join(f'{mib:.0f}' for mib in responses.pss_mib)} MiB (PSS, every {SAMPLE_S} s)")
    print(f"without result {len(lost)} of {len(responses.accepted)} accepted")
    expected = {HTTPStatus.ACCEPTED, HTTPStatus.TOO_MANY_REQUESTS}
    return int(bool(lost) or not responses.times_s.keys() <= expected)


if __name__ == "__main__":
    sys.exit(main())
