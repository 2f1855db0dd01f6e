"""The headers that a client may send: what they may say, and what is said of one that makes no sense."""

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request

from celery_task_app.headers import CANCEL_AFTER, IDEMPOTENCY_KEY, OptionalHeader, preferred_wait_s


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def test_a_header_that_is_not_sent_has_no_value() -> None:
    assert CANCEL_AFTER.of(request()) is None


def test_a_value_has_the_type_that_is_documented() -> None:
    assert CANCEL_AFTER.of(request(cancel_after="60")) == 60
    assert CANCEL_AFTER.parameter["schema"] == {"minimum": 1, "type": "integer"}
    assert IDEMPOTENCY_KEY.of(request(idempotency_key="60")) == "60"


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        (CANCEL_AFTER, "cancel_after", "0"),
        (CANCEL_AFTER, "cancel_after", "1.5"),
        (CANCEL_AFTER, "cancel_after", "soon"),
        (CANCEL_AFTER, "cancel_after", ""),
        (IDEMPOTENCY_KEY, "idempotency_key", ""),
        (IDEMPOTENCY_KEY, "idempotency_key", "x" * 256),
    ],
)
def test_what_makes_no_sense_is_named_and_not_repeated(header: OptionalHeader[object], name: str, value: str) -> None:
    with pytest.raises(RequestValidationError) as refused:
        header.of(request(**{name: value}))
    (fault,) = refused.value.errors()
    assert fault["loc"][0] == "header"
    assert fault["loc"][1].lower() == name.replace("_", "-")
    assert "input" not in fault


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([], 0),
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10; why=not"], 10),
        (["wait=10, wait=20"], 10),
        (["wait=1000"], 25),
        (["wait=99999999999999999999999"], 25),
        (["wait=0"], 0),
        (["wait"], 0),
        (["wait="], 0),
        (["wait=-1"], 0),
        (["wait=1.5"], 0),
        (["wait=²"], 0),
        (["wait=soon"], 0),
        (["awaits=5"], 0),
    ],
)
def test_prefer_is_read_as_the_rfc_says_and_capped(headers: list[str], wait_s: int) -> None:
    raw = [(b"prefer", header.encode("latin-1")) for header in headers]
    assert preferred_wait_s(Request({"type": "http", "headers": raw})) == wait_s
