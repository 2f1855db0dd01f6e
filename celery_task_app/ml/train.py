"""Train the model that the service ships: `python -m celery_task_app.ml.train --data BankChurners.csv --out DIR`.

The same data give the same scores. The service imports nothing of this; it reads what is written here.
"""

import argparse
import hashlib
import io
import json
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
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold, cross_val_predict, train_test_split

from celery_task_app.errors import DataSetError
from celery_task_app.ml.features import BLUR, COPIES, ChurnPipeline, FeatureEncoder, LeanLGBMClassifier
from celery_task_app.ml.symmetric import CATBOOST_PARAMETERS

logger = logging.getLogger(__name__)

Probabilities = NDArray[np.float64]

NAME = "churn"
SOURCE = "https://www.kaggle.com/datasets/sakshigoyal7/credit-card-customers"
TARGET = "Attrition_Flag"
CLASSES = ("Existing Customer", "Attrited Customer")  # class 0 and class 1
# What the model sees: not the id CLIENTNUM, nor the two Naive_Bayes_… columns, which were computed from the target.
FEATURES = {
    "Customer_Age": "integer",
    "Gender": "category",
    "Dependent_count": "integer",
    "Education_Level": "category",
    "Marital_Status": "category",
    "Income_Category": "category",
    "Card_Category": "category",
    "Months_on_book": "integer",
    "Total_Relationship_Count": "integer",
    "Months_Inactive_12_mon": "integer",
    "Contacts_Count_12_mon": "integer",
    "Credit_Limit": "number",
    "Total_Revolving_Bal": "integer",
    "Avg_Open_To_Buy": "number",
    "Total_Amt_Chng_Q4_Q1": "number",
    "Total_Trans_Amt": "integer",
    "Total_Trans_Ct": "integer",
    "Total_Ct_Chng_Q4_Q1": "number",
    "Avg_Utilization_Ratio": "number",
}
_DTYPES = {"integer": "int64", "number": "float64", "category": "str"}

# The article's split, so that its scores can be compared.
SPLIT = {"test_size": 0.2, "random_state": 11}

# Other splits of the same size, for one has some 325 churners only: half of its scores is luck. Chosen beforehand.
SPREAD_SEEDS = (1, 2, 3, 4, 5)
FOLDS = StratifiedKFold(n_splits=5, shuffle=True, random_state=11)
# For the search, twice: what parameters gain is less than what one way of folding differs from another.
SEARCH_FOLDS = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=11)

# What `search` found; it saw the training part of `SPLIT` and nothing else. `--quick` uses them as they are.
PARAMETERS: dict[str, Any] = {
    "num_leaves": 23,
    "colsample_bytree": 0.5750855720973836,
    "subsample": 0.7531595750212272,
    "min_child_samples": 15,
    "path_smooth": 12.210683849580002,
    "n_estimators": 214,
}
# A lower rate gains nothing that the folds can tell. The rest makes the result the same on every run, and leaves the
# other cores alone. A study that was begun with others can't be gone on with: delete its file.
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
TREES_MAX = 190  # in a fold; with the symmetric ones 1,000 customers may take 25 ms
PATIENCE = 40  # trees without a better log loss of a fold
STUDY_FOLDER = Path(".data")
# What a person should know before using it; the rest of the model card is measured.
CARD = {
    "description": "LightGBM and CatBoost averaged in one: the probability that a customer leaves, from 19 features.",
    "intended_use": "Ranking a bank's credit card customers for a friendly call; a person decides what to do.",
    "limits": [
        "One bank, one year, 10,127 customers, 16 % of them churners: other times and other banks will differ.",
        "What churned is known by then: the data do not say how long before leaving a customer looked so.",
        "Not for credit decisions, prices, or anything to a customer's disadvantage.",
        "Gender, age, income and marital status are among the features: watch the errors of each group.",
        "A value outside the ranges below is predicted like the nearest value that was seen.",
    ],
}
LIBRARIES = ("scikit-learn", "lightgbm", "catboost", "pandas", "numpy", "joblib")


