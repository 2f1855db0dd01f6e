"""A worker's sign of life: a key in the result store that it renews every 5 s while it consumes.

It is gone 15 s after the last, so a frozen worker is missed soon; no `inspect ping`, which asks through the very queue
that may be the trouble. The main process shows it; that the processes which predict run, a thread of each says in
memory that they share, and if all are silent for long they are replaced. Who may serve is health.py's business.
"""

import json
import logging
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict, cast

import redis
import redis.asyncio
from billiard import active_children
from celery import bootsteps
from celery.signals import worker_process_init

from celery_task_app.errors import ModelError
from celery_task_app.results import blocking_client

logger = logging.getLogger(__name__)

_NAMES = "churn:workers"  # the set of those that may be alive
_KEY = "churn:worker:{}"
_PERIOD_S = 5
_LIFE_S = 15
_FAILED_LIFE_S = 60  # a worker that can't load its model stops; its restarts take a while
_TICK_S = 1
_STUCK_AFTER_S = 8  # seen within 13 s, then
_LOOKS_BEFORE_KILLED = 3  # a process that is busy is killed earlier, by the time limit

# What the processes of a worker share: whether the model is loaded, and when one of them last ran.
_LOADED, _LAST_RUN = 0, 8


class SignOfLife(TypedDict):
    """What a worker says of itself."""

    model: Literal["loaded", "not loaded yet", "failed", "stuck"]
    detail: str
    """The model's version, or why it can't be used."""


def can_predict(sign: SignOfLife) -> bool:
    """Tell whether a worker is of use; its model may still have to be loaded."""
    return sign["model"] in {"loaded", "not loaded yet"}


class ThisWorker:
    """What the worker of this process says of itself.

    Made when the worker's main process imports it, before it forks, so that the processes that predict share it.

    Attributes:
        hostname: Celery's name for the worker, `celery@HOST`.
        pid: of the main process.
        model_version: as the model's manifest has it.
    """

    hostname: str
    model_version: str

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._shared = mmap.mmap(-1, 16)  # the processes of the pool write, the main process reads
        self._looks_silent = 0

    def model_loaded(self) -> None:
        """Say that a process has loaded the model, and take back what an earlier start may have left."""
        self._shared[_LOADED] = 1
        with _forgiving(), blocking_client() as client:
            client.delete(_KEY.format(self.hostname))

    def model_failed(self, error: ModelError) -> None:
        """Say in the log and, for a minute, in readiness why this worker stops."""
        logger.critical("the worker stops: %s", error)
        self._show(self.hostname, SignOfLife(model="failed", detail=str(error)), _FAILED_LIFE_S)

    def run(self) -> None:
        """Say again and again, in a process that predicts, that it is neither frozen nor hung."""
        while True:
            struct.pack_into("d", self._shared, _LAST_RUN, time.monotonic())
            time.sleep(_TICK_S)

    def alive(self) -> None:
        """Show the sign of life."""
        (last_run,) = struct.unpack_from("d", self._shared, _LAST_RUN)
        if last_run and (silent_s := time.monotonic() - last_run) > _STUCK_AFTER_S:
            sign = SignOfLife(model="stuck", detail=f"no process that predicts has run for {silent_s:.0f} s")
            self._looks_silent += 1
            if self._looks_silent >= _LOOKS_BEFORE_KILLED:
                self._replace_processes()
        else:
            self._looks_silent = 0
            state: Literal["loaded", "not loaded yet"] = "loaded" if self._shared[_LOADED] else "not loaded yet"
            sign = SignOfLife(model=state, detail=self.model_version)
        self._show(self._name, sign, _LIFE_S)

    @staticmethod
    def _replace_processes() -> None:
        for process in active_children():
            logger.error("process killed, for it is frozen pid=%d", process.pid)
            os.kill(process.pid, signal.SIGKILL)  # Celery starts another

    def gone(self) -> None:
        """Take the sign of life back."""
        with _forgiving(), blocking_client() as client:
            client.delete(_KEY.format(self._name))

    @property
    def _name(self) -> str:
        return f"{self.hostname}/{self.pid}"

    @staticmethod
    def _show(name: str, sign: SignOfLife, life_s: int) -> None:
        with _forgiving(), blocking_client() as client:
            client.sadd(_NAMES, name)
            client.set(_KEY.format(name), json.dumps(sign), ex=life_s)


this_worker = ThisWorker()


@worker_process_init.connect
def _run(**_: object) -> None:
    threading.Thread(target=this_worker.run, name="sign of life", daemon=True).start()


class Heartbeat(bootsteps.StartStopStep):
    """The step of Celery's consumer that shows the sign of life while, and only while, messages are consumed."""

    requires = ("celery.worker.consumer:Tasks",)

    def start(self, consumer: Any) -> None:
        """Show the signs from the worker's event loop: until it runs, a process that is lost ends the worker."""
        self._first = consumer.timer.call_after(0, this_worker.alive)
        self._next = consumer.timer.call_repeatedly(_PERIOD_S, this_worker.alive)

    def stop(self, _consumer: Any) -> None:
        """Say at once that nothing is consumed any more."""
        self._first.cancel()
        self._next.cancel()
        this_worker.gone()


@contextmanager
def _forgiving() -> Iterator[None]:
    """Let a worker work that can't show its sign: then it is not counted on, which is all that is lost."""
    try:
        yield
    except redis.RedisError as error:
        logger.warning("no sign of life could be shown: %s", error)


async def signs_of_life(client: redis.asyncio.Redis) -> dict[str, SignOfLife]:
    """Return what each live worker says, by its name: `celery@HOST/PID`, or `celery@HOST` for a last word."""
    names = sorted(name.decode() for name in cast("set[bytes]", await client.smembers(_NAMES)))
    signs = await client.mget([_KEY.format(name) for name in names]) if names else []
    if gone := [name for name, sign in zip(names, signs, strict=True) if sign is None]:
        await client.srem(_NAMES, *gone)
    return {name: json.loads(sign) for name, sign in zip(names, signs, strict=True) if sign is not None}
