"""Limits of one connection: the size of a request's head, and the time until a head or a body is complete.

uvicorn and httptools have none of these limits, and no option for them. `--http module:Class` would be uvicorn's
extension point, but plain `uvicorn app:app` does not use it. So uvicorn is made to create instances of a subclass;
docs/adr/0002 says when this can go.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.http.problems import ProblemType, framework_problem, problem

MAX_HEAD_BYTES = 65_536
"""Most bytes of the address and the headers together, and of the trailers; the limit of h11, uvicorn's other parser."""

_FRAMING_BYTES = 1_024  # of a request whose parts are not counted: its method, its version, the sizes of chunks

LEAST_BYTES_PER_S = 8_192
"""A body must arrive at this rate on average over each `body_timeout_s`."""

for _name in (
    "connection_made",
    "connection_lost",
    "data_received",
    "send_400_response",
    "on_message_begin",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
):
    if not hasattr(HttpToolsProtocol, _name):
        raise ImportError(f"uvicorn's HttpToolsProtocol has no {_name} any more: see docs/adr/0002")


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits.

    Attributes:
        head_timeout_s: seconds until the head of a request is complete, from the connection or the last response.
        body_timeout_s: seconds in which a body must be complete, or have grown by LEAST_BYTES_PER_S for each of them.
        on_refused: is called when a request is refused.
    """

    head_timeout_s = 10.0
    body_timeout_s = 10.0
    on_refused: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Create the protocol of one connection, as uvicorn does."""
        super().__init__(*arguments, **options)
        self._read_bytes = 0  # by the current read
        self._unseen_bytes = 0  # read since the last callback that began or ended a request or a part of its body
        self._is_unseen = True
        self._is_split = False  # the head began in an earlier read
        self._is_started = False  # `self.cycle` is the request that is being parsed, not an earlier one
        self._is_refused = False
        self._due: float | None = None  # None: a complete request is being answered
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the connection. One timer checks all of its requests, so a request starts none."""
        super().connection_made(transport)
        self._due = self.loop.time() + self.head_timeout_s
        self._timer = self.loop.call_at(self._due, self._check_time)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; refuse a head, or trailers, that are too large and not complete.

        httptools buffers an incomplete header without a limit, and reports each trailer as a header.
        """
        if self._is_refused:
            return
        self._read_bytes, self._is_unseen = len(data), True
        super().data_received(data)
        self._is_split = not self._is_started
        self._unseen_bytes = self._unseen_bytes + len(data) if self._is_unseen else 0
        if self._unseen_bytes > MAX_HEAD_BYTES + _FRAMING_BYTES:
            self._refuse_head()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP with a problem; uvicorn's own answer is plain text."""
        self._refuse(HTTPStatus.BAD_REQUEST, framework_problem(400, msg))

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._is_refused:  # an earlier request of the same read
            return
        self._is_unseen = self._is_started = False
        self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request and the time of its body; refuse a head that is too large."""
        if self._is_refused:
            return
        # A small read that has the whole head does not pay for the sum.
        if (self._is_split or self._read_bytes > MAX_HEAD_BYTES) and self._head_bytes() > MAX_HEAD_BYTES:
            self._refuse_head()
            return
        self._is_unseen = False
        self._due = self.loop.time() + self.body_timeout_s
        super().on_headers_complete()
        self._is_started = True
        self.headers = []  # for the trailers, which uvicorn would add to the headers of the request

    def on_body(self, body: bytes) -> None:
        """Count a part of the body."""
        if self._is_refused:
            return
        self._is_unseen = False
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the time of the body."""
        if self._is_refused:
            return
        self._is_unseen = False
        if not self.cycle.response_complete:
            self._due = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the time of the next head. The rest of a body that the API has not read must arrive within it too."""
        if not self.pipeline:
            self._due = self.loop.time() + self.timeout_keep_alive + self.head_timeout_s
        elif self._due is not None:  # the body of the next request: reading was paused
            self._due = self.loop.time() + self.body_timeout_s
        super().on_response_complete()

    def _head_bytes(self) -> int:
        """Return the size of the address and the headers, with a colon, a blank and a line end for each header."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        detail = f"The request line, the headers and the trailers may have {MAX_HEAD_BYTES} bytes together."
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, framework_problem(431, detail))

    def _check_time(self) -> None:
        """Close the connection if its head or its body is late; else check again when it would be late."""
        now = self.loop.time()
        is_body = self._is_started and not self.cycle.response_complete
        if self._due is not None and is_body and self._due <= now:
            is_on_time = self._body_bytes >= self.body_timeout_s * LEAST_BYTES_PER_S
            if is_on_time or self.flow.read_paused:  # paused: the API reads slowly, not the client
                self._due, self._body_bytes = now + self.body_timeout_s, 0
        if self._due is not None and self._due <= now:
            if is_body:
                detail = f"Send at least {LEAST_BYTES_PER_S} bytes a second, on average over {self.body_timeout_s:g} s."
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, problem(ProblemType.BODY_TIMEOUT, detail))
            else:
                self.transport.close()
            return
        # A new request may be due earlier than the one that set the time.
        latest = now + min(self.head_timeout_s, self.body_timeout_s)
        self._timer = self.loop.call_at(min(latest, self._due or latest), self._check_time)

    def _refuse(self, status: int, response: JSONResponse) -> None:
        """Answer with a problem, unless another response is not complete, and close the connection."""
        self._is_refused = True
        if self._is_started:
            self.cycle.scope["refused"] = status  # type: ignore[typeddict-unknown-key]  # for request_middleware.py
        self.on_refused()
        client = self.client[0] if self.client else None
        self.logger.warning("connection closed: the request was refused client=%s status=%d", client, status)
        is_own = self._is_started and not self.pipeline and not self.cycle.response_started
        if self.cycle is None or self.cycle.response_complete or is_own:
            lines = [b"%s: %s\r\n" % header for header in response.raw_headers]
            parts = (STATUS_LINE[status], *lines, b"connection: close\r\n\r\n", bytes(response.body))
            self.transport.write(b"".join(parts))
        self.transport.close()


def limit_connections(*, head_timeout_s: float, body_timeout_s: float, on_refused: Callable[[], None]) -> None:
    """Make the server of this process create bounded protocols.

    Args:
        head_timeout_s: seconds until a connection without a complete head is closed.
        body_timeout_s: seconds over which the rate of a body is measured.
        on_refused: is called when a request is refused.
    """
    BoundedProtocol.on_refused = staticmethod(on_refused)
    BoundedProtocol.head_timeout_s, BoundedProtocol.body_timeout_s = head_timeout_s, body_timeout_s

    def create(cls: type[HttpToolsProtocol], *_arguments: object, **_options: object) -> HttpToolsProtocol:
        return object.__new__(BoundedProtocol if cls is HttpToolsProtocol else cls)

    HttpToolsProtocol.__new__ = create  # type: ignore[assignment,method-assign]
