"""Optional headers and query parameters of a request; each is read and validated only if the client sent it.

FastAPI's own `Header()` and `Query()` cost each request time for every parameter that it does not send;
`python -m benchmarks.routes` prints how much.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")

_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)  # RFC 9110, 12.4.2


class OptionalHeader(Generic[T]):
    """A header that a client may send."""

    location = "header"

    def __init__(self, name: str, value_type: Any, description: str) -> None:
        """Describe the header.

        Args:
            name: the name of the header.
            value_type: a type that Pydantic can validate.
            description: for OpenAPI, with an example: /docs would send a member `example` with every request.
        """
        self._name = name
        self._type: TypeAdapter[T] = TypeAdapter(value_type)
        self.parameter = {
            "name": name,
            "in": self.location,
            "required": False,
            "description": description,
            "schema": self._type.json_schema(),
        }

    def read(self, request: Request) -> T | None:
        """Return the value of a request; None if the client did not send it.

        Raises:
            RequestValidationError: the value is not valid.
        """
        if (text := self._text(request)) is None:
            return None
        try:
            return self._type.validate_python(text)
        except ValidationError as error:
            faults = [{**fault, "loc": (self.location, self._name)} for fault in error.errors(include_input=False)]
            raise RequestValidationError(faults) from error

    def _text(self, request: Request) -> str | None:
        return request.headers.get(self._name)


class OptionalQuery(OptionalHeader[T]):
    """A query parameter that a client may send."""

    location = "query"

    def _text(self, request: Request) -> str | None:
        return request.query_params.get(self._name) if request.scope["query_string"] else None


IDEMPOTENCY_KEY = OptionalHeader[str](
    "Idempotency-Key",
    Annotated[str, Field(min_length=1, max_length=255)],
    "Requests with the same key and the same body get the same prediction, for example `4711`.",
)
CANCEL_AFTER = OptionalHeader[int](
    "Cancel-After",
    Annotated[int, Field(ge=1)],
    "Seconds after which the prediction expires if it is not computed, for example `60`.",
)
EXPLAIN = OptionalQuery[Literal["true", "false"]](
    "explain", Literal["true", "false"], "`true`: the prediction has `reasons`."
)
WITHOUT = OptionalQuery[Literal["workers"]](
    "without",
    Literal["workers"],
    "`workers`: would a prediction be accepted now? It waits in the queue if no worker runs.",
)
PREFER = OptionalHeader[str](
    "Prefer", str, "Wait for the prediction before the response, for example up to five seconds: `wait=5` (RFC 7240)."
)


def openapi_parameters(*parameters: OptionalHeader[Any]) -> dict[str, Any]:
    """Return the parameters of a route, for its `openapi_extra`."""
    return {"parameters": [parameter.parameter for parameter in parameters]}


def preferred_wait_s(request: Request, max_wait_s: int) -> int:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), at most `max_wait_s`; 0 if the client did not send it."""
    for header in request.headers.getlist("prefer"):
        for preference in header.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdecimal():
                return min(int(value[:9]), max_wait_s)
    return 0


def best_media_type(accept: str, offered: Sequence[str]) -> str | None:
    """Return the offered media type that the client prefers; None if it accepts none (RFC 9110, 12.5.1).

    Args:
        accept: the value of the header `Accept`.
        offered: media types; the first of those with equal quality wins.
    """
    qualities: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        qualities[name] = float(quality) if _QUALITY.fullmatch(quality) else 0.0

    def quality_of(media_type: str) -> float:
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        return next((qualities[name] for name in ranges if name in qualities), 0.0)

    best = max(offered, key=quality_of)
    return best if quality_of(best) > 0 else None
