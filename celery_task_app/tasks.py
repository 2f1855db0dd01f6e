"""The worker's side: PredictTask, which loads the model once per process, and the task that predicts.

A message carries one or many customers, by task id. One that was cut short (its process was lost, its time was up) is
sent again with each customer in a message of its own: a customer that always does this fails alone.
"""

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import cached_property
from multiprocessing import get_context
from typing import Any, TypeVar

import billiard.pool
import celery.worker.consumer.consumer
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.signals import celeryd_after_setup, worker_shutting_down
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.request import Request

from celery_task_app.errors import (
    Expired,
    ModelError,
    PredictionError,
    ResultStoreUnavailable,
    TooManyAttempts,
    Unavailable,
)
from celery_task_app.heartbeat import Heartbeat, this_worker
from celery_task_app.ml.model import ChurnModel, check_artifact
from celery_task_app.results import Explained, Outcome, ResultStore
from celery_task_app.settings import settings
from celery_task_app.submission import WITH_REASONS, Features, Publisher
from celery_task_app.worker import DEAD, PREDICT_TASK, app

logger = logging.getLogger(__name__)
T = TypeVar("T")
Id = TypeVar("Id", str, int)  # a task id, or a row of a batch

MAX_RETRIES = 3  # four attempts for each customer

# Seconds that a worker may take to stop. Celery says goodbye to the broker, and waits for ever for one that is frozen.
STOP_WITHIN_S = 20

# Seconds from the start of a message that the result store is asked again if it does not answer: the last try may take
# another 2.5, and the soft time limit is 5.
STORE_PATIENCE_S = 2


class PredictRequest(Request):
    """A message in the worker's main process, which alone knows when the process that predicted was lost."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Send the customers again, each alone, before the message is acknowledged.

        Celery's own answer would be to repeat the message whole (a lost process), or to give it up and leave its ids
        without a result (the time limits, any other error).
        """
        error, kwargs = exc_info.exception, self.kwargs
        ended = self._already_cancelled or self._already_revoked or worker_state.should_terminate
        if ended or isinstance(error, Reject | Ignore | Retry) or not self.task.makes_sense(kwargs):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        logger.error("attempt lost message=%s error=%r", self.id, error)
        worker_state.task_ready(self)
        try:
            self.task.send_apart(kwargs, self._context.retries + 1)
        except Unavailable as unavailable:
            logger.warning("message goes back to the queue message=%s reason=%s", self.id, unavailable)
            self.reject(requeue=True)
        else:
            self.acknowledge()


