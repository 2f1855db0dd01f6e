import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from celery_task_app.ml.data_set import FEATURES
from celery_task_app.ml.features import COPIES, FeatureEncoder, LeanLGBMClassifier

CUSTOMERS = pd.DataFrame({"age": [45, 51, 32], "card": ["Gold", "Blue", "Blue"], "ratio": [0.5, 0.25, 0.0]})


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder().fit(CUSTOMERS)


def test_numbers_stay_and_the_most_frequent_category_is_0(encoder: FeatureEncoder) -> None:
    assert encoder.transform(CUSTOMERS).tolist() == [[45, 1, 0.5], [51, 0, 0.25], [32, 0, 0]]


def test_an_unknown_category_is_minus_1(encoder: FeatureEncoder) -> None:
    assert encoder.transform(CUSTOMERS.assign(card="Platinum"))[:, 1].tolist() == [-1, -1, -1]


def test_columns_are_found_by_name(encoder: FeatureEncoder) -> None:
    shuffled = CUSTOMERS[["ratio", "card", "age"]].assign(another=1)

    assert np.array_equal(encoder.transform(shuffled), encoder.transform(CUSTOMERS))


def test_a_mapping_of_columns_is_predicted_as_a_dataframe(trained: Path, table: pd.DataFrame) -> None:
    pipeline = joblib.load(trained / "churn.joblib")
    customers = table[list(FEATURES)]

    probabilities = pipeline.predict_proba({feature: customers[feature].tolist() for feature in customers})

    assert np.array_equal(probabilities, pipeline.predict_proba(customers))
    assert np.array_equal(probabilities, Pipeline(pipeline.steps).predict_proba(customers))


def test_encoding_does_not_modify_the_customers(encoder: FeatureEncoder) -> None:
    customers = CUSTOMERS.astype(object)

    encoder.transform(customers)

    assert customers.equals(CUSTOMERS.astype(object))


def test_blurred_copies_differ_in_numbers_only(encoder: FeatureEncoder) -> None:
    original = np.tile(encoder.transform(CUSTOMERS), (COPIES, 1))

    blurred = encoder.transform_blurred(CUSTOMERS, seed=0)

    assert (blurred != original).all(axis=0).tolist() == [True, False, True]
    assert np.array_equal(blurred[:, 1], original[:, 1])
    assert blurred == pytest.approx(original, abs=1)


def test_a_pickled_encoder_encodes_equally_and_a_clone_is_not_fitted(encoder: FeatureEncoder) -> None:
    unpickled = pickle.loads(pickle.dumps(encoder))

    assert np.array_equal(unpickled.transform(CUSTOMERS), encoder.transform(CUSTOMERS))
    assert not hasattr(clone(encoder), "codes_")


def test_probabilities_are_those_of_lightgbm_bit_for_bit() -> None:
    random = np.random.default_rng(seed=11)
    matrix, churned = random.random((200, 4)), random.integers(0, 2, 200)
    parameters = {"n_estimators": 10, "n_jobs": 1, "random_state": 11, "verbose": -1}

    lean = LeanLGBMClassifier(**parameters).fit(matrix, churned)
    full = LGBMClassifier(**parameters).fit(matrix, churned)

    assert np.array_equal(lean.predict_proba(matrix), full.predict_proba(matrix))
    assert np.array_equal(lean.predict_proba(matrix, raw_score=True), full.predict_proba(matrix, raw_score=True))
    assert np.array_equal(lean.predict(matrix), full.predict(matrix))


def test_calibration_moves_the_log_odds_onto_the_line() -> None:
    random = np.random.default_rng(seed=11)
    matrix, churned = random.random((200, 4)), random.integers(0, 2, 200)
    lean = LeanLGBMClassifier(n_estimators=10, n_jobs=1, random_state=11, verbose=-1).fit(matrix, churned)
    before = lean.predict_proba(matrix, raw_score=True)

    lean.calibrate(1.25, -0.5)

    calibrated = pickle.loads(pickle.dumps(lean))
    assert calibrated.predict_proba(matrix, raw_score=True) == pytest.approx(1.25 * before - 0.5)
    contributions = calibrated.booster_.predict(matrix, pred_contrib=True)
    assert contributions.sum(axis=1) == pytest.approx(1.25 * before - 0.5)