class DataSet(NamedTuple):
    """The customers, who of them left (1) or stayed (0), and the SHA-256 of the file."""

    customers: pd.DataFrame
    churned: "pd.Series[int]"
    sha256: str


def read_data_set(path: Path) -> DataSet:
    """Read the data set and check it.

    Raises:
        DataSetError: there is no such file, or it is not BankChurners.csv.
    """
    try:
        content = path.read_bytes()
        dtypes = {TARGET: "str"} | {feature: _DTYPES[kind] for feature, kind in FEATURES.items()}
        table = pd.read_csv(io.BytesIO(content), usecols=list(dtypes), dtype=dtypes)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise _unusable(path, reason) from error
    if table.isna().any(axis=None):
        raise _unusable(path, f"empty cells in {', '.join(table.columns[table.isna().any()])}")
    if set(table[TARGET]) != set(CLASSES):
        raise _unusable(path, f"{TARGET} must be {' or '.join(CLASSES)}, not {sorted(set(table[TARGET]))[:5]}")
    churned = (table[TARGET] == CLASSES[1]).astype(int)
    return DataSet(table[list(FEATURES)], churned, hashlib.sha256(content).hexdigest())


def _unusable(path: Path, reason: str | None) -> DataSetError:
    return DataSetError(f"{path} can't be used: {reason}. Download BankChurners.csv from {SOURCE}")


def make_churn_pipeline(parameters: Mapping[str, Any] = PARAMETERS) -> ChurnPipeline:
    """Return the pipeline, not yet fitted."""
    classifier = LeanLGBMClassifier(**{**FIXED_PARAMETERS, **parameters})
    return ChurnPipeline([("encode", FeatureEncoder()), ("classify", classifier)])


class Trained(NamedTuple):
    """A pipeline, and what it was judged by."""

    pipeline: ChurnPipeline
    threshold: float
    """The probability from which on a customer counts as churning; the best F1 of the predictions out of fold."""
    scores: dict[str, float]
    """On the customers held out."""
    fitted: pd.DataFrame
    held_out: pd.DataFrame
    calibration: dict[str, float]


def fit_and_score(
    customers: pd.DataFrame, churned: "pd.Series[int]", parameters: dict[str, Any], **split: Any
) -> Trained:
    """Fit on one part of the customers, score on the other, which nothing else sees."""
    fitted, held_out, fitted_churned, held_out_churned = train_test_split(customers, churned, **split)
    pipeline = make_churn_pipeline(parameters)
    # Predictions of customers that the model has not seen, to choose and to judge with, without touching the test part.
    out_of_fold = cross_val_predict(pipeline, fitted, fitted_churned, cv=FOLDS, method="predict_proba", n_jobs=-1)[:, 1]
    calibrated, calibration = calibrate(fitted_churned, out_of_fold)
    threshold = best_threshold(fitted_churned, calibrated)
    pipeline.fit(fitted, fitted_churned)[-1].calibrate(calibration["slope"], calibration["intercept"])
    scores = score(held_out_churned, pipeline.predict_proba(held_out)[:, 1], threshold)
    return Trained(pipeline, threshold, scores, fitted, held_out, calibration)


def cross_validate(customers: pd.DataFrame, churned: "pd.Series[int]", parameters: dict[str, Any]) -> tuple[int, float]:
    """Return how many trees the customers need, and the log loss: means over `SEARCH_FOLDS`, of LightGBM alone.

    A fold fits on four fifths and stops where the rest is predicted best: all five bear a quarter more trees.
    """

    def fit_fold(fold: tuple[Any, Any]) -> tuple[int, float]:
        fit, stop = fold
        pipeline = make_churn_pipeline(parameters | {"n_estimators": TREES_MAX})
        pipeline.fit(
            customers.iloc[fit],
            churned.iloc[fit],
            symmetric=False,
            eval_X=pipeline[0].fit(customers.iloc[fit]).transform(customers.iloc[stop]),
            eval_y=churned.iloc[stop],
            callbacks=[early_stopping(PATIENCE, verbose=False)],
        )
        return pipeline[-1].best_iteration_, pipeline[-1].best_score_["valid_0"]["binary_logloss"]

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # LightGBM gives the GIL away
        trees, losses = zip(*threads.map(fit_fold, SEARCH_FOLDS.split(customers, churned)), strict=True)
    return round(1.25 * mean(trees)), mean(losses)


