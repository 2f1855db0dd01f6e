"""CPU time that the service's own route and headers save, compared with FastAPI's: `python -m benchmarks.routes`.

Each app has the same endpoint: it takes a customer and four optional parameters, and answers 202 with the customer. The
requests have no optional parameter, as most requests of the service. The apps are called directly, without a network:

- `service`: as in api/predictions.py. StrictJSONRoute parses and validates the body; OptionalHeader and OptionalQuery
  read the parameters; the route is one of the app's own, as in app.py.
- `include_router`: the same route, in a router that the app includes.
- `FastAPI's body`: FastAPI's body parameter, with OptionalHeader and OptionalQuery.
- `FastAPI`: FastAPI's body parameter, with its `Header()` and `Query()`.
- `FastAPI, strict Request`: as `FastAPI`, with the strict parser in a subclass of Request, as FastAPI's documentation
  shows it ("Custom Request and APIRoute class").

The apps with FastAPI's body parameter read a body of any size. Without the strict parser they accept an object that has
one name twice. With it, FastAPI answers every syntax error with the same text.
"""

import argparse
import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import to_json

from api.http.json_route import StrictJSONRoute
from api.http.parameters import CANCEL_AFTER, EXPLAIN, IDEMPOTENCY_KEY, PREFER
from api.strict_json import parse_json
from benchmarks.apps import TELEMETRY, RouteServices
from benchmarks.load import customers, new_event_loop
from celery_task_app.settings import Settings
from models import Customer

PATH = "/churn/predict"
BODIES = 200

Message = MutableMapping[str, Any]


class StrictRequest(Request):
    """A request whose `json` is the service's strict parser."""

    async def json(self) -> Any:
        """Return the body as JSON."""
        return parse_json(await self.body())


class StrictRequestRoute(APIRoute):
    """FastAPI's documented pattern for a request class of one's own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, called with a StrictRequest."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def respond(customer: Customer, *_parameters: object) -> Response:
    """Answer with the customer."""
    return Response(to_json(customer.model_dump()), HTTPStatus.ACCEPTED, media_type="application/json")


async def read_parameters(customer: Customer, request: Request) -> Response:
    """Read the optional parameters as api/predictions.py does."""
    return respond(
        customer,
        IDEMPOTENCY_KEY.read(request),
        CANCEL_AFTER.read(request),
        PREFER.read(request),
        EXPLAIN.read(request),
    )


async def declare_parameters(
    customer: Customer,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    cancel_after: Annotated[int | None, Header(ge=1)] = None,
    prefer: Annotated[str | None, Header()] = None,
    explain: Annotated[Literal["true", "false"] | None, Query()] = None,
) -> Response:
    """Declare the optional parameters as FastAPI's documentation does."""
    return respond(customer, idempotency_key, cancel_after, prefer, explain)


def create_app(
    route_class: type[APIRoute], endpoint: Callable[..., Awaitable[Response]], *, is_included: bool = False
) -> FastAPI:
    """Return an app with one POST route, which is a route of the app or of an included router."""
    router = APIRouter(route_class=route_class)
    router.post(PATH, status_code=HTTPStatus.ACCEPTED)(endpoint)
    app = FastAPI(routes=[] if is_included else router.routes, telemetry=TELEMETRY)
    if is_included:
        app.include_router(router)
    app.state.services = RouteServices(Settings().body_max_bytes)
    return app


def create_apps() -> dict[str, FastAPI]:
    """Return the apps by name, the service's first."""
    return {
        "service": create_app(StrictJSONRoute, read_parameters),
        "include_router": create_app(StrictJSONRoute, read_parameters, is_included=True),
        "FastAPI's body": create_app(APIRoute, read_parameters),
        "FastAPI": create_app(APIRoute, declare_parameters),
        "FastAPI, strict Request": create_app(StrictRequestRoute, declare_parameters),
    }


async def call(app: FastAPI, body: bytes) -> None:
    """Send one request to an app.

    Raises:
        SystemExit: the app did not answer 202.
    """
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ],
        "state": {},
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message.get("status", HTTPStatus.ACCEPTED) != HTTPStatus.ACCEPTED:
            raise SystemExit(f"status {message['status']}")

    await app(scope, receive, send)


async def measure_us(app: FastAPI, bodies: Sequence[bytes], requests: int) -> float:
    """Return the CPU microseconds of a request."""
    started = time.process_time()
    for body in itertools.islice(itertools.cycle(bodies), requests):
        await call(app, body)
    return 1e6 * (time.process_time() - started) / requests


async def measure_alternating(rounds: int, requests: int) -> dict[str, list[float]]:
    """Return, by app, the CPU microseconds of a request in each round; the apps alternate."""
    apps = create_apps()
    bodies = list(itertools.islice(customers(0), BODIES))
    for app in apps.values():
        await measure_us(app, bodies, BODIES)  # a warm-up
    gc.collect()
    gc.freeze()  # as app.py
    measured: dict[str, list[float]] = {name: [] for name in apps}
    for number in range(rounds):
        for name in list(apps)[:: -1 if number % 2 else 1]:
            measured[name].append(await measure_us(apps[name], bodies, requests))
    return measured


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each app")
    parser.add_argument("--requests", type=int, default=1_000, help="requests to each app in a round")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        measured = runner.run(measure_alternating(options.rounds, options.requests))
    print(f"CPU µs per request, {options.rounds} rounds of {options.requests:,} requests")
    print("| app | median | least | most | ratio to `service`, median of the rounds |\n|---|---|---|---|---|")
    service = measured["service"]
    for name, times_us in measured.items():
        ratio = statistics.median(one / ours for one, ours in zip(times_us, service, strict=True))
        cells = statistics.median(times_us), min(times_us), max(times_us)
        print(f"| {name} |", *(f"{cell:.0f} |" for cell in cells), f"{ratio:.2f} |")


if __name__ == "__main__":
    main()
