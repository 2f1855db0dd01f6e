"""The metrics of HTTP requests: by route template, method and status, and by the problem they got."""

from http import HTTPStatus

from starlette.types import Scope

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


class RequestMetrics:
    """Records finished requests in the metrics of this process."""

    def __init__(self, metrics: ApiMetrics) -> None:
        """Record in some metrics."""
        self._metrics = metrics

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Record a request, given its scope, its status and its seconds."""
        path = scope["route"].path if "route" in scope else OTHER
        self._metrics.requests.record(path, scope["method"], status, seconds)
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
