"""The schema of a customer, against the manifest of the shipped model, the test client and the load generator."""

import csv
import itertools
from typing import Any

import pytest
from pydantic import ValidationError

import test_client
from benchmarks import load
from models import Customer
from tests.conftest import DATA, MANIFEST
from tests.harness.customers import FEATURES

# The API accepts cents where the training data has whole dollars.
KINDS = {"string": {"category"}, "integer": {"integer"}, "number": {"integer", "number"}}


def test_the_schema_has_the_features_types_and_categories_of_the_model_in_the_same_order() -> None:
    assert list(FEATURES) == [feature["name"] for feature in MANIFEST["features"]]
    for feature, schema in zip(MANIFEST["features"], FEATURES.values(), strict=True):
        assert feature["type"] in KINDS[schema["type"]]
        assert feature.get("categories", []) == sorted(schema.get("enum", ()))


def test_the_examples_of_the_schema_and_of_the_test_client_are_the_same_valid_customer(
    customer: dict[str, Any],
) -> None:
    assert Customer.model_validate(customer).model_dump() == customer
    assert Customer.model_json_schema()["examples"] == [customer]
    assert list(test_client.CUSTOMER.items()) == list(customer.items())


def test_every_customer_of_the_load_generator_is_valid_and_each_feature_varies() -> None:
    first, again = (list(itertools.islice(load.customers(seed=7), 200)) for _ in range(2))
    assert first == again
    valid = [Customer.model_validate_json(customer).model_dump() for customer in first]
    assert all(len({customer[name] for customer in valid}) > 1 for name in Customer.model_fields)


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
