"""BentoML with adaptive batching, and its task queue, which keeps what it is sent in memory or in a file of SQLite.

`python -m benchmarks.peers.bentoml PORT`
"""

import sys

import bentoml

from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import settings
from models import Customer, Prediction


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Churn:
    """The service's own model."""

    def __init__(self) -> None:
        self.model = ChurnModel(settings.model_path)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1_000, route="/churn/batch")
    def batch(self, customers: list[Customer], /) -> list[Prediction]:
        """Predict those that BentoML has gathered; each request is a list of one."""
        return self._predictions(customers)

    @bentoml.task(route="/churn/task")
    def task(self, customer: Customer, /) -> Prediction:
        """Predict one, to be fetched later."""
        return self._predictions([customer])[0]

    def _predictions(self, customers: list[Customer]) -> list[Prediction]:
        probabilities = self.model.churn_probabilities([customer.model_dump() for customer in customers])
        return [
            Prediction(task_id="", probability=probability, model_version=self.model.version)
            for probability in probabilities
        ]


if __name__ == "__main__":
    Churn.serve_http(port=int(sys.argv[1]))
