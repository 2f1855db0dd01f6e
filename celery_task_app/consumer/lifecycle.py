"""Start and stop of a worker: the model is checked before the first message, and a stop has a deadline."""

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import billiard.pool
from celery.exceptions import SoftTimeLimitExceeded
from celery.platforms import set_pdeathsig
from celery.utils.log import get_multiprocessing_logger

from celery_task_app.consumer.heartbeat import WorkerHealth
from celery_task_app.errors import LoadTooSlow, ModelError
from celery_task_app.ml.artifact import Artifact, check_artifact

logger = logging.getLogger(__name__)

# Seconds until a worker that was told to stop exits. Celery's AMQP close handshake waits for ever on a frozen broker.
STOP_WITHIN_S = 20

for _name, _record in (
    ("GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT", "0005"),
    ("soft_timeout_sighandler", "0031"),
):
    if not hasattr(billiard.pool, _name):
        raise ImportError(f"billiard.pool has no {_name} any more: see docs/adr/{_record}")


def check_model(health: WorkerHealth, model_path: Path) -> None:
    """Check the model file; stop the worker before it takes a message if the model cannot be used."""
    try:
        health.artifact = check_artifact(model_path)
    except ModelError as error:
        _stop(health, error)


def warm_up(
    health: WorkerHealth, load_model: Callable[[], Artifact], try_out: Callable[[], None], *, within_s: float
) -> None:
    """Load the model before the pool processes are forked, so that they share its memory; stop the worker if it fails.

    Garbage collection would write to the shared pages, so all objects are excluded from it; `benchmarks/memory.py`
    prints the gain. A pool process that is lost is replaced by a fork, which has the model already.

    Args:
        health: of this worker.
        load_model: loads the model into this process, and returns its checked file.
        try_out: a function of a module, which lets the model predict; it runs in a child process, because a model may
            start OpenMP's threads to predict, and a process that is forked afterwards hangs.
        within_s: seconds that `try_out` may take.
    """
    try:
        health.artifact = load_model()
        _run_in_child(try_out, within_s)
    except Exception as error:  # noqa: BLE001 - unpickling runs code of the model, which may raise any error
        _stop(health, to_model_error(error))
    gc.collect()
    gc.freeze()


@contextmanager
def limit_load(health: WorkerHealth, model_path: Path, within_s: float) -> Iterator[None]:
    """Stop the worker if the body, which loads the model into this process, takes too long.

    Args:
        health: of this worker.
        model_path: for the log.
        within_s: seconds that the body may take.
    """
    logger.info("model loading path=%s within_s=%g pid=%d", model_path, within_s, os.getpid())

    def stop() -> None:
        reason = f"{model_path} did not load within {within_s:g} s: set MODEL_LOAD_TIMEOUT_S, or use a faster volume"
        if os.getpid() == health.pid:
            health.report_model_failed(LoadTooSlow(reason))
        else:
            health.fail(LoadTooSlow(reason))
        os._exit(1)  # the thread that loads the model may not react to a signal

    timer = threading.Timer(within_s, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # no thread may run when pool processes are forked


def to_model_error(error: Exception) -> ModelError:
    """Return the error of a model that was not loaded as a ModelError."""
    return error if isinstance(error, ModelError) else ModelError(f"the model was not loaded: {error!r}")


def _run_in_child(function: Callable[[], None], within_s: float) -> None:
    """Run a function of a module in a child process.

    Raises:
        LoadTooSlow: it took too long.
        ModelError: the process ended.
    """
    with ProcessPoolExecutor(1, get_context("fork"), _end_with_parent, (os.getpid(),)) as child:
        try:
            child.submit(function).result(within_s)
        except TimeoutError as error:
            for process in active_children():
                process.kill()
            raise LoadTooSlow(
                f"the trial prediction took longer than {within_s:g} s: see MODEL_LOAD_TIMEOUT_S"
            ) from error
        except BrokenProcessPool as error:
            raise ModelError("the process that made the trial prediction ended: too little memory?") from error


def _end_with_parent(parent_pid: int) -> None:
    """End this child process when its parent is killed; otherwise it would hold the port of the metrics for ever."""
    set_pdeathsig("SIGKILL")
    if os.getppid() != parent_pid:
        os._exit(1)


def _stop(health: WorkerHealth, error: ModelError) -> None:
    health.report_model_failed(error)
    raise SystemExit(1) from error


def name_worker_by_process(instance: Any, **_: object) -> None:
    """Give a worker without a name of its own one with its process id: `celery-PID@HOST`.

    Remote control needs a queue for each name, and RabbitMQ gives it to one connection only: a second worker of a host
    would never consume.
    """
    name, _, host = instance.hostname.partition("@")
    if name == "celery":
        instance.hostname = f"celery-{os.getpid()}@{host}"


def exit_in_time(exit_code: int, within_s: float = STOP_WITHIN_S) -> None:
    """Exit after some seconds, even if the broker does not answer; it redelivers unacknowledged messages.

    Args:
        exit_code: 0 if the stop was requested, so that a supervisor does not count it as a failure.
        within_s: seconds until the exit.
    """

    def exit_now() -> None:
        logger.error("the broker did not answer within %s s of the stop: exiting without it", within_s)
        os._exit(exit_code)

    timer = threading.Timer(within_s, exit_now)
    timer.daemon = True
    timer.start()


def limit_stop_of_pool_processes() -> None:
    """Limit a pool process's wait for a missing receipt to 1 s when the worker stops; billiard's default is 30 s.

    A stop may discard a message that a pool process has begun but not reported yet; it is redelivered. The process then
    waits 0.1 s times this constant of billiard: seen in one of ten stops under load. There is no option for it; see
    docs/adr/0005.
    """
    billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10


class SoftTimeLimit:
    """Raises SoftTimeLimitExceeded once in each message, and only while its code runs.

    While a worker stops, Celery sends the signal of the soft time limit twice. billiard's own handler raises twice. The
    second error could cut the result while the pool process wrote it. The main process then waited for the rest of it
    until the worker's deadline. See docs/adr/0031.
    """

    def __init__(self) -> None:
        self._may_raise = False

    def __enter__(self) -> None:
        """Begin the code of a message."""
        self._may_raise = True

    def __exit__(self, *_: object) -> None:
        """End the code of a message."""
        self._may_raise = False

    def handle_signal(self, _number: int, _frame: object) -> None:
        """Raise SoftTimeLimitExceeded if the code of a message runs, for the first time in this message."""
        if self._may_raise:
            self._may_raise = False
            raise SoftTimeLimitExceeded

    def replace_handler(self) -> None:
        """Replace billiard's handler in the pool processes that are forked afterwards; there is no option for it."""
        billiard.pool.soft_timeout_sighandler = self.handle_signal


soft_time_limit = SoftTimeLimit()


def limit_logs_of_celery() -> None:
    """Keep customers, and lines that repeat our own, out of the log, and give the lines of the pool its form."""
    get_multiprocessing_logger().propagate = True
    get_multiprocessing_logger().setLevel(logging.ERROR)
    logging.getLogger("celery.pool").setLevel(logging.INFO)  # at DEBUG: the arguments of each task
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)  # each received message
    logging.getLogger("celery.app.trace").setLevel(logging.CRITICAL)  # its end; tasks.py logs it, and errors too
