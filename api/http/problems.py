"""Every problem that the API answers (RFC 9457), declared once: type, status, title, cause and error class.

The exception handlers, OpenAPI and the tests of the documentation derive from `ProblemType`.
"""

from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from api.http.responses import HEADERS, RETRY_AFTER_S, Responses
from celery_task_app import errors
from models import Customer, Fault, Problem

MEDIA_TYPE = "application/problem+json"
_WITH_RETRY_AFTER = {HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


class ProblemType(Enum):
    """A kind of problem; `/problems/SLUG` is its stable `type`.

    Attributes:
        slug: the end of the type.
        status: the HTTP status.
        title: the same for every occurrence; it says what to change, or what happened.
        when: the cause, for the documentation.
        error: the errors that are answered with this problem, if an error class stands for it.
    """

    UNAUTHORIZED = (
        "unauthorized",
        HTTPStatus.UNAUTHORIZED,
        "API key required",
        "`API_KEYS` is set, and the request has none of these keys; with `WWW-Authenticate`",
    )
    NOT_JSON = (
        "not-json",
        HTTPStatus.BAD_REQUEST,
        "Body is not valid JSON",
        "the body is not valid JSON (syntax, UTF-8, depth, digits), or an object has one name twice",
        errors.BadBody,
    )
    TOO_LARGE = (
        "too-large",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "Body too large",
        "the body has more than `BODY_MAX_BYTES`",
        errors.BodyTooLarge,
    )
    BODY_TIMEOUT = (
        "body-timeout",
        HTTPStatus.REQUEST_TIMEOUT,
        "Body too slow",
        "the body arrived at less than 8 KiB a second, on average over `BODY_TIMEOUT_S`",
    )
    UNSUPPORTED_ENCODING = (
        "unsupported-encoding",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Body must be UTF-8 without a Content-Encoding",
        "the body has a `Content-Encoding`, such as gzip, or declares another `charset` than UTF-8",
        errors.UnsupportedEncoding,
    )
    NOT_JSON_TYPE = (
        "not-json-type",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Content-Type must be application/json",
        "the Content-Type is not `application/json`",
        errors.NotJSONType,
    )
    INVALID_FEATURES = (
        "invalid-features",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Invalid features",
        "a feature is missing, of the wrong type or out of range; `errors` names each fault",
    )
    BAD_HEADER = (
        "bad-header",
        HTTPStatus.BAD_REQUEST,
        "Invalid header",
        "`Idempotency-Key` or `Cancel-After` has an invalid value; `errors` says why",
    )
    BAD_PARAMETER = (
        "bad-parameter",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Invalid query parameter",
        "`explain` or `on_error` has an invalid value; `errors` says why",
    )
    IDEMPOTENCY_KEY_IN_USE = (
        "idempotency-key-in-use",
        HTTPStatus.CONFLICT,
        "Idempotency-Key in use",
        "the first request with this key is still being accepted",
        errors.IdempotencyError,
    )
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency-key-reused",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Idempotency-Key sent with another body",
        "this key was sent before with another body",
        errors.KeyReused,
    )
    NOT_EXPLAINABLE = (
        "not-explainable",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "This model gives no reasons",
        "`explain=true`, and no worker has a model that gives reasons",
    )
    UNKNOWN_TASK = (
        "unknown-task",
        HTTPStatus.NOT_FOUND,
        "Unknown task id",
        "the id was never issued, or its TTL has ended",
    )
    DELETED = (
        "deleted",
        HTTPStatus.GONE,
        "Prediction deleted",
        "the client deleted this prediction, before or after it was computed",
    )
    EXPIRED = ("expired", HTTPStatus.GONE, "Prediction expired", "it was not computed within its deadline")
    PREDICTION_FAILED = (
        "prediction-failed",
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Prediction failed",
        "the model cannot predict this customer, or each of four attempts lost its process or ran out of time",
    )
    NO_MODEL = (
        "no-model",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "No worker has a model",
        "no live worker has loaded a model; `GET /readyz` has the status of each worker",
    )
    MALFORMED_BATCH = (
        "malformed-batch",
        HTTPStatus.BAD_REQUEST,
        "Malformed batch",
        "the body of a batch is not valid CSV, NDJSON or JSON, or has no row; `detail` says where; nothing is scored",
        errors.BatchError,
    )
    INVALID_ROWS = (
        "invalid-rows",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Invalid rows",
        (
            "no row or nearly none is a valid customer, or with `on_error=reject` not every row; "
            "`rows` names the first 100"
        ),
        errors.RowsRefused,
    )
    BATCH_TOO_LARGE = (
        "batch-too-large",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "Batch too large",
        (
            "a batch has more than `BATCH_MAX_BYTES` or `BATCH_MAX_ROWS`, or as a JSON array more than 8 MiB: send "
            "NDJSON; or its validation takes more than a minute"
        ),
        errors.BatchTooLarge,
    )
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported-media-type",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Content-Type must be text/csv, application/x-ndjson or application/json",
        "the Content-Type of a batch is none of these three",
    )
    NOT_ACCEPTABLE = (
        "not-acceptable",
        HTTPStatus.NOT_ACCEPTABLE,
        "Accept must allow application/x-ndjson, application/json or text/csv",
        "`Accept` allows none of the three forms of the results of a batch",
    )
    UNKNOWN_BATCH = (
        "unknown-batch",
        HTTPStatus.NOT_FOUND,
        "Unknown batch id",
        "the batch was never accepted, or its TTL has ended",
    )
    BATCH_DELETED = ("batch-deleted", HTTPStatus.GONE, "Batch deleted", "the client deleted the batch")
    OVERLOADED = (
        "overloaded",
        HTTPStatus.TOO_MANY_REQUESTS,
        "Too many predictions wait",
        "too many predictions wait in the queue or to be published, or too many batches are being accepted",
        errors.Overloaded,
    )
    NO_SPACE = (
        "no-space",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "No space for the batch",
        "the folder for temporary files of the API is full or cannot be written; the log of the API names it",
        errors.NoSpace,
    )
    UNAVAILABLE = (
        "unavailable",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Unavailable",
        "the broker or the result store did not answer, within 3 seconds, or the API stops",
        errors.Unavailable,
    )
    NOT_READY = (
        "not-ready",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Not ready",
        "`GET /readyz`: a prediction that is accepted now would not be computed",
    )
    INTERNAL_ERROR = (
        "internal-error",
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Internal error",
        "the service has a defect",
        errors.ChurnServiceError,
    )

    def __init__(
        self,
        slug: str,
        status: HTTPStatus,
        title: str,
        when: str,
        error: type[errors.ChurnServiceError] | None = None,
    ) -> None:
        self.slug = slug
        self.status = status
        self.title = title
        self.when = when
        self.error = error

    @property
    def type(self) -> str:
        """The stable URI reference."""
        return f"/problems/{self.slug}"

    @classmethod
    def of(cls, error: errors.ChurnServiceError) -> "ProblemType":
        """Return the problem type of an error: that of the nearest class in its inheritance."""
        return next(_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _BY_ERROR)