class PredictTask(Task):
    """Base of the task that predicts: loads the model on the first call, once per process."""

    abstract = True
    Request = PredictRequest
    model: ChurnModel

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task with the model loaded. What can't be done now goes back to the queue, after a breath."""
        try:
            if not hasattr(self, "model"):
                self.load_model()
            return self.run(*args, **kwargs)
        except (ModelError, Unavailable) as error:
            if isinstance(error.__cause__, SoftTimeLimitExceeded):  # while the model was loaded: no fault of its
                raise error.__cause__ from None
            if isinstance(error, ModelError):  # another worker may have a model that works
                this_worker.model_failed(error)
                os.kill(this_worker.pid, signal.SIGTERM)
            time.sleep(1)  # a message that comes back at once uses up its deliveries
            raise Reject(str(error), requeue=True) from error

    @staticmethod
    def makes_sense(kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a message's arguments hold customers that can be sent again."""
        return isinstance(kwargs.get("customers"), dict)

    def send_apart(self, kwargs: Mapping[str, Any], retries: int) -> None:
        """Send each customer in a message of its own, or store the failure of all if they were tried often enough.

        Raises:
            Unavailable: the broker, or the result store, did not take it.
        """
        customers = kwargs["customers"]
        if retries > MAX_RETRIES:
            logger.error("given up task_ids=%s", ",".join(customers))
            ResultStore().store(dict.fromkeys(customers, given_up(retries)))
            return
        with closing(Publisher()) as publisher:
            for task_id, customer in customers.items():
                publisher.publish({task_id: customer}, retries)

    @staticmethod
    def load_model(*, check: bool = True) -> None:
        """Load the model into this process, for every task of it, and let it predict the golden rows if it is to.

        Raises:
            ModelError: the model can't be used.
        """
        PredictTask.model = ChurnModel(settings.model_path, check=check)
        this_worker.model_loaded()

    @cached_property
    def store(self) -> ResultStore:
        """The result store, on a connection of this process's own."""
        return ResultStore()

    def predict(self, customers: Mapping[str, Features]) -> None:
        """Predict those that have not ended yet, and store how they end.

        Raises:
            ResultStoreUnavailable: the store was away for longer than a message may wait.
        """
        deadline = time.monotonic() + STORE_PATIENCE_S
        known = patiently(deadline, lambda: self.store.look_up(list(customers)))
        outcomes: dict[str, Outcome] = {}
        owed: dict[str, Features] = {}
        for task_id, prediction in known.items():
            if prediction is not None and prediction.is_overdue:
                outcomes[task_id] = Expired("not computed within its deadline")
            elif prediction is None or prediction.is_queued:
                owed[task_id] = customers[task_id]
        if owed:
            outcomes |= outcomes_of(self.model, owed)
            explain(self.model, owed, outcomes)
        patiently(deadline, lambda: self.store.store(outcomes, self.model.version))


@app.task(bind=True, base=PredictTask, name=PREDICT_TASK, ignore_result=True)
def predict_churn(self: PredictTask, customers: dict[str, Features]) -> None:
    """Predict the customers of one message, by task id, and store each outcome under its id."""
    retries, delivery = self.request.retries, self.request.delivery_info
    if delivery["routing_key"] == DEAD.name:
        self.send_apart({"customers": customers}, max(retries + 1, MAX_RETRIES))  # one attempt more, then none
    elif not customers:
        logger.warning("empty message")
    elif len(customers) > 1 and (retries or delivery["redelivered"]):
        self.send_apart({"customers": customers}, retries)
    else:
        try:
            self.predict(customers)
        except ResultStoreUnavailable as error:
            logger.warning("message goes to the end of the queue customers=%d reason=%s", len(customers), error)
            with closing(Publisher()) as publisher:
                publisher.publish(customers, retries)


def given_up(attempts: int) -> TooManyAttempts:
    """Return what customers fail with that were tried often enough."""
    return TooManyAttempts(f"every one of {attempts} attempts was lost: the process died, or its time was up")


def outcomes_of(model: ChurnModel, customers: Mapping[Id, Features]) -> dict[Id, float | PredictionError]:
    """Predict all at once; if that fails, each half, and so on: who fails, fails alone."""
    try:
        return dict(zip(customers, model.churn_probabilities(list(customers.values())), strict=True))
    except PredictionError as error:
        if isinstance(error.__cause__, SoftTimeLimitExceeded):  # came while the model worked, and is not its fault
            raise error.__cause__ from None
        if (half := len(customers) // 2) > 0:
            every = list(customers.items())
            return outcomes_of(model, dict(every[:half])) | outcomes_of(model, dict(every[half:]))
        (one,) = customers
        logger.warning("prediction failed id=%s error=%s", one, error)
        return {one: error}


def explain(model: ChurnModel, customers: Mapping[str, Features], outcomes: dict[str, Outcome]) -> None:
    """Put reasons to the probabilities of those customers who want them."""
    wanted = [task_id for task_id, customer in customers.items() if WITH_REASONS in customer]
    probabilities = {task_id: known for task_id in wanted if isinstance(known := outcomes[task_id], float)}
    if probabilities and model.explains:
        reasons = model.reasons([customers[task_id] for task_id in probabilities])
        outcomes |= dict(zip(probabilities, map(Explained, probabilities.values(), reasons), strict=True))


def patiently(deadline: float, call: Callable[[], T]) -> T:
    """Call the result store; while it is away and the deadline has not passed, call again."""
    while True:
        try:
            return call()
        except ResultStoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _check_golden_rows() -> None:
    PredictTask.model.check_golden_rows()


@celeryd_after_setup.connect
def check_model(sender: str, **_: object) -> None:
    """Stop a worker whose model can't be used before it takes a message; with WARM_UP, load it for all its processes.

    The processes are forked from this one and share its memory as long as nobody writes to it, which garbage collection
    would do: benchmarks/memory.py says what that saves. One that is lost is replaced by one that has the model already.
    """
    this_worker.hostname = sender
    try:
        if settings.warm_up:
            PredictTask.load_model(check=False)
            this_worker.model_version = PredictTask.model.version
            # Not here: a model may start OpenMP's threads to predict, and what is forked afterwards would hang.
            with ProcessPoolExecutor(1, get_context("fork")) as apart:
                apart.submit(_check_golden_rows).result()
            gc.collect()
            gc.freeze()
        else:
            this_worker.model_version = check_artifact(settings.model_path).version
    except ModelError as error:
        this_worker.model_failed(error)
        raise SystemExit(1) from error


@worker_shutting_down.connect
def stop_in_time(**_: object) -> None:
    """End a worker that was told to stop and can't: what it has not acknowledged comes back."""

    def end() -> None:
        logger.warning("stopped without the broker's answer")
        os._exit(0)

    timer = threading.Timer(STOP_WITHIN_S, end)
    timer.daemon = True
    timer.start()


app.steps["consumer"].add(Heartbeat)
# Customers are in messages, so these may not be in a log: not what nobody understands, nor, at level debug, any.
celery.worker.consumer.consumer.dump_body = lambda message, _body: f"{len(message.body)} bytes"
logging.getLogger("celery.pool").setLevel(logging.INFO)
# A stop may discard a message that a process has begun but not yet reported (it comes back, and is found done). The
# process then waits 300 times 0.1 s for a receipt that does not come: seen in one of ten stops under load.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10
# Nothing here is published with an ETA, and each start of this step would declare 28 queues for them, with a warning.
Consumer.Blueprint.default_steps.remove("celery.worker.consumer.delayed_delivery:DelayedDelivery")
