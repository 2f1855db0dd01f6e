"""API keys: who may ask, and whose an id is. Without API_KEYS all may, and a request meets nothing of this but ids.

An id carries its owner, so that nothing has to be stored or read to know it: the last six bytes of the UUID are a
message authentication code of the others, made with the digest of the key that asked for it.
"""

import hashlib
import hmac
from contextvars import ContextVar
from typing import Annotated, Any
from uuid import UUID, uuid4

from pydantic import AfterValidator
from starlette.types import ASGIApp, Receive, Scope, Send

from celery_task_app.problems import documented, problem
from celery_task_app.settings import settings

OPEN_TO_ALL = {"/livez", "/readyz", "/docs", "/openapi.json"}  # and the files of /docs
_NO_ID = str(UUID(int=0))  # was never issued
_CODE_BYTES = 6  # leaves 74 random bits, so that equal ids are as good as impossible among billions

_caller: ContextVar[bytes | None] = ContextVar("caller", default=None)


class KeyRequired:
    """ASGI middleware: whoever has no key gets a 401, whatever else there is to say of the request."""

    def __init__(self, app: ASGIApp, digests: list[bytes]) -> None:
        """Let those in whose key has one of these SHA-256 digests."""
        self._app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on as one of the key's owner."""
        if scope["type"] == "http" and not _is_open(scope["path"]):
            caller = self._caller_of(scope)
            if caller is None:
                refusal = problem("unauthorized", "Send Authorization: Bearer, with a key that this service knows.")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
            _caller.set(caller)  # every request has a context of its own
        await self._app(scope, receive, send)

    def _caller_of(self, scope: Scope) -> bytes | None:
        """Return the digest of the key that was sent, if it is one of those known."""
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = sent.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]  # each, for the same time
        return digest if any(known) and scheme.lower() == b"bearer" else None


def digests() -> list[bytes]:
    """Return the digests of the keys that are known; none if no key is needed."""
    return [bytes.fromhex(text.strip()) for text in settings.api_keys.split(",") if text]


def new_id() -> str:
    """Return a new id of the caller's: a random UUID, version 4."""
    fresh, caller = uuid4(), _caller.get()
    return str(fresh) if caller is None else str(UUID(bytes=_signed(fresh, caller)))


def own_id(text: str) -> str:
    """Return the id of a task or a batch as it was issued; what is none, or another's, gets one that never was."""
    try:
        sent, caller = UUID(text), _caller.get()
    except ValueError:
        return _NO_ID
    is_own = caller is None or hmac.compare_digest(_signed(sent, caller), sent.bytes)
    return str(sent) if is_own else _NO_ID


Id = Annotated[str, AfterValidator(own_id)]
"""A task's or a batch's id in a path."""


def own_key(idempotency_key: str) -> str:
    """Return an Idempotency-Key that no other caller's can be equal to."""
    caller = _caller.get()
    return idempotency_key if caller is None else f"{caller.hex()}:{idempotency_key}"


def describe(openapi: dict[str, Any]) -> None:
    """Put into the OpenAPI document which operations need a key, or may be sent one."""
    ((status, refusal),) = documented("unauthorized").items()
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key, where the operator has set API_KEYS."}
    openapi["components"]["securitySchemes"] = {"key": scheme}
    for path, operations in openapi["paths"].items():
        for operation in () if path in OPEN_TO_ALL else operations.values():
            operation["security"] = [{"key": []}] if settings.api_keys else [{}, {"key": []}]
            operation["responses"][str(int(status))] = refusal


def _is_open(path: str) -> bool:
    return path in OPEN_TO_ALL or path.startswith("/docs/assets/")


def _signed(task_id: UUID, caller: bytes) -> bytes:
    """Return an id's bytes with the caller's code as the last."""
    rest = task_id.bytes[:-_CODE_BYTES]
    return rest + hmac.digest(caller, rest, "sha256")[:_CODE_BYTES]
