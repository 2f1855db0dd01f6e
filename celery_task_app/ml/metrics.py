"""The quality of n probabilities of churn: scores, the threshold for decisions, and calibration. It fits no trees."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

if TYPE_CHECKING:
    import pandas as pd

Probabilities = NDArray[np.float64]
"""n probabilities of churn in [0, 1]."""


def score(churned: "pd.Series[int]", probabilities: Probabilities, threshold: float) -> dict[str, float]:
    """Return the scores of a prediction, rounded to six digits.

    Args:
        churned: n times 1 (left) or 0 (stayed).
        probabilities: n probabilities of churn.
        threshold: the lowest probability that counts as churn, for the scores of decisions.
    """
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
    """Return the expected calibration error over ten bins of equal width.

    The error is the mean difference of a bin's probabilities and its share of churners, weighted by customers.
    """
    bins = np.minimum((probabilities * 10).astype(int), 9)
    return float(np.abs(np.bincount(bins, probabilities - churned.to_numpy())).sum() / len(churned))


def best_threshold(churned: "pd.Series[int]", probabilities: Probabilities) -> float:
    """Return the threshold with the best F1 among 0.01, 0.02, ..., 0.99."""
    hundredths = [hundredth / 100 for hundredth in range(1, 100)]
    return max(hundredths, key=lambda threshold: metrics.f1_score(churned, probabilities >= threshold))


def fit_platt_scaling(
    churned: "pd.Series[int]", probabilities: Probabilities, folds: StratifiedKFold
) -> tuple[Probabilities, dict[str, float]]:
    """Fit a straight line through the log-odds (Platt scaling).

    Args:
        churned: n times 1 (left) or 0 (stayed).
        probabilities: n out-of-fold probabilities of churn.
        folds: the folds to measure the gain with; the line of each fold is fitted on the other folds.

    Returns:
        The n calibrated probabilities; and the line's slope and intercept, and the losses before and after.
    """
    log_odds = np.log(probabilities / (1 - probabilities)).reshape(-1, 1)
    line = LogisticRegression(C=np.inf)
    unseen = cross_val_predict(line, log_odds, churned, cv=folds, method="predict_proba")[:, 1]
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
