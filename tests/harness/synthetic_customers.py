"""A small data set like BankChurners.csv, made at random from a fixed seed."""

import json
from typing import Any

import numpy as np
import pandas as pd

from celery_task_app.ml.data_set import CLASSES, FEATURES, TARGET
from tests.harness import customers

ROWS = 400
QUICK = {"n_estimators": 30}  # parameters of LightGBM: enough trees for so few customers
CATEGORIES: dict[str, list[str]] = {
    name: feature["enum"] for name, feature in customers.FEATURES.items() if "enum" in feature
}


def make_table() -> pd.DataFrame:
    """Return customers, most of whom left if their number of transactions is low."""
    random = np.random.default_rng(seed=11)
    columns: dict[str, Any] = {"CLIENTNUM": np.arange(ROWS)}
    for feature, kind in FEATURES.items():
        if kind == "category":
            columns[feature] = random.choice(CATEGORIES[feature], ROWS)
        elif kind == "integer":
            schema = customers.FEATURES[feature]
            columns[feature] = random.integers(schema["minimum"], min(schema["maximum"], 100), ROWS)
        else:
            columns[feature] = random.random(ROWS).round(3)
    churned = columns["Total_Trans_Ct"] + random.normal(0, 10, ROWS) < 30
    columns[TARGET] = np.where(churned, CLASSES[1], CLASSES[0])
    columns["Naive_Bayes_1"] = churned.astype(float)
    return pd.DataFrame(columns)


def as_json_rows(table: pd.DataFrame) -> list[dict[str, object]]:
    """Return the features of each customer, with the types that JSON has."""
    rows: list[dict[str, object]] = json.loads(table[list(FEATURES)].to_json(orient="records"))
    return rows
