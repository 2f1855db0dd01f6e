"""Paths behind a prefix: `uvicorn --root-path /ml` adds `/ml` to the path of each request that a proxy has stripped."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix, as the routes have it."""
    path: str = scope["path"]
    return path.removeprefix(_prefix(scope))


def public_path(scope: Scope, path: str) -> str:
    """Return a path of this service with the prefix, as clients have it."""
    return _prefix(scope) + path


def _prefix(scope: Scope) -> str:
    prefix: str = scope.get("root_path", "")
    return prefix.rstrip("/")
