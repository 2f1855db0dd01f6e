"""Train the model that the service ships: `python -m celery_task_app.ml.train --data BankChurners.csv --out DIR`.

The same data give the same model. The service does not import this module; it reads the files that this module writes.
"""

import argparse
import hashlib
import io
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from lightgbm import early_stopping
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold, cross_val_predict, train_test_split

from celery_task_app.errors import DataSetError
from celery_task_app.ml.artifact import describe_feature, write_artifact
from celery_task_app.ml.catboost_trees import CATBOOST_PARAMETERS
from celery_task_app.ml.data_set import CLASSES, FEATURES, SOURCE, TARGET, read_data_set
from celery_task_app.ml.features import BLUR, COPIES, ChurnPipeline, FeatureEncoder, LeanLGBMClassifier
from celery_task_app.ml.metrics import best_threshold, fit_platt_scaling, score

logger = logging.getLogger(__name__)

NAME = "churn"

# The article's split, so that its scores can be compared.
SPLIT = {"test_size": 0.2, "random_state": 11}
# More splits of the same size, because one test part has only 325 churners and its scores vary. Chosen in advance.
SPREAD_SEEDS = (1, 2, 3, 4, 5)
FOLDS = StratifiedKFold(n_splits=5, shuffle=True, random_state=11)
# Two repeats for the search, because two ways to fold differ more than two good sets of parameters.
SEARCH_FOLDS = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=11)

# The result of the search, which saw only the training part of `SPLIT`. `--quick` uses these without a search.
PARAMETERS: dict[str, Any] = {
    "num_leaves": 23,
    "colsample_bytree": 0.5750855720973836,
    "subsample": 0.7531595750212272,
    "min_child_samples": 15,
    "path_smooth": 12.210683849580002,
    "n_estimators": 214,
}
# A lower learning rate has no measurable gain. The other parameters make the result reproducible and use one core. A
# study is only valid for one set of these: delete its file after a change.
FIXED_PARAMETERS = {
    "learning_rate": 0.085,
    "subsample_freq": 1,
    "random_state": 11,
    "deterministic": True,
    "force_row_wise": True,
    "n_jobs": 1,
    "verbose": -1,
}
TRIALS = 25
TREES_MAX = 190  # in a fold; together with CatBoost's trees, 1,000 customers take at most 25 ms
PATIENCE = 40  # trees without a better log loss of a fold
STUDY_FOLDER = Path(".data")
# For the reader of the manifest; the numbers of the model card are measured.
CARD = {
    "description": "LightGBM and CatBoost averaged in one: the probability that a customer leaves.",
    "intended_use": "Ranking a bank's credit card customers for a friendly call; a person decides what to do.",
    "limits": [
        "The data come from one bank and one year: 10,127 customers, 16 % of them churners. Other banks will differ.",
        "The data do not say how long before leaving a customer had the recorded values.",
        "Not for credit decisions, prices, or anything to a customer's disadvantage.",
        "Gender, age, income and marital status are among the features: compare the errors of each group.",
        "A value outside the ranges below is predicted like the nearest value in the training data.",
    ],
}
LIBRARIES = ("scikit-learn", "lightgbm", "catboost", "pandas", "numpy", "joblib")


class Trained(NamedTuple):
    """A fitted pipeline, and its evaluation."""

    pipeline: ChurnPipeline
    threshold: float
    """The lowest probability that counts as churn: the best F1 of the out-of-fold predictions."""
    scores: dict[str, float]
    """The scores on the held-out customers."""
    fitted: pd.DataFrame
    """The customers that the pipeline was fitted on."""
    held_out: pd.DataFrame
    """The customers of the test part."""
    calibration: dict[str, float]
    """The line of Platt scaling, and its losses before and after."""


def make_churn_pipeline(parameters: Mapping[str, Any] = PARAMETERS) -> ChurnPipeline:
    """Return a pipeline that is not fitted yet.

    Args:
        parameters: of LightGBM; they take precedence over `FIXED_PARAMETERS`.
    """
    classifier = LeanLGBMClassifier(**{**FIXED_PARAMETERS, **parameters})
    return ChurnPipeline([("encode", FeatureEncoder()), ("classify", classifier)])


