"""What the service is compared with: FastAPI apps that answer the same POST at once and keep nothing.

`synchronous` computes the prediction in the request, with the service's own model in the API process; `ceiling`
computes nothing, so it shows what HTTP and validation alone would allow.
"""

from functools import cache

from fastapi import FastAPI

from celery_task_app.bodies import JSONRoute
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import settings
from models import Customer, Prediction

_TASK_ID = "5f0c2e5e-6b0e-4f7e-9a43-0f4c1b1c8a57"


def _app() -> FastAPI:
    # As the service's own app, so that only what is compared differs.
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
    app.router.route_class = JSONRoute
    return app


synchronous = _app()
ceiling = _app()
_model = cache(lambda: ChurnModel(settings.model_path))


# async def: on the event loop a prediction takes less time than it takes to hand it to a thread and back.
@synchronous.post("/churn/predict")
async def predict(customer: Customer) -> Prediction:
    """Answer the probability at once; it is kept nowhere."""
    (probability,) = _model().churn_probabilities([customer.model_dump()])
    return Prediction(task_id=_TASK_ID, probability=probability, model_version=_model().version)


@ceiling.post("/churn/predict")
async def answer(customer: Customer) -> Prediction:  # noqa: ARG001 - it is validated
    """Answer what was never computed."""
    return Prediction(task_id=_TASK_ID, probability=0.5, model_version="none")