_BY_ERROR: dict[type, ProblemType] = {kind.error: kind for kind in ProblemType if kind.error}


def problem(kind: ProblemType, detail: str, retry_after_s: int = RETRY_AFTER_S, **extensions: object) -> JSONResponse:
    """Return the response for a problem.

    Args:
        kind: the type of the problem.
        detail: about this occurrence; it must not repeat a value of the request.
        retry_after_s: for a problem that the client may retry.
        extensions: more members of the body.
    """
    headers = {"Cache-Control": "no-store"}
    if kind.status in _WITH_RETRY_AFTER:
        headers["Retry-After"] = str(retry_after_s)
    body = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": detail, **extensions}
    response = _ProblemResponse(body, kind.status, headers, MEDIA_TYPE)
    response.slug = kind.slug
    return response


class _ProblemResponse(JSONResponse):
    """A response that names its problem to the middleware that counts problems."""

    slug: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        scope["problem"] = self.slug
        await super().__call__(scope, receive, send)


def framework_problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a problem of the framework or the server: its type `about:blank` means that the status says everything."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def problem_responses(*kinds: ProblemType) -> Responses:
    """Return the problems of a route for OpenAPI: by status, with an example of each type."""
    responses: Responses = {}
    for kind in kinds:
        first = {
            "description": kind.title,
            "headers": {"Cache-Control": HEADERS["Cache-Control"]},
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        response = responses.setdefault(kind.status, first)
        if kind.title not in response["description"]:
            response["description"] += f"; or: {kind.title}"
        if kind.status in _WITH_RETRY_AFTER:
            response["headers"]["Retry-After"] = HEADERS["Retry-After"]
        example = Problem(type=kind.type, title=kind.title, status=kind.status, detail=f"{kind.title}.")
        if kind is ProblemType.INVALID_FEATURES:
            feature = next(iter(Customer.model_fields))
            example.errors = [Fault(pointer=f"#/{feature}", code="missing", message="Field required")]
        examples = response["content"][MEDIA_TYPE].setdefault("examples", {})
        examples[kind.slug] = {"value": example.model_dump(mode="json", exclude_none=True)}
    return responses
