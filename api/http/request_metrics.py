"""The middleware that measures HTTP requests: by route template, method and status, and by the problem they got."""

import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.paths import route_path
from api.http.problems import ProblemType
from celery_task_app.observability.metrics import OTHER, ApiMetrics
from models import Customer

ACCEPTED = "accepted"
_BATCHES = "/churn/batches"
_SUBMIT, _SUBMIT_BATCH = ("POST", "/churn/predict"), ("POST", _BATCHES)
_BAD_REQUEST = int(HTTPStatus.BAD_REQUEST)
_REFUSALS = {
    ProblemType.UNAUTHORIZED,
    ProblemType.BODY_TIMEOUT,
    ProblemType.UNSUPPORTED_ENCODING,
    ProblemType.BAD_PARAMETER,
    ProblemType.OVERLOADED,
    ProblemType.UNAVAILABLE,
    ProblemType.INTERNAL_ERROR,
}
_SUBMISSION_REFUSALS = _REFUSALS | {
    ProblemType.NOT_JSON,
    ProblemType.TOO_LARGE,
    ProblemType.NOT_JSON_TYPE,
    ProblemType.INVALID_FEATURES,
    ProblemType.BAD_HEADER,
    ProblemType.IDEMPOTENCY_KEY_IN_USE,
    ProblemType.IDEMPOTENCY_KEY_REUSED,
    ProblemType.NOT_EXPLAINABLE,
}
_BATCH_REFUSALS = _REFUSALS | {
    ProblemType.MALFORMED_BATCH,
    ProblemType.INVALID_ROWS,
    ProblemType.BATCH_TOO_LARGE,
    ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ProblemType.NO_SPACE,
}


def create_api_metrics() -> ApiMetrics:
    """Return the metrics of this API process, with the labels that its routes can have."""
    return ApiMetrics(
        Customer.model_fields,
        [ACCEPTED, *sorted(kind.slug for kind in _SUBMISSION_REFUSALS)],
        [ACCEPTED, *sorted(kind.slug for kind in _BATCH_REFUSALS)],
    )


class RequestMetricsMiddleware:
    """ASGI middleware that records each request; it must be outside of the middleware that answers 401."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        """Record requests of an app."""
        self._app = app
        self._metrics = metrics
        self._record = metrics.requests.record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record it when its response is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500  # an exception is answered outside of this middleware

        def send_and_note(message: Message) -> object:  # no coroutine of its own, which would cost 0.2 µs a message
            nonlocal status
            if "status" in message:
                status = int(message["status"])  # an HTTPStatus has another hash, and is slow to compare
            return send(message)

        try:
            await self._app(scope, receive, send_and_note)  # type: ignore[arg-type]
        finally:
            seconds = time.perf_counter() - started
            path = scope["route"].path if "route" in scope else OTHER
            if "refused" in scope:
                status = scope["refused"]  # api/http/protocol.py has answered and closed the connection
            self._record(path, scope["method"], status, seconds)
            if status >= _BAD_REQUEST or path == _BATCHES:
                self._record_submission(scope, status)

    def _record_submission(self, scope: Scope, status: int) -> None:
        """Count a refused prediction, or a batch. The publishing thread counts accepted predictions."""
        # The path itself, because a request without a key has no route.
        request = (scope["method"], route_path(scope))
        if status == ProblemType.BODY_TIMEOUT.status:
            outcome = ProblemType.BODY_TIMEOUT.slug
        elif status == HTTPStatus.ACCEPTED:
            outcome = ACCEPTED
        else:
            outcome = scope.get("problem", ProblemType.INTERNAL_ERROR.slug)
        if request == _SUBMIT:
            self._metrics.record_submission(outcome)
        elif request == _SUBMIT_BATCH:
            self._metrics.record_batch(outcome)
        for place, code in scope.get("faults", ()):
            self._metrics.record_fault(place, code)
