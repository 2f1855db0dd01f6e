"""The shipped model, and a small table like BankChurners.csv. Nothing is trained here: see tests/integration/ml."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from celery_task_app.ml.model import ChurnModel
from tests.harness.processes import ROOT
from tests.harness.synthetic_customers import as_json_rows, make_table


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    """Customers, most of whom left if their number of transactions is low."""
    return make_table()


@pytest.fixture(scope="session")
def customers(table: pd.DataFrame) -> list[dict[str, object]]:
    """64 customers of the table, with the types that JSON has."""
    return as_json_rows(table.head(64))


@pytest.fixture(scope="session")
def trained() -> Path:
    """The folder with the shipped model and its manifest. Read only."""
    return ROOT / "celery_task_app" / "ml" / "artifacts"


@pytest.fixture(scope="session")
def model(trained: Path) -> ChurnModel:
    return ChurnModel(trained / "churn.joblib")


@pytest.fixture
def artifact(trained: Path, tmp_path: Path) -> Path:
    """The path of a copy of the shipped model with its manifest, which the test may modify."""
    return Path(shutil.copytree(trained, tmp_path / "artifacts")) / "churn.joblib"


@pytest.fixture(scope="session")
def shipped(trained: Path) -> Path:
    """The model that the service ships."""
    return trained / "churn.joblib"
