"""The pipeline and its two steps, in a module of their own: unpickling the model must not import what trains it.

They are here for speed: one customer costs them 0.06 ms; a ColumnTransformer and LGBMClassifier alone cost 2.4 ms.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, Self

import numpy as np
import pandas as pd
from lightgbm import Booster, LGBMClassifier
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline

Matrix = NDArray[np.float64]
COPIES, BLUR = 4, 0.01
Columns = pd.DataFrame | Mapping[str, Any]
"""Customers: each feature's values by its name."""


class FeatureEncoder(TransformerMixin, BaseEstimator):
    """Turn raw customers into floats: numbers as they are (trees need no scaling), categories as codes.

    A feature's most frequent category has code 0. One that was not seen in training gets -1, which every split of a
    tree sends where it sends 0: an unknown category is predicted as the most frequent one.
    """

    def fit(self, customers: pd.DataFrame, _churned: object = None) -> Self:
        """Learn the features' names and order, and the categories of those that are not numbers."""
        self.feature_names_in_ = customers.columns.to_numpy(dtype=object)
        self.codes_ = {
            position: {category: code for code, category in enumerate(customers[name].value_counts().index)}
            for position, name in enumerate(customers)
            if not pd.api.types.is_numeric_dtype(customers[name])
        }
        return self

    def transform(self, customers: Columns) -> Matrix:
        """Return n rows of floats, one column for each feature in the order of the training data."""
        names = self.feature_names_in_
        matrix = np.empty((len(customers[names[0]]), len(names)))
        for position, name in enumerate(names):
            column, codes = customers[name], self.codes_.get(position)
            matrix[:, position] = column if codes is None else [codes.get(category, -1) for category in column]
        return matrix

    def blurred(self, customers: pd.DataFrame, seed: int) -> Matrix:
        """Return `COPIES` times n rows in which each number is off by `BLUR` of its standard deviation, at random."""
        matrix = self.transform(customers)
        numbers = [position for position in range(matrix.shape[1]) if position not in self.codes_]
        off = np.zeros((COPIES, *matrix.shape))
        off[:, :, numbers] = np.random.default_rng(seed).normal(
            scale=BLUR * matrix[:, numbers].std(axis=0), size=(COPIES, len(matrix), len(numbers))
        )
        return (matrix + off).reshape(-1, matrix.shape[1])


class LeanLGBMClassifier(LGBMClassifier):
    """LightGBM's classifier without the 0.35 ms that its scikit-learn layer adds to every prediction."""

    def predict_proba(self, X: Matrix, *args: Any, **options: Any) -> Any:  # noqa: N803 - scikit-learn's name
        """Return each row's two probabilities: the very bits that LGBMClassifier returns."""
        if args or options:
            return super().predict_proba(X, *args, **options)
        churn = np.asarray(self.booster_.predict(X, num_threads=1))
        return np.column_stack((1.0 - churn, churn))

    def average(self, others: Sequence[str]) -> None:
        """Become one booster whose log-odds are the mean of its own and of what other trees add up to.

        It has the trees of both in turns, as many as there are, and half of each leaf.

        Args:
            others: trees in LightGBM's text format.
        """
        head, own, foot = re.split(r"tree_sizes=.*\n+(?=Tree=0\n)|(?=end of trees)", self.booster_.model_to_string())
        trees = re.split(r"(?=^Tree=)", own, flags=re.MULTILINE)[1:]  # the sizes, which are left out, are optional
        mixed = "".join(chain.from_iterable(zip_longest(trees, others, fillvalue="")))
        self._Booster = Booster(model_str=f"{head}\n{mixed}{foot}")
        self.calibrate(0.5, 0.0)

    def calibrate(self, slope: float, intercept: float) -> None:
        """Move the log-odds onto a line. It is done in the leaves: serving pays nothing, and contributions add up."""
        trees = self.booster_.dump_model()["tree_info"]
        for tree in trees:
            for leaf in range(tree["num_leaves"]):
                output = self.booster_.get_leaf_output(tree["tree_index"], leaf)
                output = slope * output + intercept / len(trees)
                self.booster_.set_leaf_output(tree["tree_index"], leaf, output)


class ChurnPipeline(Pipeline):
    """The two steps, which take a DataFrame as every pipeline does, and leaner: a mapping of each feature's values."""

    takes_columns = True
    """Whether ChurnModel may save itself the making of a DataFrame."""

    def fit(self, customers: pd.DataFrame, churned: Any, *, symmetric: bool = True, **options: Any) -> Self:
        """Fit on blurred copies of the customers, so that no split of a tree hangs on one customer's exact figures.

        Args:
            customers: n rows of raw features.
            churned: n times 1 or 0.
            symmetric: average with as many of CatBoost's trees, fitted on copies that are blurred otherwise.
            options: of LightGBM's fit.
        """
        encoder, classifier, copies = self[0].fit(customers), self[-1], np.tile(churned, COPIES)
        classifier.fit(encoder.blurred(customers, 0), copies, **options)
        if symmetric:
            from celery_task_app.ml.symmetric import symmetric_trees  # noqa: PLC0415 - only training has CatBoost

            classifier.average(symmetric_trees(encoder.blurred(customers, 1), copies, classifier.n_estimators))
        return self

    def predict_proba(self, customers: Columns) -> Any:
        """Return each customer's two probabilities."""
        return self[-1].predict_proba(self[0].transform(customers))

    def contributions(self, customers: Columns) -> Matrix:
        """Return for each customer what each feature adds to the log-odds, and last what they start from (SHAP)."""
        return np.asarray(self[-1].booster_.predict(self[0].transform(customers), pred_contrib=True, num_threads=1))
