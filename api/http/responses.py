"""Headers that responses have in common, and how OpenAPI describes them."""

from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel

RETRY_AFTER_S = 1
"""Seconds after which a client may repeat a request that was refused, or that has no result yet."""

Responses = dict[int | str, dict[str, Any]]
"""The responses of a route by status, as FastAPI takes them for OpenAPI."""

HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "The path of the result.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before the next request.", "schema": {"type": "integer"}},
    "Cache-Control": {"description": "Caches must not store a response.", "schema": {"const": "no-store"}},
    "Preference-Applied": {
        "description": "`wait=N`: the request waited for the prediction, at most N seconds.",
        "schema": {"type": "string"},
    },
}
"""The headers of responses, for OpenAPI."""

NO_STORE: Responses = {HTTPStatus.OK: {"headers": {"Cache-Control": HEADERS["Cache-Control"]}}}
"""A 200 that caches must not store, for OpenAPI."""


def page_headers(sources: str) -> dict[str, str]:
    """Return the headers of an HTML page that loads nothing from another host.

    Args:
        sources: the directives of its Content-Security-Policy that allow scripts, styles and images.
    """
    return {
        "Content-Security-Policy": f"default-src 'none'; connect-src 'self'; {sources}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",  # `frame-ancestors` for old browsers
    }


def accepted_responses(model: type[BaseModel], description: str) -> Responses:
    """Return a 202 that names the path of the result, for OpenAPI."""
    return {HTTPStatus.ACCEPTED: {"model": model, "description": description, "headers": HEADERS}}


def accepted_headers(location: str, retry_after_s: int) -> dict[str, str]:
    """Return the headers of a 202."""
    return {"Location": location, "Retry-After": str(retry_after_s), "Cache-Control": "no-store"}


def model_response(
    model: BaseModel, status: HTTPStatus, headers: dict[str, str], *, exclude_none: bool = False
) -> Response:
    """Return a model as JSON.

    Args:
        model: the body.
        status: of the response.
        headers: without Content-Type, which is added.
        exclude_none: leave out fields that are None.
    """
    return Response(model.model_dump_json(exclude_none=exclude_none), status, headers, "application/json")
