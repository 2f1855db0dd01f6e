"""The ledger of a load test: clients send predictions, every 202 must end as it should, and the service must count it.

Another client asks /readyz each second. tests/harness/readiness.py compares its answers with the outcomes of the POSTs.
"""

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests

from celery_task_app.store.counts import ServiceCounts
from tests.harness import marked_model
from tests.harness.counts import difference, imbalances, scraped_counts
from tests.harness.customers import CUSTOMER
from tests.harness.metrics import scrape
from tests.harness.processes import until
from tests.harness.readiness import Look, Post, Verdict, judge, longest_refusal_s
from tests.harness.service import Service

ALL_ENDED_WITHIN_S = 100  # Valkey redelivers the messages of a lost worker after 60 s.
AT_REST_WITHIN_S = 10  # RabbitMQ reports the length of a quorum queue up to 5 s late
REFUSALS = {429, 503}
LOOK_PERIOD_S = 1
LOOK_TIMEOUT_S = 3
POLL_PERIOD_S = 0.25
REPEAT_AFTER_S = 0.05  # after the response that a prediction has not ended
POLL_WAIT_S = 2
ACCEPT_WITHIN_S = 2.5  # then the API answers 503, and may publish the message all the same; api/group_commit.py
CONFIRM_LOST = "the broker may have a message whose confirm was lost, and the worker may store its results"
API_KILLED = "the API may have published a message before it could answer"
IN_FLIGHT = 200  # requests; more than the load sends in the 3 s that a response may take


@dataclass
class Row:
    """The effects of one fault on the clients.

    Attributes:
        servers: `valkey` or `rabbitmq`.
        fault: its name.
        sent: requests to predict.
        accepted: responses 202.
        refused: responses 429 and 503 with a Retry-After, by status.
        unanswered: requests that the API did not answer because it was down.
        may_be_more: predictions that the service may have counted although their clients got 503 or no answer.
        lost: accepted predictions that are unknown or never ended.
        wrong: accepted predictions with a wrong probability or a wrong state.
        unknown: accepted predictions that are 404 because a fail-over of the store lost their markers, as it may.
        expired: accepted predictions that are 410 because a fail-over lost their results, as it may.
        other: forbidden responses, by method and status.
        false_ready_s: seconds in which /readyz was 200 although no prediction could be computed; None if not measured.
        false_alarm_s: seconds in which /readyz was not 200 although every prediction was computed soon.
        slowest_ms: the slowest response.
        livez_ms: the slowest response of /livez.
        ended_s: seconds from the end of the load until every prediction had ended and every queue was empty.
        left: messages that stayed in a queue, by queue.
        rows: rows of accepted batches.
        counted: by name, the service-wide counts of predictions since the ledger was opened.
        counted_rows: the same of rows.
        imbalance: how these counts differ from the ledger.
        not_applicable: the reason if these servers cannot have the fault.
        memory: the memory of the processes after a soak.
    """

    servers: str
    fault: str
    sent: int = 0
    accepted: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    unanswered: int = 0
    may_be_more: int = 0
    lost: int = 0
    wrong: int = 0
    unknown: int = 0
    expired: int = 0
    other: dict[str, int] = field(default_factory=dict)
    false_ready_s: float | None = None
    false_alarm_s: float | None = None
    slowest_ms: int = 0
    livez_ms: int = 0
    ended_s: float = 0
    left: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    counted_rows: dict[str, int] = field(default_factory=dict)
    imbalance: str = ""
    not_applicable: str = ""
    memory: str = ""

    @property
    def is_clean(self) -> bool:
        falsehoods = (self.lost, self.wrong, self.other, self.left, self.imbalance)
        return not (any(falsehoods) or self.false_ready_s or self.false_alarm_s)


