import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from celery_task_app.errors import DataSetError
from celery_task_app.ml.train import (
    FEATURES,
    FIXED_PARAMETERS,
    PARAMETERS,
    SPLIT,
    TARGET,
    best_threshold,
    calibration_error,
    fit_and_score,
    make_churn_pipeline,
    read_data_set,
    score,
    train,
)
from tests.ml.conftest import CATEGORIES, QUICK, ROOT, ROWS


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "churn.json").read_text())


def run_command(data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery_task_app.ml.train", "--data", data, "--out", out, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_manifest_describes_the_model_and_its_data(trained: Path, csv: Path) -> None:
    manifest = read_manifest(trained)

    sha256 = hashlib.sha256((trained / "churn.joblib").read_bytes()).hexdigest()
    assert manifest["sha256"] == sha256
    assert manifest["version"] == sha256[:12]
    assert manifest["training"]["data_sha256"] == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert manifest["training"]["rows"] == ROWS
    assert manifest["target"]["classes"] == {"0": "Existing Customer", "1": "Attrited Customer"}
    assert str(csv.parent) not in (trained / "churn.json").read_text()


def test_the_features_are_described_as_seen_in_training(trained: Path, table: pd.DataFrame) -> None:
    features = {feature["name"]: feature for feature in read_manifest(trained)["features"]}

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


def test_the_model_that_is_written_is_the_one_that_was_scored(trained: Path, csv: Path) -> None:
    pipeline = joblib.load(trained / "churn.joblib")

    customers, churned, _ = read_data_set(csv)
    _, unseen_customers, _, unseen_churned = train_test_split(customers, churned, **SPLIT)

    probabilities = pipeline.predict_proba(unseen_customers)[:, 1]
    manifest = read_manifest(trained)
    assert score(unseen_churned, probabilities, manifest["threshold"]) == manifest["scores"]


def test_scores_are_what_the_books_say() -> None:
    scores = score(pd.Series([1, 1, 0, 0]), np.array([0.9, 0.4, 0.5, 0.1]), threshold=0.5)

    assert scores["precision"] == scores["recall"] == scores["f1"] == scores["accuracy"] == 0.5
    assert scores["roc_auc"] == 0.75
    assert scores["brier"] == round((0.1**2 + 0.6**2 + 0.5**2 + 0.1**2) / 4, 6)


def test_the_calibration_error_is_the_mean_gap_over_ten_bins() -> None:
    churned, probabilities = pd.Series([1, 0, 1, 1]), np.array([0.05, 0.05, 0.95, 1.0])

    assert calibration_error(churned, probabilities) == pytest.approx((2 * abs(0.05 - 0.5) + 2 * abs(0.975 - 1)) / 4)


def test_the_threshold_has_the_best_f1() -> None:
    churned, probabilities = pd.Series([1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.31, 0.3, 0.1])

    assert best_threshold(churned, probabilities) == 0.31


def test_nothing_of_the_customers_held_out_reaches_the_model(table: pd.DataFrame, csv: Path) -> None:
    customers, churned, _ = read_data_set(csv)
    _, held_out = train_test_split(customers.index, **SPLIT)
    others = churned.copy()
    others[held_out] = 1 - others[held_out]

    honest, misled = (fit_and_score(customers, target, QUICK, stratify=None, **SPLIT) for target in (churned, others))

    assert misled.threshold == honest.threshold
    assert misled.calibration == honest.calibration
    assert np.array_equal(*(trained.pipeline.predict_proba(customers) for trained in (honest, misled)))
    assert misled.scores["roc_auc"] == pytest.approx(1 - honest.scores["roc_auc"])


def test_the_spread_is_that_of_other_splits(trained: Path, csv: Path) -> None:
    spread = read_manifest(trained)["spread"]
    customers, churned, _ = read_data_set(csv)

    scores = [
        fit_and_score(customers, churned, QUICK, test_size=0.2, random_state=seed).scores for seed in spread["seeds"]
    ]

    assert spread["mean"]["f1"] == pytest.approx(np.mean([split["f1"] for split in scores]), abs=1e-6)
    assert spread["deviation"]["brier"] == pytest.approx(np.std([split["brier"] for split in scores], ddof=1), abs=1e-6)


def test_the_golden_rows_go_from_stayers_to_leavers(trained: Path) -> None:
    golden = [row["probability"] for row in read_manifest(trained)["golden"]]

    assert golden == sorted(golden)
    assert golden[0] < 0.1
    assert golden[-1] > 0.9


def test_the_same_data_give_the_same_model(trained: Path, csv: Path, tmp_path: Path) -> None:
    again = train(csv, tmp_path, QUICK)

    manifest = read_manifest(trained)
    assert again["scores"] == manifest["scores"]
    assert again["sha256"] == manifest["sha256"]


def test_parameters_can_be_tried_without_touching_the_defaults() -> None:
    tried, default = make_churn_pipeline(PARAMETERS | {"num_leaves": 7}), make_churn_pipeline()

    assert tried[-1].num_leaves == 7
    assert default[-1].num_leaves == PARAMETERS["num_leaves"]


def test_the_command_trains_and_prints_the_scores(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "not" / "there yet"

    training = run_command(csv, out, "--quick")

    assert training.returncode == 0
    assert f"f1={read_manifest(out)['scores']['f1']:.4f}" in training.stderr
    assert sorted(path.name for path in out.iterdir()) == ["churn.joblib", "churn.json"]
    assert read_manifest(out)["parameters"] == FIXED_PARAMETERS | PARAMETERS


def test_the_command_says_in_one_line_what_is_wrong_with_the_data(artifact: Path, tmp_path: Path) -> None:
    before = artifact.read_bytes()

    training = run_command(tmp_path / "nowhere.csv", artifact.parent, "--quick")

    assert training.returncode != 0
    assert len(training.stderr.splitlines()) == 1
    assert "nowhere.csv" in training.stderr
    assert "sakshigoyal7/credit-card-customers" in training.stderr
    assert artifact.read_bytes() == before


def test_a_missing_column_is_named(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table.drop(columns=["Credit_Limit", TARGET]).to_csv(path, index=False)

    with pytest.raises(DataSetError, match=r"(?=.*Attrition_Flag)(?=.*Credit_Limit).*kaggle"):
        read_data_set(path)


def test_an_unknown_target_value_is_named(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table.replace({TARGET: "Existing Customer"}, "Maybe").to_csv(path, index=False)

    with pytest.raises(DataSetError, match=r"Attrition_Flag.*Maybe.*kaggle"):
        read_data_set(path)


def test_text_in_a_column_of_numbers_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table.astype({"Customer_Age": str}).replace({"Customer_Age": {"45": "old"}}).to_csv(path, index=False)

    with pytest.raises(DataSetError, match="old"):
        read_data_set(path)


@pytest.mark.parametrize("feature", ["Gender", "Credit_Limit"])
def test_an_empty_cell_is_refused(table: pd.DataFrame, tmp_path: Path, feature: str) -> None:
    path = tmp_path / "data.csv"
    table.assign(**{feature: table[feature].where(table.index > 7)}).to_csv(path)

    with pytest.raises(DataSetError, match=f"empty cells in {feature}"):
        read_data_set(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\xff\xfe" * 100,
        b'{"not": "a CSV"}',
        b"a,b\n1,2\n1,2,3,4\n",
        ",".join([*FEATURES, TARGET]).encode(),
    ],
    ids=["empty", "binary", "JSON", "ragged", "no rows"],
)
def test_what_is_not_the_data_set_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)

    with pytest.raises(DataSetError, match=r"^[^\n]*data\.csv can't be used: [^\n]*kaggle[^\n]*$"):
        read_data_set(path)


def test_a_folder_is_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="directory"):
        read_data_set(tmp_path)


def test_training_on_the_real_data_reproduces_the_shipped_scores(real_csv: Path, committed: Path) -> None:
    shipped = read_manifest(committed.parent)
    customers, churned, sha256 = read_data_set(real_csv)

    trained = fit_and_score(customers, churned, PARAMETERS, **SPLIT)  # not the five other splits: a minute

    assert shipped["training"]["data_sha256"] == sha256
    assert shipped["scores"] == trained.scores
    assert shipped["threshold"] == trained.threshold
    assert shipped["calibration"].items() >= trained.calibration.items()


def test_the_shipped_model_was_trained_with_the_parameters_of_this_code(committed: Path) -> None:
    shipped = read_manifest(committed.parent)

    assert shipped["parameters"] == FIXED_PARAMETERS | PARAMETERS
    assert {feature["name"]: feature["type"] for feature in shipped["features"]} == FEATURES
    assert shipped["scores"]["roc_auc"] > 0.99
    assert shipped["scores"]["f1"] > 0.92
