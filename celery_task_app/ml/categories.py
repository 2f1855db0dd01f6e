"""The columns that a pipeline wants as pandas categories.

LightGBM and XGBoost record them if they were fitted on such columns, and refuse text in their place. Both also record
the categories and convert those of a table, so the categories of a column need not be complete. Other libraries take
text.
"""

from typing import Any

from celery_task_app.errors import ModelError


def categorical_columns(pipeline: Any) -> list[str]:
    """Return the names of the columns that the classifier in a pipeline wants as pandas categories.

    Args:
        pipeline: a fitted classifier, a scikit-learn pipeline that ends with one, or a search, vote, stack or
            calibration of scikit-learn over such classifiers.

    Raises:
        ModelError: a classifier has such columns, and did not record their categories.
    """
    if getattr(getattr(pipeline, "booster_", None), "pandas_categorical", None):
        return _of_lightgbm(pipeline.booster_)
    if hasattr(pipeline, "get_booster"):
        return _of_xgboost(pipeline.get_booster())
    return list(dict.fromkeys(name for inner in _inner(pipeline) for name in categorical_columns(inner)))


def _inner(classifier: Any) -> list[Any]:
    """Return the classifiers that another one consists of."""
    if hasattr(classifier, "steps"):  # Pipeline
        return [classifier.steps[-1][1]]
    if calibrated := getattr(classifier, "calibrated_classifiers_", None):  # CalibratedClassifierCV
        return [calibrated[0].estimator]
    if isinstance(several := getattr(classifier, "estimators_", None), list):  # VotingClassifier, StackingClassifier
        return several
    names = ("best_estimator_", "estimator_")  # GridSearchCV, TunedThresholdClassifierCV
    return [getattr(classifier, name) for name in names if hasattr(classifier, name)]


def _of_lightgbm(booster: Any) -> list[str]:
    """Read the header of the model's text: a number has the range `[a:b]`, a category has the codes `0:1:2`."""
    header = booster.model_to_string(num_iteration=1).splitlines()
    infos = next(line.removeprefix("feature_infos=") for line in header if line.startswith("feature_infos=")).split(" ")
    names = booster.feature_name()
    return [name for name, info in zip(names, infos, strict=True) if info != "none" and not info.startswith("[")]


def _of_xgboost(booster: Any) -> list[str]:
    types, names = booster.feature_types or [], booster.feature_names or []
    found = [name for name, kind in zip(names, types, strict=False) if kind == "c"]
    if found and not hasattr(booster, "get_categories"):
        raise ModelError(
            f"This XGBoost does not record the categories of {', '.join(found)}: use XGBoost 3.1 or newer, or encode "
            "these columns in the pipeline"
        )
    return found
