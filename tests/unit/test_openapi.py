"""The OpenAPI document: the whole contract as a literal, so that a change of it shows in a diff, and its examples."""

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI

from api.http.openapi import customize_openapi
from api.http.problems import ProblemType
from app import app
from models import Alive, Customer, Problem
from tests.harness.processes import ROOT

JSON, NDJSON, CSV, PROBLEM = "application/json", "application/x-ndjson", "text/csv", "application/problem+json"

# For each operation: its parameters, the media types of its body, and for each status its media types or problems.
CONTRACT: dict[str, dict[str, list[str]]] = {
    "POST /churn/predict": {
        "parameters": ["header Cancel-After", "header Idempotency-Key", "header Prefer", "query explain"],
        "body": [JSON],
        "200": [JSON],
        "202": [JSON],
        "400": ["bad-header", "not-json"],
        "401": ["unauthorized"],
        "408": ["body-timeout"],
        "409": ["idempotency-key-in-use"],
        "410": ["deleted", "expired"],
        "413": ["too-large"],
        "415": ["not-json-type", "unsupported-encoding"],
        "422": ["bad-parameter", "idempotency-key-reused", "invalid-features", "not-explainable"],
        "429": ["overloaded"],
        "500": ["internal-error", "prediction-failed"],
        "503": ["unavailable"],
    },
    "GET /churn/result/{task_id}": {
        "parameters": ["header Prefer", "path task_id"],
        "200": [JSON],
        "202": [JSON],
        "401": ["unauthorized"],
        "404": ["unknown-task"],
        "410": ["deleted", "expired"],
        "500": ["internal-error", "prediction-failed"],
        "503": ["unavailable"],
    },
    "DELETE /churn/result/{task_id}": {
        "parameters": ["path task_id"],
        "204": [],
        "401": ["unauthorized"],
        "404": ["unknown-task"],
        "500": ["internal-error"],
        "503": ["unavailable"],
    },
    "POST /churn/batches": {
        "parameters": ["query on_error"],
        "body": [JSON, NDJSON, CSV],
        "202": [JSON],
        "400": ["malformed-batch"],
        "401": ["unauthorized"],
        "408": ["body-timeout"],
        "413": ["batch-too-large"],
        "415": ["unsupported-encoding", "unsupported-media-type"],
        "422": ["bad-parameter", "invalid-rows"],
        "429": ["overloaded"],
        "500": ["internal-error"],
        "503": ["no-space", "unavailable"],
    },
    "GET /churn/batches/{batch_id}": {
        "parameters": ["path batch_id"],
        "200": [JSON],
        "202": [JSON],
        "401": ["unauthorized"],
        "404": ["unknown-batch"],
        "410": ["batch-deleted"],
        "503": ["unavailable"],
    },
    "DELETE /churn/batches/{batch_id}": {
        "parameters": ["path batch_id"],
        "204": [],
        "401": ["unauthorized"],
        "404": ["unknown-batch"],
        "503": ["unavailable"],
    },
    "GET /churn/batches/{batch_id}/results": {
        "parameters": ["path batch_id"],
        "200": [JSON, NDJSON, CSV],
        "202": [JSON, NDJSON, CSV],
        "401": ["unauthorized"],
        "404": ["unknown-batch"],
        "406": ["not-acceptable"],
        "410": ["batch-deleted"],
        "503": ["unavailable"],
    },
    "GET /churn/model": {
        "200": [JSON],
        "401": ["unauthorized"],
        "500": ["internal-error"],
        "503": ["no-model", "unavailable"],
    },
    "GET /churn/queue": {"200": [JSON], "401": ["unauthorized"], "500": ["internal-error"], "503": ["unavailable"]},
    "GET /livez": {"200": [JSON], "500": ["internal-error"]},
    "GET /readyz": {
        "parameters": ["query without"],
        "200": [JSON],
        "422": ["bad-parameter"],
        "500": ["internal-error"],
        "503": ["not-ready"],
    },
}
OPEN = {"GET /livez", "GET /readyz"}
HEADERS_OF_202 = {"Cache-Control", "Location", "Preference-Applied", "Retry-After"}
RETRIABLE = {"409", "429", "503"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def outline(operation: dict[str, Any]) -> dict[str, list[str]]:
    """Return an operation as CONTRACT describes it."""
    found = {
        "parameters": sorted(f"{parameter['in']} {parameter['name']}" for parameter in operation.get("parameters", ())),
        "body": sorted(operation.get("requestBody", {}).get("content", {})),
    }
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        found[status] = sorted(content[PROBLEM]["examples"] if PROBLEM in content else content)
    return {name: values for name, values in found.items() if values or name.isdecimal()}


def test_openapi_json_is_the_document_of_this_code(document: dict[str, Any]) -> None:
    committed = json.loads((ROOT / "openapi.json").read_text())
    assert committed == document, "run `make openapi` and commit openapi.json"


def test_every_operation_is_that_of_the_contract(document: dict[str, Any]) -> None:
    assert {name: outline(operation) for name, operation in operations(document).items()} == CONTRACT


def test_every_problem_is_a_response_of_an_operation(document: dict[str, Any]) -> None:
    documented = {text for contract in CONTRACT.values() for values in contract.values() for text in values}
    assert {kind.slug for kind in ProblemType} <= documented


@pytest.mark.parametrize(
    ("operation", "name", "schema"),
    [
        ("POST /churn/predict", "explain", {"type": "string", "enum": ["true", "false"]}),
        ("POST /churn/predict", "Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": 255}),
        ("POST /churn/predict", "Cancel-After", {"type": "integer", "minimum": 1}),
        ("POST /churn/predict", "Prefer", {"type": "string"}),
        ("POST /churn/batches", "on_error", {"type": "string", "enum": ["skip", "reject"], "default": "skip"}),
    ],
)
def test_a_parameter_is_optional_and_has_its_limits(
    document: dict[str, Any], operation: str, name: str, schema: dict[str, Any]
) -> None:
    parameters = {parameter["name"]: parameter for parameter in operations(document)[operation]["parameters"]}
    assert parameters[name]["required"] is False
    assert {key: value for key, value in parameters[name]["schema"].items() if key != "title"} == schema


