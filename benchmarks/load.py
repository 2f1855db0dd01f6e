"""Clients in a closed loop against the running service: `python -m benchmarks.load --help`. Starts no service.

Each client sends one customer, asks until the prediction is there, then sends the next. Client and service share the
machine's cores, so this is written for little CPU: raw streams, and only as much of HTTP/1.1 as the service answers.
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
from typing import Any
from urllib.parse import urlsplit

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ImportError):
    from uvloop import new_event_loop

WARM_UP_S = 1  # not counted; with --requests it is this many predictions
WARM_UP_REQUESTS = 50
TIMEOUT_S = 30  # of a whole prediction
PAUSE_S = 0.1  # after an error, so that a service in trouble is not hammered
WAIT_S = 25


def customers(seed: int) -> Iterator[bytes]:
    """Yield customers as JSON without end, the same ones for the same seed; each of the 19 features varies.

    Customers that are much alike take the same ways through the trees, and a processor that has learned them predicts
    them in little more than half the time.
    """
    draw = random.Random(seed)
    while True:
        limit, balance = draw.randint(1_500, 34_000), draw.randint(0, 1_500)
        yield json.dumps(
            {
                "Customer_Age": draw.randint(26, 73),
                "Gender": draw.choice("FM"),
                "Dependent_count": draw.randint(0, 5),
                "Education_Level": draw.choice(("Graduate", "High School", "Unknown", "Uneducated", "College")),
                "Marital_Status": draw.choice(("Married", "Single", "Unknown", "Divorced")),
                "Income_Category": draw.choice(("Less than $40K", "$40K - $60K", "$80K - $120K", "Unknown")),
                "Card_Category": draw.choice(("Blue", "Blue", "Silver", "Gold")),
                "Months_on_book": draw.randint(13, 56),
                "Total_Relationship_Count": draw.randint(1, 6),
                "Months_Inactive_12_mon": draw.randint(0, 6),
                "Contacts_Count_12_mon": draw.randint(0, 6),
                "Credit_Limit": limit,
                "Total_Revolving_Bal": balance,
                "Avg_Open_To_Buy": limit - balance,
                "Total_Amt_Chng_Q4_Q1": round(draw.gauss(0.75, 0.2) ** 2, 3),
                "Total_Trans_Amt": draw.randint(510, 18_000),
                "Total_Trans_Ct": draw.randint(10, 139),
                "Total_Ct_Chng_Q4_Q1": round(draw.gauss(0.8, 0.15) ** 2, 3),
                "Avg_Utilization_Ratio": round(balance / limit, 3),
            }
        ).encode()


def turns(seconds: float, requests: int | None) -> Iterator[bool]:
    """Yield for each prediction that is to begin now whether it counts (or is warm-up), until it is over."""
    if requests is not None:
        yield from itertools.repeat(False, WARM_UP_REQUESTS)
        yield from itertools.repeat(True, requests)
        return
    warm = time.perf_counter() + WARM_UP_S
    while (now := time.perf_counter()) < warm + seconds:
        yield now >= warm


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to speak with what is measured: the service (with reasons, too), or a peer of `make bench-peers`."""

    post: str = "/churn/predict"
    get: str = "/churn/result/"
    accepted: tuple[int, str | None] = (202, "Processing")
    """The HTTP status, and the `status` of the body, of a POST that is not answered with the prediction ..."""
    pending: tuple[int, str | None] = (202, "Processing")
    """... and of a GET."""
    in_a_list: bool = False
    """Whether a customer is sent, and its prediction comes, as a JSON array of one."""


DIALECTS = {
    "churn": Dialect(),
    "explained": Dialect("/churn/predict?explain=true"),
    "bentoml": Dialect("/churn/batch", in_a_list=True),
    "bentoml-task": Dialect("/churn/task/submit", "/churn/task/get?task_id=", (200, "in_progress"), (400, None)),
}


