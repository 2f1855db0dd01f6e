"""What `Customer` asks for, in the form of a manifest: workers compare their models with it, and try them."""

from typing import Any

from pydantic import BaseModel

_TYPES = {"string": "category"}  # JSON Schema's names of types; the others are the manifest's too


def describe_customer(customer: type[BaseModel]) -> dict[str, Any]:
    """Return the features of a Pydantic model as a manifest lists them, and its first example, or None."""
    schema = customer.model_json_schema()
    features = [
        {"name": name, "type": _TYPES.get(field.get("type"), field.get("type"))}
        | ({"categories": field["enum"]} if "enum" in field else {})
        for name, field in schema["properties"].items()
    ]
    return {"features": features, "example": next(iter(schema.get("examples", [])), None)}