def test_the_headers_of_responses_are_documented(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            headers = set(response.get("headers", {}))
            if status == "202" and "results" not in name:
                assert headers == HEADERS_OF_202
            if PROBLEM in response.get("content", {}):
                assert headers == ({"Cache-Control", "Retry-After"} if status in RETRIABLE else {"Cache-Control"})


def test_every_operation_has_an_id_a_tag_and_a_summary(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert sorted(ids) == [
        "create_batch",
        "delete_batch",
        "delete_churn_result",
        "get_batch",
        "get_batch_results",
        "get_churn_model",
        "get_churn_queue",
        "get_churn_result",
        "get_liveness",
        "get_readiness",
        "predict_churn",
    ]
    for operation in operations(document).values():
        assert operation["tags"]
        assert operation["summary"]
        assert operation["description"]


def test_every_json_response_and_every_problem_has_an_example(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            for content_type, content in response.get("content", {}).items():
                if content_type == PROBLEM:
                    for slug, example in content["examples"].items():
                        problem = Problem.model_validate(example["value"])
                        assert (problem.type, str(problem.status)) == (f"/problems/{slug}", status)
                elif content_type == JSON:
                    schema = content["schema"]
                    assert schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)["examples"]


def test_every_feature_has_its_limits(document: dict[str, Any]) -> None:
    features = document["components"]["schemas"]["Customer"]["properties"]
    assert list(features) == list(Customer.model_fields)
    for feature in features.values():
        assert "enum" in feature or {"minimum", "maximum"} <= set(feature)


def test_every_reference_has_its_schema_and_every_schema_its_reference(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])


def test_no_response_of_the_framework_is_documented(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(document)


def test_the_document_is_the_same_at_every_call(document: dict[str, Any]) -> None:
    assert app.openapi() == document


@pytest.mark.parametrize("is_key_required", [True, False])
def test_an_api_key_is_needed_or_optional_except_for_probes(is_key_required: bool) -> None:
    small = FastAPI()
    customize_openapi(small, is_key_required=is_key_required)

    @small.get("/churn/model")
    @small.get("/livez")
    async def route() -> Alive:
        return Alive()

    document = small.openapi()
    guarded, probe = (document["paths"][path]["get"] for path in ("/churn/model", "/livez"))
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert guarded["security"] == ([{"key": []}] if is_key_required else [{}, {"key": []}])
    assert "401" in guarded["responses"]
    assert "security" not in probe
    assert "401" not in probe["responses"]


def test_every_operation_but_the_probes_documents_the_key(document: dict[str, Any]) -> None:
    secured = {name for name, operation in operations(document).items() if "security" in operation}
    assert secured == set(CONTRACT) - OPEN
