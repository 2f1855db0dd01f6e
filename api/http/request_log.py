"""The log line of a request, in place of uvicorn's access log. It has ids, and no value of a customer."""

import logging
import re
from urllib.parse import quote

from fastapi import Request
from starlette.types import Scope

from api.http.paths import PROBES, redact_id, redact_path
from celery_task_app.observability.logs import log_event
from celery_task_app.observability.tracing import current_trace_id
from models import Customer

logger = logging.getLogger(__name__)

_UNSAFE = re.compile(r"[^!#-<>-~]")  # a blank, a quote, `=`, and every character that is not printable ASCII
_IDS = ("task_id", "batch_id")
_FAULTS = 5
_FIELDS = "log_fields"


def replace_access_log(*, with_form: bool) -> None:
    """Log requests in place of uvicorn, unless it was started with `--no-access-log`.

    Args:
        with_form: write uvicorn's other lines in the form of the service.
    """
    access = logging.getLogger("uvicorn.access")
    logger.disabled = not access.handlers and not access.propagate  # as uvicorn leaves it with --no-access-log
    access.handlers, access.propagate = [], False  # uvicorn asks for both before it makes a line
    if with_form:
        server = logging.getLogger("uvicorn")
        server.handlers, server.propagate = [], True


def add_log_fields(request: Request, **fields: object) -> None:
    """Add fields to the line of a request."""
    request.scope.setdefault(_FIELDS, {}).update(fields)


def log_traced_request(scope: Scope, status: int, seconds: float) -> None:
    """Log a finished request as `log_request` does, with the id of its trace."""
    if trace_id := current_trace_id():
        scope.setdefault(_FIELDS, {})["trace_id"] = trace_id
    log_request(scope, status, seconds)


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log a finished request, unless it was a health probe."""
    route = scope["route"].path if "route" in scope else None
    if route in PROBES or not logger.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    fields: dict[str, object] = {
        "method": scope["method"],
        "route": route or "other",
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": scope["request_id"],
    }
    if client:
        fields["client"] = _safe(f"{client[0]}")
    if route is None:
        fields["path"] = _safe(redact_path(scope))
    fields.update({name: redact_id(text) for name, text in scope.get("path_params", {}).items() if name in _IDS})
    fields.update(scope.get(_FIELDS, ()))
    if "problem" in scope:
        fields["problem"] = scope["problem"]
    if "faults" in scope:
        faults = (f"{place if place in Customer.model_fields else 'other'}:{code}" for place, code in scope["faults"])
        fields["faults"] = ",".join([*faults][:_FAULTS])
    log_event(logger, logging.INFO, "request", fields)


def _safe(text: str) -> str:
    """Return a text with which a client cannot add a field or a line."""
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), text) if _UNSAFE.search(text) else text
