"""ChurnModel: predicts churn with the pipeline of a model file. It knows no Celery, no HTTP and no environment.

Importing this module loads no ML library, so a process can import it and fork afterwards.
"""

import logging
import math
from array import array
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_task_app.errors import (
    ArtifactCorrupt,
    FeatureMismatch,
    GoldenRowMismatch,
    InvalidPrediction,
    ModelError,
    PredictionError,
    SchemaMismatch,
    TrialFailed,
)
from celery_task_app.ml.artifact import load_artifact
from celery_task_app.ml.categories import categorical_columns
from celery_task_app.ml.schema import CustomerSchema, schema_differences, unused_features

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Features = Mapping[str, object]
"""One customer: feature name to value."""

_REASONS_MAX = 3  # in each direction
_CHURN_CLASSES = (1, "Attrited Customer")  # True is equal to 1
_NUMBERS = ("integer", "number")
_GOLDEN_TOLERANCE = 1e-6  # processors round differently


class ChurnModel:
    """A binary classifier that predicts churn, loaded from a joblib file.

    The pipeline in the file is any object with `predict_proba` over a DataFrame of customers. The file is checked
    against its manifest (same name, `.json`) before it is unpickled.

    Args:
        path: the model file.
        schema: the features that the API asks for, and an example; None if they are unknown.
        check: whether to call `try_out` now.

    Attributes:
        artifact: the checked file and its manifest.
        name: of the model.
        version: of the model.
        features: the names of the columns that the pipeline takes, in its order; empty if it did not record them.
        classes: the labels of the pipeline's classes.
        example: a customer for the trial if there are no golden rows; it may be set later.
        explains: whether the manifest says that the model gives reasons.
        can_explain: whether the pipeline can give reasons.

    Raises:
        ArtifactMissing: the model file does not exist.
        ArtifactCorrupt: the model file or its manifest is damaged, or the file contains no such pipeline.
        VersionMismatch: the model was made with another version of scikit-learn or LightGBM.
        SchemaMismatch: the features of the manifest differ from those of the schema.
        TrialFailed, GoldenRowMismatch: as for `try_out`.
        ModelError: none of the pipeline's classes is churn.
    """

    def __init__(self, path: Path, schema: CustomerSchema | None = None, *, check: bool = True) -> None:
        self.artifact, pipeline = load_artifact(path)
        artifact = self.artifact
        self.name = artifact.name
        self.version = artifact.version
        self.explains = artifact.explains
        self._path = path
        self._label = f"Model {self.name} {self.version}"
        self._types = artifact.features
        self._golden = artifact.golden
        self.example = schema.example if schema else None
        self._pipeline = pipeline
        self._categorical = categorical_columns(pipeline)
        self.can_explain = hasattr(pipeline, "contributions")
        self._takes_columns = getattr(pipeline, "takes_columns", False)
        self.features = list(self._types) or list(getattr(pipeline, "feature_names_in_", ()))
        try:
            self.classes = list(getattr(pipeline, "classes_", ()))
            churn = [position for position, label in enumerate(self.classes) if label in _CHURN_CLASSES]
        except (TypeError, ValueError) as error:
            raise ModelError(f"The model at {path} has no list of classes: it must have one output") from error
        if len(churn) != 1:
            raise ModelError(f"The model at {path} has classes {self.classes}: one must be 1 or 'Attrited Customer'")
        self._churn = churn[0]
        if self.explains and not self.can_explain:
            raise ArtifactCorrupt(
                f"The manifest of {path} says that the model explains, but the model has no method `contributions`"
            )
        if schema and self._types and (differences := schema_differences(self._types, schema)):
            raise SchemaMismatch(
                f"The features in the manifest of {path} differ from those that the API asks for: "
                f"{'; '.join(differences)}. Change `Customer` in models.py, or package the model again"
            )
        if schema and self._types and (unused := unused_features(self._types, schema)):
            logger.warning("the model does not use all features of `Customer` unused=%s", ",".join(unused))
        if check:
            self.try_out()
        logger.info("model loaded name=%s version=%s path=%s", self.name, self.version, path)

    def churn_probabilities(self, customers: Sequence[Features]) -> list[float]:
        """Return each customer's probability of churn.

        Args:
            customers: n mappings of the manifest's features; amounts in US dollars. Other keys are ignored.
                The pipeline decides about unknown categories.

        Returns:
            n probabilities in [0, 1], in the given order.

        Raises:
            FeatureMismatch: a customer lacks a feature that the pipeline was trained on, or a value has another type.
            InvalidPrediction: the pipeline failed, or did not return n probabilities.
        """
        return self.column_probabilities(self._to_columns(customers)) if customers else []

    def column_probabilities(self, columns: Mapping[str, Sequence[object]]) -> list[float]:
        """Return each customer's probability of churn, as `churn_probabilities` does for customers given as rows.

        Args:
            columns: feature name to the n customers' values; amounts in US dollars. Other columns are ignored.

        Returns:
            n probabilities in [0, 1], in the order of the values.

        Raises:
            FeatureMismatch: a column that the pipeline was trained on is missing, columns have different lengths, or a
                value has another type.
            InvalidPrediction: the pipeline failed, or did not return n probabilities.
        """
        checked, count = self._check_columns(columns)
        if count == 0:
            return []
        import numpy as np  # noqa: PLC0415 - see the module's docstring

        try:
            answer = np.asarray(self._pipeline.predict_proba(self._to_table(checked)), dtype=float)
        except Exception as error:
            raise InvalidPrediction(f"{self._label} failed with {type(error).__name__}") from error
        expected = (count, len(self.classes))
        if answer.shape != expected:
            raise InvalidPrediction(f"{self._label} returned an array of shape {answer.shape}, not {expected}")
        probabilities: list[float] = answer[:, self._churn].tolist()
        if not all(0 <= probability <= 1 for probability in probabilities):  # False for NaN too
            raise InvalidPrediction(f"{self._label} returned a value that is not a probability in [0, 1]")
        return probabilities

    def reasons(self, customers: Sequence[Features]) -> list[dict[str, Any]]:
        """Return the contributions of the features to each customer's prediction, in log-odds.

        Call this method only if the model `explains`.

        Args:
            customers: n mappings of features, n >= 1, as for `churn_probabilities`.

        Returns:
            n mappings, in the given order. `base` is the same for each customer. `up` and `down` list the at most three
            features that raise and lower the log-odds most, strongest first. `others` is the sum of the remaining
            contributions. All numbers of a mapping add up to log(p / (1 - p)) of the probability p.

        Raises:
            FeatureMismatch: a customer lacks a feature that the pipeline was trained on, or a value has another type.
            InvalidPrediction: the pipeline failed.
        """
        checked, count = self._check_columns(self._to_columns(customers))
        import numpy as np  # noqa: PLC0415 - see the module's docstring

        try:
            answer = np.asarray(self._pipeline.contributions(self._to_table(checked)), dtype=float)
        except Exception as error:
            raise InvalidPrediction(f"{self._label} failed with {type(error).__name__}") from error
        expected = (count, len(self.features) + 1)
        if answer.shape != expected or not np.isfinite(answer).all():
            raise InvalidPrediction(
                f"{self._label} returned contributions of shape {answer.shape}, not finite numbers of shape {expected}"
            )
        contributions = answer.tolist()
        return [self._rank(row[:-1], row[-1]) for row in contributions]

    @property
    def has_trial(self) -> bool:
        """Whether `try_out` has a customer to predict."""
        return bool(self._golden or self.example)

    def try_out(self) -> None:
        """Predict the golden rows of the manifest; if it has none, the example of the schema.

        No client sent these customers, so the errors have the full text of the pipeline's own error.

        Raises:
            TrialFailed: a customer cannot be predicted.
            GoldenRowMismatch: a probability differs by more than 1e-6 from the manifest's.
        """
        rows = "the golden rows of its manifest" if self._golden else "the example of `Customer`"
        customers = [row.customer for row in self._golden] or ([self.example] if self.example else [])
        try:
            predicted = self.churn_probabilities(customers)
            if self.explains and customers:
                self.reasons(customers)
        except PredictionError as error:
            reason = f"{error}: {error.__cause__}" if error.__cause__ else f"{error}"
            raise TrialFailed(f"{self._path} can't predict {rows} ({reason})") from error
        for number, (probability, row) in enumerate(zip(predicted, self._golden, strict=False)):
            if not math.isclose(probability, row.probability, abs_tol=_GOLDEN_TOLERANCE):
                raise GoldenRowMismatch(
                    f"{self._path} predicts {probability} for golden row {number}, and its manifest says "
                    f"{row.probability}: the libraries or the machine compute differently; "
                    "run 'pip install -r requirements.txt', or train again here"
                )

    def _to_columns(self, customers: Sequence[Features]) -> dict[str, list[object]]:
        columns = {}
        for feature in self.features or customers[0]:
            try:
                columns[feature] = list(map(itemgetter(feature), customers))
            except KeyError as error:
                raise _missing(feature) from error
        return columns

    def _check_columns(self, columns: Mapping[str, Sequence[object]]) -> tuple[dict[str, Any], int]:
        """Return the columns in the pipeline's order and with the manifest's types, and the number of customers."""
        import numpy as np  # noqa: PLC0415 - see the module's docstring

        checked: dict[str, Any] = {}
        count = None
        for feature in self.features or columns:
            try:
                values = columns[feature]
            except KeyError as error:
                raise _missing(feature) from error
            if count is None:
                count = len(values)
            elif len(values) != count:
                raise FeatureMismatch(f"{feature} has {len(values)} values, and the columns before it have {count}")
            kind = self._types[feature].type if feature in self._types else None
            if kind in _NUMBERS:
                checked[feature] = np.frombuffer(_to_floats(feature, values))
            elif kind == "category" and not all(issubclass(found, str) for found in set(map(type, values))):
                raise FeatureMismatch(f"{feature} must be text")
            else:
                checked[feature] = values
        return checked, count or 0

    def _to_table(self, columns: dict[str, Any]) -> "pd.DataFrame | dict[str, Any]":
        """Return the columns as the pipeline takes them; a DataFrame costs 0.2 ms."""
        if self._takes_columns:
            return columns
        import pandas as pd  # noqa: PLC0415 - see the module's docstring

        table = pd.DataFrame(columns)
        for name in self._categorical:
            if name in table:
                table[name] = table[name].astype("category")
        return table

    def _rank(self, contributions: list[float], base: float) -> dict[str, Any]:
        ranked = sorted(zip(contributions, self.features, strict=True))
        down = [(log_odds, feature) for log_odds, feature in ranked[:_REASONS_MAX] if log_odds < 0]
        up = [(log_odds, feature) for log_odds, feature in ranked[: -_REASONS_MAX - 1 : -1] if log_odds > 0]
        others = sum(contributions) - sum(log_odds for log_odds, _ in up + down)
        return {"base": base, "up": _named(up), "down": _named(down), "others": others}


def _named(ranked: list[tuple[float, str]]) -> list[dict[str, Any]]:
    return [{"feature": feature, "log_odds": log_odds} for log_odds, feature in ranked]


def _missing(feature: str) -> FeatureMismatch:
    return FeatureMismatch(f"{feature} is missing, and the model was trained on it")


def _to_floats(feature: str, values: Sequence[object]) -> "array[float]":
    try:
        return array("d", values)  # type: ignore[arg-type] # refuses "5" and None, which numpy converts
    except (TypeError, OverflowError) as error:
        raise FeatureMismatch(f"{feature} must be a number") from error
