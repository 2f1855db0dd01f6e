"""The load generator, against the service and against a closed port."""

import json
import subprocess
import sys

import pytest

from tests.harness.processes import ROOT, free_port
from tests.harness.service import Service


def load(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.load", "--url", url, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("servers", ["valkey"], indirect=True)
def test_every_prediction_of_a_load_is_measured(service: Service) -> None:
    run = load(service.url, "--requests", "50", "--clients", "4", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    report = json.loads(run.stdout)
    assert report["errors"] == {}
    assert report["predictions"] == 50
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"] <= report["max_ms"]
    assert 0 < report["post_p50_ms"] < report["p50_ms"]
    assert report["polls_per_prediction"] >= 1


def test_a_closed_port_is_one_line_and_exit_code_1() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    run = load(url)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith(f"No answer from {url}: ")
    assert len(run.stderr.splitlines()) == 1, run.stderr
