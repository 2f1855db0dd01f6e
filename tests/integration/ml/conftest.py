"""A small data set like BankChurners.csv, a model trained on it, and the real data."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from celery_task_app.ml.train import train
from tests.conftest import DATA
from tests.harness.processes import ROOT
from tests.harness.synthetic_customers import QUICK, make_table


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    """Customers, most of whom left if their number of transactions is low."""
    return make_table()


@pytest.fixture(scope="session")
def csv(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "BankChurners.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def trained(csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a trained model and its manifest. Read only, because all tests share it."""
    out = tmp_path_factory.mktemp("artifacts")
    train(csv, out, QUICK)
    return out


@pytest.fixture
def artifact(trained: Path, tmp_path: Path) -> Path:
    """The path of a copy of the trained model with its manifest, which the test may modify."""
    return Path(shutil.copytree(trained, tmp_path / "artifacts")) / "churn.joblib"


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The model that the service ships."""
    return ROOT / "celery_task_app" / "ml" / "artifacts" / "churn.joblib"


@pytest.fixture(scope="session")
def real_csv() -> Path:
    """BankChurners.csv, which the shipped model was trained on; it is not in the repository."""
    if not DATA.is_file():
        reason = f"NOT CHECKED that training reproduces the shipped scores: no {DATA}; set DATA to BankChurners.csv"
        if "DATA" in os.environ and os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return DATA
