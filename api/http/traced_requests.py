"""Keeps the texts of clients, which may be customers' values, out of the server spans, which are FastAPI's own."""

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.paths import PROBES, REDACTED, redact_path


def is_probe(scope: Mapping[str, Any]) -> bool:
    """Return whether a request is a health probe, which has no span; its path may have a prefix."""
    return str(scope["path"]).endswith(PROBES)


class RedactSpansMiddleware:
    """Overwrites attributes of the server span with which a client could send any text."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app, which is called within the span."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Overwrite the attributes, then call the app."""
        span = trace.get_current_span()
        if scope["type"] == "http" and span.is_recording():
            span.set_attribute("url.path", redact_path(scope))
            if scope["query_string"]:
                span.set_attribute("url.query", REDACTED)
        await self._app(scope, receive, send)
