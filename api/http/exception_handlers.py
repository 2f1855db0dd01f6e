"""From an exception to its response. Only RowsRefused, which has rows of a batch, is answered in api/batches.py."""

import logging
import math
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from api.http.paths import route_path
from api.http.problems import ProblemType, framework_problem, problem
from api.http.responses import RETRY_AFTER_S
from celery_task_app.errors import ChurnServiceError
from models import Fault

logger = logging.getLogger(__name__)

_LOG_PERIOD_S = 1

_KINDS = {"header": ProblemType.BAD_HEADER, "query": ProblemType.BAD_PARAMETER}
"""The problem type by the place of a fault; every other place is in the body."""


def add_exception_handlers(app: FastAPI) -> None:
    """Answer each expected exception with a problem; request_middleware.py answers all others."""
    log_unavailable = _UnavailableLog().record

    async def service_error(_request: Request, error: ChurnServiceError) -> Response:
        kind = ProblemType.of(error)
        if kind is ProblemType.INTERNAL_ERROR:
            raise error  # it is a defect
        if kind is ProblemType.UNAVAILABLE:
            log_unavailable(error)
        response = problem(kind, f"{error}.", getattr(error, "retry_after_s", RETRY_AFTER_S))
        if kind is ProblemType.UNSUPPORTED_ENCODING:
            response.headers["Accept-Encoding"] = "identity"  # RFC 9110, 15.5.16
        return response

    handlers: dict[type[Exception], Callable[[Request, Any], Any]] = {
        ChurnServiceError: service_error,
        RequestValidationError: _validation_error,
        HTTPException: _framework_error,
        ClientDisconnect: _client_disconnect,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


class _UnavailableLog:
    """Logs why requests get 503, at most once a second: an outage refuses thousands for one reason."""

    def __init__(self) -> None:
        self._logged_at = -math.inf
        self._requests = 0  # since the start of the process

    def record(self, error: ChurnServiceError) -> None:
        """Count a request, and log its error if the last line is a second old."""
        self._requests += 1
        if (now := time.monotonic()) >= self._logged_at + _LOG_PERIOD_S:
            logger.warning("unavailable requests_total=%d reason=%s", self._requests, error)
            self._logged_at = now


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    """Name every fault, but repeat no value: values are a customer's, and NaN has no form in JSON."""
    faults = error.errors()
    named = [
        Fault(pointer="/".join(["#", *map(str, fault["loc"][1:])]), code=fault["type"], message=fault["msg"])
        for fault in faults
    ]
    kind = _KINDS.get(str(faults[0]["loc"][0]), ProblemType.INVALID_FEATURES)
    if kind is ProblemType.INVALID_FEATURES:
        request.scope["faults"] = [(fault["loc"][-1], fault["type"]) for fault in faults]
    return problem(kind, "See errors.", errors=[fault.model_dump() for fault in named])


async def _framework_error(request: Request, error: HTTPException) -> Response:
    """Answer FastAPI's own refusals in the same form."""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return framework_problem(error.status_code, error.detail, headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of a path, from OpenAPI; the framework names those of the first matching route only."""
    for template, operations in request.app.openapi()["paths"].items():
        pattern: re.Pattern[str] = compile_path(template)[0]
        if pattern.match(route_path(request.scope)):
            methods = {method.upper() for method in operations}
            return sorted(methods | {"HEAD"} if "GET" in methods else methods)
    return ["GET", "HEAD"]  # paths that are not in OpenAPI: /docs and its assets


async def _client_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # for the access log: the client is gone
