"""A route with a strict JSON body: limited in size, without duplicate names, validated before the endpoint runs.

FastAPI's own body parameters keep the last of two equal names, and its injection costs time even if there is nothing to
inject; `python -m benchmarks.routes` prints how much.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from api.http.content_headers import read_content_headers
from api.services import get_services
from api.strict_json import parse_json
from celery_task_app.errors import BodyTooLarge, NotJSON, NotJSONType


class StrictJSONRoute(APIRoute):
    """A route that calls an endpoint with a body as `endpoint(body, request)`, without FastAPI's injection.

    An endpoint without a body is called as in every APIRoute.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler; this method is FastAPI's extension point for it.

        Raises:
            TypeError: an endpoint with a body has other parameters than the body and the request.
        """
        if self.body_field is None:
            return super().get_route_handler()
        needs = self.dependant
        if any((needs.dependencies, needs.path_params, needs.query_params, needs.header_params, needs.cookie_params)):
            raise TypeError(f"{self.path}: an endpoint with a JSON body takes the body and the request only")
        validate = TypeAdapter[Any](self.body_field.field_info.annotation or Any).validate_python
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            media_type, announced = read_content_headers(request)
            if not _is_json(media_type):
                raise NotJSONType("Send the body with Content-Type: application/json")
            body = await _read_body(request, announced, get_services(request).body_max_bytes)
            if not body:
                raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
            try:
                value = validate(parse_json(body))
            except ValidationError as error:
                faults = error.errors(include_input=False, include_context=False, include_url=False)
                raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from error
            response: Response = await endpoint(value, request)
            return response

        return handle


async def _read_body(request: Request, announced: int, max_bytes: int) -> bytes:
    """Return the body. FastAPI's `max_body_size` would answer plain text, not a problem.

    Raises:
        BodyTooLarge: Content-Length exceeds the limit, or the bytes that have arrived do.
        NotJSON: the client closed the connection before the body was complete.
    """
    if announced > max_bytes:
        raise BodyTooLarge(f"The limit is {max_bytes} bytes")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise BodyTooLarge(f"The limit is {max_bytes} bytes")
    except ClientDisconnect as error:
        raise NotJSON("It is incomplete") from error
    return bytes(body)


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
