"""Idempotency-Key: the same key with the same body stands for one prediction, across all API processes.

A key is claimed before its prediction is submitted, and bound to the task id once the prediction is accepted. A claim
has a TTL of seconds, so a key whose API process died in between becomes free. A key lives no longer than its
prediction: if that was deleted, has expired or is no longer kept, the next request with the key is submitted anew.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from celery_task_app.errors import KeyInUse, KeyReused, ResultStoreUnavailable
from celery_task_app.store.celery_meta import key_of
from celery_task_app.store.connection import AsyncStoreClient, load_script, store_call
from celery_task_app.store.predictions import REVOKED_PREFIX
from celery_task_app.store.replication import run_script_async

_KEY = "churn:idempotency:{}"
_CLAIM_TTL_S = 5  # longer than a submission takes, which is at most 2.5
_WAIT_AT_MOST_S = 2.5
_POLL_S = 0.05


class IdempotencyKeys:
    """The Idempotency-Keys of the clients, kept in the result store."""

    def __init__(self, client: AsyncStoreClient, ttl_s: int, replicas: int = 0) -> None:
        """Keep the binding of a key to its task id for `ttl_s` seconds; so many replicas must confirm it."""
        self._client = client
        self._ttl_s = ttl_s
        self._replicas = replicas
        self._claim_key = client.register_script(load_script("claim_key"))
        self._settle_claim = client.register_script(load_script("settle_claim"))

    async def accept_once(self, key: str, body: bytes, task_id: str, submit: Callable[[str], Awaitable[object]]) -> str:
        """Submit a prediction, or return the task id with which this key and body were accepted before.

        Args:
            key: the client's key; at most 255 characters.
            body: the content that the key stands for.
            task_id: the id of the prediction, if this is the first request with the key.
            submit: returns once the prediction with that task id is accepted.

        Raises:
            KeyReused: the key was sent before with another body.
            KeyInUse: another request with this key is still being accepted after 2.5 seconds.
            ResultStoreUnavailable: within 2.5 seconds.
            Unavailable: `submit` raised it; the key is free again.
        """
        name = _KEY.format(hashlib.sha256(key.encode()).hexdigest())
        fingerprint = hashlib.sha256(body).hexdigest()
        claim, accepted = (
            json.dumps({"body": fingerprint, "task_id": task_id, "accepted": is_accepted})
            for is_accepted in (False, True)
        )
        deadline = time.monotonic() + _WAIT_AT_MOST_S
        while (holder := await self._claim(name, claim)) is not None:
            if holder["body"] != fingerprint:
                raise KeyReused("this key was sent with another body, or with another value of `explain`")
            if holder["accepted"]:
                return str(holder["task_id"])
            if time.monotonic() > deadline:
                raise KeyInUse("another request with this key is still being accepted")
            await asyncio.sleep(_POLL_S)
        try:
            await submit(task_id)
        except BaseException:
            with suppress(ResultStoreUnavailable):  # then the TTL of the claim frees the key
                await self._settle(name, claim, "")
            raise
        await self._settle(name, claim, accepted)
        return task_id

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _claim(self, name: str, claim: str) -> dict[str, object] | None:
        """Claim the key; return the claim or binding of another request that holds it."""
        async with store_call():
            arguments: list[str | bytes | int] = [claim, _CLAIM_TTL_S, key_of(""), REVOKED_PREFIX]
            holder = await cast("Any", self._claim_key(keys=[name], args=arguments))
        return None if holder is None else json.loads(holder)

    async def _settle(self, name: str, claim: str, accepted: str) -> None:
        async with store_call():
            arguments = [claim, accepted, self._ttl_s]
            await run_script_async(self._client, self._settle_claim, [name], arguments, self._replicas)
