"""The outermost middleware: it gives each request an id, answers defects, and reports requests to metrics and log.

Keys of our own in the scope of a request, for the recorders:

- `request_id`, `started` (on the clock of `time.perf_counter`): this module
- `problem`, the slug: api/http/problems.py
- `faults`, places and codes: api/http/exception_handlers.py
- `refused`, the status of a closed connection: api/http/protocol.py
- `log_fields`: `add_log_fields` of api/http/request_log.py
"""

import logging
import re
import secrets
import time
from collections.abc import Callable
from itertools import count

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import ProblemType, problem
from celery_task_app.observability.logs import stack_of

logger = logging.getLogger(__name__)

_GIVEN_ID = re.compile(rb"[\w.~+/:-]{1,128}", re.ASCII)  # without `=`, which separates fields of a line
_HEADER = b"x-request-id"

Recorder = Callable[[Scope, int, float], None]
"""Is called with the scope of a finished request, its status, and its seconds."""


class RequestMiddleware:
    """ASGI middleware that must be outside of the middleware that answers 401."""

    def __init__(self, app: ASGIApp, recorders: list[Recorder]) -> None:
        """Report the requests of an app to recorders."""
        self._app = app
        self._recorders = recorders
        self._prefix, self._numbers = secrets.token_hex(6), count(1)  # a UUID would cost 2 µs a request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and report it when its response is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["started"] = started = time.perf_counter()
        request_id = self._request_id(scope)
        scope["request_id"] = request_id.decode()
        status = 0  # no response has begun

        def send_and_note(message: Message) -> object:  # no coroutine of its own, which would cost 0.2 µs a message
            nonlocal status
            if "status" in message:
                status = int(message["status"])  # an HTTPStatus has another hash, and is slow to compare
                message["headers"] = [*message["headers"], (_HEADER, request_id)]
            return send(message)

        try:
            await self._app(scope, receive, send_and_note)  # type: ignore[arg-type]
        except Exception as error:
            # uvicorn would log the text of the error, which may have a customer's values.
            kind, stack = type(error).__name__, stack_of(error)
            logger.error("request failed request_id=%s type=%s stack=%s", scope["request_id"], kind, stack)  # noqa: TRY400
            if status:
                raise  # so that uvicorn closes the connection: the response is incomplete
            response = problem(ProblemType.INTERNAL_ERROR, "See the log of the API.")
            await response(scope, receive, send_and_note)  # type: ignore[arg-type]
        finally:
            seconds = time.perf_counter() - started
            # api/http/protocol.py may have answered the request and closed the connection.
            status = scope.get("refused", status)
            for record in self._recorders:
                record(scope, status, seconds)

    def _request_id(self, scope: Scope) -> bytes:
        """Return the id that the client sent, if it has 1 to 128 safe characters; else a new one."""
        for name, value in scope["headers"]:
            if name == _HEADER and _GIVEN_ID.fullmatch(value):
                return bytes(value)
        return f"{self._prefix}-{next(self._numbers)}".encode()
