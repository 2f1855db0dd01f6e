import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from sklearn.dummy import DummyClassifier

from celery_task_app.errors import (
    ArtifactCorrupt,
    FeatureMismatch,
    GoldenRowMismatch,
    InvalidPrediction,
    ModelError,
    PredictionError,
    SchemaMismatch,
    TrialFailed,
)
from celery_task_app.ml.data_set import FEATURES
from celery_task_app.ml.model import ChurnModel
from celery_task_app.ml.schema import CustomerSchema
from tests.conftest import MANIFEST
from tests.harness.synthetic_customers import CATEGORIES

Customer = dict[str, object]
Customers = list[Customer]
Save = Callable[[object], Path]


class Fixed:
    """A pipeline that returns a given answer."""

    def __init__(self, answer: object, classes: Sequence[object] = (0, 1)) -> None:
        self.answer = answer
        self.classes_ = list(classes)

    def predict_proba(self, _: pd.DataFrame) -> object:
        return self.answer


class Failing:
    """A pipeline that raises an error whose message contains the features."""

    classes_ = (0, 1)

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def predict_proba(self, table: pd.DataFrame) -> object:
        raise self.error(f"cannot predict {table.iloc[0].tolist()}")


class CountingColumns:
    """A pipeline whose probability is a hundredth of the number of columns."""

    classes_ = (0, 1)

    def predict_proba(self, table: pd.DataFrame) -> object:
        churn = np.full(len(table), table.shape[1] / 100)
        return np.column_stack((1 - churn, churn))


class TakingColumns:
    """A pipeline that takes a mapping of columns; its probability is a hundredth of their number."""

    classes_ = (0, 1)
    takes_columns = True

    def predict_proba(self, columns: dict[str, Any]) -> object:
        assert type(columns) is dict
        return CountingColumns().predict_proba(pd.DataFrame(columns))


