"""Models of the user's own: a model that cannot predict is never ready, and destroys no accepted prediction."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier

from tests.conftest import MANIFEST
from tests.harness import marked_model
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_api, running_service

# The model is loaded before the worker connects to a broker.
pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture(scope="module")
def api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API that has written its schema, without a worker."""
    with running_api(servers, tmp_path_factory.mktemp("api")) as api:
        until(lambda: api.readiness()["result_store"] == "up")
        yield api


def failure(api: Service, folder: Path, model: Path, within_s: float = 30, **settings: str) -> str:
    """Start a worker, require that it stops by itself as failed, and return its log."""
    worker = Service(api.servers, folder, {"MODEL_PATH": str(model), **settings}).worker
    worker.start()
    assert worker.wait(within_s) == 1
    log = worker.text()
    # A pool process that is replaced before the worker stops may report the same error again.
    (error,) = {line.partition("the worker stops: ")[2] for line in log.splitlines() if "the worker stops: " in line}
    # Readiness may be a second old.
    until(lambda: any(status["detail"].startswith(error) for status in api.readiness()["workers"].values()))
    return log


@pytest.mark.parametrize("warm_up", ["true", "false"])
def test_a_model_that_does_not_load_in_time_is_failed_with_the_reason(
    api: Service, tmp_path: Path, customer: dict[str, Any], warm_up: str
) -> None:
    task_id = api.predict(customer)
    model = marked_model.save(tmp_path, marked_model.SlowToLoad(60))
    log = failure(api, tmp_path, model, WARM_UP=warm_up, MODEL_LOAD_TIMEOUT_S="2")
    assert "model loading path=" in log
    assert "did not load within 2 s: set MODEL_LOAD_TIMEOUT_S" in log
    assert api.result(task_id).status_code == 202
    assert api.delete(task_id).status_code == 204


@pytest.mark.parametrize("warm_up", ["true", "false"])
def test_a_model_that_fails_its_trial_never_takes_a_message_and_logs_the_full_error(
    api: Service, tmp_path: Path, customer: dict[str, Any], warm_up: str
) -> None:
    task_id = api.predict(customer)
    (tmp_path / "broken").touch()
    model = marked_model.save(tmp_path, marked_model.BreaksModel(tmp_path / "broken"))
    log = failure(api, tmp_path, model, WARM_UP=warm_up)
    assert "the example of `Customer`" in log
    assert "the model is broken" in log
    assert "Traceback" in log
    assert api.result(task_id).status_code == 202
    assert api.delete(task_id).status_code == 204


def test_a_manifest_with_other_features_is_failed_with_the_differences(api: Service, tmp_path: Path) -> None:
    model = marked_model.save(tmp_path, name="churn.joblib")
    features = [*MANIFEST["features"][1:], {"name": "Shoe_Size", "type": "number"}]
    manifest = {
        "name": "mine",
        "version": "1",
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "libraries": {},
        "features": features,
    }
    model.with_suffix(".json").write_text(json.dumps(manifest))
    log = failure(api, tmp_path, model)
    assert "the model needs Shoe_Size, which `Customer` lacks" in log


def test_a_model_that_breaks_while_it_serves_stops_its_worker_and_fails_no_prediction(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    broken = tmp_path / "broken"
    model = str(marked_model.save(tmp_path, marked_model.BreaksModel(broken)))
    with running_service(servers, tmp_path, MODEL_PATH=model) as service:
        assert service.ended(service.predict(customer)).status_code == 200
        broken.touch()
        ids = [service.predict(customer) for _ in range(5)]
        batch = service.batch_accepted([customer] * 3)
        assert service.worker.wait(within_s=30) == 1
        until(lambda: not service.answers())
        broken.unlink()
        service.worker.start()
        assert {service.ended(task_id).status_code for task_id in ids} == {200}
        assert service.batch_ended(batch)["failed"] == 0


def test_a_customer_whom_a_working_model_cannot_predict_fails_alone(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    with running_service(servers, tmp_path, MODEL_PATH=str(marked_model.save(tmp_path))) as service:
        for _ in range(5):  # one after the other, so each has a message of its own
            task_id = service.predict(customer | {"Customer_Age": marked_model.RAISES})
            assert service.ended(task_id).status_code == 500
        assert service.ended(service.predict(customer)).status_code == 200


def test_a_model_that_was_fitted_on_pandas_categories_predicts(
    servers: Servers, tmp_path: Path, customer: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "Customer_Age": rng.integers(18, 90, 400),
            "Gender": pd.Categorical(rng.choice(["F", "M"], 400)),
        }
    )
    model = LGBMClassifier(n_estimators=20, min_data_per_group=5, verbose=-1).fit(table, table["Gender"] == "M")
    joblib.dump(model, tmp_path / "mine.joblib")
    row = table.iloc[:1].assign(Customer_Age=customer["Customer_Age"])
    row["Gender"] = pd.Categorical([customer["Gender"]], categories=["F", "M"])
    with running_service(servers, tmp_path, MODEL_PATH=str(tmp_path / "mine.joblib")) as service:
        response = service.ended(service.predict(customer))
        assert response.json()["probability"] == pytest.approx(model.predict_proba(row)[0, 1])
