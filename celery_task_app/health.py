"""Can it serve: the broker, the result store, and at least one worker. HTTP codes are app.py's business.

`python -m celery_task_app.health` exits 0 if a worker of this host can predict: a worker container's check.
"""

import asyncio
import socket
import sys
from dataclasses import dataclass

import redis
from kombu.exceptions import OperationalError

from celery_task_app.heartbeat import SignOfLife, can_predict, signs_of_life
from celery_task_app.results import async_client
from celery_task_app.submission import impatient_connection

_WITHIN_S = 2.5
_UP = "up"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of each part.

    Attributes:
        broker: "up", or why not.
        result_store: "up", or why not.
        workers: what each live worker says of itself, by name.
    """

    broker: str
    result_store: str
    workers: dict[str, SignOfLife]

    @property
    def ready(self) -> bool:
        """Whether a prediction that is accepted now would be computed; a model may still have to be loaded."""
        consumed = any(map(can_predict, self.workers.values()))
        return self.broker == self.result_store == _UP and consumed


async def readiness() -> Readiness:
    """Look at every part, all at once, within 2.5 seconds."""
    broker, (result_store, workers) = await asyncio.gather(_broker(), _result_store())
    return Readiness(broker, result_store, workers)


async def _broker() -> str:
    try:
        async with asyncio.timeout(_WITHIN_S):
            await asyncio.to_thread(_publish_to_nobody)
    except TimeoutError:
        return f"no answer within {_WITHIN_S} s"
    except OperationalError as error:
        return f"{error}"
    return _UP


def _publish_to_nobody() -> None:
    """Publish to an exchange that every RabbitMQ has and that has no queue: in an alarm it takes connections still."""
    connection = impatient_connection()
    try:
        connection.Producer(auto_declare=False).publish("", exchange="amq.fanout")
    finally:
        connection.collect()


async def _result_store() -> tuple[str, dict[str, SignOfLife]]:
    try:
        async with asyncio.timeout(_WITHIN_S), async_client() as client:
            return _UP, await signs_of_life(client)
    except TimeoutError:
        return f"no answer within {_WITHIN_S} s", {}
    except redis.RedisError as error:
        return f"{error}", {}


async def _a_worker_lives_here() -> bool:
    async with async_client() as client:
        signs = await signs_of_life(client)
    here = f"celery@{socket.gethostname()}/"
    return any(name.startswith(here) and can_predict(sign) for name, sign in signs.items())


if __name__ == "__main__":
    sys.exit(not asyncio.run(_a_worker_lives_here()))
