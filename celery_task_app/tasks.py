"""The tasks of the worker: PredictTask, which loads the model once per process, and one task for each kind of message.

A message is processed by the delivery policy (consumer/delivery.py), whether it carries predictions or a chunk.
"""

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import celery
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.signals import (
    celeryd_after_setup,
    celeryd_init,
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutting_down,
)

from celery_task_app.consumer import lifecycle
from celery_task_app.consumer.delivery import DeliveryPolicy, MessageSummary
from celery_task_app.consumer.heartbeat import Heartbeat, WorkerHealth
from celery_task_app.consumer.request import RecoveringRequest
from celery_task_app.errors import AttemptFailed, MalformedMessage, MetricsPortUnavailable, ModelError, Unavailable
from celery_task_app.messaging.messages import ChunkMessage, Message, PredictionMessage, Stores
from celery_task_app.messaging.publisher import Publisher, publisher_connections
from celery_task_app.ml.artifact import Artifact, read_manifest
from celery_task_app.ml.model import ChurnModel
from celery_task_app.ml.schema import CustomerSchema, Feature, parse_features, parse_schema, schema_differences
from celery_task_app.observability.exporter import MetricsServer
from celery_task_app.observability.logs import configure_logging, log_event, stack_of
from celery_task_app.observability.metrics import WorkerMetrics
from celery_task_app.observability.tracing import Tracing, current_trace_id
from celery_task_app.settings import settings
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.store.customer_schema import read_customer_schema
from celery_task_app.store.predictions import PredictionStore
from celery_task_app.worker import DEAD, PREDICT_TASK, SCORE_TASK, app

logger = logging.getLogger(__name__)

_SCHEMA_WITHIN_S = 10
_REQUEUE_PAUSE_S = 1  # a message that is redelivered at once uses up its delivery limit


