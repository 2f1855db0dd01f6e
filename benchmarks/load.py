"""The load generator: `python -m benchmarks.load --help`. It starts no service.

Each client sends one customer, polls until the prediction has ended, and sends the next customer (a closed loop).
Clients and service share the machine's cores, so this program saves CPU time: it uses raw streams, and reads only the
part of HTTP/1.1 that the service sends.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ImportError):
    from uvloop import new_event_loop

WARM_UP_S = 1
WARM_UP_REQUESTS = 50  # with --requests
TIMEOUT_S = 30  # from the POST to the probability
PAUSE_S = 0.1  # of a client after an error
WAIT_S = 25  # of `Prefer: wait`
OK = HTTPStatus.OK.value
MANIFEST = Path(__file__).parents[1] / "celery_task_app/ml/artifacts/churn.json"


def customers(seed: int) -> Iterator[bytes]:
    """Yield customers as JSON for ever; the same seed yields the same customers.

    Each feature varies in its range of the training data. Similar customers take the same paths through the trees, so
    that the processor's branch prediction nearly halves the time of a prediction.
    """
    draw = random.Random(seed)
    features = json.loads(MANIFEST.read_bytes())["features"]
    while True:
        yield json.dumps({feature["name"]: draw_value(feature, draw) for feature in features}).encode()


def draw_value(feature: dict[str, Any], draw: random.Random) -> str | float:
    """Return a random value of a feature, as the manifest describes it."""
    if feature["type"] == "category":
        category: str = draw.choice(feature["categories"])
        return category
    if feature["type"] == "integer":
        return draw.randint(feature["minimum"], feature["maximum"])
    return round(draw.uniform(feature["minimum"], feature["maximum"]), 3)


def schedule(seconds: float, requests: int | None) -> Iterator[bool]:
    """Yield once for each prediction to begin: False during the warm-up, then True, until the load ends."""
    if requests is not None:
        yield from itertools.repeat(False, WARM_UP_REQUESTS)
        yield from itertools.repeat(True, requests)
        return
    warm = time.perf_counter() + WARM_UP_S
    while (now := time.perf_counter()) < warm + seconds:
        yield now >= warm


@dataclass(frozen=True, slots=True)
class Dialect:
    """The paths and bodies of the service, or of a peer of `make bench-peers`.

    Attributes:
        post: the path of the POST.
        get: the path of the GET; the task id is appended.
        accepted: HTTP status, and `status` in the body, of a POST without a prediction.
        pending: the same of a GET without a prediction.
        in_a_list: whether a customer and its prediction are sent as a JSON array with one element.
    """

    post: str = "/churn/predict"
    get: str = "/churn/result/"
    accepted: tuple[int, str | None] = (202, "Processing")
    pending: tuple[int, str | None] = (202, "Processing")
    in_a_list: bool = False


DIALECTS = {
    "churn": Dialect(),
    "explained": Dialect("/churn/predict?explain=true"),
    "bentoml": Dialect("/churn/batch", in_a_list=True),
    "bentoml-task": Dialect("/churn/task/submit", "/churn/task/get?task_id=", (200, "in_progress"), (400, None)),
}


class UnexpectedResponse(Exception):
    """A response that the HTTP contract forbids; the report counts errors by this message."""


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response.

    Attributes:
        has_ended: whether it has the probability.
        is_wait_honoured: whether it has `Preference-Applied`.
        body: the JSON object.
    """

    has_ended: bool
    is_wait_honoured: bool
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """One finished prediction; times in seconds of time.perf_counter().

    Attributes:
        begun: the POST was sent.
        posted: the response to the POST was read.
        ended: the probability was read.
        polls: number of GETs.
        waits_honoured: number of responses with `Preference-Applied`.
    """

    begun: float
    posted: float
    ended: float
    polls: int
    waits_honoured: int


