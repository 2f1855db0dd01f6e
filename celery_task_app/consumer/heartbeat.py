"""The worker's status: published every 5 s while messages are consumed, with a TTL of 15 s.

If the result store does not take it, the worker publishes it again after a second.

The main process publishes it. Each pool process records in shared memory that it has loaded the model, and a thread
records that it runs. If all of them are silent for 8 s, the status is "stuck", and the main process replaces them. If
three in a row end before they have loaded the model, the worker stops.
"""

import logging
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from billiard import active_children, current_process
from celery import bootsteps
from celery.signals import worker_shutdown

from celery_task_app.consumer.healthcheck import MAX_AGE_S, remove_status, write_status
from celery_task_app.errors import ModelError, ResultStoreUnavailable, TrialFailed
from celery_task_app.store.connection import StoreClient, clock_skew_s, connect
from celery_task_app.store.model_cards import publish_model_card
from celery_task_app.store.worker_status import WorkerStatus, publish_status, withdraw_status

if TYPE_CHECKING:
    from celery_task_app.ml.artifact import Artifact

logger = logging.getLogger(__name__)

_PERIOD_S = 5
_CHECK_PERIOD_S = 1
_FAILED_TTL_S = 60  # a worker whose model failed stops; its supervisor takes a while to start another
_PROGRESS_PERIOD_S = 1
_STUCK_AFTER_S = 8  # so a stuck worker is detected within 13 s
_STUCK_STATUSES_BEFORE_KILL = 3  # the time limit kills a process that is only busy before this
_LOST_BEFORE_STOP = 3

# Offsets in the shared memory: a byte, has the model failed; a double, when a pool process last ran (time.monotonic);
# then for each pool process, by its index, its pid once it has loaded the model; then, by index, the number of loads.
_FAILED, _LAST_RUN, _SLOTS, _SLOT_BYTES, _MAX_PROCESSES = 0, 8, 16, 8, 1_024
_LOADS = _SLOTS + _SLOT_BYTES * _MAX_PROCESSES


