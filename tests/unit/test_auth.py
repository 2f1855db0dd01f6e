"""API keys: authentication, and ids that carry their owner."""

import contextvars
import hashlib
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.auth import OPEN_PATHS, APIKeyMiddleware, issue_id, parse_digests, resolve_id, scoped_key
from tests.unit.asgi import ASGIResponse, call

T = TypeVar("T")
OURS, THEIRS = "one-of-two-keys", "the-other-key"
NIL = str(UUID(int=0))


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


DIGESTS = [digest(OURS), digest(THEIRS)]


def app_that_returns(text: Callable[[Request], str]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(text(Request(scope)))(scope, receive, send)

    return APIKeyMiddleware(app, DIGESTS)


def request(text: Callable[[Request], str], key: str | None, path: str = "/churn/model") -> ASGIResponse:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return call(app_that_returns(text), "GET", path, headers=headers)


def as_caller(key: str | None, action: Callable[[], str]) -> str:
    """Return the text that an action returns in a request with this key, or without authentication."""
    if key is None:
        return contextvars.Context().run(action)
    response = request(lambda _: action(), key)
    assert response.status == 200
    return response.body.decode()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        OURS,
        f"Basic {OURS}",
        f"Bearer {OURS}x",
        f"Bearer {digest(OURS).hex()}",
        "Bearer \xff",
    ],
)
@pytest.mark.parametrize("path", ["/churn/predict", "/churn/result/1", "/x", "/static", "/docs/assets", "/livez/"])
def test_a_request_without_a_valid_key_is_401(path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    response = call(app_that_returns(lambda _: "secret"), "GET", path, headers=headers)
    assert (response.status, response.json()["type"]) == (401, "/problems/unauthorized")
    assert response.json()["detail"] == "Send `Authorization: Bearer KEY` with a valid API key."
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", [*sorted(OPEN_PATHS), "/docs/assets/swagger-ui.css", "/static/main.js"])
def test_probes_and_documentation_need_no_key(path: str) -> None:
    assert request(lambda _: "open", None, path).status == 200


@pytest.mark.parametrize("authorization", [f"Bearer {OURS}", f"bearer {OURS}", f"BEARER  {THEIRS} "])
def test_a_request_with_a_valid_key_reaches_the_app(authorization: str) -> None:
    response = call(app_that_returns(lambda _: "ok"), "GET", "/churn/model", headers={"authorization": authorization})
    assert response.status == 200


def test_a_body_reaches_the_app() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)

    headers = {"authorization": f"Bearer {OURS}"}
    assert call(APIKeyMiddleware(echo, DIGESTS), "POST", "/churn/predict", b"a body", headers).body == b"a body"


def test_scopes_other_than_http_need_no_key() -> None:
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def never() -> None:
        raise AssertionError

    coroutine = APIKeyMiddleware(app, DIGESTS)({"type": "lifespan"}, never, never)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert seen == ["lifespan"]


@pytest.mark.parametrize("key", [None, OURS, THEIRS])
def test_an_id_is_a_random_uuid_of_version_4(key: str | None) -> None:
    ids = {as_caller(key, issue_id) for _ in range(20)}
    assert len(ids) == 20
    assert {(UUID(text).version, UUID(text).variant) for text in ids} == {(4, "specified in RFC 4122")}


@pytest.mark.parametrize("key", [None, OURS])
@pytest.mark.parametrize(
    "spelling", [str, str.upper, lambda text: text.replace("-", ""), lambda text: f"{{{text}}}"], ids=range(4)
)
def test_an_id_is_resolved_from_every_spelling_by_its_owner(key: str | None, spelling: Callable[[str], str]) -> None:
    issued = as_caller(key, issue_id)
    assert as_caller(key, lambda: resolve_id(spelling(issued))) == issued


@given(st.data())
def test_the_id_of_another_key_is_the_nil_uuid(data: st.DataObject) -> None:
    issued = as_caller(OURS, issue_id)
    place = data.draw(st.integers(0, 31))
    digits = issued.replace("-", "")
    other = data.draw(st.sampled_from("0123456789abcdef".replace(digits[place], "")))
    assert as_caller(OURS, lambda: resolve_id(issued)) == issued
    assert as_caller(THEIRS, lambda: resolve_id(issued)) == NIL
    assert as_caller(OURS, lambda: resolve_id(digits[:place] + other + digits[place + 1 :])) == NIL


@given(st.uuids(version=4))
def test_an_id_that_was_issued_without_keys_belongs_to_no_key(unsigned: UUID) -> None:
    assert as_caller(OURS, lambda: resolve_id(str(unsigned))) == NIL
    assert as_caller(None, lambda: resolve_id(str(unsigned))) == str(unsigned)


@pytest.mark.parametrize("key", [None, OURS])
@given(text=st.text() | st.sampled_from(["1", "x" * 10_000, "%00", "00000000-0000", f"{NIL}:0"]))
def test_a_malformed_id_is_the_nil_uuid(key: str | None, text: str) -> None:
    try:
        UUID(text)
    except ValueError:
        assert as_caller(key, lambda: resolve_id(text)) == NIL


@given(st.text(), st.text())
def test_two_callers_never_share_an_idempotency_key(first: str, second: str) -> None:
    ours = as_caller(OURS, lambda: scoped_key(first))
    assert as_caller(OURS, lambda: scoped_key(first)) == ours
    assert as_caller(THEIRS, lambda: scoped_key(second)) != ours


@given(st.text())
def test_an_idempotency_key_is_unchanged_without_authentication(key: str) -> None:
    assert as_caller(None, lambda: scoped_key(key)) == key


@pytest.mark.parametrize("separator", [",", ", ", " ,\t"])
def test_digests_are_parsed_from_hex(separator: str) -> None:
    assert parse_digests(separator.join([digest(OURS).hex(), digest(THEIRS).hex().upper()])) == DIGESTS
    assert parse_digests("") == []
