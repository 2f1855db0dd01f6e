"""Pipelines that were fitted on pandas categories predict customers whose categories are text."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
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


def test_classifiers_within_others_name_their_categorical_columns(table: pd.DataFrame, churn: pd.Series) -> None:
    quick = LGBMClassifier(n_estimators=2, min_data_per_group=5, verbose=-1)
    forest = RandomForestClassifier(2)
    over = [
        GridSearchCV(make_pipeline(FunctionTransformer(), quick), {}, cv=2),
        CalibratedClassifierCV(quick, cv=2),
        TunedThresholdClassifierCV(quick, cv=2),
        VotingClassifier([("forest", forest), ("quick", quick)], voting="soft"),
        StackingClassifier([("quick", quick)], cv=2),
    ]
    codes = table.assign(gender=table["gender"].cat.codes.astype("category"))  # a forest takes no text
    for classifier in over:
        assert categorical_columns(classifier.fit(codes, churn)) == ["gender", "products"]
    assert categorical_columns(forest.fit(table[["age"]], churn)) == []


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