class WrongContributions:
    """A pipeline that predicts 0.5, and gives fixed contributions."""

    classes_ = (0, 1)

    def __init__(self, given: np.ndarray) -> None:
        self.given = given

    def predict_proba(self, customers: pd.DataFrame) -> np.ndarray:
        return np.full((len(customers), 2), 0.5)

    def contributions(self, _customers: pd.DataFrame) -> np.ndarray:
        return self.given


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save an object as a model without a manifest."""

    def save(pipeline: object) -> Path:
        path = tmp_path / "mine.joblib"
        joblib.dump(pipeline, path)
        return path

    return save


def edit_manifest(artifact: Path, **changes: object) -> None:
    path = artifact.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_columns(customers: Customers) -> dict[str, list[object]]:
    return {feature: [customer[feature] for customer in customers] for feature in FEATURES}


# Predictions


def test_the_articles_customer_has_a_low_probability(shipped: Path, customer: Customer) -> None:
    (probability,) = ChurnModel(shipped).churn_probabilities([customer])

    assert 0 < probability < 0.05


def test_many_customers_have_the_probabilities_of_single_ones_in_the_same_order(
    model: ChurnModel, customers: Customers
) -> None:
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


def test_an_unknown_category_is_predicted_as_the_most_frequent_one(model: ChurnModel, customers: Customers) -> None:
    most_frequent = "Blue"  # in BankChurners.csv, on which the shipped model was trained

    unknown = model.churn_probabilities([customer | {"Card_Category": "Unobtainium"} for customer in customers])

    assert unknown == model.churn_probabilities([customer | {"Card_Category": most_frequent} for customer in customers])


def test_a_missing_feature_is_a_feature_mismatch(model: ChurnModel, customers: Customers) -> None:
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
def test_a_value_of_another_type_is_a_feature_mismatch(
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
def test_an_answer_without_one_probability_for_each_customer_is_an_invalid_prediction(
    save: Save, answer: object, customer: Customer
) -> None:
    model = ChurnModel(save(Fixed(answer)))

    with pytest.raises(InvalidPrediction, match=f"Model mine {model.version}"):
        model.churn_probabilities([customer])


@pytest.mark.parametrize("error", [RuntimeError, SoftTimeLimitExceeded])
def test_an_error_of_the_pipeline_is_the_cause_of_an_invalid_prediction_without_features(
    save: Save, customer: Customer, error: type[Exception]
) -> None:
    model = ChurnModel(save(Failing(error)))

    with pytest.raises(InvalidPrediction, match=error.__name__) as failure:
        model.churn_probabilities([customer])

    assert isinstance(failure.value.__cause__, error)
    assert "12691" not in str(failure.value)


# Columns


def test_columns_have_the_probabilities_of_rows(model: ChurnModel, customers: Customers) -> None:
    assert model.column_probabilities(as_columns(customers)) == model.churn_probabilities(customers)


def test_a_missing_column_is_a_feature_mismatch(model: ChurnModel, customers: Customers) -> None:
    columns = as_columns(customers)
    del columns["Credit_Limit"]

    with pytest.raises(FeatureMismatch, match=r"^Credit_Limit is missing"):
        model.column_probabilities(columns)


def test_another_column_is_ignored(model: ChurnModel, customers: Customers) -> None:
    columns = {"CLIENTNUM": list[object](range(7))} | as_columns(customers)

    assert model.column_probabilities(columns) == model.churn_probabilities(customers)


def test_empty_columns_have_no_probabilities(model: ChurnModel, save: Save) -> None:
    assert model.column_probabilities(as_columns([])) == []
    assert ChurnModel(save(CountingColumns())).column_probabilities({}) == []


def test_columns_of_different_lengths_are_a_feature_mismatch(model: ChurnModel, customers: Customers) -> None:
    columns = as_columns(customers)
    columns["Credit_Limit"].pop()

    with pytest.raises(FeatureMismatch, match="Credit_Limit has 63 values"):
        model.column_probabilities(columns)


def values(feature: str, kind: str) -> SearchStrategy[object]:
    right = st.sampled_from(CATEGORIES[feature]) | st.text() if kind == "category" else st.integers() | st.floats()
    wrong = st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=1)
    return st.integers(0, 200).flatmap(lambda number: wrong if number == 200 else right)


def outcome(predict: Callable[[], list[float]]) -> list[float] | str:
    try:
        return predict()
    except PredictionError as error:
        return repr(error)


@given(st.lists(st.fixed_dictionaries({name: values(name, kind) for name, kind in FEATURES.items()}), max_size=8))
@settings(deadline=None)
def test_rows_and_columns_have_the_same_outcome(model: ChurnModel, customers: Customers) -> None:
    rows = outcome(lambda: model.churn_probabilities(customers))

    assert outcome(lambda: model.column_probabilities(as_columns(customers))) == rows
    assert isinstance(rows, str) or len(rows) == len(customers)


# Models without a manifest


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
def test_the_class_of_churn_is_found_by_its_label(
    save: Save, classes: Sequence[object], probability: float, customer: Customer
) -> None:
    model = ChurnModel(save(Fixed([[0.25, 0.75]], classes)))

    assert model.churn_probabilities([customer]) == [probability]


@pytest.mark.parametrize("classes", [[], ["no", "yes"], [2, 3]])
def test_a_model_without_a_class_of_churn_is_a_model_error(save: Save, classes: Sequence[object]) -> None:
    with pytest.raises(ModelError, match="'Attrited Customer'"):
        ChurnModel(save(Fixed([[0.25, 0.75]], classes)))


def test_a_model_without_a_manifest_is_used_with_a_warning(
    save: Save, caplog: pytest.LogCaptureFixture, customer: Customer
) -> None:
    customers = pd.DataFrame([customer] * 4)
    path = save(DummyClassifier(strategy="prior").fit(customers, [0, 0, 0, 1]))

    with caplog.at_level(logging.WARNING):
        model = ChurnModel(path)

    assert model.churn_probabilities([customer]) == [0.25]
    assert model.name == "mine"
    assert model.version == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert "mine.joblib" in caplog.text


def test_without_a_manifest_the_pipeline_names_the_features(artifact: Path, customers: Customers) -> None:
    verified = ChurnModel(artifact).churn_probabilities(customers)
    artifact.with_suffix(".json").unlink()

    model = ChurnModel(artifact)

    assert model.churn_probabilities([customer | {"another": 1} for customer in customers]) == verified
    assert model.column_probabilities(as_columns(customers)) == verified
    with pytest.raises(FeatureMismatch, match="Customer_Age"):
        model.churn_probabilities([{"Gender": "F"}])
    with pytest.raises(PredictionError):
        model.churn_probabilities([customers[0] | {"Customer_Age": "old"}])


def test_a_pipeline_without_feature_names_gets_every_feature(save: Save, customer: Customer) -> None:
    model = ChurnModel(save(CountingColumns()))

    assert model.churn_probabilities([customer]) == [len(customer) / 100]
    assert model.column_probabilities(as_columns([customer])) == [len(customer) / 100]
    with pytest.raises(FeatureMismatch, match="Customer_Age"):
        model.churn_probabilities([customer, {}])


def test_a_pipeline_that_takes_columns_gets_no_dataframe(save: Save, customer: Customer) -> None:
    assert ChurnModel(save(TakingColumns())).churn_probabilities([customer, customer]) == [len(customer) / 100] * 2


# Golden rows


def test_another_probability_for_a_golden_row_is_a_golden_row_mismatch(artifact: Path) -> None:
    golden = json.loads(artifact.with_suffix(".json").read_text())["golden"]
    golden[3]["probability"] += 0.001
    edit_manifest(artifact, golden=golden)

    with pytest.raises(GoldenRowMismatch, match=r"churn\.joblib predicts 0\.\d+ for golden row 3, .* train"):
        ChurnModel(artifact)


def test_a_golden_row_that_cannot_be_predicted_fails_the_trial(artifact: Path) -> None:
    edit_manifest(artifact, golden=[{"customer": {"Gender": "F"}, "probability": 0.5}])

    with pytest.raises(TrialFailed, match=r"golden rows of its manifest .*Customer_Age is missing"):
        ChurnModel(artifact)


def test_golden_rows_are_checked_later_on_request(artifact: Path) -> None:
    edit_manifest(artifact, golden=[{"customer": {"Gender": "F"}, "probability": 0.5}])

    model = ChurnModel(artifact, check=False)

    with pytest.raises(TrialFailed):
        model.try_out()


def test_a_model_without_golden_rows_is_tried_with_the_example_and_tells_the_full_error(save: Save) -> None:
    path = save(Failing(ValueError))
    assert not ChurnModel(path).has_trial
    with pytest.raises(TrialFailed, match=r"the example of `Customer` .*ValueError: cannot predict \[45\]"):
        ChurnModel(path, CustomerSchema({}, {"age": 45}))


def test_a_manifest_whose_features_differ_from_those_of_the_api_is_refused(artifact: Path) -> None:
    with pytest.raises(SchemaMismatch, match="the model needs Customer_Age, which `Customer` lacks; "):
        ChurnModel(artifact, CustomerSchema({}, None))


def test_a_manifest_may_have_no_golden_rows(artifact: Path, customers: Customers) -> None:
    verified = ChurnModel(artifact).churn_probabilities(customers)
    manifest = json.loads(artifact.with_suffix(".json").read_text())
    del manifest["golden"]
    artifact.with_suffix(".json").write_text(json.dumps(manifest))

    assert ChurnModel(artifact).churn_probabilities(customers) == verified


# Reasons


def test_reasons_add_up_to_the_log_odds(model: ChurnModel, customers: Customers) -> None:
    for probability, reasons in zip(model.churn_probabilities(customers), model.reasons(customers), strict=True):
        named = sum(reason["log_odds"] for reason in reasons["up"] + reasons["down"])
        log_odds = math.log(probability / (1 - probability))
        assert reasons["base"] + named + reasons["others"] == pytest.approx(log_odds, abs=1e-9)


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


def test_a_model_explains_if_its_manifest_says_so(artifact: Path) -> None:
    assert ChurnModel(artifact).explains

    edit_manifest(artifact, explains=False)

    assert not ChurnModel(artifact).explains


def test_a_manifest_that_says_explains_needs_a_pipeline_with_contributions(artifact: Path) -> None:
    joblib.dump(CountingColumns(), artifact)
    sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
    edit_manifest(artifact, explains=True, sha256=sha256, golden=[])

    with pytest.raises(ArtifactCorrupt, match="contributions"):
        ChurnModel(artifact)


@pytest.mark.parametrize("contributions", [np.zeros((1, 19)), np.full((1, 20), np.nan), np.zeros(20)])
def test_a_model_whose_contributions_are_wrong_fails_its_trial(artifact: Path, contributions: np.ndarray) -> None:
    joblib.dump(WrongContributions(contributions), artifact)
    sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
    example = MANIFEST["golden"][0]["customer"]
    edit_manifest(artifact, explains=True, sha256=sha256, golden=[{"customer": example, "probability": 0.5}])

    with pytest.raises(TrialFailed, match="contributions of shape"):
        ChurnModel(artifact)
