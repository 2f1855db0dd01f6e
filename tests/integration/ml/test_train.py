import hashlib
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from celery_task_app.ml.artifact import read_manifest
from celery_task_app.ml.data_set import CLASSES, FEATURES, TARGET, read_data_set
from celery_task_app.ml.metrics import score
from celery_task_app.ml.train import (
    CARD,
    FIXED_PARAMETERS,
    PARAMETERS,
    SPLIT,
    fit_and_score,
    make_churn_pipeline,
    train,
)
from tests.conftest import MANIFEST
from tests.harness.processes import ROOT
from tests.harness.synthetic_customers import CATEGORIES, QUICK, ROWS


def run_command(data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery_task_app.ml.train", "--data", str(data), "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_manifest_describes_the_model_and_its_data(trained: Path, csv: Path) -> None:
    manifest = read_manifest(trained / "churn.joblib")

    sha256 = hashlib.sha256((trained / "churn.joblib").read_bytes()).hexdigest()
    assert manifest["sha256"] == sha256
    assert manifest["version"] == sha256[:12]
    assert manifest["training"]["data_sha256"] == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert manifest["training"]["rows"] == ROWS
    assert manifest["target"]["classes"] == {"0": "Existing Customer", "1": "Attrited Customer"}
    assert str(csv.parent) not in (trained / "churn.json").read_text()


def test_the_manifest_describes_the_features_of_the_fitted_customers(trained: Path, table: pd.DataFrame) -> None:
    features = {feature["name"]: feature for feature in read_manifest(trained / "churn.joblib")["features"]}

    assert list(features) == list(FEATURES)
    assert features["Gender"] == {"name": "Gender", "type": "category", "categories": CATEGORIES["Gender"]}
    fitted, _ = train_test_split(table["Customer_Age"], **SPLIT)
    assert features["Customer_Age"] == {
        "name": "Customer_Age",
        "type": "integer",
        "minimum": fitted.min(),
        "maximum": fitted.max(),
    }
    assert features["Avg_Utilization_Ratio"]["type"] == "number"


def test_the_scores_are_those_of_the_written_model(trained: Path, csv: Path) -> None:
    pipeline = joblib.load(trained / "churn.joblib")

    customers, churned, _ = read_data_set(csv)
    _, held_out, _, held_out_churned = train_test_split(customers, churned, **SPLIT)

    probabilities = pipeline.predict_proba(held_out)[:, 1]
    manifest = read_manifest(trained / "churn.joblib")
    assert score(held_out_churned, probabilities, manifest["threshold"]) == manifest["scores"]


def test_held_out_customers_do_not_change_the_model(csv: Path) -> None:
    customers, churned, _ = read_data_set(csv)
    _, held_out = train_test_split(customers.index, **SPLIT)
    swapped = churned.copy()
    swapped[held_out] = 1 - swapped[held_out]

    true, false = (fit_and_score(customers, target, QUICK, stratify=None, **SPLIT) for target in (churned, swapped))

    assert false.threshold == true.threshold
    assert false.calibration == true.calibration
    assert np.array_equal(*(trained.pipeline.predict_proba(customers) for trained in (true, false)))
    assert false.scores["roc_auc"] == pytest.approx(1 - true.scores["roc_auc"])


def test_the_spread_is_computed_from_other_splits(trained: Path, csv: Path) -> None:
    spread = read_manifest(trained / "churn.joblib")["spread"]
    customers, churned, _ = read_data_set(csv)

    scores = [
        fit_and_score(customers, churned, QUICK, test_size=0.2, random_state=seed).scores for seed in spread["seeds"]
    ]

    assert spread["mean"]["f1"] == pytest.approx(np.mean([split["f1"] for split in scores]), abs=1e-6)
    assert spread["deviation"]["brier"] == pytest.approx(np.std([split["brier"] for split in scores], ddof=1), abs=1e-6)


def test_golden_rows_have_ascending_probabilities(trained: Path) -> None:
    golden = [row["probability"] for row in read_manifest(trained / "churn.joblib")["golden"]]

    assert golden == sorted(golden)
    assert golden[0] < 0.1
    assert golden[-1] > 0.9


def test_the_same_data_give_the_same_model(trained: Path, csv: Path, tmp_path: Path) -> None:
    again = train(csv, tmp_path, QUICK)

    manifest = read_manifest(trained / "churn.joblib")
    assert again["scores"] == manifest["scores"]
    assert again["sha256"] == manifest["sha256"]


def test_a_pipeline_has_as_many_trees_of_catboost_as_of_lightgbm(table: pd.DataFrame) -> None:
    customers, churned = table[list(FEATURES)], table[TARGET] == CLASSES[1]

    both, one = (make_churn_pipeline(QUICK).fit(customers, churned, with_catboost=wanted) for wanted in (True, False))

    assert both[-1].booster_.num_trees() == 2 * one[-1].booster_.num_trees()
    assert not np.allclose(both.predict_proba(customers), one.predict_proba(customers))


def test_other_parameters_do_not_change_the_defaults() -> None:
    other, default = make_churn_pipeline(PARAMETERS | {"num_leaves": 7}), make_churn_pipeline()

    assert other[-1].num_leaves == 7
    assert default[-1].num_leaves == PARAMETERS["num_leaves"]


def test_the_command_trains_and_logs_the_scores(table: pd.DataFrame, tmp_path: Path) -> None:
    out, few = tmp_path / "missing" / "folder", tmp_path / "few.csv"
    table.head(120).to_csv(few, index=False)  # `--quick` fits all trees, 36 times

    training = run_command(few, out, "--quick")

    assert training.returncode == 0
    manifest = read_manifest(out / "churn.joblib")
    assert f"f1={manifest['scores']['f1']:.4f}" in training.stderr
    assert sorted(path.name for path in out.iterdir()) == ["churn.joblib", "churn.json"]
    assert manifest["parameters"] == FIXED_PARAMETERS | PARAMETERS


def test_the_command_reports_missing_data_in_one_line(artifact: Path, tmp_path: Path) -> None:
    before = artifact.read_bytes()

    training = run_command(tmp_path / "nowhere.csv", artifact.parent, "--quick")

    assert training.returncode != 0
    assert len(training.stderr.splitlines()) == 1
    assert "nowhere.csv" in training.stderr
    assert "sakshigoyal7/credit-card-customers" in training.stderr
    assert artifact.read_bytes() == before


def test_training_on_the_real_data_reproduces_the_shipped_scores(real_csv: Path) -> None:
    customers, churned, sha256 = read_data_set(real_csv)

    trained = fit_and_score(customers, churned, PARAMETERS, **SPLIT)  # without the other splits, which take a minute

    assert MANIFEST["training"]["data_sha256"] == sha256
    assert MANIFEST["scores"] == trained.scores
    assert MANIFEST["threshold"] == trained.threshold
    assert MANIFEST["calibration"].items() >= trained.calibration.items()


def test_the_shipped_model_was_trained_with_the_parameters_of_this_code() -> None:
    assert MANIFEST.items() >= CARD.items()
    assert MANIFEST["parameters"] == FIXED_PARAMETERS | PARAMETERS
    assert MANIFEST["scores"]["roc_auc"] > 0.99
    assert MANIFEST["scores"]["f1"] > 0.92
