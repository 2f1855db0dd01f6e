"""BentoML with adaptive batching, and with its task queue: `python -m benchmarks.peers.bentoml PORT`.

The task queue stores its tasks in memory or in an SQLite file.
"""

import sys

import bentoml

from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import Settings
from models import Customer, Prediction


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Churn:
    """A server for the service's model."""

    def __init__(self) -> None:
        self.model = ChurnModel(Settings().model_path)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1_000, route="/churn/batch")
    def batch(self, customers: list[Customer], /) -> list[Prediction]:
        """Predict the customers that BentoML has collected; each request is a list with one customer."""
        return self._predictions(customers)

    @bentoml.task(route="/churn/task")
    def task(self, customer: Customer, /) -> Prediction:
        """Predict one customer; the client fetches the prediction later."""
        return self._predictions([customer])[0]

    def _predictions(self, customers: list[Customer]) -> list[Prediction]:
        probabilities = self.model.churn_probabilities([customer.model_dump() for customer in customers])
        return [
            Prediction(task_id="", probability=probability, model_version=self.model.version)
            for probability in probabilities
        ]


if __name__ == "__main__":
    Churn.serve_http(port=int(sys.argv[1]))
