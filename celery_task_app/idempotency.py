"""Idempotency-Key: the same key with the same body stands for one prediction, across all API processes.

A key is claimed before its prediction is submitted and bound to the task id once that is accepted. A claim lives for
seconds only, so that an API process that dies in between frees it.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

from celery_task_app.errors import KeyInUse, KeyReused, ResultStoreUnavailable
from celery_task_app.results import async_client, store_errors
from celery_task_app.settings import settings

_KEY = "churn:idempotency:{}"
_CLAIM_LIFE_S = 5  # longer than a submission may take, which is 2.5
_PATIENCE_S = 2.5
_ASK_AGAIN_S = 0.05

# Only who holds the claim may bind or free the key.
_IF_MINE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
    return redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
"""


class IdempotencyKeys:
    """The keys that clients have sent, kept in the result store."""

    def __init__(self) -> None:
        self._client = async_client()
        self._if_mine = self._client.register_script(_IF_MINE)

    async def once(self, key: str, body: bytes, task_id: str, submit: Callable[[str], Awaitable[None]]) -> str:
        """Submit under a task id, or return the one that this key and body were accepted with before.

        Args:
            key: what the client sent; at most 255 characters.
            body: what the key stands for.
            task_id: of the prediction, if this is the first request with the key.
            submit: returns once the prediction of that task id is accepted.

        Raises:
            KeyReused: the key stands for another body.
            KeyInUse: another request with this key is still being accepted, and took too long.
            ResultStoreUnavailable: within 2.5 seconds.
            Unavailable: what `submit` raises; the key is free again.
        """
        name = _KEY.format(hashlib.sha256(key.encode()).hexdigest())
        fingerprint = hashlib.sha256(body).hexdigest()
        claim = json.dumps({"body": fingerprint, "task_id": task_id, "accepted": False})
        deadline = time.monotonic() + _PATIENCE_S
        while (known := await self._claim(name, claim)) is not None:
            if known["body"] != fingerprint:
                raise KeyReused("this key was sent with another body")
            if known["accepted"]:
                return str(known["task_id"])
            if time.monotonic() > deadline:
                raise KeyInUse("another request with this key is still being accepted")
            await asyncio.sleep(_ASK_AGAIN_S)
        try:
            await submit(task_id)
        except BaseException:
            with suppress(ResultStoreUnavailable):  # then the claim's own short life frees the key
                await self._settle(name, claim, "")
            raise
        await self._settle(name, claim, claim.replace("false", "true"))
        return task_id

    async def close(self) -> None:
        """Give the connection back."""
        await self._client.aclose()

    async def _claim(self, name: str, claim: str) -> dict[str, object] | None:
        """Claim the key; return who has it already."""
        with store_errors():
            async with asyncio.timeout(_PATIENCE_S):
                known = await self._client.set(name, claim, nx=True, get=True, ex=_CLAIM_LIFE_S)
        return None if known is None else json.loads(cast("bytes", known))

    async def _settle(self, name: str, claim: str, outcome: str) -> None:
        with store_errors():
            async with asyncio.timeout(_PATIENCE_S):
                await self._if_mine(keys=[name], args=[claim, outcome, settings.idempotency_ttl_s])