def fit_and_score(
    customers: pd.DataFrame, churned: "pd.Series[int]", parameters: dict[str, Any], **split: Any
) -> Trained:
    """Fit on one part of the customers, and score on the other part, which nothing else uses.

    Args:
        customers: n rows of raw features.
        churned: n times 1 (left) or 0 (stayed).
        parameters: of LightGBM.
        split: arguments of scikit-learn's `train_test_split`.
    """
    fitted, held_out, fitted_churned, held_out_churned = train_test_split(customers, churned, **split)
    pipeline = make_churn_pipeline(parameters)
    # Out-of-fold predictions choose the threshold and the calibration, because the test part must not.
    out_of_fold = cross_val_predict(pipeline, fitted, fitted_churned, cv=FOLDS, method="predict_proba", n_jobs=-1)[:, 1]
    calibrated, calibration = fit_platt_scaling(fitted_churned, out_of_fold, FOLDS)
    threshold = best_threshold(fitted_churned, calibrated)
    pipeline.fit(fitted, fitted_churned)[-1].calibrate(calibration["slope"], calibration["intercept"])
    scores = score(held_out_churned, pipeline.predict_proba(held_out)[:, 1], threshold)
    return Trained(pipeline, threshold, scores, fitted, held_out, calibration)


def cross_validate(customers: pd.DataFrame, churned: "pd.Series[int]", parameters: dict[str, Any]) -> tuple[int, float]:
    """Evaluate parameters of LightGBM over `SEARCH_FOLDS`, without CatBoost.

    A fold fits on four fifths of the customers and stops early on the last fifth.

    Args:
        customers: n rows of raw features.
        churned: n times 1 (left) or 0 (stayed).
        parameters: of LightGBM; the number of trees is ignored.

    Returns:
        The number of trees for all n customers, which is 1.25 times the mean of the folds; and the mean log loss.
    """

    def fit_fold(fold: tuple[Any, Any]) -> tuple[int, float]:
        fit, stop = fold
        pipeline = make_churn_pipeline(parameters | {"n_estimators": TREES_MAX})
        pipeline.fit(
            customers.iloc[fit],
            churned.iloc[fit],
            with_catboost=False,
            eval_X=pipeline[0].fit(customers.iloc[fit]).transform(customers.iloc[stop]),
            eval_y=churned.iloc[stop],
            callbacks=[early_stopping(PATIENCE, verbose=False)],
        )
        return pipeline[-1].best_iteration_, pipeline[-1].best_score_["valid_0"]["binary_logloss"]

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # LightGBM releases the GIL
        trees, losses = zip(*threads.map(fit_fold, SEARCH_FOLDS.split(customers, churned)), strict=True)
    return round(1.25 * mean(trees)), mean(losses)


def search_parameters(data: Path, trials: int, study_folder: Path) -> dict[str, Any]:
    """Search for parameters of LightGBM with the training part of `SPLIT`.

    Args:
        data: BankChurners.csv.
        trials: the number of trials, including the trials of earlier runs.
        study_folder: the folder of the file that keeps the trials.

    Returns:
        The parameters with the lowest log loss.

    Raises:
        DataSetError: the data cannot be used.
    """
    from celery_task_app.ml.search import open_study, search  # noqa: PLC0415 - imports Optuna

    customers, churned, sha256 = read_data_set(data)
    fitted, _, fitted_churned, _ = train_test_split(customers, churned, **SPLIT)
    study_file = study_folder / f"search-{sha256[:12]}.log"
    logger.info("search started trials=%d study=%s", trials, study_file)
    found = search(open_study(study_file), trials, partial(cross_validate, fitted, fitted_churned))
    if found != PARAMETERS:
        logger.warning("--quick uses other parameters: copy the found ones to PARAMETERS in train.py: %s", found)
    return found


