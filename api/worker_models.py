"""The models that predict now: each live worker reports its own, and the result store has the cards."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from celery_task_app.ml.schema import CustomerSchema, parse_features, schema_differences
from celery_task_app.store.connection import AsyncStoreClient
from celery_task_app.store.model_cards import ModelId, read_model_cards
from celery_task_app.store.worker_status import WorkerStatus, list_worker_statuses


@dataclass(frozen=True, slots=True)
class ModelInUse:
    """A model that at least one worker has loaded.

    Attributes:
        version: of the model.
        sha256: of the model file; None for workers up to 0.1.0, which do not report it.
        workers: the number of live workers that have it.
    """

    version: str
    sha256: str | None
    workers: int


class WorkerModels:
    """Reads from the result store which models the workers have."""

    def __init__(self, store: AsyncStoreClient) -> None:
        """Use a client of the result store, which `close` closes."""
        self._store = store

    async def list(self) -> list[ModelInUse]:
        """Return the models, first the one that most workers have; of equals, the one with the last version.

        Raises:
            ResultStoreUnavailable: within about two seconds.
        """
        return models_in_use((await list_worker_statuses(self._store)).values())

    async def read_card(self, model: ModelInUse) -> dict[str, Any] | None:
        """Return the manifest of a model without golden rows; None if no worker reports it.

        Raises:
            ResultStoreUnavailable: within about two seconds.
        """
        if model.sha256 is None:
            return None
        one = ModelId(model.sha256, model.version)
        return (await read_model_cards(self._store, [one])).get(one)

    async def may_explain(self) -> bool:
        """Return whether a worker has a model that gives reasons; also if no worker reports whether its model does.

        Raises:
            ResultStoreUnavailable: within about two seconds.
        """
        statuses = await list_worker_statuses(self._store)
        reported = [status["explains"] for status in statuses.values() if "explains" in status]
        return any(reported) or not reported

    async def close(self) -> None:
        """Close the connections."""
        await self._store.aclose()


def models_in_use(statuses: Iterable[WorkerStatus]) -> list[ModelInUse]:
    """Return the models of the workers that have loaded one, first the one that most workers have."""
    counts = Counter((status["detail"], status.get("sha256")) for status in statuses if status["model"] == "loaded")
    models = [ModelInUse(version, sha256, workers) for (version, sha256), workers in counts.items()]
    return sorted(models, key=lambda model: (model.workers, model.version), reverse=True)


async def list_workers(store: AsyncStoreClient, schema: CustomerSchema) -> dict[str, WorkerStatus]:
    """Return the status of each live worker by its name; `unfit` if its model cannot predict all customers of this API.

    Args:
        store: a client of the result store.
        schema: of this API.

    Raises:
        ResultStoreUnavailable: within about five seconds.
    """
    workers = await list_worker_statuses(store)
    models = {
        name: ModelId(status["sha256"], status["detail"])
        for name, status in workers.items()
        if "sha256" in status and status["model"] == "loaded"
    }
    cards = await read_model_cards(store, models.values())
    for name, model in models.items():
        card = cards.get(model)
        if card and (differences := find_differences(card, schema)):
            workers[name] = {**workers[name], "model": "unfit", "detail": f"{model.version}: {'; '.join(differences)}"}
    return workers


def find_differences(card: Mapping[str, Any], schema: CustomerSchema) -> list[str]:
    """Return why a model cannot predict all customers of this API, as phrases; empty if it can.

    Args:
        card: of the model.
        schema: of this API.
    """
    return schema_differences(parse_features(card["features"]), schema)
