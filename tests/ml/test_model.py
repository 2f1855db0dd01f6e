import hashlib
import json
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier

from celery_task_app.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    FeatureMismatch,
    GoldenRowMismatch,
    InvalidPrediction,
    ModelError,
    PredictionError,
    VersionMismatch,
)
from celery_task_app.ml.model import ChurnModel, check_artifact
from tests.ml.conftest import ROOT

Customer = dict[str, object]
Customers = list[Customer]


class Fixed:
    """A model whose answer is known."""

    def __init__(self, answer: object, classes: Sequence[object] = (0, 1)) -> None:
        self.answer = answer
        self.classes_ = list(classes)

    def predict_proba(self, _: pd.DataFrame) -> object:
        return self.answer


class Averse:
    """A model that can't stand a customer, and says why."""

    classes_ = (0, 1)

    def predict_proba(self, table: pd.DataFrame) -> object:
        raise RuntimeError(f"I don't like {table.iloc[0].tolist()}")


class Columns:
    """A model that shows which columns it got: the probability is a hundredth of their number."""

    classes_ = (0, 1)

    def predict_proba(self, table: pd.DataFrame) -> object:
        churn = np.full(len(table), table.shape[1] / 100)
        return np.column_stack((1 - churn, churn))


class Lean(Columns):
    """A model that wants no DataFrame."""

    takes_columns = True

    def predict_proba(self, columns: dict[str, Any]) -> object:
        assert type(columns) is dict
        return super().predict_proba(pd.DataFrame(columns))


@pytest.fixture
def model(trained: Path) -> ChurnModel:
    return ChurnModel(trained / "churn.joblib")


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """Save any object as a model without a manifest."""

    def save(pipeline: object) -> Path:
        path = tmp_path / "mine.joblib"
        joblib.dump(pipeline, path)
        return path

    return save


def edit_manifest(artifact: Path, **changes: object) -> None:
    path = artifact.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Predicting


def test_the_articles_customer_is_unlikely_to_leave(committed: Path, customer: Customer) -> None:
    (probability,) = ChurnModel(committed).churn_probabilities([customer])

    assert 0 < probability < 0.05


def test_many_customers_are_predicted_as_one_by_one_and_in_order(model: ChurnModel, customers: Customers) -> None:
    together = model.churn_probabilities(customers)

    assert together == [model.churn_probabilities([customer])[0] for customer in customers]
    assert model.churn_probabilities(customers[::-1]) == together[::-1]
    assert max(together) - min(together) > 0.5
    assert {type(probability) for probability in together} == {float}


def test_no_customers_have_no_probabilities(model: ChurnModel) -> None:
    assert model.churn_probabilities([]) == []


def test_other_keys_and_their_order_do_not_matter(model: ChurnModel, customers: Customers) -> None:
    shuffled = [dict(reversed([*customer.items(), ("CLIENTNUM", 7)])) for customer in customers]

    assert model.churn_probabilities(shuffled) == model.churn_probabilities(customers)


def test_an_unknown_category_is_predicted_as_the_most_frequent_one(
    model: ChurnModel, customers: Customers, table: pd.DataFrame
) -> None:
    most_frequent = table["Card_Category"].mode().item()

    unknown = model.churn_probabilities([customer | {"Card_Category": "Unobtainium"} for customer in customers])

    assert unknown == model.churn_probabilities([customer | {"Card_Category": most_frequent} for customer in customers])


def test_a_missing_feature_is_named(model: ChurnModel, customers: Customers) -> None:
    incomplete = {feature: value for feature, value in customers[0].items() if feature != "Credit_Limit"}

    with pytest.raises(FeatureMismatch, match="Credit_Limit"):
        model.churn_probabilities([customers[1], incomplete])


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("Customer_Age", "45"),
        ("Customer_Age", None),
        ("Customer_Age", [45]),
        ("Credit_Limit", 10**400),
        ("Gender", 1),
        ("Gender", None),
        ("Gender", ["F"]),
    ],
)
def test_a_feature_of_another_type_is_named(
    model: ChurnModel, customers: Customers, feature: str, value: object
) -> None:
    with pytest.raises(FeatureMismatch, match=f"^{feature} must be (text|a number)$"):
        model.churn_probabilities([customers[0], customers[1] | {feature: value}])


@pytest.mark.parametrize(
    "answer",
    [
        [[math.nan, math.nan]],
        [[-math.inf, math.inf]],
        [[-0.5, 1.5]],
        [[0.5, 0.5], [0.5, 0.5]],
        [[0.2, 0.3, 0.5]],
        [0.5],
        [],
        None,
        "0.5",
    ],
)
def test_an_answer_that_is_not_a_probability_each_is_refused(save: Any, answer: object, customer: Customer) -> None:
    model = ChurnModel(save(Fixed(answer)))

    with pytest.raises(InvalidPrediction, match=f"Model mine {model.version}"):
        model.churn_probabilities([customer])


