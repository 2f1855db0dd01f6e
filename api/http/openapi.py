"""The OpenAPI document: FastAPI's own, with the schema of problems and with authentication."""

from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from api.http.auth import OPEN_PATHS
from api.http.problems import ProblemType, problem_responses
from models import Problem


def customize_openapi(app: FastAPI, *, is_key_required: bool) -> None:
    """Replace `app.openapi`, which is FastAPI's extension point for this.

    Args:
        app: the app, whose routes may still be added.
        is_key_required: `API_KEYS` is set; else a client may send a key, which has no effect.
    """
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        _add_security(document, is_key_required=is_key_required)
        _patch_schemas(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documentation assigns it too


def _add_security(document: dict[str, Any], *, is_key_required: bool) -> None:
    ((status, refusal),) = problem_responses(ProblemType.UNAUTHORIZED).items()
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key, if the operator has set `API_KEYS`."}
    document["components"]["securitySchemes"] = {"key": scheme}
    for path, operations in document["paths"].items():
        for operation in () if path in OPEN_PATHS else operations.values():
            operation["security"] = [{"key": []}] if is_key_required else [{}, {"key": []}]
            operation["responses"][str(int(status))] = refusal


def _patch_schemas(document: dict[str, Any]) -> None:
    """Add the schema of a problem, which no route returns; remove additions of FastAPI that no route answers.

    FastAPI adds its own 422, and `null` for a header that may be missing.
    """
    schemas = document["components"]["schemas"]
    schemas |= models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")[1]["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                schema |= next((kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}), {})