def train(data: Path, out: Path, parameters: dict[str, Any] = PARAMETERS) -> dict[str, Any]:
    """Fit on 80 % of the customers, score on the others, and write `churn.joblib` and its manifest `churn.json`.

    Args:
        data: BankChurners.csv.
        out: the folder for both files; it is created if it does not exist.
        parameters: of LightGBM.

    Returns:
        The manifest.

    Raises:
        DataSetError: the data cannot be used.
    """
    customers, churned, data_sha256 = read_data_set(data)
    shipped = fit_and_score(customers, churned, parameters, **SPLIT)
    others = [
        fit_and_score(customers, churned, parameters, test_size=SPLIT["test_size"], random_state=seed).scores
        for seed in SPREAD_SEEDS
    ]

    content = io.BytesIO()
    joblib.dump(shipped.pipeline, content, compress=3)
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    manifest = {
        "name": NAME,
        "version": sha256[:12],  # needs no manual increment, and two models never share it
        "created": datetime.now(UTC).date().isoformat(),
        "sha256": sha256,
        **CARD,
        "target": {"name": TARGET, "classes": dict(enumerate(CLASSES))},
        "scores": shipped.scores,
        "spread": {"seeds": SPREAD_SEEDS, "mean": _aggregate(others, mean), "deviation": _aggregate(others, stdev)},
        "threshold": shipped.threshold,
        "calibration": {"method": "Platt, out of fold", **shipped.calibration},
        "training": {
            "data": SOURCE,
            "data_sha256": data_sha256,
            "rows": len(customers),
            "rows_fitted": len(shipped.fitted),
            "rows_scored": len(shipped.held_out),
            "split": SPLIT,
            "copies": COPIES,
            "blur": BLUR,
        },
        "parameters": FIXED_PARAMETERS | parameters,
        "catboost_parameters": CATBOOST_PARAMETERS,
        "libraries": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
        "features": [describe_feature(shipped.fitted[feature], kind) for feature, kind in FEATURES.items()],
        "explains": True,
        "golden": choose_golden_rows(shipped),
    }
    write_artifact(out / f"{NAME}.joblib", content.getvalue(), manifest)
    return manifest


def choose_golden_rows(trained: Trained, rows: int = 5) -> list[dict[str, Any]]:
    """Return held-out customers and their probabilities, from the lowest probability to the highest.

    Args:
        trained: the pipeline, and its held-out customers.
        rows: the number of golden rows.
    """
    probabilities = trained.pipeline.predict_proba(trained.held_out)[:, 1]
    chosen = np.argsort(probabilities, kind="stable")[np.linspace(0, len(probabilities) - 1, rows).astype(int)]
    customers = trained.held_out.iloc[chosen].to_dict("records")
    return [
        {"customer": customer, "probability": float(probability)}
        for customer, probability in zip(customers, probabilities[chosen], strict=True)
    ]


def _aggregate(splits: list[dict[str, float]], statistic: Callable[[list[float]], float]) -> dict[str, float]:
    return {name: round(statistic([scores[name] for scores in splits]), 6) for name in splits[0]}


def main() -> None:
    """Read the command line, search for parameters, train, and log the scores."""
    parser = argparse.ArgumentParser(description="Train the churn model.")
    parser.add_argument("--data", type=Path, required=True, help=f"BankChurners.csv, from {SOURCE}")
    parser.add_argument("--out", type=Path, required=True, help="the folder for churn.joblib and churn.json")
    parser.add_argument("--quick", action="store_true", help="use the parameters in this file, without a search")
    parser.add_argument("--trials", type=int, default=TRIALS, help="number of trials of the search (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        parameters = (
            PARAMETERS if arguments.quick else search_parameters(arguments.data, arguments.trials, STUDY_FOLDER)
        )
        manifest = train(arguments.data, arguments.out, parameters)
    except DataSetError as error:
        sys.exit(f"error: {error}")
    logger.info("model written name=%s version=%s folder=%s", NAME, manifest["version"], arguments.out)
    logger.info("scores %s", " ".join(f"{name}={value:.4f}" for name, value in manifest["scores"].items()))


if __name__ == "__main__":
    main()