def test_a_failing_model_is_an_invalid_prediction_that_tells_no_feature(save: Any, customer: Customer) -> None:
    model = ChurnModel(save(Averse()))

    with pytest.raises(InvalidPrediction, match="RuntimeError") as failure:
        model.churn_probabilities([customer])

    assert isinstance(failure.value.__cause__, RuntimeError)
    assert "12691" not in str(failure.value)


# A model of one's own


@pytest.mark.parametrize(
    ("classes", "probability"),
    [
        ([0, 1], 0.75),
        ([1, 0], 0.25),
        ([False, True], 0.75),
        (["Attrited Customer", "Existing Customer"], 0.25),
        (np.array(["Existing Customer", "Attrited Customer"]), 0.75),
    ],
)
def test_churn_is_found_by_its_class(
    save: Any, classes: Sequence[object], probability: float, customer: Customer
) -> None:
    model = ChurnModel(save(Fixed([[0.25, 0.75]], classes)))

    assert model.churn_probabilities([customer]) == [probability]


@pytest.mark.parametrize("classes", [[], ["no", "yes"], [2, 3]])
def test_a_model_that_does_not_know_churn_is_refused(save: Any, classes: Sequence[object]) -> None:
    with pytest.raises(ModelError, match="'Attrited Customer'"):
        ChurnModel(save(Fixed([[0.25, 0.75]], classes)))


def test_a_model_without_a_manifest_is_used_with_a_warning(
    save: Any, caplog: pytest.LogCaptureFixture, customer: Customer
) -> None:
    customers = pd.DataFrame([customer] * 4)
    path = save(DummyClassifier(strategy="prior").fit(customers, [0, 0, 0, 1]))

    with caplog.at_level(logging.WARNING):
        model = ChurnModel(path)

    assert model.churn_probabilities([customer]) == [0.25]
    assert model.name == "mine"
    assert model.version == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert "mine.joblib" in caplog.text


def test_without_a_manifest_the_model_names_its_features(artifact: Path, customers: Customers) -> None:
    verified = ChurnModel(artifact).churn_probabilities(customers)
    artifact.with_suffix(".json").unlink()

    model = ChurnModel(artifact)

    assert model.churn_probabilities([customer | {"another": 1} for customer in customers]) == verified
    with pytest.raises(FeatureMismatch, match="Customer_Age"):
        model.churn_probabilities([{"Gender": "F"}])
    with pytest.raises(PredictionError):
        model.churn_probabilities([customers[0] | {"Customer_Age": "old"}])


def test_a_model_that_names_no_features_gets_the_customers_own(save: Any, customer: Customer) -> None:
    model = ChurnModel(save(Columns()))

    assert model.churn_probabilities([customer]) == [0.19]
    with pytest.raises(FeatureMismatch, match="Customer_Age"):
        model.churn_probabilities([customer, {}])


def test_a_model_that_takes_columns_gets_no_dataframe(save: Any, customer: Customer) -> None:
    assert ChurnModel(save(Lean())).churn_probabilities([customer, customer]) == [0.19, 0.19]


# Checking the artefact


@pytest.fixture(params=[check_artifact, ChurnModel])
def opened(request: pytest.FixtureRequest) -> Any:
    """Both ways to open an artefact: what one refuses, the other refuses too."""
    return request.param


def test_name_and_version_are_those_of_the_manifest(opened: Any, artifact: Path) -> None:
    edit_manifest(artifact, name="loyalty", version="2.1")

    assert (opened(artifact).name, opened(artifact).version) == ("loyalty", "2.1")


def test_a_missing_model_says_what_to_do(opened: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"nowhere\.joblib.*make train.*MODEL_PATH"):
        opened(tmp_path / "nowhere.joblib")


def test_a_folder_is_not_a_model(opened: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="MODEL_PATH"):
        opened(tmp_path)


def test_a_truncated_model_is_refused(opened: Any, artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-100])

    with pytest.raises(ArtifactCorrupt, match=r"churn\.json describes"):
        opened(artifact)


def test_a_model_that_was_tampered_with_does_not_run(opened: Any, artifact: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "attacked",))

    joblib.dump(Attack(), artifact)

    with pytest.raises(ArtifactCorrupt):
        opened(artifact)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", "null", "\xff"])
def test_a_damaged_manifest_is_refused(opened: Any, artifact: Path, manifest: str) -> None:
    artifact.with_suffix(".json").write_text(manifest, encoding="latin-1")

    with pytest.raises(ArtifactCorrupt, match=r"churn\.json is damaged"):
        opened(artifact)


@pytest.mark.parametrize("library", ["scikit-learn", "lightgbm"])
def test_a_model_made_with_another_version_is_refused(opened: Any, artifact: Path, library: str) -> None:
    edit_manifest(artifact, libraries={library: "0.1"})

    with pytest.raises(VersionMismatch, match=rf"{library} 0\.1.*requirements\.txt"):
        opened(artifact)


def test_a_manifest_vouches_only_for_the_libraries_that_it_names(opened: Any, artifact: Path) -> None:
    edit_manifest(artifact, libraries={"python": "3.0"})

    assert opened(artifact).name == "churn"


