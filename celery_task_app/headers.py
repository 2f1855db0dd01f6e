"""What a client may send beside a body: headers, and `explain`. Read and validated here, and only where it is sent.

FastAPI's own parameters cost each request 15 µs for every header that it does not send, a tenth of all its time.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError

from celery_task_app.settings import settings

T = TypeVar("T")


class OptionalHeader(Generic[T]):
    """One header: its name, what its value must be, and how OpenAPI describes it."""

    where = "header"

    def __init__(self, name: str, kind: Any, description: str, example: str) -> None:
        self._name = name
        self._kind: TypeAdapter[T] = TypeAdapter(kind)
        self.parameter = {
            "name": name,
            "in": self.where,
            "required": False,
            "description": description,
            "schema": self._kind.json_schema(),
            "example": example,
        }

    def of(self, request: Request) -> T | None:
        """Return the value that a request has; None if it has none.

        Raises:
            RequestValidationError: it makes no sense.
        """
        if (text := self._text(request)) is None:
            return None
        try:
            return self._kind.validate_python(text)
        except ValidationError as error:
            faults = [{**fault, "loc": (self.where, self._name)} for fault in error.errors(include_input=False)]
            raise RequestValidationError(faults) from error

    def _text(self, request: Request) -> str | None:
        return request.headers.get(self._name)


class OptionalQuery(OptionalHeader[T]):
    """The same in the query of the URL."""

    where = "query"

    def _text(self, request: Request) -> str | None:
        return request.query_params.get(self._name) if request.scope["query_string"] else None


IDEMPOTENCY_KEY = OptionalHeader[str](
    "Idempotency-Key",
    Annotated[str, Field(min_length=1, max_length=255)],
    "The same key and body, the same prediction.",
    "4711",
)
CANCEL_AFTER = OptionalHeader[int](
    "Cancel-After", Annotated[int, Field(ge=1)], "Seconds within which it is computed, or expires.", "60"
)
EXPLAIN = OptionalQuery[Literal["true", "false"]](
    "explain", Literal["true", "false"], "Whether the prediction shall come with its `reasons`.", "true"
)
PREFER = OptionalHeader[str]("Prefer", str, "`wait=N`: answer when it has ended, or in N seconds (RFC 7240).", "wait=5")


def preferred_wait_s(request: Request) -> int:
    """Return how long the client wants to wait (`Prefer: wait=N`, RFC 7240), at most MAX_WAIT_S; 0 if it does not."""
    for header in request.headers.getlist("prefer"):
        for preference in header.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdecimal():
                return min(int(value[:9]), settings.max_wait_s)
    return 0


def parameters(*headers: OptionalHeader[Any]) -> dict[str, Any]:
    """Return what describes the headers and the query of a route, for its `openapi_extra`."""
    return {"parameters": [header.parameter for header in headers]}
