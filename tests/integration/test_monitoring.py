"""Prometheus's own checks of deploy/monitoring."""

import shutil
import subprocess

import pytest

from tests.conftest import skip
from tests.harness.monitoring import FOLDER


@pytest.mark.parametrize(
    ("command", "file"),
    [("check rules", "rules.yml"), ("check config", "prometheus.yml"), ("test rules", "rules.test.yml")],
)
def test_promtool_finds_no_fault(command: str, file: str) -> None:
    promtool = shutil.which("promtool") or ""
    if not promtool:
        skip("not installed: promtool (Debian package prometheus)")
    done = subprocess.run(
        [promtool, *command.split(), str(FOLDER / file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