def best_threshold(churned: "pd.Series[int]", probabilities: Probabilities) -> float:
    """Return the hundredth with the best F1."""
    hundredths = [hundredth / 100 for hundredth in range(1, 100)]
    return max(hundredths, key=lambda threshold: metrics.f1_score(churned, probabilities >= threshold))


def score(churned: "pd.Series[int]", probabilities: Probabilities, threshold: float) -> dict[str, float]:
    """Return how well n probabilities predict who churned; for decisions, `threshold` and more is churn."""
    decisions = probabilities >= threshold
    scores = {
        "roc_auc": metrics.roc_auc_score(churned, probabilities),
        "average_precision": metrics.average_precision_score(churned, probabilities),
        "f1": metrics.f1_score(churned, decisions),
        "precision": metrics.precision_score(churned, decisions),
        "recall": metrics.recall_score(churned, decisions),
        "accuracy": metrics.accuracy_score(churned, decisions),
        "brier": metrics.brier_score_loss(churned, probabilities),
        "log_loss": metrics.log_loss(churned, probabilities),
        "calibration_error": calibration_error(churned, probabilities),
    }
    return {name: round(float(value), 6) for name, value in scores.items()}


def calibration_error(churned: "pd.Series[int]", probabilities: Probabilities) -> float:
    """Return by how much probability and share of churners differ, in the mean over ten bins of equal width."""
    bins = np.minimum((probabilities * 10).astype(int), 9)
    return float(np.abs(np.bincount(bins, probabilities - churned.to_numpy())).sum() / len(churned))


def calibrate(churned: "pd.Series[int]", probabilities: Probabilities) -> tuple[Probabilities, dict[str, float]]:
    """Return the probabilities on the best straight line through the log-odds (Platt's), the line, and what it gains.

    The gain is that of lines fitted on other folds.
    """
    log_odds = np.log(probabilities / (1 - probabilities)).reshape(-1, 1)
    line = LogisticRegression(C=np.inf)
    unseen = cross_val_predict(line, log_odds, churned, cv=FOLDS, method="predict_proba")[:, 1]
    line.fit(log_odds, churned)
    values = {
        "slope": line.coef_.item(),
        "intercept": line.intercept_.item(),
        "log_loss_before": metrics.log_loss(churned, probabilities),
        "log_loss_after": metrics.log_loss(churned, unseen),
        "calibration_error_before": calibration_error(churned, probabilities),
        "calibration_error_after": calibration_error(churned, unseen),
    }
    return line.predict_proba(log_odds)[:, 1], {name: round(float(value), 6) for name, value in values.items()}


def search_parameters(data: Path, trials: int, study_folder: Path) -> dict[str, Any]:
    """Search with the training part of `SPLIT` alone; trials that are kept in the folder are not made again."""
    from celery_task_app.ml.search import open_study, search  # noqa: PLC0415 - only they need Optuna

    customers, churned, sha256 = read_data_set(data)
    fitted, _, fitted_churned, _ = train_test_split(customers, churned, **SPLIT)
    study_file = study_folder / f"search-{sha256[:12]}.log"
    logger.info("searching trials=%d, kept in %s", trials, study_file)
    found = search(open_study(study_file), trials, partial(cross_validate, fitted, fitted_churned))
    if found != PARAMETERS:
        logger.warning("found what --quick does not use: put it into PARAMETERS of %s: %s", Path(__file__).name, found)
    return found


