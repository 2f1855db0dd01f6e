"""The features that a model needs, and those that the API asks for. It reads no file and imports no library.

Both processes use it: a worker compares its model with the API, and the API compares itself with the workers' models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_NUMBERS = {"integer", "number"}


class Feature(NamedTuple):
    """A feature of a model or of the API's Customer.

    Attributes:
        type: `integer`, `number` or `category`.
        categories: the known values of a category; empty if they are not recorded.
    """

    type: str
    categories: tuple[str, ...] = ()


class CustomerSchema(NamedTuple):
    """The features that the API asks for, and an example.

    Attributes:
        features: by name.
        example: a customer, if the API has one.
    """

    features: Mapping[str, Feature]
    example: Mapping[str, object] | None


def parse_features(features: Sequence[Mapping[str, Any]]) -> dict[str, Feature]:
    """Return the features of a manifest by name.

    Args:
        features: objects with `name`, `type`, and `categories` if they are known.

    Raises:
        LookupError, TypeError: they are not such objects.
    """
    return {feature["name"]: Feature(feature["type"], tuple(feature.get("categories", ()))) for feature in features}


def parse_schema(schema: Mapping[str, Any]) -> CustomerSchema:
    """Return a schema as `describe_customer` of the API writes it.

    Args:
        schema: `features`, as in a manifest, and `example`.

    Raises:
        LookupError, TypeError: it is none.
    """
    return CustomerSchema(parse_features(schema["features"]), schema["example"])


def schema_differences(features: Mapping[str, Feature], schema: CustomerSchema) -> list[str]:
    """Return why a model cannot predict all customers of the API, as phrases; empty if it can.

    Integers and numbers fit each other. The model may know more categories, and need fewer features.

    Args:
        features: by name, from the manifest.
        schema: of the API.
    """
    asked = schema.features
    found = [f"the model needs {name}, which `Customer` lacks" for name in features if name not in asked]
    for name, ours in asked.items():
        if name not in features:
            continue
        needed = features[name]
        if ours.type != needed.type and not {ours.type, needed.type} <= _NUMBERS:
            found.append(f"{name} is of type {ours.type} in `Customer`, and {needed.type} in the manifest")
        elif needed.categories and (unknown := sorted(set(ours.categories) - set(needed.categories))):
            found.append(f"{name} may be {', '.join(unknown)} in `Customer`, which the model does not know")
    return found


def unused_features(features: Mapping[str, Feature], schema: CustomerSchema) -> list[str]:
    """Return the names of the features that the API asks for and the model does not need."""
    return [name for name in schema.features if name not in features]