class Ledger:
    """Clients that send customers at a constant rate, fetch the predictions, and record every accepted one."""

    def __init__(self, service: Service, fault: str, per_second: float, *, is_counting: bool = True) -> None:
        """Open the ledger of a fault.

        Args:
            service: it gets the load.
            fault: its name.
            per_second: predictions that are sent in a second, besides the long-polls.
            is_counting: the service counts every prediction; false if a version without counts takes part.
        """
        self.service = service
        self.per_second = per_second
        self.row = Row(service.servers.name, fault)
        self.refused: Counter[int] = Counter()
        self.other: Counter[str] = Counter()
        self.details: list[str] = []
        self.paused = threading.Event()
        self.ages: deque[int] = deque()
        """Ages of the next customers; tests/harness/marked_model.py gives them a meaning."""
        self.detected_within_s = 0.0
        """Seconds that readiness may need to detect the present fault."""
        self.is_overloaded = False
        """The present fault is an overload, so a 429 says nothing about readiness."""
        self.unclear = set[str]()
        """Why predictions may be accepted although their clients got 503 (CONFIRM_LOST) or no answer (API_KILLED)."""
        self.loss_windows: list[tuple[float, float]] = []
        """Times between which the store may lose the predictions that are sent, on the clock of `time.monotonic`."""
        self.verdict = Verdict()
        self._looks: list[Look] = []
        self._posts: list[Post] = []
        self._numbers = itertools.count()
        self._pending: deque[tuple[str, float | None, Post]] = deque()  # None: an explicit failure
        self._late = 0  # answers 503 after ACCEPT_WITHIN_S
        self._recorded: Counter[str] = Counter()  # the accepted predictions, by the state that they must get
        self._answered_polls = 0
        self._slowest_s = self._slowest_livez_s = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._fetching = requests.Session()  # one connection, because a new one for each fetch falls behind the load
        self._before = self._read_counts() if is_counting else None

    @property
    def pending(self) -> int:
        """Accepted predictions whose end no client has seen."""
        return len(self._pending)

    @property
    def pending_ids(self) -> set[str]:
        """The task ids of these predictions."""
        return {task_id for task_id, _, _ in self._pending.copy()}

    @contextmanager
    def load(self) -> Iterator[None]:
        """Send and fetch predictions until the block ends."""
        work = (self._send_all, self._poll_all, self._fetch_all, self._probe, self._look_all)
        threads = [threading.Thread(target=part) for part in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def wait_for_more(self, count: Callable[[], int], by: int, within_s: float = 60) -> None:
        """Wait until a count has grown."""
        goal = count() + by
        until(lambda: count() >= goal, within_s)

    def accepted(self) -> int:
        return self.row.accepted

    def answered_polls(self) -> int:
        """Count the long-polls that got their result."""
        return self._answered_polls

    def refusals(self) -> int:
        return sum(self.refused.values())

    def refused_for_s(self, since: float) -> float:
        """Return the seconds from a time until the last prediction was sent that was not accepted; 0 if all were."""
        with self._lock:
            return max((post.sent_at - since for post in self._posts if not post.is_accepted), default=0.0)

    def longest_refusal_s(self, since: float = 0) -> float:
        """Return the longest time without an accepted prediction, of those sent since a time of `time.monotonic()`."""
        with self._lock:
            return longest_refusal_s([post for post in self._posts if post.sent_at >= since])

    def report(self, response: str) -> None:
        """Record a forbidden response, for example `POST /churn/batches: 429`."""
        with self._lock:
            self.other[response] += 1

    def expect(self, task_id: str, probability: float) -> None:
        """Add an accepted prediction that a fault has sent."""
        with self._lock:
            self.row.sent += 1
            self.row.accepted += 1
            self._recorded["success"] += 1
            self._pending.append((task_id, probability, Post(time.monotonic(), is_accepted=True)))

    def expect_rows(self, count: int) -> None:
        """Add the rows of an accepted batch that a fault has sent; all of them must be computed."""
        with self._lock:
            self.row.rows += count

    def balance(self) -> Row:
        """Wait until every prediction has ended and the queues are empty, compare the counts, and return the row."""
        started = time.monotonic()
        deadline = started + ALL_ENDED_WITHIN_S
        while self._pending and time.monotonic() < deadline:
            if not self._fetch():
                time.sleep(REPEAT_AFTER_S)
        self.row.lost += len(self._pending)
        self.details += [f"{task_id}: never ended" for task_id, _, _ in self._pending]
        while left := {queue: count for queue, count in self.service.servers.messages().items() if count}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.verdict = judge(self._looks, self._posts)
        self.row.false_ready_s = round(self.verdict.false_ready_s, 1)
        self.row.false_alarm_s = round(self.verdict.false_alarm_s, 1)
        self.details += self.verdict.details
        self.row.ended_s = round(time.monotonic() - started, 1)
        self.row.left = left
        self.row.refused, self.row.other = dict(self.refused), dict(self.other)
        self._compare_counts()
        self.row.slowest_ms, self.row.livez_ms = round(self._slowest_s * 1000), round(self._slowest_livez_s * 1000)
        return self.row

    def _read_counts(self) -> ServiceCounts:
        """Scrape the API until it reads the result store, and nothing waits or a limit of time is reached."""
        deadline = time.monotonic() + AT_REST_WITHIN_S

        def read() -> list[ServiceCounts]:
            answer = scrape(int(self.service.settings["METRICS_PORT"]))
            if not answer.value("churn_result_store_up"):
                return []
            counts = scraped_counts(answer)
            is_at_rest = not (counts.predictions.waiting or counts.rows.waiting)
            return [counts] if is_at_rest or time.monotonic() > deadline else []

        return until(read, 2 * AT_REST_WITHIN_S)[0]

    def _compare_counts(self) -> None:
        if self._before is None:
            return
        after = self._read_counts()
        predictions = difference(after.predictions, self._before.predictions)
        rows = difference(after.rows, self._before.rows)
        self.row.may_be_more = self.refused[503] if CONFIRM_LOST in self.unclear else self._late
        self.row.may_be_more += self.row.unanswered if API_KILLED in self.unclear else 0
        # A fail-over that loses states has lost their counts too.
        found = [] if self.loss_windows else imbalances(predictions, self._recorded, self.row.may_be_more)
        found += [f"rows: {text}" for text in imbalances(rows, {"success": self.row.rows})]
        self.row.imbalance = "; ".join(found)
        self.details += found
        self.row.counted, self.row.counted_rows = (
            {"accepted": counts.accepted, **counts.ended, "waiting": counts.waiting} for counts in (predictions, rows)
        )

    def _request(
        self, method: str, path: str, session: requests.Session | None = None, **options: Any
    ) -> requests.Response | None:
        """Return the response; None if the API is down. Without a session it is a request of another client."""
        started = time.monotonic()
        try:
            return self.service.request(method, path, session, timeout=20, **options)
        except requests.Timeout:
            with self._lock:
                self.other[f"{method}: none in 20 s"] += 1
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            pass
        finally:
            took_s = time.monotonic() - started
            with self._lock:
                if path == "/livez":
                    self._slowest_livez_s = max(self._slowest_livez_s, took_s)
                elif "headers" not in options:  # A long-poll is slow on purpose.
                    self._slowest_s = max(self._slowest_s, took_s)
        return None

    def _send(self) -> None:
        customer = {**CUSTOMER, "Total_Trans_Ct": next(self._numbers) % 1000}
        with self._lock:
            if self.ages:
                customer["Customer_Age"] = self.ages.popleft()
        self._post(customer)

    def _post(self, customer: dict[str, Any], **options: Any) -> tuple[Post, str]:
        """Send a customer; return the record, and the task id of a prediction that has not ended."""
        post = Post(time.monotonic())
        with self._lock:
            self.row.sent += 1
        response = self._request("POST", "/churn/predict", json=customer, **options)
        probability = customer["Total_Trans_Ct"] / 1000
        with self._lock:
            self._posts.append(post)
            if response is None:
                self.row.unanswered += 1
            elif response.status_code == 202:
                self.row.accepted += 1
                post.is_accepted = True
                expected = None if customer["Customer_Age"] == marked_model.KILLS else probability
                self._recorded["failure" if expected is None else "success"] += 1
                task_id: str = response.json()["task_id"]
                self._pending.append((task_id, expected, post))
                return post, task_id
            elif response.status_code == 200 and response.json()["probability"] == probability:
                self.row.accepted += 1
                self._recorded["success"] += 1
                self._answered_polls += 1
                post.is_accepted, post.ended_at = True, time.monotonic()
            elif response.status_code in REFUSALS and int(response.headers["retry-after"]) >= 1:
                self.refused[response.status_code] += 1
                self._late += response.status_code == 503 and time.monotonic() - post.sent_at >= ACCEPT_WITHIN_S
                post.is_neutral = response.status_code == 429 and self.is_overloaded
            else:
                self.other[f"POST: {response.status_code}"] += 1
        return post, ""

    def _fetch(self) -> bool:
        """Fetch the oldest pending prediction; return whether it has ended."""
        task_id, expected, post = self._pending[0]
        response = self._request("GET", f"/churn/result/{task_id}", self._fetching)
        self._pending.popleft()
        if response is None or response.status_code in (202, 503):
            self._pending.append((task_id, expected, post))
            return False
        may_be_lost = any(start <= post.sent_at <= end for start, end in self.loss_windows)
        if response.status_code == 404 and may_be_lost:
            self.row.unknown += 1
            return True
        if response.status_code == 410 and may_be_lost:
            self.row.expired += 1
            return True
        if response.status_code == 404:
            self.row.lost += 1
        elif (response.status_code, response.json().get("probability")) != (500 if expected is None else 200, expected):
            self.row.wrong += 1
        else:
            post.ended_at = time.monotonic()
            return True
        self.details.append(f"{task_id}: {response.status_code} {response.text}")
        return True

    def _send_all(self) -> None:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            due = time.monotonic()
            while True:
                due = max(due + 1 / self.per_second, time.monotonic() - 1)
                if self._stopped.wait(max(0, due - time.monotonic())):
                    return
                if not self.paused.is_set():
                    pool.submit(self._send)

    def _poll_all(self) -> None:
        """Send predictions one after the other, with `Prefer: wait`."""
        while not self._stopped.wait(POLL_PERIOD_S):
            if self.paused.is_set():
                continue
            customer = {**CUSTOMER, "Total_Trans_Ct": next(self._numbers) % 1000}
            post, task_id = self._post(customer, headers={"prefer": f"wait={POLL_WAIT_S}"})
            ended_at = time.monotonic()
            if ended_at - post.sent_at < POLL_WAIT_S:
                continue
            response = self._request("GET", f"/churn/result/{task_id}") if task_id else None
            if post.ended_at or (response is not None and response.status_code == 200):
                post.unanswered_until = ended_at

    def _fetch_all(self) -> None:
        while not self._stopped.is_set():
            if not (self._pending and self._fetch()):
                self._stopped.wait(REPEAT_AFTER_S)

    def _probe(self) -> None:
        while not self._stopped.wait(0.05):
            self._request("GET", "/livez")

    def _look_all(self) -> None:
        """Ask /readyz each second."""
        due = time.monotonic()
        while not self._stopped.wait(max(0, due - time.monotonic())):
            due = time.monotonic() + LOOK_PERIOD_S
            status, reason = 0, "no answer"
            with contextlib.suppress(requests.RequestException):
                response = self.service.request("GET", "/readyz", timeout=LOOK_TIMEOUT_S)
                status, reason = response.status_code, response.text
            if status not in (0, 200, 503):
                self.report(f"GET /readyz: {status}")
            self._looks.append(Look(time.monotonic(), status == 200, self.detected_within_s, f"{status} {reason}"))
