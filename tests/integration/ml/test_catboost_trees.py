import pickle
from importlib import metadata

import numpy as np
import pytest
from catboost import CatBoostClassifier
from lightgbm import Booster
from numpy.typing import NDArray

from celery_task_app.errors import VersionMismatch
from celery_task_app.ml.catboost_trees import CATBOOST_PARAMETERS, fit_catboost_trees, splice_trees
from celery_task_app.ml.features import LeanLGBMClassifier

Matrix = NDArray[np.float64]


def lightgbm_trees(matrix: Matrix, churned: NDArray[np.int64], trees: int) -> LeanLGBMClassifier:
    classifier: LeanLGBMClassifier = LeanLGBMClassifier(n_estimators=trees, n_jobs=1, verbose=-1).fit(matrix, churned)
    return classifier


@pytest.fixture
def matrix() -> Matrix:
    return np.random.default_rng(seed=11).random((300, 4))


@pytest.fixture
def churned(matrix: Matrix) -> NDArray[np.int64]:
    return (matrix[:, 0] + matrix[:, -1] ** 2 > np.random.default_rng(seed=12).random(300)).astype(np.int64)


@pytest.fixture
def model_text(matrix: Matrix, churned: NDArray[np.int64]) -> str:
    text: str = lightgbm_trees(matrix, churned, 5).booster_.model_to_string()
    return text


@pytest.mark.parametrize("features", [4, 1])
def test_the_average_is_the_mean_of_the_log_odds_of_lightgbm_and_catboost(features: int) -> None:
    random = np.random.default_rng(seed=11)
    matrix, unseen = random.random((2, 300, features))
    churned = (matrix[:, 0] + matrix[:, -1] ** 2 > random.random(300)).astype(int)
    if features == 1:
        matrix = random.random((300, 1)).round()  # CatBoost finds no split: its trees are single leaves
    both = lightgbm_trees(matrix, churned, 5)
    cat = CatBoostClassifier(iterations=7, allow_writing_files=False, verbose=False, **CATBOOST_PARAMETERS)
    cat.fit(matrix, churned)
    mean = (both.predict_proba(unseen, raw_score=True) + cat.predict(unseen, prediction_type="RawFormulaVal")) / 2

    both.average(fit_catboost_trees(matrix, churned, trees=7))

    averaged = pickle.loads(pickle.dumps(both))
    assert averaged.booster_.num_trees() == 5 + 7
    assert averaged.predict_proba(unseen, raw_score=True) == pytest.approx(mean)
    assert averaged.booster_.predict(unseen, pred_contrib=True).sum(axis=1) == pytest.approx(mean)


def test_the_log_odds_of_spliced_trees_are_the_sum(matrix: Matrix, churned: NDArray[np.int64], model_text: str) -> None:
    trees = fit_catboost_trees(matrix, churned, trees=3)
    alone, doubled = (Booster(model_str=splice_trees(model_text, times * trees)) for times in (1, 2))

    model, one, two = (
        booster.predict(matrix, raw_score=True) for booster in (Booster(model_str=model_text), alone, doubled)
    )

    assert two - one == pytest.approx(one - model)
    assert not np.allclose(one, model)


def test_splicing_no_trees_keeps_the_model(matrix: Matrix, model_text: str) -> None:
    spliced = Booster(model_str=splice_trees(model_text, []))

    assert np.array_equal(spliced.predict(matrix), Booster(model_str=model_text).predict(matrix))


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        ("version=v4", "version=v5"),
        ("tree_sizes=", "sizes="),
        ("Tree=0\n", "tree: 0\n"),
        ("Tree=1\n", "tree: 1\n"),
        ("end of trees", "end"),
    ],
)
def test_an_unknown_model_text_is_a_version_mismatch_with_the_version_of_lightgbm(
    model_text: str, part: str, replacement: str
) -> None:
    assert part in model_text

    with pytest.raises(VersionMismatch, match=rf"LightGBM {metadata.version('lightgbm')} .*docs/adr/0006"):
        splice_trees(model_text.replace(part, replacement), [])
