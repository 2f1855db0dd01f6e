"""The API and the delivery policy in this process, on real servers: the tests see their code and share their memory."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from kombu.message import Message as BrokerMessage

from app import create_app
from celery_task_app.consumer.delivery import DeliveryPolicy
from celery_task_app.consumer.heartbeat import WorkerHealth
from celery_task_app.messaging.messages import ChunkMessage, Message, PredictionMessage, Stores
from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import Settings
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import PredictionStore
from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS, broker_address
from tests.harness.processes import free_port, until
from tests.harness.servers import Servers
from tests.harness.service import Client

TTL_S = 86_400
MODEL = Settings().model_path


def settings_of(servers: Servers, **settings: Any) -> Settings:
    """Return settings with the addresses of these servers."""
    return Settings(broker_uri=servers.broker_uri, backend_uri=servers.backend_uri, **settings)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Client]:
    """Serve the API in a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield Client(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def opened_delivery(
    broker_uri: str, backend_uri: str, example: Mapping[str, object] | None = None
) -> Iterator[DeliveryPolicy]:
    """Yield a delivery policy on connections of its own, which tries a model with an example if it has one."""
    stores = Stores(PredictionStore(connect(backend_uri), TTL_S), BatchStore(connect(backend_uri), TTL_S))
    with contextlib.closing(
        DeliveryPolicy(stores, Publisher(publisher_connection(broker_uri)), lambda: example)
    ) as policy:
        yield policy


@contextlib.contextmanager
def consuming(servers: Servers, model_path: Path) -> Iterator[WorkerHealth]:
    """Process the messages of both queues in a thread; yield the status of a worker that has loaded the model."""
    model, is_over = ChurnModel(model_path), threading.Event()
    kinds: dict[str, type[Message[Any]]] = {PREDICTIONS.name: PredictionMessage, BATCHES.name: ChunkMessage}

    def consume() -> None:
        def receive(body: Any, message: BrokerMessage) -> None:
            kind = kinds[message.delivery_info["routing_key"]]
            policy.process(kind.parse(body[1]), model, retries=0, is_redelivered=False, is_dead_letter=False)
            message.ack()

        with (
            opened_delivery(servers.broker_uri, servers.backend_uri) as policy,
            servers.connection(broker_address(servers.broker_uri).transport) as connection,
        ):
            DEAD(connection.default_channel).declare()
            with connection.Consumer([PREDICTIONS, BATCHES], callbacks=[receive], accept=["json"], prefetch_count=2):
                while not is_over.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)

    health = WorkerHealth("celery@in-process", servers.backend_uri)
    health.artifact = model.artifact
    health.report_model_loaded()
    thread = threading.Thread(target=consume)
    thread.start()
    try:
        yield health
    finally:
        is_over.set()
        thread.join()
        health.withdraw()
