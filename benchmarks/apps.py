"""Two FastAPI apps for comparison with the service. Both answer the same POST at once and store nothing.

`synchronous` follows FastAPI's documentation: it predicts in the request, with the service's model in its own process.
`ceiling` has the service's route without a prediction. It shows the limit that HTTP and validation set.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig

from api.http.json_route import StrictJSONRoute
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import Settings
from models import Customer, Prediction

TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""As in app.py."""

_TASK_ID = "5f0c2e5e-6b0e-4f7e-9a43-0f4c1b1c8a57"
_settings = Settings()


@dataclass(frozen=True)
class RouteServices:
    """The part of `api.services.Services` that StrictJSONRoute reads."""

    body_max_bytes: int


@asynccontextmanager
async def _load_model(app: FastAPI) -> AsyncIterator[None]:
    app.state.model = ChurnModel(_settings.model_path)
    yield


synchronous = FastAPI(lifespan=_load_model, telemetry=TELEMETRY)
ceiling = FastAPI(telemetry=TELEMETRY)
ceiling.router.route_class = StrictJSONRoute
ceiling.state.services = RouteServices(_settings.body_max_bytes)


@synchronous.post("/churn/predict")
async def predict(customer: Customer, request: Request) -> Prediction:
    """Answer with the probability. The function is async because a thread takes longer than the prediction."""
    model: ChurnModel = request.app.state.model
    (probability,) = model.churn_probabilities([customer.model_dump()])
    return Prediction(task_id=_TASK_ID, probability=probability, model_version=model.version)


@ceiling.post("/churn/predict", response_model=Prediction)
async def answer(_customer: Customer, _request: Request) -> Response:
    """Answer with a constant."""
    prediction = Prediction(task_id=_TASK_ID, probability=0.5, model_version="none")
    return Response(prediction.model_dump_json(), media_type="application/json")