class WrongAnswer(Exception):
    """The service did not answer as its contract says; the message is the kind of error that the report counts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    ended: bool
    """Whether the prediction is there."""
    waited: bool
    """Whether `Preference-Applied` says that the service honoured `Prefer: wait`."""
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """One finished prediction; times in seconds of time.perf_counter()."""

    begun: float
    posted: float
    ended: float
    polls: int
    waits_honoured: int


class Client:
    """One client with one kept-alive connection, as a single-threaded program would have."""

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
        """Connect, unless it is connected."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)

    async def close(self) -> None:
        """Drop the connection: after an error, what else comes over it may belong to an older request."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def predict(self, customer: bytes) -> Timing:
        """Send one customer and ask until the prediction is there.

        Raises:
            WrongAnswer: an answer is not what the contract says.
            TimeoutError: the whole took longer than 30 seconds.
            OSError, EOFError: the connection was refused or lost.
        """
        async with asyncio.timeout(TIMEOUT_S):
            await self.open()
            content = b"[%b]" % customer if self._dialect.in_a_list else customer
            begun = time.perf_counter()
            answer = await self._ask("POST", f"{self._post}{len(content)}\r\n\r\n".encode() + content)
            posted = time.perf_counter()
            polls, honoured = 0, int(answer.waited)
            task_id = answer.body.get("task_id")
            if not isinstance(task_id, str):
                raise WrongAnswer("POST answered without a task_id")
            question = task_id.join(self._get).encode()
            while not answer.ended:
                if not answer.waited:
                    await asyncio.sleep(self._poll_s)
                answer = await self._ask("GET", question)
                polls += 1
                honoured += answer.waited
                if answer.body.get("task_id", task_id) not in {task_id, ""}:
                    raise WrongAnswer("GET answered with another task_id")
            return Timing(begun, posted, time.perf_counter(), polls, honoured)

    async def _ask(self, method: str, request: bytes) -> Answer:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(request)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head[9:12])
            length = head.split(b"\r\ncontent-length:", 1)[1]
            content = await reader.readexactly(int(length[: length.index(b"\r")]))
        except (asyncio.LimitOverrunError, LookupError, ValueError) as error:
            raise WrongAnswer(f"{method} answered without a status or Content-Length that can be read") from error
        expected = self._dialect.accepted if method == "POST" else self._dialect.pending
        if status not in {200, expected[0]}:
            raise WrongAnswer(f"{method} answered {status}")
        body = _body(content, in_a_list=self._dialect.in_a_list)
        ended = status == 200 and body.get("status") == "Success"  # noqa: PLR2004 - HTTP's
        if not ended and (status, body.get("status")) != expected:
            raise WrongAnswer(f"{method} answered {status} with a wrong body")
        probability: Any = body.get("probability")
        if ended and not (type(probability) in {int, float} and 0 <= probability <= 1):  # NaN isn't either
            raise WrongAnswer(f"{method} answered a probability that is not in [0, 1]")
        return Answer(ended, b"\r\npreference-applied:" in head, body)


def _body(content: bytes, *, in_a_list: bool) -> dict[str, Any]:
    """Return an answer's JSON object; an empty one if it is none, which no answer is."""
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    if in_a_list and isinstance(body, list) and len(body) == 1:
        (body,) = body
    return body if isinstance(body, dict) else {}


