"""Pipelines that were fitted on pandas categories predict customers whose categories are text."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from celery_task_app.errors import ModelError
from celery_task_app.ml.categories import categorical_columns
from celery_task_app.ml.model import ChurnModel


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, 400),
            "gender": pd.Categorical(rng.choice(list("MFX"), 400)),
            "products": pd.Categorical(rng.choice([3, 5, 9], 400)),
        }
    )


@pytest.fixture(scope="module")
def churn(table: pd.DataFrame) -> pd.Series:
    return (table["gender"] == "M") & (table["products"] == 3)


@pytest.fixture(scope="module")
def lightgbm(table: pd.DataFrame, churn: pd.Series) -> LGBMClassifier:
    return LGBMClassifier(n_estimators=20, min_data_per_group=5, verbose=-1).fit(table, churn)


def test_lightgbm_names_its_categorical_columns(lightgbm: LGBMClassifier) -> None:
    assert categorical_columns(lightgbm) == ["gender", "products"]
    pipeline = make_pipeline(FunctionTransformer(), lightgbm)
    assert categorical_columns(pipeline) == ["gender", "products"]


@pytest.mark.parametrize("kind", ["LightGBM", "HistGradientBoosting"])
def test_a_customer_is_predicted_as_in_training(
    kind: str, table: pd.DataFrame, churn: pd.Series, lightgbm: LGBMClassifier, tmp_path: Path
) -> None:
    model = HistGradientBoostingClassifier().fit(table, churn) if kind == "HistGradientBoosting" else lightgbm
    joblib.dump(model, tmp_path / "mine.joblib")
    served = ChurnModel(tmp_path / "mine.joblib")
    expected = model.predict_proba(table)[:, 1]
    customers: Any = table.astype(object).to_dict("records")
    assert served.churn_probabilities(customers) == pytest.approx(expected)
    for number in range(5):  # one customer has one of the categories
        assert served.churn_probabilities(customers[number : number + 1]) == pytest.approx(expected[number])


def test_a_model_without_categories_needs_none(table: pd.DataFrame, churn: pd.Series) -> None:
    assert categorical_columns(LGBMClassifier(verbose=-1, n_estimators=2).fit(table[["age"]], churn)) == []
    assert categorical_columns(object()) == []


class OldXGBoost:
    """A classifier with the attributes of XGBoost 3.0, which records no categories."""

    def get_booster(self) -> "OldXGBoost":
        return self

    feature_names = ("age", "gender")
    feature_types = ("int", "c")


def test_an_xgboost_that_records_no_categories_is_refused_by_name_of_the_columns() -> None:
    with pytest.raises(ModelError, match=r"categories of gender: use XGBoost 3\.1"):
        categorical_columns(OldXGBoost())
