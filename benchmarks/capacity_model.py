"""The queueing model of the service for `python -m benchmarks.capacity`. It measures nothing.

Each part of the service is a SimPy process. A part has a fixed CPU cost for each message and a cost for each customer,
and a number of threads. Parts share cores, as on a laptop, or each has its own, as pods have.
"""

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import simpy

PARTS = ("client", "loop", "publisher", "broker", "store", "consumer", "pool")
"""The load generator, the API's event loop and publisher thread, the servers, the worker's main and pool process."""

QUANTUM_S = 0.0005  # a process leaves its core to the next one after this time
SWITCH_S = 0.005  # Python's switch interval: the event loop holds the interpreter so long while it has work
NAGLE_S = 0.005  # api/group_commit.py, max_delay_s
GROUP_MAX = 256  # the setting
PREFETCH = 2  # messages of a worker with one pool process; celery_task_app/worker.py
PUBLISH_STEPS = 4  # times that the publisher thread waits for the interpreter: it takes a group, marks, publishes, ends

Steps = Generator[Any, Any, None]


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds of a part: for each message, and for each customer in it."""

    message_ms: float
    customer_ms: float

    def seconds(self, customers: float) -> float:
        """Return the CPU seconds of a message."""
        return (self.message_ms + customers * self.customer_ms) / 1000

    def of_prediction_ms(self, customers: float) -> float:
        """Return the CPU milliseconds of a prediction in messages of this size."""
        return self.message_ms / customers + self.customer_ms


def fit(small: tuple[float, float], large: tuple[float, float]) -> Cost:
    """Return the cost that explains two measurements; no cost is negative.

    Args:
        small: customers in a message, and CPU milliseconds for each prediction.
        large: the same with larger messages.
    """
    (few, cost_of_few), (many, cost_of_many) = small, large
    message_ms = max(0.0, (cost_of_few - cost_of_many) / (1 / few - 1 / many))
    return Cost(message_ms, max(0.0, cost_of_many - message_ms / many))


def fit_crowd(points: Sequence[tuple[float, float, float]]) -> tuple[Cost, float]:
    """Return the cost of the event loop, and its growth with the open requests of its process.

    Args:
        points: three times the customers in a message, the open requests, and CPU milliseconds for each prediction.

    Returns:
        The cost with no other request, and the further CPU milliseconds for each other open request.
    """
    rows = [[1 / size, 1, opened] for size, opened, _ in points]
    message_ms, customer_ms, crowd_ms = map(float, np.linalg.solve(rows, [cost_ms for *_, cost_ms in points]))
    return Cost(max(0.0, message_ms), max(0.0, customer_ms)), max(0.0, crowd_ms)


@dataclass(frozen=True)
class Parameters:
    """The measured parameters of the model.

    Attributes:
        costs: by name of PARTS.
        foreign: of an API process, for a message of another API process: it reads each completion.
        delay_s: time of a message without CPU: disk, network and wake-ups. It is spent before the broker's confirm.
        spread: of the times of a step: the standard deviation of their logarithm.
        crowd_ms: of the event loop, for a customer and each open request of its process: more memory is in use.
    """

    costs: Mapping[str, Cost]
    foreign: Cost = Cost(0, 0)
    delay_s: float = 0
    spread: float = 0
    crowd_ms: float = 0


@dataclass(frozen=True)
class Stack:
    """The parts of one stack.

    Attributes:
        apis: number of API processes.
        workers: number of workers with one pool process each.
        shared_cores: cores that all parts share; None if each thread has a core of its own.
        store_threads: threads of the result store that run commands: one.
        broker_threads: cores of the broker.
    """

    apis: int = 1
    workers: int = 1
    shared_cores: int | None = None
    store_threads: int = 1
    broker_threads: int = 2


@dataclass
class Outcome:
    """The figures of one simulation after its warm-up.

    Attributes:
        predictions_per_s: finished predictions per second.
        p50_ms: median time of a prediction for its client.
        p99_ms: its 99th percentile.
        message_customers: mean number of customers in a message.
        busy: by part, the busy threads as a share of its threads.
        mean_s: mean time of a prediction in seconds.
        in_system: mean number of predictions without a result.
    """

    predictions_per_s: float
    p50_ms: float
    p99_ms: float
    message_customers: float
    busy: dict[str, float]
    mean_s: float = 0
    in_system: float = 0


class Thread:
    """A part with a number of threads, which share cores with other parts or have their own."""

    def __init__(self, service: "Service", threads: int = 1) -> None:
        self.service, self.env, self.cores, self.threads = service, service.env, service.cores, threads
        self.turn = simpy.Resource(self.env, threads)
        self.busy_s = 0.0

    def work(self, seconds: float) -> Steps:
        """Wait for a thread, and use it."""
        with self.turn.request() as turn:
            yield turn
            yield from self.run(seconds)

    def run(self, seconds: float) -> Steps:
        """Use the CPU, one quantum after the other."""
        seconds *= self.service.vary()
        self.busy_s += seconds
        if self.cores is None:
            yield self.env.timeout(seconds)
            return
        while seconds > 0:
            with self.cores.request() as core:
                yield core
                yield self.env.timeout(min(seconds, QUANTUM_S))
            seconds -= QUANTUM_S


@dataclass
class Customer:
    """One prediction on its way."""

    begun: float
    api: int
    ended: simpy.Event


@dataclass
class Message:
    """One message: the customers of one API process, and the end of its prediction."""

    customers: list[Customer]
    predicted: simpy.Event

    @property
    def size(self) -> int:
        """The number of customers."""
        return len(self.customers)


class Api:
    """An API process: an event loop and a publisher thread, which share one interpreter."""

    def __init__(self, service: "Service", number: int) -> None:
        self.service, self.number, env = service, number, service.env
        self.interpreter = Thread(service)
        self.jobs: deque[tuple[float, Callable[[], object]]] = deque()
        self.wake = env.event()
        self.pending: deque[Customer] = deque()
        self.arrived = env.event()
        self.open = 0
        env.process(self.event_loop())
        env.process(self.publish())

    @property
    def customer_s(self) -> float:
        """The CPU seconds of the event loop for a customer."""
        return (self.service.costs["loop"].customer_ms + self.open * self.service.parameters.crowd_ms) / 1000

    def call(self, seconds: float, then: Callable[[], object] = lambda: None) -> None:
        """Let the event loop run a callback that takes this CPU time."""
        self.jobs.append((seconds, then))
        if not self.wake.triggered:
            self.wake.succeed()

    def event_loop(self) -> Steps:
        """Run the callbacks in rounds; give the interpreter up after each round, or after the switch interval."""
        env = self.service.env
        while True:
            if not self.jobs:
                self.wake = env.event()
                yield self.wake
            with self.interpreter.turn.request() as turn:
                yield turn
                until = env.now + SWITCH_S
                for _ in range(len(self.jobs)):
                    seconds, then = self.jobs.popleft()
                    yield from self.interpreter.run(seconds)
                    then()
                    if env.now > until:
                        break

    def receive(self, customer: Customer) -> None:
        """Validate a customer, and pass it to the publisher thread."""

        def submit() -> None:
            self.pending.append(customer)
            if not self.arrived.triggered:
                self.arrived.succeed()

        self.open += 1
        self.call(self.customer_s * 2 / 3, submit)

    def publish(self) -> Steps:
        """Publish one message at a time: group commit, with Nagle's wait for the previous message."""
        service, env = self.service, self.service.env
        predicted = env.event().succeed()
        while True:
            if not self.pending:
                self.arrived = env.event()
                yield self.arrived
            yield predicted | env.timeout(NAGLE_S)
            yield from self.interpreter.work(0)  # it needs the interpreter to take a group
            customers = [self.pending.popleft() for _ in range(min(len(self.pending), GROUP_MAX))]
            message = Message(customers, env.event())
            predicted = message.predicted
            step_s = service.costs["publisher"].seconds(message.size) / 3
            yield from self.interpreter.work(step_s)
            yield from service.use_store(message, 1 / 4)  # the QUEUED markers
            yield from self.interpreter.work(step_s)
            yield from service.broker.work(service.costs["broker"].seconds(message.size) / 3)
            yield service.delay()
            service.queue.put(message)
            yield from self.interpreter.work(step_s)  # the confirm
            self.call(service.costs["loop"].message_ms / 2000)  # resolves the futures of the requests

    def complete(self, message: Message) -> None:
        """Receive the completion of a message, and answer its requests if they are of this process."""
        if message.customers[0].api != self.number:
            self.call(self.service.parameters.foreign.seconds(message.size))
            return
        cost, client = self.service.costs["loop"], self.service.costs["client"].message_ms / 1000
        message.predicted.succeed()
        self.call(cost.message_ms / 2000)
        for customer in message.customers:
            self.call(self.customer_s / 3, partial(self.service.answer, customer, client))
            client = 0.0  # the load generator wakes up once for a message


