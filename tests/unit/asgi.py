"""A client that calls an ASGI app in this process, without a server."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from api.http.problems import ProblemType


@dataclass(frozen=True)
class ASGIResponse:
    """A response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def call(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | Iterable[bytes | None] = b"",
    headers: Mapping[str, str] | None = None,
) -> ASGIResponse:
    """Send one request in an event loop of its own; see `request`."""
    return asyncio.run(request(app, method, path, body, headers))


async def request(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | Iterable[bytes | None] = b"",
    headers: Mapping[str, str] | None = None,
) -> ASGIResponse:
    """Send one request.

    Args:
        app: the app.
        method: the HTTP method.
        path: the path, with a query or without.
        body: bytes, which get a Content-Length, or the chunks of a body of unknown length. At None the client closes
            the connection.
        headers: more headers.
    """
    fields = {name.lower(): value for name, value in (headers or {}).items()}
    if isinstance(body, bytes):
        fields = {"content-length": str(len(body)), **fields}
        body = [body]
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields.items()],
        "server": ("testserver", 80),
    }
    incoming: list[Message] = [
        {"type": "http.disconnect"} if chunk is None else {"type": "http.request", "body": chunk, "more_body": True}
        for chunk in body
    ]
    incoming.append({"type": "http.request", "body": b"", "more_body": False})
    outgoing: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        outgoing.append(message)

    await app(scope, receive, send)
    start = outgoing[0]
    return ASGIResponse(
        start["status"],
        {name.decode(): value.decode("latin-1") for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in outgoing[1:]),
    )


def assert_problem(response: ASGIResponse, kind: ProblemType) -> dict[str, Any]:
    """Require a problem of this type (RFC 9457); return its body."""
    body: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status, body["status"], body["type"], body["title"]) == (
        kind.status,
        kind.status,
        kind.type,
        kind.title,
    )
    return body
