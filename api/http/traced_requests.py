"""Keeps the texts of clients, which may be customers' values, out of the server spans, which are FastAPI's own."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

_PROBES = ("/livez", "/readyz")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_REDACTED = "REDACTED"


def is_probe(scope: Mapping[str, Any]) -> bool:
    """Return whether a request is a health probe, which has no span; its path may have a prefix."""
    return str(scope["path"]).endswith(_PROBES)


class RedactSpansMiddleware:
    """Overwrites attributes of the server span with which a client could send any text."""

    def __init__(self, app: ASGIApp, routes: Iterable[str]) -> None:
        """Wrap an app.

        Args:
            app: it is called within the span.
            routes: templates of its paths. Their words and ids stay in `url.path`.
        """
        self._app = app
        self._words = {word for route in routes for word in route.split("/") if not word.startswith("{")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Overwrite the attributes, then call the app."""
        span = trace.get_current_span()
        if scope["type"] == "http" and span.is_recording():
            words = scope["path"].split("/")
            span.set_attribute(
                "url.path",
                "/".join(word if word in self._words or _ID.fullmatch(word) else _REDACTED for word in words),
            )
            if scope["query_string"]:
                span.set_attribute("url.query", _REDACTED)
        await self._app(scope, receive, send)
