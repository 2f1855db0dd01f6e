import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from celery_task_app.ml.features import FeatureEncoder, LeanLGBMClassifier
from celery_task_app.ml.symmetric import CATBOOST_PARAMETERS, symmetric_trees
from celery_task_app.ml.train import CLASSES, FEATURES, TARGET, make_churn_pipeline
from tests.ml.conftest import QUICK, ROOT

CUSTOMERS = pd.DataFrame({"age": [45, 51, 32], "card": ["Gold", "Blue", "Blue"], "ratio": [0.5, 0.25, 0.0]})


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder().fit(CUSTOMERS)


def test_numbers_stay_and_the_most_frequent_category_is_0(encoder: FeatureEncoder) -> None:
    assert encoder.transform(CUSTOMERS).tolist() == [[45, 1, 0.5], [51, 0, 0.25], [32, 0, 0]]


def test_an_unknown_category_is_minus_1(encoder: FeatureEncoder) -> None:
    assert encoder.transform(CUSTOMERS.assign(card="Platinum"))[:, 1].tolist() == [-1, -1, -1]


def test_columns_are_taken_by_name(encoder: FeatureEncoder) -> None:
    shuffled = CUSTOMERS[["ratio", "card", "age"]].assign(another=1)

    assert np.array_equal(encoder.transform(shuffled), encoder.transform(CUSTOMERS))


def test_a_mapping_of_columns_is_as_good_as_a_dataframe(trained: Path, table: pd.DataFrame) -> None:
    pipeline = joblib.load(trained / "churn.joblib")
    customers = table[list(FEATURES)]

    lean = pipeline.predict_proba({feature: customers[feature].tolist() for feature in customers})

    assert np.array_equal(lean, pipeline.predict_proba(customers))
    assert np.array_equal(lean, Pipeline(pipeline.steps).predict_proba(customers))


def test_the_customers_are_not_changed(encoder: FeatureEncoder) -> None:
    customers = CUSTOMERS.astype(object)

    encoder.transform(customers)

    assert customers.equals(CUSTOMERS.astype(object))


def test_an_encoder_survives_pickling_and_a_clone_is_not_fitted(encoder: FeatureEncoder) -> None:
    unpickled = pickle.loads(pickle.dumps(encoder))

    assert np.array_equal(unpickled.transform(CUSTOMERS), encoder.transform(CUSTOMERS))
    assert not hasattr(clone(encoder), "codes_")


def test_lean_probabilities_are_those_of_lightgbm_to_the_bit() -> None:
    random = np.random.default_rng(seed=11)
    matrix, churned = random.random((200, 4)), random.integers(0, 2, 200)
    parameters = {"n_estimators": 10, "n_jobs": 1, "random_state": 11, "verbose": -1}

    lean = LeanLGBMClassifier(**parameters).fit(matrix, churned)
    full = LGBMClassifier(**parameters).fit(matrix, churned)

    assert np.array_equal(lean.predict_proba(matrix), full.predict_proba(matrix))
    assert np.array_equal(lean.predict_proba(matrix, raw_score=True), full.predict_proba(matrix, raw_score=True))
    assert np.array_equal(lean.predict(matrix), full.predict(matrix))


def test_calibrating_moves_the_log_odds_onto_the_line() -> None:
    random = np.random.default_rng(seed=11)
    matrix, churned = random.random((200, 4)), random.integers(0, 2, 200)
    lean = LeanLGBMClassifier(n_estimators=10, n_jobs=1, random_state=11, verbose=-1).fit(matrix, churned)
    before = lean.predict_proba(matrix, raw_score=True)

    lean.calibrate(1.25, -0.5)

    calibrated = pickle.loads(pickle.dumps(lean))
    assert calibrated.predict_proba(matrix, raw_score=True) == pytest.approx(1.25 * before - 0.5)
    contributions = calibrated.booster_.predict(matrix, pred_contrib=True)
    assert contributions.sum(axis=1) == pytest.approx(1.25 * before - 0.5)


@pytest.mark.parametrize("features", [4, 1])
def test_the_average_is_the_mean_of_the_log_odds_of_lightgbm_and_catboost(features: int) -> None:
    random = np.random.default_rng(seed=11)
    matrix, unseen = random.random((2, 300, features))
    churned = (matrix[:, 0] + matrix[:, -1] ** 2 > random.random(300)).astype(int)
    if features == 1:
        matrix = random.random((300, 1)).round()  # nothing to ask: CatBoost's trees are bare leaves
    both = LeanLGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(matrix, churned)
    cat = CatBoostClassifier(iterations=7, allow_writing_files=False, verbose=False, **CATBOOST_PARAMETERS)
    cat.fit(matrix, churned)
    mean = (both.predict_proba(unseen, raw_score=True) + cat.predict(unseen, prediction_type="RawFormulaVal")) / 2

    both.average(symmetric_trees(matrix, churned, trees=7))

    averaged = pickle.loads(pickle.dumps(both))
    assert averaged.booster_.num_trees() == 5 + 7
    assert averaged.predict_proba(unseen, raw_score=True) == pytest.approx(mean)
    assert averaged.booster_.predict(unseen, pred_contrib=True).sum(axis=1) == pytest.approx(mean)


def test_a_pipeline_has_as_many_symmetric_trees_as_others(table: pd.DataFrame) -> None:
    customers, churned = table[list(FEATURES)], table[TARGET] == CLASSES[1]
    both, one = (make_churn_pipeline(QUICK).fit(customers, churned, symmetric=symmetric) for symmetric in (True, False))

    assert both[-1].booster_.num_trees() == 2 * one[-1].booster_.num_trees()
    assert not np.allclose(both.predict_proba(customers), one.predict_proba(customers))


def test_unpickling_a_model_does_not_import_what_trained_it(trained: Path) -> None:
    code = (
        "import joblib, sys; joblib.load(sys.argv[1])\n"
        "print({'celery_task_app.ml.train', 'celery_task_app.ml.symmetric', 'catboost'} & set(sys.modules))"
    )

    loading = subprocess.run(
        [sys.executable, "-c", code, trained / "churn.joblib"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert loading.stdout == "set()\n"
