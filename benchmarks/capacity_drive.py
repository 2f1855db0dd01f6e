"""One of the processes that drive a server for `python -m benchmarks.capacity`; it imports no ML library.

`python -m benchmarks.capacity_drive --help`; the servers are those of BROKER_URI and BACKEND_URI.
"""

import argparse
import contextlib
import itertools
import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks.load import customers
from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest, Stores
from celery_task_app.messaging.publisher import Publisher, publisher_connection, publisher_connections
from celery_task_app.settings import Settings
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import COMPLETIONS, PredictionStore
from celery_task_app.worker import PREDICTIONS

SUBSCRIBERS = 20


def messages_of(size: int) -> Iterator[PredictionMessage]:
    """Yield new messages."""
    sent = [json.loads(one) for one in itertools.islice(customers(0), size)]
    while True:
        yield PredictionMessage({str(uuid4()): PredictionRequest(one) for one in sent})


def drive_store(settings: Settings, size: int, until_s: float) -> int:
    """Send the requests of predictions to the result store: the markers, the look-up, the results."""
    ttl_s, count = settings.result_ttl_s, 0
    with (
        closing(PredictionStore(connect(settings.backend_uri), ttl_s)) as predictions,
        closing(BatchStore(connect(settings.backend_uri), ttl_s)) as batches,
    ):
        stores, group = Stores(predictions, batches), 0
        for message in messages_of(size):
            if time.monotonic() > until_s:
                break
            group = predictions.mark_queued(dict.fromkeys(message.ids, 60.0), group)
            message.look_up(stores)
            message.save(stores, dict.fromkeys(message.ids, 0.5), "0")
            count += 1
    return count


def publish(settings: Settings, size: int, until_s: float) -> int:
    """Publish messages as the API does, one at a time with a confirm."""
    count = 0
    with closing(Publisher(*publisher_connections(settings.broker_uri))) as publisher:
        for message in messages_of(size):
            if time.monotonic() > until_s:
                break
            publisher.publish(message)
            count += 1
    return count


def consume(settings: Settings, until_s: float) -> None:
    """Receive messages as a worker does, two at a time, and acknowledge each."""
    with publisher_connection(settings.broker_uri) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 2, False)
        with connection.Consumer(
            [PREDICTIONS], callbacks=[lambda _body, message: message.ack()], channel=channel, accept=["json"]
        ):
            while time.monotonic() < until_s:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=1)


def subscribe(settings: Settings, until_s: float) -> None:
    """Read the completions on many connections, as API processes do."""
    address = urlsplit(settings.backend_uri)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(SUBSCRIBERS):
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port or 6379)))
            connection.sendall(f"SUBSCRIBE {COMPLETIONS}\r\n".encode())
            selector.register(connection, selectors.EVENT_READ)
        while time.monotonic() < until_s:
            for key, _ in selector.select(timeout=1):
                connection = key.fileobj  # type: ignore[assignment]
                connection.recv(1 << 16)


def main() -> None:
    """Drive a server; print a line at the begin, and the number of messages at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("kind", choices=["store", "publish", "consume", "subscribe"])
    parser.add_argument("--size", type=int, default=1, help="customers in a message")
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    settings = Settings()
    print("begins", flush=True)
    until_s = time.monotonic() + options.seconds
    if options.kind == "consume":
        consume(settings, until_s)
    elif options.kind == "subscribe":
        subscribe(settings, until_s)
    else:
        print((drive_store if options.kind == "store" else publish)(settings, options.size, until_s))


if __name__ == "__main__":
    main()
