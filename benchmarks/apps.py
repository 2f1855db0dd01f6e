"""What the service is compared with: FastAPI apps that answer the same POST at once and keep nothing.

`synchronous` is FastAPI as its documentation has it: it computes the prediction in the request, with the service's own
model in its process. `ceiling` has the service's own route and computes nothing: what HTTP and validation alone allow.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig

from celery_task_app.bodies import JSONRoute
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import settings
from models import Customer, Prediction

_TASK_ID = "5f0c2e5e-6b0e-4f7e-9a43-0f4c1b1c8a57"
# As the service's own app.
_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}


@asynccontextmanager
async def _with_model(app: FastAPI) -> AsyncIterator[None]:
    app.state.model = ChurnModel(settings.model_path)
    yield


synchronous = FastAPI(lifespan=_with_model, telemetry=_TELEMETRY)
ceiling = FastAPI(telemetry=_TELEMETRY)
ceiling.router.route_class = JSONRoute


# async def: on the event loop a prediction takes less time than it takes to hand it to a thread and back.
@synchronous.post("/churn/predict")
async def predict(customer: Customer, request: Request) -> Prediction:
    """Answer the probability at once; it is kept nowhere."""
    model: ChurnModel = request.app.state.model
    (probability,) = model.churn_probabilities([customer.model_dump()])
    return Prediction(task_id=_TASK_ID, probability=probability, model_version=model.version)


@ceiling.post("/churn/predict", response_model=Prediction)
async def answer(_customer: Customer, _request: Request) -> Response:
    """Answer what was never computed."""
    prediction = Prediction(task_id=_TASK_ID, probability=0.5, model_version="none")
    return Response(prediction.model_dump_json(), media_type="application/json")
