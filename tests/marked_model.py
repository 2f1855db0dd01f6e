"""A model for tests: the probability is Total_Trans_Ct / 1000, and customers of marked ages make it fail or linger."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

KILLS, HANGS, SLEEPS, IS_NAN, RAISES, HAS_NO_SHAPE, LINGERS = 120, 119, 118, 117, 116, 115, 114


class MarkedModel:
    classes_ = (0, 1)

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        churn = customers["Total_Trans_Ct"].to_numpy(dtype=float) / 1000
        for age in customers["Customer_Age"]:
            if age == KILLS:
                os._exit(1)
            if age in (SLEEPS, LINGERS):
                time.sleep(60 if age == SLEEPS else 1)
            while age == HANGS:  # deaf to the soft time limit, as C code may be
                with contextlib.suppress(Exception):
                    time.sleep(60)
            if age == RAISES:
                raise ValueError(f"a customer's value in an error: {age}")
            if age == HAS_NO_SHAPE:
                return churn
        return np.column_stack((1 - churn, np.where(customers["Customer_Age"] == IS_NAN, np.nan, churn)))


class SlowModel(MarkedModel):
    """Takes so long that a small load is too much."""

    PER_CUSTOMER_S = 0.02

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        time.sleep(len(customers) * self.PER_CUSTOMER_S)
        return super().predict_proba(customers)


class SlowToLoad:
    """What takes longer to unpickle than tests/impatient_worker.py gives it."""

    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (5,)


def save(folder: Path, model: MarkedModel = MarkedModel()) -> Path:  # noqa: B008 - it never changes
    path = folder / "marked.joblib"
    joblib.dump(model, path)
    return path
