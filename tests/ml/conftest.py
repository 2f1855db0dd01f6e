"""A small data set with the columns of BankChurners.csv, a model trained on it, and the real ones."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from celery_task_app.ml.train import CLASSES, FEATURES, TARGET, train

ROOT = Path(__file__).parents[2]
ROWS = 400
QUICK = {"n_estimators": 30}  # trees are enough for 400 customers
CATEGORIES = {
    "Gender": ["F", "M"],
    "Education_Level": ["Graduate", "High School", "Uneducated", "Unknown"],
    "Marital_Status": ["Married", "Single", "Unknown"],
    "Income_Category": ["Less than $40K", "$40K - $60K", "$120K +"],
    "Card_Category": ["Blue", "Silver"],
}


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    """Customers who leave when they use their card seldom, mostly."""
    random = np.random.default_rng(seed=11)
    columns = {"CLIENTNUM": np.arange(ROWS)}
    for feature, kind in FEATURES.items():
        if kind == "category":
            columns[feature] = random.choice(CATEGORIES[feature], ROWS)
        elif kind == "integer":
            columns[feature] = random.integers(0, 100, ROWS)
        else:
            columns[feature] = random.random(ROWS).round(3)
    churned = columns["Total_Trans_Ct"] + random.normal(0, 10, ROWS) < 30
    columns[TARGET] = np.where(churned, CLASSES[1], CLASSES[0])
    columns["Naive_Bayes_1"] = churned.astype(float)
    return pd.DataFrame(columns)


@pytest.fixture(scope="session")
def customers(table: pd.DataFrame) -> list[dict[str, object]]:
    return table[list(FEATURES)].head(64).to_dict("records")


@pytest.fixture(scope="session")
def csv(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "BankChurners.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def trained(csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that training wrote. Read only: the session shares it."""
    out = tmp_path_factory.mktemp("artifacts")
    train(csv, out, QUICK)
    return out


@pytest.fixture
def artifact(trained: Path, tmp_path: Path) -> Path:
    """A trained model of the test's own, its manifest beside it."""
    return Path(shutil.copytree(trained, tmp_path / "artifacts")) / "churn.joblib"


@pytest.fixture(scope="session")
def committed() -> Path:
    """The model that the service ships."""
    return ROOT / "celery_task_app" / "ml" / "artifacts" / "churn.joblib"


@pytest.fixture(scope="session")
def real_csv() -> Path:
    """The file that the shipped model was trained on, which is not in the repository."""
    path = Path(os.environ.get("DATA", ROOT / "BankChurners.csv"))
    if not path.is_file():
        reason = f"NOT CHECKED that training reproduces the shipped scores: no {path}; set DATA to BankChurners.csv"
        if "DATA" in os.environ and os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
