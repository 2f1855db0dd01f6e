"""The schema of a customer, against the manifest of the shipped model."""

import csv
from typing import Any

import pytest
from pydantic import ValidationError

from models import Customer
from tests.conftest import DATA, MANIFEST


def test_the_schema_has_the_features_of_the_model() -> None:
    assert list(Customer.model_fields) == [feature["name"] for feature in MANIFEST["features"]]


def test_the_schema_has_the_types_and_categories_of_the_model() -> None:
    kinds = {"string": "category", "integer": "number", "number": "number"}
    schema = {
        name: (kinds[feature["type"]], sorted(feature.get("enum", ())))
        for name, feature in Customer.model_json_schema()["properties"].items()
    }
    manifest = {
        feature["name"]: (feature["type"].replace("integer", "number"), feature.get("categories", []))
        for feature in MANIFEST["features"]
    }
    assert schema == manifest


def test_every_value_of_the_training_data_is_valid(customer: dict[str, Any]) -> None:
    for feature in MANIFEST["features"]:
        for value in feature.get("categories") or (feature["minimum"], feature["maximum"]):
            Customer.model_validate({**customer, feature["name"]: value})


@pytest.mark.skipif(not DATA.exists(), reason="no BankChurners.csv: set DATA to its path")
def test_every_customer_of_bankchurners_is_valid() -> None:
    kinds = {feature["name"]: feature["type"] for feature in MANIFEST["features"]}
    convert = {"integer": int, "number": float, "category": str}
    with DATA.open(newline="") as lines:
        for row in csv.DictReader(lines):
            Customer.model_validate({name: convert[kind](row[name]) for name, kind in kinds.items()})


def test_a_whole_float_is_a_valid_integer(customer: dict[str, Any]) -> None:
    valid = Customer.model_validate({**customer, "Customer_Age": 45.0, "Credit_Limit": 12691.0})
    assert repr(valid.Customer_Age) == "45"
    assert repr(valid.Credit_Limit) == "12691.0"


def test_open_credit_may_be_below_zero(customer: dict[str, Any]) -> None:
    Customer.model_validate({**customer, "Avg_Open_To_Buy": -100.5, "Avg_Utilization_Ratio": 1.1})


def test_other_fields_are_ignored(customer: dict[str, Any]) -> None:
    assert Customer.model_validate({**customer, "CLIENTNUM": 768805383}).model_dump() == customer


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("Customer_Age", True),
        ("Customer_Age", "45"),
        ("Customer_Age", 45.5),
        ("Customer_Age", -1),
        ("Customer_Age", -1.0),
        ("Customer_Age", float("nan")),
        ("Customer_Age", float("inf")),
        ("Customer_Age", None),
        ("Gender", "X"),
        ("Gender", None),
        ("Gender", "\ud800"),
        ("Income_Category", "$1M +"),
        ("Months_Inactive_12_mon", 13),
        ("Credit_Limit", float("nan")),
        ("Credit_Limit", float("inf")),
        ("Credit_Limit", float("-inf")),
        ("Credit_Limit", -0.01),
        ("Total_Trans_Ct", 10**400),
        ("Credit_Limit", 10**400),
        ("Avg_Utilization_Ratio", [0.1]),
    ],
)
def test_an_invalid_value_is_refused(customer: dict[str, Any], feature: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        Customer.model_validate({**customer, feature: value})
    assert [fault["loc"] for fault in refused.value.errors()] == [(feature,)]


def test_every_missing_feature_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        Customer.model_validate({})
    assert {fault["loc"] for fault in refused.value.errors()} == {(name,) for name in Customer.model_fields}


@pytest.mark.parametrize("body", [[], "Gender", 5, None])
def test_a_value_other_than_an_object_is_one_fault(body: object) -> None:
    with pytest.raises(ValidationError) as refused:
        Customer.model_validate(body)
    assert refused.value.error_count() == 1