def train(data: Path, out: Path, parameters: dict[str, Any] = PARAMETERS) -> dict[str, Any]:
    """Fit on 80 % of the customers, score on the others, write that model as `churn.joblib` and return its manifest.

    The manifest is written last, as `churn.json`: a model that was only half replaced is refused by its SHA-256.

    Raises:
        DataSetError: the data can't be used.
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
        "version": sha256[:12],  # no one can forget to count it up, and two models never share it
        "created": datetime.now(UTC).date().isoformat(),
        "sha256": sha256,
        **CARD,
        "target": {"name": TARGET, "classes": dict(enumerate(CLASSES))},
        "scores": shipped.scores,
        "spread": {"seeds": SPREAD_SEEDS, "mean": _across(others, mean), "deviation": _across(others, stdev)},
        "threshold": shipped.threshold,
        "calibration": {"method": "Platt, out of fold", **shipped.calibration},
        "training": {
            "data": SOURCE,
            "data_sha256": data_sha256,
            "rows": len(customers),
            "rows_fitted": len(shipped.fitted),
            "rows_scored": len(shipped.held_out),
            "split": SPLIT,
            "copies": COPIES,  # of each customer
            "blur": BLUR,  # of them, in standard deviations of each number
        },
        "parameters": FIXED_PARAMETERS | parameters,
        "catboost_parameters": CATBOOST_PARAMETERS,
        "libraries": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
        "features": [_describe(shipped.fitted[feature], kind) for feature, kind in FEATURES.items()],
        "explains": True,
        "golden": golden_rows(shipped),
    }
    out.mkdir(parents=True, exist_ok=True)
    _write(out / f"{NAME}.joblib", content.getvalue())
    _write(out / f"{NAME}.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def _across(splits: list[dict[str, float]], statistic: Callable[[list[float]], float]) -> dict[str, float]:
    return {name: round(statistic([scores[name] for scores in splits]), 6) for name in splits[0]}


def golden_rows(trained: Trained, rows: int = 5) -> list[dict[str, Any]]:
    """Return customers held out, from the least to the most likely to churn, and what the model says of each."""
    probabilities = trained.pipeline.predict_proba(trained.held_out)[:, 1]
    chosen = np.argsort(probabilities, kind="stable")[np.linspace(0, len(probabilities) - 1, rows).astype(int)]
    customers = trained.held_out.iloc[chosen].to_dict("records")
    return [
        {"customer": customer, "probability": float(probability)}
        for customer, probability in zip(customers, probabilities[chosen], strict=True)
    ]


def _describe(column: "pd.Series[Any]", kind: str) -> dict[str, Any]:
    if kind == "category":
        return {"name": column.name, "type": kind, "categories": sorted(column.unique())}
    return {"name": column.name, "type": kind, "minimum": column.min().item(), "maximum": column.max().item()}


def _write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)


def main() -> None:
    """Read the command line, search, train, and say how good the model is."""
    parser = argparse.ArgumentParser(description="Train the churn model.")
    parser.add_argument("--data", type=Path, required=True, help=f"BankChurners.csv, from {SOURCE}")
    parser.add_argument("--out", type=Path, required=True, help="the folder for churn.joblib and churn.json")
    parser.add_argument("--quick", action="store_true", help="use the parameters in this file, without a search")
    parser.add_argument("--trials", type=int, default=TRIALS, help="of the search (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        parameters = (
            PARAMETERS if arguments.quick else search_parameters(arguments.data, arguments.trials, STUDY_FOLDER)
        )
        manifest = train(arguments.data, arguments.out, parameters)
    except DataSetError as error:
        sys.exit(f"error: {error}")
    logger.info("model %s version=%s written to %s", NAME, manifest["version"], arguments.out)
    logger.info("scores %s", " ".join(f"{name}={value:.4f}" for name, value in manifest["scores"].items()))


if __name__ == "__main__":
    main()