class PredictTask(celery.Task):
    """Base of both tasks: loads the model once per process, before the first message."""

    abstract = True
    Request = RecoveringRequest
    message_type: type[Message[Any]]
    model: ClassVar[ChurnModel]
    health: ClassVar[WorkerHealth]
    metrics: ClassVar[WorkerMetrics] = WorkerMetrics()
    server: ClassVar[MetricsServer | None] = None
    tracing: ClassVar[Tracing | None] = None
    """The traces of this pool process, if they are on."""
    load_s: ClassVar[float] = 0.0
    """Seconds in which this process loaded the model; 0 in a process that has inherited it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task with the model loaded; requeue the message after 1 s if the model or a server fails.

        Raises:
            Reject: the message goes back to the queue.
            SoftTimeLimitExceeded: it took too long.
            AttemptFailed: any other error. Its own text may have a customer's values, and is dropped.
        """
        try:
            if not hasattr(self, "model"):  # a pool without an event for new processes, such as `-P threads`
                self.load_model()
            return self.run(*args, **kwargs)
        except MalformedMessage as error:
            logger.error("malformed message dropped message_id=%s reason=%s", self.request.id, error)  # noqa: TRY400
            return MessageSummary(self.message_type.kind, "malformed").to_text()
        except (ModelError, Unavailable) as error:
            if isinstance(error, ModelError):  # another worker may have a model that works
                self.health.fail(error)
            logger.warning("message requeued message_id=%s reason=%s", self.request.id, error)
            time.sleep(_REQUEUE_PAUSE_S)
            raise Reject(str(error), requeue=True) from error
        except SoftTimeLimitExceeded:
            raise
        except BaseException as error:  # noqa: BLE001 - a model may raise any of them, such as SystemExit
            kind = type(error).__name__
            logger.error("message failed message_id=%s type=%s stack=%s", self.request.id, kind, stack_of(error))  # noqa: TRY400
            raise AttemptFailed(kind) from None  # Celery sends its text to the main process

    @classmethod
    def load_model(cls, *, check: bool = True) -> Artifact:
        """Load the model into this process, for both tasks, and return its checked file.

        Args:
            check: try the model out.

        Raises:
            ModelError: the model cannot be used.
        """
        schema = _read_fitting_schema()
        started = time.perf_counter()
        with lifecycle.limit_load(cls.health, settings.model_path, settings.model_load_timeout_s):
            PredictTask.model = ChurnModel(settings.model_path, schema, check=check)
        PredictTask.load_s = time.perf_counter() - started
        cls.health.report_model_loaded()
        return PredictTask.model.artifact

    @staticmethod
    def open_delivery() -> DeliveryPolicy:
        """Return the delivery policy on connections of its own."""
        stores = Stores(
            PredictionStore(connect(settings.backend_uri), settings.result_ttl_s, settings.result_replicas),
            BatchStore(connect(settings.backend_uri), settings.result_ttl_s, settings.result_replicas),
        )
        return DeliveryPolicy(stores, Publisher(*publisher_connections(settings.broker_uri)), _read_example)

    @cached_property
    def delivery(self) -> DeliveryPolicy:
        """The delivery policy of this task in this pool process."""
        return self.open_delivery()

    @classmethod
    def record_summary(cls, text: str) -> None:
        """Record the summary of a message, in the main process."""
        summary = MessageSummary.from_text(text)
        cls.metrics.record(summary)
        if summary.load_s:
            cls.metrics.record_model_load(summary.load_s)

    def process(self, kwargs: dict[str, Any]) -> str:
        """Process the message of this task, given its keyword arguments; return its summary."""
        message = self.message_type.parse(kwargs)
        with (
            lifecycle.soft_time_limit,
            self.tracing.processing(message, self.request.id) if self.tracing else contextlib.nullcontext() as span,
        ):
            summary = self.delivery.process(
                message,
                self.model,
                retries=self.request.retries,
                is_redelivered=self.request.delivery_info["redelivered"],
                is_dead_letter=self.request.delivery_info["routing_key"] == DEAD.name,
            )
            if span:
                span.set_attributes(summary.to_attributes())
            self._log(message, summary)
        summary.load_s = self.load_s
        return summary.to_text()

    def _log(self, message: Message[Any], summary: MessageSummary) -> None:
        """Log a finished message, with the id of the current trace if it has one."""
        fields: dict[str, object] = {
            "outcome": summary.outcome,
            "message_id": self.request.id,
            "worker": self.request.hostname,
            "pid": os.getpid(),
            "customers": summary.customers,
            "failed": summary.failed,
            "expired": summary.expired,
            "queue_ms": None if summary.waited_s is None else _ms(summary.waited_s),
            "predict_ms": _ms(summary.predict_s),
            "store_ms": _ms(summary.store_s),
            "retries": summary.retries,
            **message.log_fields,
        }
        if self.tracing and (trace_id := current_trace_id()):
            fields["trace_id"] = trace_id
        log_event(logger, logging.INFO, "message", fields)


@app.task(bind=True, base=PredictTask, name=PREDICT_TASK, message_type=PredictionMessage, ignore_result=True)
def predict_churn(self: PredictTask, **kwargs: Any) -> str:
    """Predict the customers of a PredictionMessage, and store each outcome under its task id."""
    return self.process(kwargs)


@app.task(bind=True, base=PredictTask, name=SCORE_TASK, message_type=ChunkMessage, ignore_result=True)
def score_chunk(self: PredictTask, **kwargs: Any) -> str:
    """Predict the rows of a ChunkMessage, and store their results in the batch."""
    return self.process(kwargs)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _read_customer_schema() -> CustomerSchema | None:
    """Return the features that the API asks for; None if no API has written it, or the result store cannot be read."""
    try:
        with connect(settings.backend_uri) as client:
            schema = read_customer_schema(client)
    except Unavailable as error:
        logger.warning("the schema of customers is not known: %s", error)
        return None
    if schema is None:
        logger.info("no API has written the schema of customers: only golden rows can try the model")
        return None
    return parse_schema(schema)


