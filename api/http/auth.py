"""API-key authentication and ownership of ids; both are off when `API_KEYS` is empty.

An id carries its owner: the last six bytes of the UUID are a message authentication code of the others, made with the
digest of the owner's key. So nothing has to be stored or read to check an owner.
"""

import hashlib
import hmac
from contextvars import ContextVar
from typing import Annotated
from uuid import UUID, uuid4

from pydantic import AfterValidator
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.paths import route_path
from api.http.problems import ProblemType, problem

OPEN_PATHS = {"/livez", "/readyz", "/", "/docs", "/openapi.json"}
"""Paths that need no key; the assets of the two pages need none either."""

_UNKNOWN_ID = str(UUID(int=0))  # the nil UUID is never issued
_CODE_BYTES = 6  # leaves 74 random bits

_caller: ContextVar[bytes | None] = ContextVar("caller", default=None)


class APIKeyMiddleware:
    """ASGI middleware that answers 401 to a request without a valid key, before any other check."""

    def __init__(self, app: ASGIApp, digests: list[bytes]) -> None:
        """Accept the keys that have these SHA-256 digests."""
        self._app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on with its caller."""
        if scope["type"] == "http" and not _is_open(route_path(scope)):
            caller = self._authenticate(scope)
            if caller is None:
                refusal = problem(ProblemType.UNAUTHORIZED, "Send `Authorization: Bearer KEY` with a valid API key.")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
            _caller.set(caller)  # each request has its own context
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> bytes | None:
        """Return the digest of the request's key; None if the key is not valid."""
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = sent.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]  # all, so the time tells nothing
        return digest if any(matches) and scheme.lower() == b"bearer" else None


def parse_digests(api_keys: str) -> list[bytes]:
    """Return the digests of the setting `API_KEYS`: hex, separated by commas."""
    return [bytes.fromhex(digest.strip()) for digest in api_keys.split(",") if digest]


def issue_id() -> str:
    """Return a new id for the caller: a random UUID, version 4."""
    random, caller = uuid4(), _caller.get()
    return str(random) if caller is None else str(UUID(bytes=_sign(random, caller)))


def resolve_id(text: str) -> str:
    """Return the canonical id; the nil UUID if it is malformed or belongs to another key."""
    try:
        sent, caller = UUID(text), _caller.get()
    except ValueError:
        return _UNKNOWN_ID
    is_own = caller is None or hmac.compare_digest(_sign(sent, caller), sent.bytes)
    return str(sent) if is_own else _UNKNOWN_ID


PathId = Annotated[str, AfterValidator(resolve_id)]
"""The id of a task or a batch in a path, resolved."""


def scoped_key(idempotency_key: str) -> str:
    """Return an Idempotency-Key that differs from the keys of all other callers."""
    caller = _caller.get()
    return idempotency_key if caller is None else f"{caller.hex()}:{idempotency_key}"


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(("/docs/assets/", "/static/"))


def _sign(random: UUID, caller: bytes) -> bytes:
    """Return the bytes of an id with the caller's code at the end."""
    rest = random.bytes[:-_CODE_BYTES]
    return rest + hmac.digest(caller, rest, "sha256")[:_CODE_BYTES]
