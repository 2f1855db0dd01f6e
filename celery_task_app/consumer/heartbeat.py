"""The worker's status: published every 5 s while messages are consumed, with a TTL of 15 s.

The main process publishes it. A thread in each pool process records in shared memory that the process runs; if all pool
processes are silent for 8 s, the status is "stuck", and the main process replaces them.
"""

import logging
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard import active_children
from celery import bootsteps

from celery_task_app.errors import ModelError, ResultStoreUnavailable
from celery_task_app.store.connection import StoreClient, connect
from celery_task_app.store.worker_status import WorkerStatus, publish_status, withdraw_status

logger = logging.getLogger(__name__)

_PERIOD_S = 5
_TTL_S = 15
_FAILED_TTL_S = 60  # a worker whose model failed stops; its supervisor takes a while to start another
_PROGRESS_PERIOD_S = 1
_STUCK_AFTER_S = 8  # so a stuck worker is detected within 13 s
_STUCK_STATUSES_BEFORE_KILL = 3  # the time limit kills a process that is only busy before this

# Offsets in the shared memory: a byte, is the model loaded; a double, when a pool process last ran (time.monotonic).
_MODEL_LOADED, _LAST_RUN = 0, 8


class WorkerHealth:
    """The health of one worker.

    The main process creates it before it forks the pool processes, which inherit the shared memory.

    Attributes:
        hostname: Celery's name of the worker, `celery@HOST`.
        pid: of the main process.
        model_version: of the model, as the status shows it.
    """

    def __init__(self, hostname: str, backend_uri: str) -> None:
        self.hostname = hostname
        self.pid = os.getpid()
        self.model_version = ""
        self._backend_uri = backend_uri
        self._shared = mmap.mmap(-1, 16)
        self._stuck_statuses = 0

    def report_model_loaded(self) -> None:
        """Record that a process has loaded the model, and withdraw the failure of an earlier start."""
        self._shared[_MODEL_LOADED] = 1
        with self._store() as client:
            withdraw_status(client, self.hostname)

    def report_model_failed(self, error: ModelError) -> None:
        """Log why this worker stops, and publish it for a minute."""
        logger.critical("the worker stops: %s", error)
        with self._store() as client:
            publish_status(client, self.hostname, WorkerStatus(model="failed", detail=str(error)), _FAILED_TTL_S)

    def start_progress_thread(self) -> None:
        """Record in a thread of this pool process that the process runs."""
        threading.Thread(target=self._record_progress, name="progress", daemon=True).start()

    def publish(self) -> None:
        """Publish the status, and replace pool processes that have been stuck for several statuses."""
        (last_run,) = struct.unpack_from("d", self._shared, _LAST_RUN)
        silent_s = time.monotonic() - last_run if last_run else 0
        if silent_s > _STUCK_AFTER_S:
            status = WorkerStatus(model="stuck", detail=f"no pool process has run for {silent_s:.0f} s")
            self._stuck_statuses += 1
            if self._stuck_statuses >= _STUCK_STATUSES_BEFORE_KILL:
                _kill_pool_processes()
        else:
            self._stuck_statuses = 0
            is_loaded = bool(self._shared[_MODEL_LOADED])
            status = WorkerStatus(model="loaded" if is_loaded else "not loaded yet", detail=self.model_version)
        with self._store() as client:
            publish_status(client, self._name, status, _TTL_S)

    def withdraw(self) -> None:
        """Withdraw the status: this worker consumes no messages any more."""
        with self._store() as client:
            withdraw_status(client, self._name)

    @property
    def _name(self) -> str:
        return f"{self.hostname}/{self.pid}"

    def _record_progress(self) -> None:
        while True:
            struct.pack_into("d", self._shared, _LAST_RUN, time.monotonic())
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

    def start(self, consumer: Any) -> None:
        """Publish from the event loop: Celery ends the worker if a pool process is lost before the loop runs."""
        self._first = consumer.timer.call_after(0, self.health.publish)
        self._next = consumer.timer.call_repeatedly(_PERIOD_S, self.health.publish)

    def stop(self, _consumer: Any) -> None:
        """Stop publishing, and withdraw the status at once."""
        self._first.cancel()
        self._next.cancel()
        self.health.withdraw()


def _kill_pool_processes() -> None:
    for process in active_children():
        logger.error("pool process killed: it is frozen pid=%d", process.pid)
        os.kill(process.pid, signal.SIGKILL)  # Celery starts another one