@pytest.mark.parametrize(
    "content", [b"", b"no pickle at all", b"\x80\x05X\xff\x00\x00\x00abc", b"cnowhere\nNothing\n."]
)
def test_what_can_not_be_unpickled_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.joblib"
    path.write_bytes(content)

    with pytest.raises(ArtifactCorrupt, match=r"mine\.joblib can't be unpickled"):
        ChurnModel(path)


def test_what_can_not_predict_is_no_model(save: Any) -> None:
    with pytest.raises(ArtifactCorrupt, match="predict_proba"):
        ChurnModel(save({"a": "dictionary"}))


# Golden rows


def test_a_model_that_predicts_otherwise_than_when_it_was_made_is_refused(artifact: Path) -> None:
    golden = json.loads(artifact.with_suffix(".json").read_text())["golden"]
    golden[3]["probability"] += 0.001
    edit_manifest(artifact, golden=golden)

    with pytest.raises(GoldenRowMismatch, match=r"churn\.joblib predicts 0\.\d+ for golden row 3, .* train"):
        ChurnModel(artifact)


def test_a_golden_row_that_can_not_be_predicted_is_a_mismatch(artifact: Path) -> None:
    edit_manifest(artifact, golden=[{"customer": {"Gender": "F"}, "probability": 0.5}])

    with pytest.raises(GoldenRowMismatch, match=r"golden rows of its manifest .*Customer_Age is missing"):
        ChurnModel(artifact)


def test_a_manifest_needs_no_golden_rows(artifact: Path, customers: Customers) -> None:
    verified = ChurnModel(artifact).churn_probabilities(customers)
    manifest = json.loads(artifact.with_suffix(".json").read_text())
    del manifest["golden"]
    artifact.with_suffix(".json").write_text(json.dumps(manifest))

    assert ChurnModel(artifact).churn_probabilities(customers) == verified


@pytest.mark.parametrize("golden", [7, [7], [{"customer": {}}], [{"customer": {}, "probability": None}]])
def test_golden_rows_that_are_none_are_a_damaged_manifest(opened: Any, artifact: Path, golden: object) -> None:
    edit_manifest(artifact, golden=golden)

    with pytest.raises(ArtifactCorrupt, match=r"churn\.json is damaged"):
        opened(artifact)


# Reasons


def test_reasons_add_up_to_the_log_odds(model: ChurnModel, customers: Customers) -> None:
    for probability, reasons in zip(model.churn_probabilities(customers), model.reasons(customers), strict=True):
        pushed = sum(reason["log_odds"] for reason in reasons["up"] + reasons["down"])
        log_odds = math.log(probability / (1 - probability))
        assert reasons["base"] + pushed + reasons["others"] == pytest.approx(log_odds, abs=1e-9)


def test_reasons_are_the_strongest_contributions(model: ChurnModel, customers: Customers, trained: Path) -> None:
    pipeline = joblib.load(trained / "churn.joblib")
    (contributions,) = pipeline.contributions(pd.DataFrame(customers[:1]))[:, :-1]
    by_feature = dict(zip(pipeline[0].feature_names_in_, contributions, strict=True))

    (reasons,) = model.reasons(customers[:1])

    strongest = sorted(by_feature, key=by_feature.__getitem__)
    assert [reason["feature"] for reason in reasons["down"]] == [f for f in strongest[:3] if by_feature[f] < 0]
    assert [reason["feature"] for reason in reasons["up"]] == [f for f in strongest[:-4:-1] if by_feature[f] > 0]
    for reason in reasons["up"] + reasons["down"]:
        assert reason["log_odds"] == by_feature[reason["feature"]]


def test_a_model_explains_if_its_manifest_says_so_and_it_can(artifact: Path, tmp_path: Path) -> None:
    assert ChurnModel(artifact).explains
    edit_manifest(artifact, explains=False)
    assert not ChurnModel(artifact).explains

    joblib.dump(Columns(), artifact)
    sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
    edit_manifest(artifact, explains=True, sha256=sha256, golden=[])
    with pytest.raises(ArtifactCorrupt, match="contributions"):
        ChurnModel(artifact)


# What it costs a process


def run_python(code: str, *arguments: object) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return process.stdout.strip()


def test_checking_a_model_imports_no_ml_library(trained: Path) -> None:
    code = """
import sys
from pathlib import Path
from celery_task_app.ml.model import check_artifact
check_artifact(Path(sys.argv[1]))
print({"joblib", "lightgbm", "numpy", "pandas", "sklearn"} & set(sys.modules))
"""
    assert run_python(code, trained / "churn.joblib") == "set()"


def test_a_loaded_model_leaves_other_cores_alone(trained: Path) -> None:
    code = """
import os, sys
from pathlib import Path
os.environ.pop("OMP_NUM_THREADS", None)
from celery_task_app.ml.model import ChurnModel
ChurnModel(Path(sys.argv[1]))
print(os.environ["OMP_NUM_THREADS"])
"""
    assert run_python(code, trained / "churn.joblib") == "1"