class WorkerHealth:
    """The health of one worker.

    The main process creates it before it forks the pool processes, which inherit the shared memory.

    Attributes:
        hostname: Celery's name of the worker, `celery@HOST`.
        pid: of the main process.
        artifact: the checked model file; None until it is checked.
        is_published: whether the result store took the last status.
    """

    def __init__(self, hostname: str, backend_uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.hostname = hostname
        self.pid = os.getpid()
        self.artifact: Artifact | None = None
        self.is_published = True
        self._backend_uri = backend_uri
        self._clock = clock
        self._shared = mmap.mmap(-1, _LOADS + _SLOT_BYTES * _MAX_PROCESSES)
        self._stuck_statuses = 0
        self._loading: set[int] = set()  # pids of pool processes that had not loaded the model at the last check
        self._lost_while_loading = 0
        self._loads = 0  # at the last check

    @property
    def has_failed(self) -> bool:
        """Whether this worker stops because its model cannot be used."""
        return bool(self._shared[_FAILED])

    def report_model_loaded(self) -> None:
        """Record that this process has the model, and withdraw the failure of an earlier start."""
        index = 0 if os.getpid() == self.pid else current_process().index
        place = _SLOT_BYTES * (index % _MAX_PROCESSES)
        (loads,) = struct.unpack_from("q", self._shared, _LOADS + place)
        struct.pack_into("q", self._shared, _LOADS + place, loads + 1)
        struct.pack_into("q", self._shared, _SLOTS + place, os.getpid())
        with self._store() as client:
            withdraw_status(client, self.hostname)

    def fail(self, error: ModelError) -> None:
        """Log why this worker stops, publish it for a minute, and stop the worker.

        Any process of the worker may call it. The exit code of the worker is 1, and its messages are requeued.
        """
        self.report_model_failed(error)
        self._shared[_FAILED] = 1
        os.kill(self.pid, signal.SIGTERM)

    def report_model_failed(self, error: ModelError) -> None:
        """Log why this worker stops, and publish it for a minute."""
        # No customer is involved in a trial prediction, so its full text and stack may be logged.
        logger.critical("the worker stops: %s", error, exc_info=error if isinstance(error, TrialFailed) else None)
        status = WorkerStatus(model="failed", detail=str(error), queues=[], clock_skew_s=0)
        with self._store() as client:
            publish_status(client, self.hostname, status, _FAILED_TTL_S)

    def start_progress_thread(self) -> None:
        """Record in a thread of this pool process that the process runs."""
        threading.Thread(target=self._record_progress, name="progress", daemon=True).start()

    def check_pool(self) -> bool:
        """Stop the worker if several pool processes in a row have ended before they had loaded the model.

        Returns:
            Whether a process has loaded the model since the last check.
        """
        running = {process.pid for process in active_children()}
        loaded = self._loaded(running)
        is_news = bool(loaded & self._loading)
        loads = sum(struct.unpack_from(f"{_MAX_PROCESSES}q", self._shared, _LOADS))
        # A process may have loaded the model and ended, for example by a poison customer, since the last check.
        has_loaded, self._loads = bool(loaded) or loads > self._loads, loads
        self._lost_while_loading = 0 if has_loaded else self._lost_while_loading + len(self._loading - running)
        self._loading = running - loaded
        if self._lost_while_loading >= _LOST_BEFORE_STOP and not self.has_failed:
            lost = f"{self._lost_while_loading} pool processes ended while they loaded the model"
            self.fail(ModelError(f"{lost}: too little memory, or unpickling ends the process"))
        return is_news

    def publish(self, queues: Sequence[str]) -> None:
        """Publish the status, and replace pool processes that have been stuck for several statuses.

        Args:
            queues: the names of the queues that this worker consumes.
        """
        (last_run,) = struct.unpack_from("d", self._shared, _LAST_RUN)
        silent_s = self._clock() - last_run if last_run else 0
        is_loaded = bool(self._loaded({process.pid for process in active_children()} | {self.pid}))
        status = WorkerStatus(
            model="loaded" if is_loaded else "not loaded yet",
            detail=self.artifact.version if self.artifact else "",
            queues=list(queues),
            clock_skew_s=0,
        )
        if self.artifact:
            status["name"], status["sha256"] = self.artifact.name, self.artifact.sha256
            status["explains"] = self.artifact.explains
        if is_loaded and silent_s > _STUCK_AFTER_S:  # a process that loads the model may be silent for longer
            status["model"], status["detail"] = "stuck", f"no pool process has run for {silent_s:.0f} s"
            self._stuck_statuses += 1
            if self._stuck_statuses >= _STUCK_STATUSES_BEFORE_KILL:
                _kill_pool_processes()
        else:
            self._stuck_statuses = 0
        try:
            write_status(self.pid, "" if status["model"] == "loaded" else f"{status['model']} {status['detail']}")
        except OSError as error:
            logger.warning("status file not written: %s", error)
        self.is_published = False
        with self._store() as client:
            status["clock_skew_s"] = round(clock_skew_s(client), 3)
            if self.artifact:
                publish_model_card(client, self.artifact.card)
            publish_status(client, self._name, status, MAX_AGE_S)
            self.is_published = True

    def withdraw(self) -> None:
        """Withdraw the status: this worker consumes no messages any more."""
        try:
            remove_status(self.pid)
        except OSError as error:
            logger.warning("status file not removed: %s", error)
        with self._store() as client:
            withdraw_status(client, self._name)

    @property
    def _name(self) -> str:
        return f"{self.hostname}/{self.pid}"

    def _loaded(self, pids: set[int]) -> set[int]:
        """Return those of some processes that have loaded the model."""
        return pids.intersection(struct.unpack_from(f"{_MAX_PROCESSES}q", self._shared, _SLOTS))

    def _record_progress(self) -> None:
        while True:
            struct.pack_into("d", self._shared, _LAST_RUN, self._clock())
            time.sleep(_PROGRESS_PERIOD_S)

    @contextmanager
    def _store(self) -> Iterator[StoreClient]:
        """Connect to the store. A worker without status still predicts, so an error is only logged."""
        try:
            with connect(self._backend_uri) as client:
                yield client
        except ResultStoreUnavailable as error:
            logger.warning("worker status not published: %s", error)


class Heartbeat(bootsteps.StartStopStep):
    """The step of Celery's consumer that publishes the status while, and only while, messages are consumed."""

    requires = ("celery.worker.consumer:Tasks",)
    health: WorkerHealth
    """Set when the worker starts."""
    _timers: tuple[Any, ...] = ()  # a consumer that never connected is stopped without a start

    def start(self, consumer: Any) -> None:
        """Publish from the event loop: Celery ends the worker if a pool process is lost before the loop runs."""

        def publish() -> None:
            self.health.publish([queue.name for queue in consumer.task_consumer.queues])

        def check() -> None:
            # After a fail-over of the store the status may expire before the next regular one.
            if self.health.check_pool() or not self.health.is_published:
                publish()

        self._timers = (
            consumer.timer.call_after(0, check),
            consumer.timer.call_after(0, publish),
            consumer.timer.call_repeatedly(_CHECK_PERIOD_S, check),
            consumer.timer.call_repeatedly(_PERIOD_S, publish),
        )

    def stop(self, _consumer: Any) -> None:
        """Stop publishing, and withdraw the status at once."""
        for timer in self._timers:
            timer.cancel()
        self.health.withdraw()


@worker_shutdown.connect
def _set_exit_code(sender: Any, **_: object) -> None:
    """Let the worker exit with 1 if it stopped because its model cannot be used."""
    if Heartbeat.health.has_failed:
        sender.exitcode = 1


def _kill_pool_processes() -> None:
    for process in active_children():
        logger.error("pool process killed: it is frozen pid=%d", process.pid)
        os.kill(process.pid, signal.SIGKILL)  # Celery starts another one
