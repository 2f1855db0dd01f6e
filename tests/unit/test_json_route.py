"""A route with a strict JSON body, called in this process: content type, size, syntax and every fault of the schema."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from api.http.exception_handlers import add_exception_handlers
from api.http.json_route import StrictJSONRoute
from api.http.problems import ProblemType
from api.services import Services
from models import Customer
from tests.harness.customers import CUSTOMER
from tests.unit.asgi import ASGIResponse, assert_problem, call

JSON_TYPE = {"content-type": "application/json"}
LIMIT = 2_000


def app() -> FastAPI:
    """Return an app whose only route returns its body."""
    router = APIRouter(route_class=StrictJSONRoute)

    @router.post("/")
    async def echo(customer: Customer, _request: Request) -> Response:
        return JSONResponse(customer.model_dump())

    app = FastAPI()
    add_exception_handlers(app)
    app.include_router(router)
    absent: list[Any] = [None] * 9  # the route reads the limit only
    app.state.services = Services(0, LIMIT, *absent)
    return app


def post(body: bytes | Iterable[bytes | None], headers: dict[str, str] = JSON_TYPE) -> ASGIResponse:
    return call(app(), "POST", "/", body, headers)


def chunked(body: bytes) -> list[bytes]:
    return [body[start : start + 100] for start in range(0, len(body), 100)]


def test_the_endpoint_gets_the_validated_body(customer: dict[str, Any]) -> None:
    response = post(json.dumps(customer).encode())
    assert (response.status, response.json()) == (200, customer)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/ld+json",
        " application/json ",
    ],
)
def test_every_media_type_of_json_is_accepted(customer: dict[str, Any], content_type: str) -> None:
    assert post(json.dumps(customer).encode(), {"content-type": content_type}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "json"},
        {"content-type": "text/csv"},
        {"content-type": "text/json"},
        {"content-type": "text/x+json"},
        {"content-type": "application/jsonlines"},
        {"content-type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
def test_another_media_type_is_415(customer: dict[str, Any], headers: dict[str, str]) -> None:
    assert_problem(post(json.dumps(customer).encode(), headers), ProblemType.NOT_JSON_TYPE)


def test_malformed_json_is_400() -> None:
    body = assert_problem(post(b'{"secret": 1, "secret": 2}'), ProblemType.NOT_JSON)
    assert body["detail"] == "An object has two members with the same name."


FEATURES = len(Customer.model_fields)
INVALID = {
    "missing": ("{}", FEATURES),
    "NaN": ('{"Credit_Limit": NaN}', FEATURES),
    "infinity": ('{"Credit_Limit": -Infinity}', FEATURES),
    "float overflow": ('{"Credit_Limit": 1e999}', FEATURES),
    "400 digits": ('{"Credit_Limit": ' + "9" * 400 + "}", FEATURES),
    "boolean": ('{"Customer_Age": true}', FEATURES),
    "text for a number": ('{"Customer_Age": "45"}', FEATURES),
    "null": ('{"Gender": null}', FEATURES),
    "lone surrogate": ('{"Gender": "\\ud800"}', FEATURES),
    "array": ("[]", 1),
    "string": ('"Gender"', 1),
    "empty": ("", 1),
}


@pytest.mark.parametrize(("body", "faults"), INVALID.values(), ids=INVALID.keys())
def test_every_fault_is_named(body: str, faults: int) -> None:
    errors = assert_problem(post(body.encode()), ProblemType.INVALID_FEATURES)["errors"]
    assert len(errors) == faults
    assert all(set(error) == {"pointer", "code", "message"} for error in errors)


def test_a_fault_has_the_place_and_no_value(customer: dict[str, Any]) -> None:
    response = post(json.dumps({**customer, "Gender": "somebody's secret", "Customer_Age": 7}).encode())
    errors = assert_problem(response, ProblemType.INVALID_FEATURES)["errors"]
    assert [error["pointer"] for error in errors] == ["#/Customer_Age", "#/Gender"]
    assert b"secret" not in response.body


@given(st.dictionaries(st.sampled_from(sorted(CUSTOMER)), st.just("somebody's secret"), min_size=1))
def test_the_pointers_are_those_of_the_invalid_features(invalid: dict[str, str]) -> None:
    response = post(json.dumps({**CUSTOMER, **invalid}).encode())
    errors = assert_problem(response, ProblemType.INVALID_FEATURES)["errors"]
    assert {error["pointer"] for error in errors} == {f"#/{name}" for name in invalid}
    assert b"secret" not in response.body


@pytest.mark.parametrize("more", ['"\\ud800": 1', '"x": "\\ud800"', '"CLIENTNUM": 768805383', '"x": NaN', '"x": [{}]'])
def test_other_fields_are_ignored_with_any_value(customer: dict[str, Any], more: str) -> None:
    response = post(f"{json.dumps(customer)[:-1]}, {more}}}".encode())
    assert (response.status, response.json()) == (200, customer)


@pytest.mark.parametrize("send", [bytes, chunked], ids=["Content-Length", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, 100_000])
def test_a_body_over_the_limit_is_413(size: int, send: Callable[[bytes], Any]) -> None:
    assert_problem(post(send(b" " * size)), ProblemType.TOO_LARGE)


def test_a_content_length_over_the_limit_is_413_before_the_body_arrives() -> None:
    headers = JSON_TYPE | {"content-length": str(LIMIT + 1)}
    assert_problem(call(app(), "POST", "/", [], headers), ProblemType.TOO_LARGE)


@pytest.mark.parametrize("send", [bytes, chunked], ids=["Content-Length", "chunked"])
def test_a_body_of_exactly_the_limit_is_accepted(customer: dict[str, Any], send: Callable[[bytes], Any]) -> None:
    assert post(send(json.dumps(customer).encode().ljust(LIMIT))).status == 200


def test_an_incomplete_body_is_400_without_a_traceback() -> None:
    assert_problem(post([b"{", None]), ProblemType.NOT_JSON)


def test_an_endpoint_with_a_body_may_have_no_other_parameters() -> None:
    router = APIRouter(route_class=StrictJSONRoute)
    with pytest.raises(TypeError, match="the body and the request only"):

        @router.post("/{task_id}")
        async def endpoint(task_id: str, customer: Customer, request: Request) -> None: ...


def test_an_endpoint_without_a_body_is_called_as_usual() -> None:
    router = APIRouter(route_class=StrictJSONRoute)

    @router.get("/{task_id}")
    async def endpoint(task_id: str, number: int = 0) -> dict[str, str | int]:
        return {"task_id": task_id, "number": number}

    app = FastAPI()
    app.include_router(router)
    assert call(app, "GET", "/x?number=5").json() == {"task_id": "x", "number": 5}
