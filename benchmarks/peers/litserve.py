"""LitServe with dynamic batching: `python -m benchmarks.peers.litserve PORT`. It stores nothing."""

import sys
from typing import Any

import litserve

from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import Settings
from models import Customer


class ChurnAPI(litserve.LitAPI):
    """A server for the service's model; customers that arrive within 2 ms are predicted together."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model."""
        self.model = ChurnModel(Settings().model_path)

    def decode_request(self, request: Customer) -> dict[str, Any]:
        """Return the validated features."""
        return request.model_dump()

    def predict(self, customers: list[dict[str, Any]]) -> list[float]:
        """Predict a batch."""
        return self.model.churn_probabilities(customers)

    def encode_response(self, output: float) -> dict[str, Any]:
        """Return the body of the service's response."""
        return {"task_id": "", "status": "Success", "probability": output, "model_version": self.model.version}

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the batch unchanged; LitServe's method converts it to an array."""
        return inputs


if __name__ == "__main__":
    api = ChurnAPI(max_batch_size=64, batch_timeout=0.002, api_path="/churn/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        port=int(sys.argv[1]), num_api_servers=1, log_level="warning", generate_client_file=False, access_log=False
    )
