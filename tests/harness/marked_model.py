"""A model for tests: the probability is Total_Trans_Ct / 1000; customers of marked ages fail or take long."""

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

KILLS, HANGS, SLEEPS, IS_NAN, RAISES, HAS_NO_SHAPE, LINGERS, EXITS = 120, 119, 118, 117, 116, 115, 114, 113


class MarkedModel:
    """A classifier with a defect for each of the ages above."""

    classes_ = (0, 1)

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        churn = customers["Total_Trans_Ct"].to_numpy(dtype=float) / 1000
        for age in customers["Customer_Age"]:
            if age == KILLS:
                os._exit(1)
            if age in (SLEEPS, LINGERS):
                time.sleep(60 if age == SLEEPS else 1)
            while age == HANGS:  # C code may ignore the soft time limit, too.
                with contextlib.suppress(Exception):
                    time.sleep(60)
            if age == RAISES:
                raise ValueError(f"a customer's value in an error: {age}, {customers.to_dict()}")
            if age == EXITS:
                raise SystemExit(f"a customer's value in an error: {age}, {customers.to_dict()}")
            if age == HAS_NO_SHAPE:
                return churn
        return np.column_stack((1 - churn, np.where(customers["Customer_Age"] == IS_NAN, np.nan, churn)))


@dataclass
class SlowModel(MarkedModel):
    """A model that a small load keeps busy.

    Attributes:
        per_customer_s: seconds for each customer.
        has_begun: this file is created when the model begins to predict.
    """

    per_customer_s: float = 0.02
    has_begun: Path | None = None

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        if self.has_begun is not None:
            self.has_begun.touch()
        time.sleep(len(customers) * self.per_customer_s)
        return super().predict_proba(customers)


@dataclass
class ExplainingModel(SlowModel):
    """A model whose reasons are all zero; `save_explaining` writes its manifest."""

    per_customer_s: float = 0

    def contributions(self, customers: pd.DataFrame) -> np.ndarray:
        return np.zeros((len(customers), len(customers.columns) + 1))


class InvertedModel(SlowModel):
    """A model whose probability is 1 - Total_Trans_Ct / 1000."""

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        return super().predict_proba(customers)[:, ::-1]


@dataclass
class SlowToLoad(MarkedModel):
    """A model that takes seconds to unpickle."""

    seconds: float = 5

    def __reduce__(self) -> tuple[Callable[[float], MarkedModel], tuple[float]]:
        return load_slowly, (self.seconds,)


def load_slowly(seconds: float) -> MarkedModel:
    time.sleep(seconds)
    return MarkedModel()


class KillsWhileLoading:
    """An object whose unpickling kills the process, as the kernel does at a memory limit."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return kill_this_process, ()


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class BreaksModel(MarkedModel):
    """A model that predicts no customer while a file exists.

    Attributes:
        broken: the file.
    """

    broken: Path

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        if self.broken.exists():
            raise RuntimeError("the model is broken")
        return super().predict_proba(customers)


def save(folder: Path, model: object = None, name: str = "marked.joblib") -> Path:
    """Write a model without a manifest; return its path."""
    path = folder / name
    joblib.dump(model or MarkedModel(), path)
    return path


def save_explaining(folder: Path, version: str, model: ExplainingModel) -> Path:
    """Write a model with a manifest, which has the two features that the model uses; return the path of the model."""
    path = save(folder, model)
    manifest = {
        "name": "marked",
        "version": version,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "libraries": {},
        "features": [{"name": name, "type": "integer"} for name in ("Customer_Age", "Total_Trans_Ct")],
        "explains": True,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return path
