"""Paths of requests: behind a prefix, and without texts of clients.

`uvicorn --root-path /ml` adds `/ml` to the path of each request that a proxy has stripped.
"""

from functools import lru_cache
from uuid import UUID

from starlette.applications import Starlette
from starlette.types import Scope

PROBES = ("/livez", "/readyz")
"""The routes of health probes, which have no log line and no span."""

REDACTED = "REDACTED"
"""Stands for a text of a client that may be a customer's value."""


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix, as the routes have it."""
    path: str = scope["path"]
    return path.removeprefix(_prefix(scope))


def public_path(scope: Scope, path: str) -> str:
    """Return a path of this service with the prefix, as clients have it."""
    return _prefix(scope) + path


def redact_path(scope: Scope) -> str:
    """Return the path of a request with only the words of routes and the ids; other words may be customers' values."""
    words = _words(scope["app"])
    return _prefix(scope) + "/".join(
        word if word in words else redact_id(word) for word in route_path(scope).split("/")
    )


def redact_id(text: str) -> str:
    """Return the canonical form of an id; REDACTED for another text."""
    try:
        return str(UUID(text))
    except ValueError:
        return REDACTED


@lru_cache(4)
def _words(app: Starlette) -> frozenset[str]:
    """Return the words in the paths of an app's routes."""
    templates = [getattr(route, "path", "") for route in app.routes]
    return frozenset(word for template in templates for word in template.split("/") if not word.startswith("{"))


def _prefix(scope: Scope) -> str:
    prefix: str = scope.get("root_path", "")
    return prefix.rstrip("/")
