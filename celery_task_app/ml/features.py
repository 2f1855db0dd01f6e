"""The pipeline of the shipped model, and its two steps. Its training is in train.py.

Unpickling a model imports this module and nothing that only training needs. The steps exist for speed: they add 0.06 ms
to the prediction of one customer; a ColumnTransformer and LGBMClassifier add 2.4 ms.

The model file refers to the three classes by name, so renaming one needs a new model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from lightgbm import Booster, LGBMClassifier
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline

Matrix = NDArray[np.float64]
Columns = pd.DataFrame | Mapping[str, Any]
"""Customers: feature name to the n customers' values."""

COPIES = 4
"""Number of copies of each customer that the pipeline is fitted on."""
BLUR = 0.01
"""Standard deviation of the noise in the copies, in standard deviations of each numeric feature."""


class FeatureEncoder(TransformerMixin, BaseEstimator):
    """Convert raw customers to floats: numbers stay (trees need no scaling), categories become codes.

    A feature's most frequent category has code 0. A category that training did not see has code -1; a tree sends -1
    and 0 to the same side of each split. So an unknown category is predicted as the most frequent one.
    """

    def fit(self, customers: pd.DataFrame, _churned: object = None) -> Self:
        """Learn the names and order of the features, and the categories of each feature that is not numeric.

        Args:
            customers: n rows of raw features, one column for each feature.

        Returns:
            The encoder.
        """
        self.feature_names_in_ = customers.columns.to_numpy(dtype=object)
        self.codes_ = {
            position: {category: code for code, category in enumerate(customers[name].value_counts().index)}
            for position, name in enumerate(customers)
            if not pd.api.types.is_numeric_dtype(customers[name])
        }
        return self

    def transform(self, customers: Columns) -> Matrix:
        """Encode customers.

        Args:
            customers: n customers; columns that training did not see are ignored.

        Returns:
            n rows of floats, with one column for each feature in the order of the training data.
        """
        names, codes_by_position = self.feature_names_in_, self.codes_
        matrix = np.empty((len(customers[names[0]]), len(names)))
        for position, name in enumerate(names):
            column, codes = customers[name], codes_by_position.get(position)
            matrix[:, position] = column if codes is None else [codes.get(category, -1) for category in column]
        return matrix

    def transform_blurred(self, customers: pd.DataFrame, seed: int) -> Matrix:
        """Encode `COPIES` copies of the customers, and add normal noise to the numeric features of each copy.

        Args:
            customers: n rows of raw features.
            seed: the seed of the noise.

        Returns:
            `COPIES` times n rows of floats: all customers of the first copy, then all of the second, and so on.
        """
        matrix = self.transform(customers)
        numeric = [position for position in range(matrix.shape[1]) if position not in self.codes_]
        noise = np.zeros((COPIES, *matrix.shape))
        noise[:, :, numeric] = np.random.default_rng(seed).normal(
            scale=BLUR * matrix[:, numeric].std(axis=0), size=(COPIES, len(matrix), len(numeric))
        )
        return (matrix + noise).reshape(-1, matrix.shape[1])


class LeanLGBMClassifier(LGBMClassifier):
    """LightGBM's classifier without the 0.35 ms that its scikit-learn layer adds to each prediction."""

    def predict_proba(self, X: Matrix, *args: Any, **options: Any) -> Any:  # noqa: N803 - scikit-learn's name
        """Return the probabilities of both classes, bit for bit as LGBMClassifier does.

        Args:
            X: n rows of floats.
            args: further arguments of LGBMClassifier's method, which then predicts.
            options: as `args`.

        Returns:
            An array of shape (n, 2); the second column is the probability of churn.
        """
        if args or options:
            return super().predict_proba(X, *args, **options)
        churn = np.asarray(self.booster_.predict(X, num_threads=1))
        return np.column_stack((1.0 - churn, churn))

    def average(self, trees: Sequence[str]) -> None:
        """Replace the booster by one whose log-odds are the mean of the booster's and of other trees' log-odds.

        The new booster contains both sets of trees alternately, with half of each leaf's output.

        Args:
            trees: the other trees in LightGBM's text format; their outputs add up to log-odds.

        Raises:
            VersionMismatch: the installed LightGBM writes another text format.
        """
        from celery_task_app.ml.catboost_trees import splice_trees  # noqa: PLC0415 - imports CatBoost, for training only

        # LGBMClassifier has no public way to set its booster.
        self._Booster = Booster(model_str=splice_trees(self.booster_.model_to_string(), trees))
        self.calibrate(0.5, 0.0)

    def calibrate(self, slope: float, intercept: float) -> None:
        """Replace the log-odds x by `slope` * x + `intercept`.

        The outputs of the leaves change, so that a prediction takes no longer and contributions still add up.
        """
        trees = self.booster_.dump_model()["tree_info"]
        for tree in trees:
            for leaf in range(tree["num_leaves"]):
                output = self.booster_.get_leaf_output(tree["tree_index"], leaf)
                output = slope * output + intercept / len(trees)
                self.booster_.set_leaf_output(tree["tree_index"], leaf, output)


class ChurnPipeline(Pipeline):
    """FeatureEncoder and LeanLGBMClassifier. Besides a DataFrame it takes a mapping of columns, which is faster."""

    takes_columns = True
    """Tells ChurnModel that the pipeline needs no DataFrame."""

    def fit(self, customers: pd.DataFrame, churned: Any, *, with_catboost: bool = True, **options: Any) -> Self:
        """Fit on blurred copies of the customers, so that no split depends on one customer's exact values.

        Args:
            customers: n rows of raw features.
            churned: n times 1 (left) or 0 (stayed).
            with_catboost: whether to average with the same number of CatBoost's trees, fitted on other blurred copies.
            options: further arguments of LightGBM's `fit`.

        Returns:
            The pipeline.

        Raises:
            VersionMismatch: the installed LightGBM writes a text format that CatBoost's trees cannot be added to.
        """
        encoder, classifier, copies = self[0].fit(customers), self[-1], np.tile(churned, COPIES)
        classifier.fit(encoder.transform_blurred(customers, 0), copies, **options)
        if with_catboost:
            from celery_task_app.ml.catboost_trees import fit_catboost_trees  # noqa: PLC0415 - as in `average`

            trees = fit_catboost_trees(encoder.transform_blurred(customers, 1), copies, classifier.n_estimators)
            classifier.average(trees)
        return self

    def predict_proba(self, customers: Columns) -> Any:
        """Return the probabilities of both classes.

        Args:
            customers: n customers with raw features.

        Returns:
            An array of shape (n, 2); the second column is the probability of churn.
        """
        return self[-1].predict_proba(self[0].transform(customers))

    def contributions(self, customers: Columns) -> Matrix:
        """Return the SHAP values of each customer's log-odds.

        Args:
            customers: n customers with raw features.

        Returns:
            n rows: one log-odds contribution for each feature, and last the base. Each row adds up to the log-odds.
        """
        return np.asarray(self[-1].booster_.predict(self[0].transform(customers), pred_contrib=True, num_threads=1))
