"""The schema of customers in the result store: the API writes it, and a worker tries its model with it.

Workers do not import `models.py`, and a model of the user's own may have no manifest.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from celery_task_app.store.connection import AsyncStoreClient, StoreClient, check_store, store_errors

_KEY = "churn:schema"
_TTL_S = 60


async def publish_customer_schema(client: AsyncStoreClient, schema: Mapping[str, Any], replicas: int = 0) -> float:
    """Write the schema for a minute; return the seconds by which this host's clock is ahead of the result store's.

    Args:
        client: of the result store.
        schema: `features` as in a manifest, and `example`, a customer or None.
        replicas: of the store that must confirm it.

    Raises:
        ResultStoreUnavailable: it does not answer, refuses writes, has too few replicas, or is a Redis Cluster.
    """
    return await check_store(client, _KEY, json.dumps(schema), _TTL_S, replicas)


def read_customer_schema(client: StoreClient) -> dict[str, Any] | None:
    """Return the schema as the API has written it; None if no API has run for a minute.

    Raises:
        ResultStoreUnavailable: within about two seconds.
    """
    with store_errors():
        text = cast("bytes | None", client.get(_KEY))
    return json.loads(text) if text else None
