"""The API process: `uvicorn app:app`. It creates the services and composes the app; the routes are in api/."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from celery_task_app.settings import Settings, settings

# isort: split
# FastAPI cannot be imported if OTEL_PROPAGATORS has an unknown name; the settings refuse it in a sentence.
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

import api.batches
import api.operations
import api.predictions
from api.backpressure import Backlog
from api.batch_intake import BatchIntake
from api.completion import CompletionListener
from api.customer_schema import describe_customer
from api.group_commit import GroupCommitter
from api.http.auth import APIKeyMiddleware, parse_digests
from api.http.exception_handlers import add_exception_handlers
from api.http.head import add_head_routes
from api.http.openapi import customize_openapi
from api.http.protocol import limit_connections
from api.http.request_log import log_request, log_traced_request, replace_access_log
from api.http.request_metrics import RequestMetrics, create_api_metrics
from api.http.request_middleware import Recorder, RequestMiddleware
from api.http.shutdown import release_on_stop
from api.http.swagger import add_docs
from api.http.traced_requests import RedactSpansMiddleware, is_probe
from api.page import add_page
from api.queue_watch import QueueWatch
from api.readiness import ReadinessCheck
from api.services import Services
from api.state_metrics import add_state_metrics
from api.worker_models import WorkerModels
from celery_task_app.messaging.messages import ChunkMessage, PredictionMessage
from celery_task_app.messaging.publisher import Publisher, publisher_connections
from celery_task_app.observability.exporter import MetricsServer
from celery_task_app.observability.logs import configure_logging
from celery_task_app.observability.metrics import VERSION, ApiMetrics
from celery_task_app.observability.tracing import Tracing
from celery_task_app.store.batches import AsyncBatchStore, BatchStore
from celery_task_app.store.connection import connect, connect_async
from celery_task_app.store.counts import AsyncCountReader
from celery_task_app.store.idempotency import IdempotencyKeys
from celery_task_app.store.predictions import AsyncPredictionStore, PredictionStore
from models import Customer


@asynccontextmanager
async def _lifespan(
    settings: Settings, metrics: ApiMetrics, tracing: Tracing | None, app: FastAPI
) -> AsyncIterator[None]:
    """Create the services; close them after the last response."""
    limit_connections(
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        on_refused=metrics.record_refused_connection,
    )
    async with AsyncExitStack() as stack:
        if settings.metrics_port:  # first: if another process has the port, this one does not start
            server = MetricsServer(metrics.registry, settings.metrics_host, settings.metrics_port)
            stack.callback(server.close)
        if tracing:
            tracing.start(settings.span_queue_size)
            stack.push_async_callback(asyncio.to_thread, tracing.stop)  # after the services, which end spans
        app.state.services = services = _create_services(settings, metrics, tracing, stack)
        if settings.metrics_port:
            add_state_metrics(metrics, services, asyncio.get_running_loop())
            server.start()
            stack.push_async_callback(asyncio.to_thread, server.close)  # before the services, which a scrape reads
        release_on_stop(services.completions.release, services.batch_intake.release)
        gc.collect()
        gc.freeze()  # exclude start-up objects from garbage collection; scanning them cost 20 % of a request
        yield


def _create_services(
    settings: Settings, metrics: ApiMetrics, tracing: Tracing | None, stack: AsyncExitStack
) -> Services:
    """Create the services, and register their ends with the stack, which closes the last first."""
    new_client = partial(connect_async, settings.backend_uri)
    replicas = settings.result_replicas
    batches = AsyncBatchStore(new_client(), replicas)
    stack.push_async_callback(batches.close)
    predictions = AsyncPredictionStore(new_client(), settings.result_ttl_s, replicas)
    stack.push_async_callback(predictions.close)
    idempotency_keys = IdempotencyKeys(new_client(), settings.idempotency_ttl_s, replicas)
    stack.push_async_callback(idempotency_keys.close)

    publisher = Publisher(*publisher_connections(settings.broker_uri))
    depth = partial(publisher.depth, PredictionMessage.queue)
    group_commit = GroupCommitter(
        PredictionStore(connect(settings.backend_uri), settings.result_ttl_s, replicas),
        publisher,
        Backlog(PredictionMessage.queue.name, settings.queue_high_water, depth),
        deadline_s=settings.deadline_s,
        max_message_size=settings.group_max,
        max_pending=settings.waiting_room,
        on_published=metrics.record_published,
        tracing=tracing,
    )
    completions = CompletionListener(
        new_client, predictions, max_waiters=settings.max_waiters, on_completion=group_commit.on_completion
    )
    stack.push_async_callback(completions.close)
    schema = describe_customer(Customer)
    readiness = ReadinessCheck(
        settings.broker_uri,
        new_client(),
        schema,
        is_subscribed=lambda: completions.is_subscribed,
        failure=lambda: group_commit.failure,
        has_computed=completions.has_computed,
        uncompleted_s=lambda: group_commit.uncompleted_s,
        replicas=replicas,
    )
    stack.push_async_callback(readiness.close)
    worker_models = WorkerModels(new_client())
    stack.push_async_callback(worker_models.close)
    queue = QueueWatch(AsyncCountReader(new_client()), new_client(), schema)
    stack.push_async_callback(queue.close)

    batch_publisher = Publisher(*publisher_connections(settings.broker_uri))
    batch_depth = partial(batch_publisher.depth, ChunkMessage.queue)
    batch_intake = BatchIntake(
        Customer,
        BatchStore(connect(settings.backend_uri), settings.result_ttl_s, replicas),
        batch_publisher,
        Backlog(ChunkMessage.queue.name, settings.batch_high_water, batch_depth),
        max_bytes=settings.batch_max_bytes,
        max_rows=settings.batch_max_rows,
        chunk_rows=settings.batch_chunk_rows,
        tracing=tracing,
    )
    stack.push_async_callback(batch_intake.close)
    stack.push_async_callback(group_commit.close)
    return Services(
        max_wait_s=settings.max_wait_s,
        body_max_bytes=settings.body_max_bytes,
        group_commit=group_commit,
        predictions=predictions,
        completions=completions,
        idempotency_keys=idempotency_keys,
        batch_intake=batch_intake,
        batches=batches,
        readiness=readiness,
        worker_models=worker_models,
        queue=queue,
    )


def create_app(settings: Settings) -> FastAPI:
    """Return the app with these settings; its lifespan creates the services."""
    metrics = create_api_metrics()
    tracing = Tracing("churn-api", settings.broker_uri) if settings.is_tracing_on else None
    app = FastAPI(
        title="Churn predictions",
        version=VERSION,
        description="Accepts the features of a customer, answers with a task id at once, computes a probability, and "
        f"keeps it until it is fetched. A customer: {(Customer.__doc__ or '').strip()}",
        # `include_router` would cost each request 9 µs; `python -m benchmarks.routes` prints it.
        routes=[*api.predictions.router.routes, *api.batches.router.routes, *api.operations.router.routes],
        lifespan=partial(_lifespan, settings, metrics, tracing),
        redirect_slashes=False,
        docs_url=None,  # api/http/swagger.py serves /docs
        redoc_url=None,
        # FastAPI's records of refused bodies would repeat customers; checking its configuration costs 3 µs a request.
        telemetry=TelemetryConfig(
            tracing=tracing is not None,
            tracer_provider=tracing.provider if tracing else None,
            exclude=lambda scope: is_probe(scope) or (tracing is not None and tracing.is_full),
            operation_spans=False,
            metrics=False,
            logs=False,
            auto_configure=False,
        ),
    )
    app.state.metrics = metrics
    add_exception_handlers(app)
    api.batches.add_batch_exception_handlers(app)
    add_docs(app, is_key_required=bool(settings.api_keys))
    add_page(app)
    customize_openapi(app, is_key_required=bool(settings.api_keys))
    add_head_routes(app)
    if digests := parse_digests(settings.api_keys):
        app.add_middleware(APIKeyMiddleware, digests=digests)
    if tracing:
        app.add_middleware(RedactSpansMiddleware)
    recorders: list[Recorder] = [RequestMetrics(metrics).record] if settings.metrics_port else []
    recorders.append(log_traced_request if tracing else log_request)
    app.add_middleware(RequestMiddleware, recorders=recorders)  # the last one is the outermost
    return app


# uvicorn imports this module before it logs anything, so its own lines have the form too.
replace_access_log(with_form=configure_logging(settings.log_level, settings.log_format))
app = create_app(settings)