def _read_fitting_schema() -> CustomerSchema | None:
    """Return the features that the API asks for. If the model does not fit, an API with others may just be starting."""
    deadline, features = time.monotonic() + _SCHEMA_WITHIN_S, dict[str, Feature]()
    with contextlib.suppress(ModelError, LookupError, TypeError):  # no manifest, or a damaged one
        features = parse_features(read_manifest(settings.model_path)["features"])
    while (schema := _read_customer_schema()) and schema_differences(features, schema) and time.monotonic() < deadline:
        logger.info("the model does not fit the API: waiting for an API that it fits")
        time.sleep(1)
    return schema


def _read_example() -> Mapping[str, object] | None:
    return schema.example if (schema := _read_customer_schema()) else None


def _try_out_model() -> None:
    PredictTask.model.try_out()


@setup_logging.connect
def _configure_logging(loglevel: int, logfile: str | None, **_: object) -> None:
    """Log in the form of the API, in place of Celery's own; LOG_LEVEL takes precedence over `-l`."""
    level = settings.log_level if "log_level" in settings.model_fields_set else loglevel
    configure_logging(level, settings.log_format, logfile)
    lifecycle.limit_logs_of_celery()


@celeryd_after_setup.connect
def _prepare_worker(sender: str, **_: object) -> None:
    """Check or load the model in the main process, before the pool processes are forked."""
    PredictTask.health = Heartbeat.health = WorkerHealth(sender, settings.backend_uri)
    if settings.metrics_port:
        PredictTask.server = _bind_metrics()
    lifecycle.limit_stop_of_pool_processes()
    lifecycle.soft_time_limit.replace_handler()
    if settings.warm_up:
        lifecycle.warm_up(
            PredictTask.health,
            lambda: PredictTask.load_model(check=False),
            _try_out_model,
            within_s=settings.model_load_timeout_s,
        )
        PredictTask.metrics.record_model_load(PredictTask.load_s)
        PredictTask.load_s = 0.0  # of the pool processes, which inherit the model
    else:
        lifecycle.check_model(PredictTask.health, settings.model_path)


def _bind_metrics() -> MetricsServer:
    """Return the server of the metrics; stop the worker if another process has its port."""
    try:
        return MetricsServer(PredictTask.metrics.registry, settings.metrics_host, settings.metrics_port + 1)
    except MetricsPortUnavailable as error:
        logger.critical("the worker stops: %s", error)
        raise SystemExit(1) from error


@worker_ready.connect
def _serve_metrics(sender: Any, **_: object) -> None:
    """Answer scrapes once the first pool processes are forked. A later fork copies no lock that they use."""
    if PredictTask.server:
        PredictTask.metrics.add_processes(lambda: sender.pool.num_processes)
        PredictTask.server.start()


@worker_process_init.connect
def _start_pool_process(**_: object) -> None:
    """Load the model before the process takes a message, so that loading uses up no attempt and no time limit."""
    if PredictTask.server:
        PredictTask.server.close_in_child()  # it would hold the port if the main process is killed
    try:
        if hasattr(PredictTask, "model"):  # WARM_UP: the main process has loaded it
            PredictTask.health.report_model_loaded()
        else:
            PredictTask.load_model()
    except Exception as error:  # noqa: BLE001 - unpickling runs code of the model, which may raise any error
        PredictTask.health.fail(lifecycle.to_model_error(error))
    PredictTask.health.start_progress_thread()


@worker_process_init.connect
def _start_tracing(**_: object) -> None:
    """Create the traces after the fork, which the SDK's thread and locks would not survive."""
    if settings.is_tracing_on:
        PredictTask.tracing = Tracing("churn-worker", settings.broker_uri)
        PredictTask.tracing.start(settings.span_queue_size)


@worker_process_shutdown.connect
def _stop_tracing(**_: object) -> None:
    if PredictTask.tracing:
        PredictTask.tracing.stop()


@worker_shutting_down.connect
def _stop_worker(**_: object) -> None:
    lifecycle.exit_in_time(1 if PredictTask.health.has_failed else 0)


if settings.remote_control:
    celeryd_init.connect(lifecycle.name_worker_by_process)
app.steps["consumer"].add(Heartbeat)
