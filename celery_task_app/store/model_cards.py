"""The cards of the models that live workers have: each worker writes the manifest of its model, and the API reads it.

A card is kept under the SHA-256 of the model file and the version, because many workers have the same model, and one
file may have several manifests.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from celery_task_app.store.connection import AsyncStoreClient, StoreClient, store_call, store_errors

_KEY = "churn:model:{}:{}"
_TTL_S = 60  # four times the TTL of a worker's status, so each status that exists has its card


class ModelId(NamedTuple):
    """The SHA-256 of a model file, and the version in its manifest."""

    sha256: str
    version: str


def publish_model_card(client: StoreClient, card: Mapping[str, Any]) -> None:
    """Write a card for a minute. It replaces the last one, because a manifest may change without its version.

    Args:
        client: of the result store.
        card: the manifest without golden rows.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    with store_errors():
        client.set(_KEY.format(card["sha256"], card["version"]), json.dumps(card), ex=_TTL_S)


async def read_model_cards(client: AsyncStoreClient, models: Iterable[ModelId]) -> dict[ModelId, dict[str, Any]]:
    """Return the cards of some models; a card that does not exist is left out.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    ids = sorted(set(models))
    if not ids:
        return {}
    async with store_call():
        texts = cast("list[bytes | None]", await client.mget([_KEY.format(*one) for one in ids]))
    return {one: json.loads(text) for one, text in zip(ids, texts, strict=True) if text is not None}
