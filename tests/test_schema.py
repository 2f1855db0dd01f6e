"""The running service does what its OpenAPI document says: schemathesis tries, with good and with bad requests."""

import subprocess
import sys
from pathlib import Path

from tests.processes import Service


def test_schemathesis_finds_no_deviation(service: Service, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    options = ["--checks", "all", "--max-examples", "100", "--seed", "1", "--continue-on-failure"]
    command = [*program, "run", f"{service.url}/openapi.json", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr
    assert "No issues found" in run.stdout
    assert "Traceback" not in service.api.text()
