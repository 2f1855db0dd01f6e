"""The running service conforms to its OpenAPI document: schemathesis sends valid and invalid requests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.service import Service

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

# A prediction that another request deleted, or that expired, is 410. Extra headers are not an error.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 409, 410, 429, "5xx"]
[parameters]
"query.on_error" = "reject"
[generation]
allow-extra-parameters = false
"""


def test_schemathesis_finds_no_deviation(service: Service, tmp_path: Path) -> None:
    document = service.get("/openapi.json").json()
    # No schema can say that a key was sent before with another body: see test_idempotency.py.
    parameters = document["paths"]["/churn/predict"]["post"]["parameters"]
    parameters[:] = [parameter for parameter in parameters if parameter["name"] != "Idempotency-Key"]
    # No schema can describe a line of CSV or NDJSON: see test_batch_formats.py.
    batches = document["paths"]["/churn/batches"]["post"]
    for media_type in ("text/csv", "application/x-ndjson"):
        del batches["requestBody"]["content"][media_type]
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)

    program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    options = ["--checks", "all", "--max-examples", "60", "--seed", "1", "--continue-on-failure"]
    command = [*program, "run", "openapi.json", "--url", service.url, *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr
    assert "No issues found" in run.stdout
    assert "Traceback" not in service.api.text()