class Client:
    """One client with one keep-alive connection, as a program with one thread has it."""

    def __init__(self, url: str, poll_s: float, *, wait: bool, dialect: Dialect) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "", parts.port or 80
        self._poll_s = poll_s
        prefer = f"Prefer: wait={WAIT_S}\r\n" if wait else ""
        common = f"HTTP/1.1\r\nHost: {parts.netloc}\r\n{prefer}"
        path = parts.path.rstrip("/")
        self._post = f"POST {path}{dialect.post} {common}Content-Type: application/json\r\nContent-Length: "
        self._get = f"GET {path}{dialect.get}", f" {common}\r\n"
        self._dialect = dialect
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        """Connect, unless the connection is open."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)

    async def close(self) -> None:
        """Close the connection; after an error, because its next response may belong to an older request."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def predict(self, customer: bytes) -> Timing:
        """Send one customer, and poll until the prediction has ended.

        Raises:
            UnexpectedResponse: the HTTP contract forbids a response.
            TimeoutError: the prediction took longer than 30 seconds.
            OSError, EOFError: the connection was refused or lost.
        """
        async with asyncio.timeout(TIMEOUT_S):
            await self.open()
            content = b"[%b]" % customer if self._dialect.in_a_list else customer
            begun = time.perf_counter()
            response = await self._request("POST", f"{self._post}{len(content)}\r\n\r\n".encode() + content)
            posted = time.perf_counter()
            polls, waits_honoured = 0, int(response.is_wait_honoured)
            task_id = response.body.get("task_id")
            if not isinstance(task_id, str):
                raise UnexpectedResponse("POST: response without a task_id")
            get = task_id.join(self._get).encode()
            while not response.has_ended:
                if not response.is_wait_honoured:
                    await asyncio.sleep(self._poll_s)
                response = await self._request("GET", get)
                polls += 1
                waits_honoured += response.is_wait_honoured
                if response.body.get("task_id", task_id) not in {task_id, ""}:
                    raise UnexpectedResponse("GET: response with another task_id")
            return Timing(begun, posted, time.perf_counter(), polls, waits_honoured)

    async def _request(self, method: str, request: bytes) -> Response:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(request)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head[9:12])
            length = head.split(b"\r\ncontent-length:", 1)[1]
            content = await reader.readexactly(int(length[: length.index(b"\r")]))
        except (asyncio.LimitOverrunError, LookupError, ValueError) as error:
            raise UnexpectedResponse(f"{method}: response without a valid status or Content-Length") from error
        expected = self._dialect.accepted if method == "POST" else self._dialect.pending
        if status not in {OK, expected[0]}:
            raise UnexpectedResponse(f"{method}: status {status}")
        body = _parse_object(content, in_a_list=self._dialect.in_a_list)
        has_ended = status == OK and body.get("status") == "Success"
        if not has_ended and (status, body.get("status")) != expected:
            raise UnexpectedResponse(f"{method}: status {status} with another body than the contract's")
        probability: Any = body.get("probability")
        if has_ended and not (type(probability) in {int, float} and 0 <= probability <= 1):  # False for NaN too
            raise UnexpectedResponse(f"{method}: the probability is not in [0, 1]")
        return Response(has_ended, b"\r\npreference-applied:" in head, body)


def _parse_object(content: bytes, *, in_a_list: bool) -> dict[str, Any]:
    """Return the JSON object of a response; an empty object if there is none."""
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    if in_a_list and isinstance(body, list) and len(body) == 1:
        (body,) = body
    return body if isinstance(body, dict) else {}


@dataclass
class Report:
    """The figures of one load; times in milliseconds, None without a finished prediction.

    Attributes:
        url: the measured address.
        clients: number of clients.
        poll_ms: pause before a poll.
        wait: whether the clients sent `Prefer: wait`.
        predictions: finished predictions without those of the warm-up; the next fields are about these.
        elapsed_s: from the begin of the first to the end of the last, in seconds.
        predictions_per_s: predictions / elapsed_s.
        p50_ms: 50th percentile of the times from the POST to the probability.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        max_ms: the longest time.
        post_p50_ms: 50th percentile of the POST alone; it contains the wait if the service honoured it.
        polls_per_prediction: mean number of GETs.
        waits_honoured_per_prediction: mean number of responses with `Preference-Applied`.
        warm_up_predictions: finished predictions of the warm-up.
        client_cpu_s: CPU seconds of this program, warm-up included.
        errors: number of errors by message, warm-up included.
    """

    url: str
    clients: int
    poll_ms: float
    wait: bool
    predictions: int = 0
    elapsed_s: float = 0
    predictions_per_s: float = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    post_p50_ms: float | None = None
    polls_per_prediction: float | None = None
    waits_honoured_per_prediction: float | None = None
    warm_up_predictions: int = 0
    client_cpu_s: float = 0
    errors: dict[str, int] = field(default_factory=dict)

    def fill(self, timings: Sequence[Timing]) -> None:
        """Compute the figures from the timings."""
        if not timings:
            return
        count = len(timings)
        self.predictions = count
        self.elapsed_s = max(timing.ended for timing in timings) - min(timing.begun for timing in timings)
        self.predictions_per_s = round(count / self.elapsed_s, 1)
        self.elapsed_s = round(self.elapsed_s, 3)
        times_s = sorted(timing.ended - timing.begun for timing in timings)
        self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms = (percentile_ms(times_s, p) for p in (50, 95, 99, 100))
        self.post_p50_ms = percentile_ms(sorted(timing.posted - timing.begun for timing in timings), 50)
        self.polls_per_prediction = round(sum(timing.polls for timing in timings) / count, 2)
        self.waits_honoured_per_prediction = round(sum(timing.waits_honoured for timing in timings) / count, 2)

    def __str__(self) -> str:
        """Return the figures as text."""
        wait = f"Prefer: wait={WAIT_S}, else " if self.wait else ""
        lines = [f"{self.clients} clients in a closed loop, {wait}polling every {self.poll_ms:g} ms"]
        if self.predictions:
            lines += [
                f"predictions      {self.predictions_per_s:,.0f}/s ({self.predictions:,} in {self.elapsed_s:.1f} s)",
                f"POST to result   p50 {self.p50_ms} ms, p95 {self.p95_ms}, p99 {self.p99_ms}, max {self.max_ms}",
                f"POST alone       p50 {self.post_p50_ms} ms",
                f"polls            {self.polls_per_prediction} per prediction",
            ]
            if self.wait:
                lines.append(f"waits honoured   {self.waits_honoured_per_prediction} per prediction")
            cpu_ms = 1000 * self.client_cpu_s / (self.predictions + self.warm_up_predictions)
            lines.append(f"load generator   {cpu_ms:.2f} ms of CPU per prediction")
        else:
            lines.append("predictions      none")
        lines.append(f"errors           {sum(self.errors.values())}")
        lines += [f"{count:8}         {kind}" for kind, count in self.errors.items()]
        return "\n".join(lines)


