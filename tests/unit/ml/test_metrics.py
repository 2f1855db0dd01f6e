import numpy as np
import pandas as pd
import pytest

from celery_task_app.ml.metrics import best_threshold, calibration_error, score


def test_scores_match_a_calculation_by_hand() -> None:
    scores = score(pd.Series([1, 1, 0, 0]), np.array([0.9, 0.4, 0.5, 0.1]), threshold=0.5)

    assert scores["precision"] == scores["recall"] == scores["f1"] == scores["accuracy"] == 0.5
    assert scores["roc_auc"] == 0.75
    assert scores["brier"] == round((0.1**2 + 0.6**2 + 0.5**2 + 0.1**2) / 4, 6)


def test_the_calibration_error_is_the_mean_difference_over_ten_bins() -> None:
    churned, probabilities = pd.Series([1, 0, 1, 1]), np.array([0.05, 0.05, 0.95, 1.0])

    assert calibration_error(churned, probabilities) == pytest.approx((2 * abs(0.05 - 0.5) + 2 * abs(0.975 - 1)) / 4)


def test_the_threshold_has_the_best_f1() -> None:
    churned, probabilities = pd.Series([1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.31, 0.3, 0.1])

    assert best_threshold(churned, probabilities) == 0.31
