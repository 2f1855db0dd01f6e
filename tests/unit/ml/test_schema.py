"""Features: a difference between the model and `Customer` is named."""

import pytest

from api.customer_schema import describe_customer
from celery_task_app.ml.schema import (
    CustomerSchema,
    Feature,
    parse_features,
    parse_schema,
    schema_differences,
    unused_features,
)
from models import Customer
from tests.conftest import MANIFEST

AGE, GENDER = {"age": Feature("integer")}, {"gender": Feature("category", ("F", "M"))}


@pytest.mark.parametrize(
    ("features", "asked", "difference"),
    [
        (AGE, AGE, None),
        ({"age": Feature("number")}, AGE, None),  # an integer is a number
        ({"gender": Feature("category", ("F", "M", "X"))}, GENDER, None),
        ({"gender": Feature("category")}, GENDER, None),  # no categories recorded
        (AGE | GENDER, AGE, "the model needs gender, which `Customer` lacks"),
        (AGE, AGE | GENDER, None),
        (AGE, {"age": Feature("number")}, None),
        (AGE, {"age": Feature("category")}, "age is of type category in `Customer`, and integer in the manifest"),
        (GENDER, {"gender": Feature("category", ("F", "M", "X"))}, "gender may be X in `Customer`, which the model"),
    ],
)
def test_a_difference_between_the_model_and_customer_is_named(
    features: dict[str, Feature], asked: dict[str, Feature], difference: str | None
) -> None:
    found = schema_differences(features, CustomerSchema(asked, None))
    assert len(found) == bool(difference)
    assert "".join(found).startswith(difference or "")


def test_the_shipped_model_fits_the_api() -> None:
    schema = describe_customer(Customer)
    asked = parse_schema(schema)
    assert schema_differences(parse_features(MANIFEST["features"]), asked) == []
    assert set(asked.example or ()) == set(asked.features)


def test_a_feature_that_the_model_does_not_use_is_named() -> None:
    assert unused_features(AGE, CustomerSchema(AGE | GENDER, None)) == ["gender"]
    assert unused_features(AGE, CustomerSchema(AGE, None)) == []
