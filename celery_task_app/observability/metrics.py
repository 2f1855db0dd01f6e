"""Every metric of the service, and the values of its labels. docs/metrics.md has the same list.

Two kinds: the service-wide counts come from the result store and are equal in every API process; all others are of the
process that exports them. Labels are closed sets: never an id, a key, a path or a text of a request.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_task_app.store.counts import STATES, ServiceCounts

VERSION = "0.2.0"  # as in pyproject.toml; tests/unit/test_metrics.py compares them
OTHER = "other"
WORKER_STATES = ("loaded", "not loaded yet", "failed", "stuck", "unfit")
_METHODS = {"GET": "GET", "HEAD": "GET", "POST": "POST", "DELETE": "DELETE"}  # HEAD is a GET whose body is not sent
_FAULTS = (
    "missing",
    "int_type",
    "int_from_float",
    "float_type",
    "finite_number",
    "literal_error",
    "greater_than_equal",
    "less_than_equal",
)
_REQUEST_BOUNDS_S = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0)
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_CUSTOMERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODELS = 10  # series of churn_model_info; more versions at once are a mistake of an operator

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and histogram, which no dashboard needs


@dataclass(slots=True)
class _Requests:
    """The requests of one route, method and status."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(_REQUEST_BOUNDS_S) + 1))


