"""The cards of the models that live workers have: each worker writes the manifest of its model, and the API reads it.

A card is kept under the SHA-256 of the model file, because many workers have the same model.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from celery_task_app.store.connection import AsyncStoreClient, StoreClient, store_call, store_errors

_KEY = "churn:model:{}"
_TTL_S = 60  # four times the TTL of a worker's status, so each status that exists has its card


def publish_model_card(client: StoreClient, sha256: str, card: Mapping[str, Any]) -> None:
    """Write a card for a minute. It replaces the last one, because a manifest may change without its model file.

    Args:
        client: of the result store.
        sha256: of the model file.
        card: the manifest without golden rows.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    with store_errors():
        client.set(_KEY.format(sha256), json.dumps(card), ex=_TTL_S)


async def read_model_cards(client: AsyncStoreClient, sha256s: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the cards by the SHA-256 of their model files; a card that does not exist is left out.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    digests = sorted(set(sha256s))
    if not digests:
        return {}
    async with store_call():
        texts = cast("list[bytes | None]", await client.mget([_KEY.format(digest) for digest in digests]))
    return {digest: json.loads(text) for digest, text in zip(digests, texts, strict=True) if text is not None}