@dataclass
class Report:
    """What was measured, times in milliseconds; None where there was nothing to measure."""

    url: str
    clients: int
    poll_ms: float
    wait: bool
    predictions: int = 0
    """Finished, without those of the warm-up; the figures below are about these."""
    elapsed_s: float = 0
    """From the begin of the first to the end of the last."""
    predictions_per_s: float = 0
    p50_ms: float | None = None
    """This and the next three: from sending the POST to having the probability."""
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    post_p50_ms: float | None = None
    """The POST alone; it contains the wait where that was honoured."""
    polls_per_prediction: float | None = None
    waits_honoured_per_prediction: float | None = None
    warm_up_predictions: int = 0
    """Finished before those; the next figure is about both."""
    client_cpu_s: float = 0
    """CPU seconds that this program itself used."""
    errors: dict[str, int] = field(default_factory=dict)
    """How many of each kind, those of the warm-up too."""

    def fill(self, timings: Sequence[Timing]) -> None:
        """Compute the figures."""
        if not timings:
            return
        count = len(timings)
        self.predictions = count
        self.elapsed_s = max(timing.ended for timing in timings) - min(timing.begun for timing in timings)
        self.predictions_per_s = round(count / self.elapsed_s, 1)
        self.elapsed_s = round(self.elapsed_s, 3)
        whole = sorted(timing.ended - timing.begun for timing in timings)
        self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms = (percentile_ms(whole, p) for p in (50, 95, 99, 100))
        self.post_p50_ms = percentile_ms(sorted(timing.posted - timing.begun for timing in timings), 50)
        self.polls_per_prediction = round(sum(timing.polls for timing in timings) / count, 2)
        self.waits_honoured_per_prediction = round(sum(timing.waits_honoured for timing in timings) / count, 2)

    def __str__(self) -> str:
        """Return the figures for a person."""
        how = f"Prefer: wait={WAIT_S}, else " if self.wait else ""
        lines = [f"{self.clients} clients in a closed loop, {how}polling every {self.poll_ms:g} ms"]
        if self.predictions:
            lines += [
                f"predictions      {self.predictions_per_s:,.0f}/s ({self.predictions:,} in {self.elapsed_s:.1f} s)",
                f"POST to result   p50 {self.p50_ms} ms, p95 {self.p95_ms}, p99 {self.p99_ms}, max {self.max_ms}",
                f"POST alone       p50 {self.post_p50_ms} ms",
                f"polls            {self.polls_per_prediction} a prediction",
            ]
            if self.wait:
                lines.append(f"waits honoured   {self.waits_honoured_per_prediction} a prediction")
            cpu_ms = 1000 * self.client_cpu_s / (self.predictions + self.warm_up_predictions)
            lines.append(f"this client      {cpu_ms:.2f} ms of CPU a prediction")
        else:
            lines.append("predictions      none")
        lines.append(f"errors           {sum(self.errors.values())}")
        lines += [f"{count:8}         {kind}" for kind, count in self.errors.items()]
        return "\n".join(lines)


def percentile_ms(ordered: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile of times in seconds: one that was measured, not one in between."""
    return round(ordered[math.ceil(len(ordered) * percent / 100) - 1] * 1000, 2)


async def measure(options: argparse.Namespace) -> Report:
    """Run the clients until all their predictions have ended.

    Raises:
        OSError: the service is not there.
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
    # One iterator for all: whichever client is free takes the next customer.
    work = zip(turns(options.seconds, options.requests), customers(options.seed), strict=False)

    async def run(client: Client) -> None:
        for counted, customer in work:
            try:
                timing = await client.predict(customer)
            except WrongAnswer as error:
                errors[str(error)] += 1
            except TimeoutError:
                errors[f"no prediction within {TIMEOUT_S} s"] += 1
            except (OSError, EOFError) as error:
                errors[f"connection lost: {type(error).__name__}"] += 1
            else:
                if counted:
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service listens")
    parser.add_argument("--clients", type=int, default=32, help="how many send at the same time")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=10, help="begin predictions for so long, after the warm-up")
    length.add_argument("--requests", type=int, help="or stop after so many predictions, after the warm-up")
    parser.add_argument("--poll-ms", type=float, default=10, help="from an answer to the next poll")
    parser.add_argument("--wait", action="store_true", help=f"send `Prefer: wait={WAIT_S}`; poll if it is not honoured")
    parser.add_argument("--dialect", choices=DIALECTS, default="churn", help="how to speak with it")
    parser.add_argument("--seed", type=int, default=0, help="of the customers")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    if urlsplit(options.url).scheme != "http":
        parser.error(f"--url must be http://…, not {options.url}")
    if options.clients < 1:
        parser.error("--clients must be 1 or more")
    return options


def main() -> None:
    """Measure and print; the exit code is 1 if there was any error."""
    options = _options()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            report = runner.run(measure(options))
    except OSError as error:
        sys.exit(f"No answer from {options.url}: {str(error) or f'none within {TIMEOUT_S} s'}")
    print(json.dumps(asdict(report), indent=1) if options.json else report)
    sys.exit(bool(report.errors) or not report.predictions)


if __name__ == "__main__":
    main()