class RequestCounts(Collector):
    """HTTP requests by route template, method and status. Only the event loop records.

    prometheus_client's own counter and histogram would cost each request 1.5 µs more.
    """

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], _Requests] = {}

    def record(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: the template of its path; OTHER if no route has it.
            method: any method; HEAD is counted as GET, and one that no route has as OTHER.
            status: of the response.
            seconds: from its head to the end of its response.
        """
        requests = self._requests.get((route, method, status))  # POST and GET are their own labels
        if requests is None:
            requests = self._requests.setdefault((route, _METHODS.get(method, OTHER), status), _Requests())
        requests.count += 1
        requests.seconds += seconds
        requests.buckets[bisect_left(_REQUEST_BOUNDS_S, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        labels = ["route", "method", "status"]
        count = CounterMetricFamily("churn_http_requests", "HTTP requests that were answered.", labels=labels)
        seconds = CounterMetricFamily(
            "churn_http_request_seconds", "Seconds that these requests took together.", labels=labels
        )
        routes: dict[str, tuple[list[int], float]] = {}
        for (route, method, status), requests in list(self._requests.items()):
            count.add_metric([route, method, str(status)], requests.count)
            seconds.add_metric([route, method, str(status)], requests.seconds)
            buckets, total = routes.get(route, ([0] * len(requests.buckets), 0.0))
            merged = [one + other for one, other in zip(buckets, requests.buckets, strict=True)]
            routes[route] = (merged, total + requests.seconds)
        duration = HistogramMetricFamily(
            "churn_http_request_duration_seconds",
            "Time from the head of a request to the end of its response; a request with Prefer: wait waits within it.",
            labels=["route"],
        )
        bounds = [*map(str, _REQUEST_BOUNDS_S), "+Inf"]
        for route, (buckets, total) in routes.items():
            duration.add_metric([route], list(zip(bounds, accumulate(buckets), strict=True)), total)
        yield from (count, seconds, duration)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The state of the whole service, as the result store has it.

    Attributes:
        counts: of predictions and of rows, with the memory of the store.
        worker_states: the state of each live worker.
        consuming_workers: by queue, the number of workers that predict its messages.
        models: name and version of each loaded model.
    """

    counts: ServiceCounts
    worker_states: Sequence[str]
    consuming_workers: Mapping[str, int]
    models: Iterable[tuple[str, str]]


class _ServiceMetrics(Collector):
    """The service-wide metrics; without those that cannot be read, rather than with old ones."""

    def __init__(self, read: Callable[[], ServiceState | None]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: prometheus_client would otherwise collect at the registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the result store, and yield the metrics."""
        state = self._read()
        yield GaugeMetricFamily(
            "churn_result_store_up",
            "Whether the result store answered; if 0, the other service-wide metrics are missing.",
            int(state is not None),
        )
        if state is None:
            return
        predictions, rows = state.counts.predictions, state.counts.rows
        yield CounterMetricFamily("churn_accepted", "Predictions that were accepted.", predictions.accepted)
        yield _ended("churn_ended", "Predictions that have a terminal state.", predictions.ended)
        yield GaugeMetricFamily(
            "churn_waiting_customers", "Predictions without a terminal state: accepted - ended.", predictions.waiting
        )
        yield GaugeMetricFamily(
            "churn_oldest_waiting_seconds",
            "Age of the oldest message that has a prediction without a terminal state; 0 if there is none.",
            predictions.oldest_s,
        )
        yield CounterMetricFamily("churn_batch_rows_accepted", "Rows of accepted batches.", rows.accepted)
        yield _ended("churn_batch_rows_ended", "Rows of batches that have a terminal state.", rows.ended)
        yield GaugeMetricFamily(
            "churn_waiting_batch_rows", "Rows of batches without a terminal state: accepted - ended.", rows.waiting
        )
        yield GaugeMetricFamily(
            "churn_oldest_waiting_batch_seconds",
            "Age of the oldest batch that has a row without a terminal state; 0 if there is none.",
            rows.oldest_s,
        )
        workers = GaugeMetricFamily("churn_workers", "Live workers by the state of their model.", labels=["state"])
        for name in WORKER_STATES:
            workers.add_metric([name], state.worker_states.count(name))
        yield workers
        consuming = GaugeMetricFamily(
            "churn_consuming_workers", "Workers that predict the messages of a queue.", labels=["queue"]
        )
        for queue, count in state.consuming_workers.items():
            consuming.add_metric([queue], count)
        yield consuming
        models = GaugeMetricFamily(
            "churn_model_info", "1 for each model that a worker has loaded.", labels=["name", "version"]
        )
        for labels in sorted(set(state.models))[:_MODELS]:
            models.add_metric(labels, 1)
        yield models
        if memory := state.counts.memory:
            yield GaugeMetricFamily(
                "churn_result_store_memory_bytes", "Memory that the result store uses.", memory.used_bytes
            )
            if memory.limit_bytes:
                yield GaugeMetricFamily(
                    "churn_result_store_memory_limit_bytes",
                    "Memory beyond which the result store refuses writes; missing without a limit.",
                    memory.limit_bytes,
                )


def _ended(name: str, text: str, ended: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["state"])
    for state in STATES:
        family.add_metric([state], ended[state])
    return family


class ApiMetrics:
    """The metrics of one API process.

    Attributes:
        registry: has all of them.
        requests: HTTP requests; the middleware records them.
    """

    def __init__(
        self, features: Iterable[str], submission_outcomes: Iterable[str], batch_outcomes: Iterable[str]
    ) -> None:
        """Create the metrics with all their series, so that a rate has a start.

        Args:
            features: of a customer.
            submission_outcomes: `accepted`, and the problems that refuse a prediction.
            batch_outcomes: the same for batches.
        """
        self.registry = CollectorRegistry()
        self.requests = RequestCounts()
        self.registry.register(self.requests)
        _add_build_info(self.registry, "api")
        ProcessCollector(registry=self.registry)  # a worker has none: it would leave out the pool processes
        self._features = frozenset(features)
        self._submissions = _closed_counter(
            self.registry,
            "churn_submissions_total",
            "Predictions that clients submitted, by outcome: accepted, or the problem that refused them.",
            "outcome",
            submission_outcomes,
        )
        self._batches = _closed_counter(
            self.registry,
            "churn_batches_total",
            "Batches that clients submitted, by outcome: accepted, or the problem that refused them.",
            "outcome",
            batch_outcomes,
        )
        self._refused_inputs = Counter(
            "churn_refused_inputs_total",
            "Faults of refused customers, by feature and Pydantic's code.",
            ["feature", "code"],
            registry=self.registry,
        )
        self._refused_connections = Counter(
            "churn_http_refused_connections_total",
            "Connections that were closed because their request was malformed, too slow or had too large a head.",
            registry=self.registry,
        )
        self._message_customers = Histogram(
            "churn_message_customers",
            "Customers in a published message.",
            buckets=_CUSTOMERS,
            registry=self.registry,
        )
        self._publish_seconds = Histogram(
            "churn_publish_seconds",
            "Time until the broker has confirmed a message.",
            buckets=_SHORT_S,
            registry=self.registry,
        )

    def record_published(self, customers: int, seconds: float) -> None:
        """Count a message that the broker has confirmed, with its customers."""
        self._submissions["accepted"].inc(customers)
        self._message_customers.observe(customers)
        self._publish_seconds.observe(seconds)

    def record_submission(self, outcome: str) -> None:
        """Count a prediction that was refused."""
        if counter := self._submissions.get(outcome):
            counter.inc()

    def record_batch(self, outcome: str) -> None:
        """Count a batch that was accepted or refused."""
        if counter := self._batches.get(outcome):
            counter.inc()

    def record_fault(self, place: object, code: str) -> None:
        """Count a fault of a customer; a place that is no feature, and an unknown code, are counted as OTHER."""
        feature = place if isinstance(place, str) and place in self._features else OTHER
        self._refused_inputs.labels(feature, code if code in _FAULTS else OTHER).inc()

    def record_refused_connection(self) -> None:
        """Count a connection that was closed before its request reached a route."""
        self._refused_connections.inc()

    def add_gauges(self, *, waiters: Callable[[], int], unpublished: Callable[[], int]) -> None:
        """Add gauges that are read at each scrape.

        Args:
            waiters: returns the number of requests that wait for a completion.
            unpublished: returns the number of predictions that wait to be published.
        """
        Gauge(
            "churn_waiters", "Requests that wait for a completion (Prefer: wait).", registry=self.registry
        ).set_function(waiters)
        Gauge(
            "churn_unpublished_customers", "Predictions that wait to be published.", registry=self.registry
        ).set_function(unpublished)

    def add_service_state(self, read: Callable[[], ServiceState | None]) -> None:
        """Add the service-wide metrics.

        Args:
            read: returns the state; None if the result store does not answer. It is called in the exporter's thread.
        """
        self.registry.register(_ServiceMetrics(read))


class Summary(Protocol):
    """The numbers of a processed message; consumer.delivery.MessageSummary has them."""

    @property
    def kind(self) -> str:
        """`predictions` or `rows`."""

    @property
    def outcome(self) -> str:
        """`predicted`, `skipped`, `split`, `postponed` or `malformed`."""

    @property
    def customers(self) -> int:
        """Customers that were predicted, or for whom the model failed."""

    @property
    def retries(self) -> int:
        """Attempts that its customers had lost before."""

    @property
    def is_dead_letter(self) -> bool:
        """Whether it came from the dead letters."""

    @property
    def waited_s(self) -> float | None:
        """Seconds from the acceptance of its first customer until a pool process took it."""

    @property
    def predict_s(self) -> float:
        """Seconds of the model."""

    @property
    def store_s(self) -> float:
        """Seconds of calls to the result store."""


KINDS = ("predictions", "rows")
MESSAGE_OUTCOMES = ("predicted", "skipped", "split", "postponed", "malformed", "requeued", "lost")


class WorkerMetrics:
    """The metrics of one worker; its main process has them, and records the summaries of its pool processes.

    Attributes:
        registry: has all of them.
    """

    def __init__(self) -> None:
        """Create the metrics with all their series."""
        self.registry = CollectorRegistry()
        _add_build_info(self.registry, "worker")
        messages = Counter(
            "churn_worker_messages_total",
            "Messages that this worker took, by outcome.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._messages = {
            (kind, outcome): messages.labels(kind, outcome) for kind in KINDS for outcome in MESSAGE_OUTCOMES
        }
        self._customers = _closed_counter(
            self.registry,
            "churn_worker_customers_total",
            "Customers that this worker predicted, or for whom its model failed.",
            "kind",
            KINDS,
        )
        self._retries = _closed_counter(
            self.registry,
            "churn_worker_retries_total",
            "Messages that were tried again, because an attempt had been lost.",
            "kind",
            KINDS,
        )
        self._dead_letters = _closed_counter(
            self.registry, "churn_dead_letters_total", "Messages that came from the dead letters.", "kind", KINDS
        )
        self._queue_wait = self._histograms(
            "churn_queue_wait_seconds",
            "Time from the acceptance of a message's first customer until a pool process took it.",
            _LONG_S,
        )
        self._predict = self._histograms("churn_predict_seconds", "Time of the model for a message.", _SHORT_S)
        self._store = self._histograms(
            "churn_store_seconds", "Time of the calls to the result store for a message.", _SHORT_S
        )
        self._model_load = Gauge(
            "churn_model_load_seconds", "Time of the last load of the model in this worker.", registry=self.registry
        )

    def record(self, summary: Summary) -> None:
        """Count a message that a pool process has finished."""
        kind = summary.kind
        self._messages[kind, summary.outcome].inc()
        if summary.is_dead_letter:
            self._dead_letters[kind].inc()
        if summary.waited_s is not None:
            self._queue_wait[kind].observe(summary.waited_s)
        self._store[kind].observe(summary.store_s)
        if summary.customers:
            self._customers[kind].inc(summary.customers)
            self._predict[kind].observe(summary.predict_s)
            if summary.retries:
                self._retries[kind].inc()

    def record_requeued(self, kind: str) -> None:
        """Count a message that the broker will deliver again, because the model or a server failed."""
        self._messages[kind, "requeued"].inc()

    def record_lost(self, kind: str, retries: int) -> None:
        """Count a message that was lost with its pool process, after so many lost attempts."""
        self._messages[kind, "lost"].inc()
        if retries:
            self._retries[kind].inc()

    def record_model_load(self, seconds: float) -> None:
        """Record the time of a load of the model."""
        self._model_load.set(seconds)

    def add_processes(self, read: Callable[[], int]) -> None:
        """Add the number of pool processes, which is read at each scrape."""
        Gauge("churn_worker_processes", "Pool processes of this worker.", registry=self.registry).set_function(read)

    def _histograms(self, name: str, text: str, bounds: Sequence[float]) -> dict[str, Histogram]:
        family = Histogram(name, text, ["kind"], buckets=bounds, registry=self.registry)
        return {kind: family.labels(kind) for kind in KINDS}


def _closed_counter(
    registry: CollectorRegistry, name: str, text: str, label: str, values: Iterable[str]
) -> dict[str, Counter]:
    """Return the counters of a closed set of labels; each exists from the start, and is looked up without a lock."""
    family = Counter(name, text, [label], registry=registry)
    return {value: family.labels(value) for value in values}


def _add_build_info(registry: CollectorRegistry, process: str) -> None:
    info = {"process": process, "version": VERSION, "python": platform.python_version()}
    Info("churn_build", "The version of the service and of Python, and the kind of process.", registry=registry).info(
        info
    )