def percentile_ms(ordered: Sequence[float], percent: int) -> float:
    """Return a nearest-rank percentile in milliseconds.

    Args:
        ordered: n >= 1 times in seconds, ascending.
        percent: in (0, 100].
    """
    return round(ordered[math.ceil(len(ordered) * percent / 100) - 1] * 1000, 2)


async def measure(options: argparse.Namespace) -> Report:
    """Run the clients until the predictions of all of them have ended.

    Raises:
        OSError: the service cannot be reached.
    """
    report = Report(options.url, options.clients, options.poll_ms, options.wait)
    dialect = DIALECTS[options.dialect]
    clients = [
        Client(options.url, options.poll_ms / 1000, wait=options.wait, dialect=dialect) for _ in range(options.clients)
    ]
    timings: list[Timing] = []
    errors: Counter[str] = Counter()
    async with asyncio.timeout(TIMEOUT_S):
        for client in clients:
            await client.open()
    # One iterator for all clients: the next free client takes the next customer.
    customers_to_send = zip(schedule(options.seconds, options.requests), customers(options.seed), strict=False)

    async def run(client: Client) -> None:
        for is_counted, customer in customers_to_send:
            try:
                timing = await client.predict(customer)
            except UnexpectedResponse as error:
                errors[str(error)] += 1
            except TimeoutError:
                errors[f"no probability within {TIMEOUT_S} s"] += 1
            except (OSError, EOFError) as error:
                errors[f"connection lost: {type(error).__name__}"] += 1
            else:
                if is_counted:
                    timings.append(timing)
                else:
                    report.warm_up_predictions += 1
                continue
            await client.close()
            await asyncio.sleep(PAUSE_S)
        await client.close()

    cpu_s = time.process_time()
    await asyncio.gather(*map(run, clients))
    report.client_cpu_s = round(time.process_time() - cpu_s, 3)
    report.fill(timings)
    report.errors = dict(errors.most_common())
    return report


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--clients", type=int, default=32, help="number of clients")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=10, help="duration, after the warm-up")
    length.add_argument("--requests", type=int, help="number of predictions, after the warm-up")
    parser.add_argument("--poll-ms", type=float, default=10, help="pause before a poll")
    parser.add_argument(
        "--wait", action="store_true", help=f"send `Prefer: wait={WAIT_S}`; poll where it has no effect"
    )
    parser.add_argument("--dialect", choices=DIALECTS, default="churn", help="paths and bodies")
    parser.add_argument("--seed", type=int, default=0, help="of the random customers")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    if urlsplit(options.url).scheme != "http":
        parser.error(f"--url must be http://…, not {options.url}")
    if options.clients < 1:
        parser.error("--clients must be 1 or more")
    return options


def main() -> None:
    """Measure, and print the report; the exit code is 1 if there was an error."""
    options = _parse_options()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            report = runner.run(measure(options))
    except OSError as error:
        sys.exit(f"No answer from {options.url}: {str(error) or f'none within {TIMEOUT_S} s'}")
    print(json.dumps(asdict(report), indent=1) if options.json else report)
    sys.exit(bool(report.errors) or not report.predictions)


if __name__ == "__main__":
    main()
