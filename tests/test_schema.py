"""The running service does what its OpenAPI document says: schemathesis tries, with good and with bad requests."""

import json
import subprocess
import sys
from pathlib import Path

import requests

from tests.processes import Service

# 410 is the answer to a prediction that another request has deleted or let expire; no header is too much.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 409, 410, 429, "5xx"]
[parameters]
"query.on_error" = "reject"
[generation]
allow-extra-parameters = false
"""


def test_schemathesis_finds_no_deviation(service: Service, tmp_path: Path) -> None:
    document = requests.get(f"{service.url}/openapi.json", timeout=30).json()
    # Whether a key was sent before with another body, and so is refused, no schema can say: test_idempotency.py does.
    parameters = document["paths"]["/churn/predict"]["post"]["parameters"]
    parameters[:] = [parameter for parameter in parameters if parameter["name"] != "Idempotency-Key"]
    # What a CSV file should be no schema says, and by default a batch may have rows that are refused: test_batches.py.
    batches = document["paths"]["/churn/batches"]["post"]
    del batches["requestBody"]["content"]["text/csv"]
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)

    program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    options = ["--checks", "all", "--max-examples", "100", "--seed", "1", "--continue-on-failure"]
    command = [*program, "run", "openapi.json", "--url", service.url, *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr
    assert "No issues found" in run.stdout
    assert "Traceback" not in service.api.text()
