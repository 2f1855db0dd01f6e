"""What answers have in common: their headers, and how OpenAPI describes them. Refusals are problems.py's business."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

RETRY_AFTER_S = "1"
"""Seconds after which what was refused for now, or is not there yet, may be asked for again."""

Answers = dict[int | str, dict[str, Any]]
"""A route's answers by status, as FastAPI wants them described for OpenAPI."""

HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "Where to ask for the prediction.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before the next request.", "schema": {"type": "integer"}},
    "Cache-Control": {"description": "No answer is to be kept by a cache.", "schema": {"const": "no-store"}},
    "Preference-Applied": {
        "description": "The request was held: `wait=N`, N seconds at most.",
        "schema": {"type": "string"},
    },
}
"""What the headers of the answers mean, for OpenAPI."""

NOT_STORED: Answers = {HTTPStatus.OK: {"headers": {"Cache-Control": HEADERS["Cache-Control"]}}}
"""A 200 that no cache is to keep, for OpenAPI."""


def later(model: type[BaseModel], description: str) -> Answers:
    """Return an answer that says where to ask again, for OpenAPI."""
    return {HTTPStatus.ACCEPTED: {"model": model, "description": description, "headers": HEADERS}}


def later_at(location: str) -> dict[str, str]:
    """Return the headers of an answer that says where to ask again."""
    return {"Location": location, "Retry-After": RETRY_AFTER_S, "Cache-Control": "no-store"}