class Service:
    """A stack under simulation."""

    def __init__(self, parameters: Parameters, stack: Stack) -> None:
        self.env = env = simpy.Environment()
        self.parameters, self.costs, self.stack = parameters, parameters.costs, stack
        self.cores = simpy.Resource(env, stack.shared_cores) if stack.shared_cores else None
        self.draw = random.Random(0)
        self.client = Thread(self)
        self.broker = Thread(self, stack.broker_threads)
        self.store = Thread(self, stack.store_threads)
        self.queue = simpy.Store(env)
        self.apis = [Api(self, number) for number in range(stack.apis)]
        self.consumers = [Thread(self) for _ in range(stack.workers)]
        self.pools = [Thread(self) for _ in range(stack.workers)]
        self.ended: list[tuple[float, float]] = []
        self.sizes: list[int] = []
        for _ in range(PREFETCH):  # the broker delivers to each worker in turn
            for number in range(stack.workers):
                env.process(self.consume(number))

    def vary(self) -> float:
        """Return a random factor with mean 1 for the time of a step."""
        spread = self.parameters.spread
        return math.exp(self.draw.gauss(-spread * spread / 2, spread)) if spread else 1.0

    def delay(self) -> simpy.Event:
        """Return the time of a message without CPU."""
        return self.env.timeout(self.parameters.delay_s * self.vary())

    def use_store(self, message: Message, share: float) -> Steps:
        """Send one request to the result store."""
        yield from self.store.work(self.costs["store"].seconds(message.size) * share)

    def consume(self, number: int) -> Steps:
        """Process one message of the prefetch after the other: receive, look up, predict, store, acknowledge."""
        consumer, pool = self.consumers[number], self.pools[number]
        while True:
            message: Message = yield self.queue.get()
            broker_s = self.costs["broker"].seconds(message.size) / 3
            yield from self.broker.work(broker_s)
            yield from consumer.work(self.costs["consumer"].seconds(message.size) / 2)
            with pool.turn.request() as turn:
                yield turn
                yield from self.use_store(message, 1 / 4)
                yield from pool.run(self.costs["pool"].seconds(message.size))
                yield from self.use_store(message, 1 / 2)
            self.sizes.append(message.size)
            for api in self.apis:
                api.complete(message)
            yield from consumer.work(self.costs["consumer"].seconds(message.size) / 2)
            yield from self.broker.work(broker_s)

    def answer(self, customer: Customer, wake_s: float) -> None:
        """Send a response to its client."""
        if self.stack.shared_cores:
            self.env.process(self.read(customer, wake_s))
        else:
            self.finish(customer)

    def read(self, customer: Customer, wake_s: float) -> Steps:
        """Read the response on the shared cores."""
        yield from self.client.work(self.costs["client"].customer_ms / 1000 + wake_s)
        self.finish(customer)

    def finish(self, customer: Customer) -> None:
        """Record the time of a prediction."""
        self.apis[customer.api].open -= 1
        self.ended.append((customer.begun, self.env.now))
        customer.ended.succeed()

    def submit(self, api: int) -> Customer:
        """Send a customer to an API process."""
        customer = Customer(self.env.now, api, self.env.event())
        self.apis[api].receive(customer)
        return customer

    def closed_loop(self, clients: int) -> None:
        """Add clients that each send the next customer after a result."""

        def client(number: int) -> Steps:
            while True:
                yield self.submit(number % self.stack.apis).ended

        for number in range(clients):
            self.env.process(client(number))

    def open_loop(self, gaps_s: Iterator[float]) -> None:
        """Add arrivals that do not wait for results.

        Args:
            gaps_s: seconds until each next customer.
        """

        def arrivals() -> Steps:
            for gap_s, api in zip(gaps_s, itertools.cycle(range(self.stack.apis)), strict=False):
                yield self.env.timeout(gap_s)
                self.submit(api)

        self.env.process(arrivals())

    def measure(self, seconds: float, warm_up_s: float = 1) -> Outcome:
        """Run the simulation, and return its figures."""
        parts = {
            "client": [self.client],
            "API": [api.interpreter for api in self.apis],
            "broker": [self.broker],
            "store": [self.store],
            "consumer": self.consumers,
            "pool": self.pools,
        }
        self.env.run(warm_up_s)
        before = {name: sum(thread.busy_s for thread in threads) for name, threads in parts.items()}
        messages = len(self.sizes)
        self.env.run(warm_up_s + seconds)
        ended = [(begun, end) for begun, end in self.ended if end > warm_up_s]
        times = sorted(end - begun for begun, end in ended) or [math.inf]
        sizes = self.sizes[messages:] or [0]
        busy = {
            name: (sum(thread.busy_s for thread in threads) - before[name])
            / (seconds * sum(thread.threads for thread in threads))
            for name, threads in parts.items()
        }
        return Outcome(
            predictions_per_s=len(ended) / seconds,
            p50_ms=1000 * times[len(times) // 2],
            p99_ms=1000 * times[math.ceil(len(times) * 0.99) - 1],
            message_customers=sum(sizes) / len(sizes),
            busy=busy,
            mean_s=sum(times) / len(times),
            in_system=sum(end - max(begun, warm_up_s) for begun, end in ended) / seconds,
        )


def closed(parameters: Parameters, stack: Stack, clients: int, seconds: float = 1) -> Outcome:
    """Simulate clients in a closed loop, as `benchmarks.load` has them."""
    service = Service(parameters, stack)
    service.closed_loop(clients)
    return service.measure(seconds)


def constant(rate: float, seed: int = 0) -> Iterator[float]:
    """Yield the seconds between customers that arrive at random at a constant rate (a Poisson process)."""
    draw = random.Random(seed)
    while True:
        yield draw.expovariate(rate)


def opened(parameters: Parameters, stack: Stack, rate: float, seconds: float = 2, warm_up_s: float = 1) -> Outcome:
    """Simulate customers that arrive at a constant rate."""
    service = Service(parameters, stack)
    service.open_loop(constant(rate))
    return service.measure(seconds, warm_up_s)


def desired_replicas(
    values: Sequence[float], thresholds: Sequence[float], replicas: int, tolerance: float = 0.1
) -> int:
    """Return the pods that a HorizontalPodAutoscaler of KEDA wants, for triggers of the type AverageValue.

    Kubernetes documents ceil(replicas * value of a pod / threshold), which is ceil(value / threshold). The largest
    trigger wins. Within the tolerance the number stays.
    """
    wanted = []
    for value, threshold in zip(values, thresholds, strict=True):
        ratio = value / (replicas * threshold)
        wanted.append(replicas if abs(ratio - 1) <= tolerance else math.ceil(value / threshold))
    return max(wanted)


@dataclass(frozen=True)
class Scaler:
    """A scaler of pods, and the delays around it; times in seconds.

    Attributes:
        least: least number of pods.
        most: largest number of pods.
        thresholds: of each trigger for each pod: waiting customers, and accepted customers a second. Of the API: the
            share of a core that a pod may use.
        down_after_s: stabilizationWindowSeconds of scaleDown.
        down_every_s: periodSeconds of its policy of one pod.
        read_s: interval at which the numbers are read.
        up_pods: pods that one decision may add; or it doubles the pods, if that is more.
        sync_s: period of the HorizontalPodAutoscaler.
        start_s: from the decision until a pod works.
    """

    least: int
    most: int
    thresholds: Sequence[float]
    down_after_s: float
    down_every_s: float
    read_s: float
    up_pods: int = 4
    sync_s: float = 15
    start_s: float = 5


@dataclass
class Wave:
    """The course of a load under scalers, in steps; each list has one value for each step.

    Attributes:
        step_s: length of a step.
        offered: customers a second that arrived.
        accepted: customers a second that were not refused.
        waiting: customers in the queue.
        apis: API pods that answer.
        workers: workers that predict.
        ended: customers a second that got a result.
    """

    step_s: float
    offered: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    apis: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @property
    def busiest(self) -> list[int]:
        """The steps with the highest rate of arrivals."""
        most = max(self.offered)
        return [step for step, rate in enumerate(self.offered) if rate > 0.99 * most]

    @property
    def refused_share(self) -> float:
        """The share of the customers that got 429 or 503 in the busiest steps."""
        steps = self.busiest
        return 1 - sum(self.accepted[step] for step in steps) / sum(self.offered[step] for step in steps)

    def waits_s(self) -> list[float]:
        """Return, for each step with accepted customers, the seconds until as many have ended as were accepted."""
        ended = list(itertools.accumulate(self.ended))
        waits, step = [], 0
        for index, accepted in enumerate(itertools.accumulate(self.accepted)):
            step = max(step, index)
            while step < len(ended) - 1 and ended[step] < accepted * (1 - 1e-9):
                step += 1
            waits.append((step - index) * self.step_s)
        return waits

    @property
    def mean_wait_s(self) -> float:
        """The mean wait of the customers that were accepted in the busiest steps."""
        waits, steps = self.waits_s(), self.busiest
        return sum(waits[step] * self.accepted[step] for step in steps) / sum(self.accepted[step] for step in steps)


class Pods:
    """The pods of one Deployment under a scaler."""

    def __init__(self, env: simpy.Environment, scaler: Scaler, rate: float) -> None:
        self.env, self.scaler, self.rate = env, scaler, rate
        self.running = self.wanted = scaler.least
        self.values: Sequence[float] = [0.0 for _ in scaler.thresholds]

    @property
    def capacity(self) -> float:
        """The customers a second of all running pods."""
        return self.running * self.rate

    def scale(self) -> Steps:
        """Let the HorizontalPodAutoscaler decide: up at once, down with the largest wish of the window."""
        scaler, wishes = self.scaler, deque[tuple[float, int]]()
        removed_at = -math.inf
        while True:
            yield self.env.timeout(scaler.sync_s)
            now = self.env.now
            wish = desired_replicas(self.values, scaler.thresholds, max(1, self.wanted))
            wish = min(scaler.most, max(scaler.least, wish))
            wishes.append((now, wish))
            while wishes[0][0] <= now - scaler.down_after_s:
                wishes.popleft()
            if wish > self.wanted:
                wish = min(wish, max(self.wanted + scaler.up_pods, 2 * self.wanted))
                self.env.process(self.start(wish - self.wanted))
                self.wanted = wish
            elif max(number for _, number in wishes) < self.wanted and now - removed_at >= scaler.down_every_s:
                self.wanted -= 1
                self.running -= 1
                removed_at = now

    def start(self, pods: int) -> Steps:
        """Start pods."""
        yield self.env.timeout(self.scaler.start_s)
        self.running += pods


class Scaled:
    """API pods and workers under scalers. Customers are a fluid: a simulation of each one would take hours for a day.

    Attributes:
        accept_within_s: a customer that an API pod cannot accept within this time gets 503.
    """

    accept_within_s = 2.5

    def __init__(  # noqa: PLR0913 - the two kinds of pods, each with its rate, and the load
        self,
        apis: Scaler,
        workers: Scaler,
        *,
        rate_of_api: float,
        rate_of_worker: float,
        high_water: float,
        arrivals: Callable[[float], float],
        step_s: float = 0.1,
    ) -> None:
        self.env = simpy.Environment()
        self.apis = Pods(self.env, apis, rate_of_api)
        self.workers = Pods(self.env, workers, rate_of_worker)
        self.high_water, self.arrivals = high_water, arrivals
        self.waiting = self.accepted = 0.0
        self.wave = Wave(step_s)

    def run(self, seconds: float) -> Wave:
        """Simulate from a start with the least number of pods."""
        for part in (self.flow(), self.read_metrics(), self.read_cpu(), self.apis.scale(), self.workers.scale()):
            self.env.process(part)
        self.env.run(seconds)
        return self.wave

    def flow(self) -> Steps:
        """Let customers arrive, wait for an API pod, be refused, wait in the queue, and be predicted."""
        wave, step_s = self.wave, self.wave.step_s
        read_at, is_refusing, before_api = 0.0, False, 0.0
        while True:
            offered = self.arrivals(self.env.now) * step_s
            if self.env.now >= read_at:  # the API reads the backlog once a second, and refuses until the next read
                read_at, is_refusing = self.env.now + 1, self.waiting > self.high_water
            taken = 0.0 if is_refusing else offered
            taken = min(taken, max(0.0, self.apis.capacity * (self.accept_within_s + step_s) - before_api))
            published = min(before_api + taken, self.apis.capacity * step_s)
            before_api += taken - published
            ended = min(self.waiting + published, self.workers.capacity * step_s)
            self.waiting += published - ended
            self.accepted += published
            wave.offered.append(offered / step_s)
            wave.accepted.append(taken / step_s)
            wave.ended.append(ended / step_s)
            wave.waiting.append(self.waiting)
            wave.apis.append(self.apis.running)
            wave.workers.append(self.workers.running)
            yield self.env.timeout(step_s)

    def read_metrics(self) -> Steps:
        """Let Prometheus read the waiting customers, and the rate of accepted ones in the last minute."""
        read_s = self.workers.scaler.read_s
        counts = deque([0.0], maxlen=1 + round(60 / read_s))
        while True:
            yield self.env.timeout(read_s)
            counts.append(self.accepted)
            rate = (counts[-1] - counts[0]) / (len(counts) - 1) / read_s
            self.workers.values = [self.waiting, rate][: len(self.workers.scaler.thresholds)]

    def read_cpu(self) -> Steps:
        """Let the metrics server read the CPU time of the API pods, in cores; a process uses one core at most."""
        before = 0.0
        while True:
            yield self.env.timeout(self.apis.scaler.read_s)
            self.apis.values = [(self.accepted - before) / self.apis.scaler.read_s / self.apis.rate]
            before = self.accepted
