"""Messages that a test takes from a queue, as a worker sees them."""

from typing import Any

from kombu import Queue

from tests.harness.servers import Servers


def take_all(servers: Servers, queue: Queue) -> list[Any]:
    """Take the messages that wait in a queue, the oldest first."""
    taken = []
    with servers.connection() as connection:
        source = Queue(queue.name, channel=connection.default_channel)
        while message := source.get(no_ack=True):
            taken.append(message)
    return taken


def arguments(message: Any) -> dict[str, Any]:
    """Return the keyword arguments of the Celery task."""
    kwargs: dict[str, Any] = message.payload[1]
    return kwargs


def delete_queue(servers: Servers, queue: Queue) -> None:
    with servers.connection() as connection:
        queue(connection.default_channel).delete()
