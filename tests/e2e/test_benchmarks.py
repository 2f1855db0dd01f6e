"""The benchmarks run, briefly and on the embedded Valkey. No test asserts a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT


def run(module: str, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--servers", "valkey", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_comparison_measures_every_subject_and_writes_its_figures(tmp_path: Path) -> None:
    options = ("--rounds", "1", "--seconds", "0.5", "--clients", "4", "--out", str(tmp_path / "bench"))
    output = run("compare", *options)
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    names = {"this service, waiting", "this service, polling", "synchronous", "ceiling"}
    assert {one["subject"] for one in figures} == names
    assert all(one["predictions_per_s"] > 0 and one["pss_mb"]["API"] > 0 for one in figures)
    assert all(name in output for name in names)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_thousand_predictions_leave_only_results_in_the_store() -> None:
    # A process still grows in its first 1,000 predictions; the full benchmark runs 100,000.
    output = run("endurance", "--predictions", "1000", "--clients", "8", "--growth", "2")
    assert "left in the result store beside the results: nothing" in output


def test_each_period_of_scrapes_has_a_ratio_and_the_times_of_both_processes() -> None:
    output = run("scrapes", "--clients", "4", "--rounds", "1", "--seconds", "0.5")
    for period in ("1 s", "0.1 s"):
        (ratios,) = [line for line in output.splitlines() if line.startswith(f"| each {period} |")]
        assert ratios.count("ratio") == 4
        assert all(f"| {process} | {period} |" in output for process in ("API", "worker"))


def test_each_stage_has_a_row() -> None:
    output = run("stages", "--clients", "4", "--seconds", "1")
    assert len([line for line in output.splitlines() if line.startswith("| ")]) == 15


def test_the_cost_of_traces_has_a_row_for_each_case() -> None:
    cases = ["off", "1 %", "all", "all, hanging collector"]
    output = run("tracing", "--clients", "4", "--rounds", "1", "--seconds", "0.5")
    assert [line.split(" | ")[1] for line in output.splitlines() if line.startswith("| 4 |")] == cases
    stops = output.partition("| stop of the API")[2].splitlines()[2:]
    assert [line.removeprefix("| ").split(" | ")[0] for line in stops] == cases


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores")
def test_each_part_has_a_row_for_clients_and_for_rows() -> None:
    output = run("scale", "--clients", "4", "--workers", "1", "--rows", "10", "--seconds", "0.5")
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith(("| API |", "| worker |", "| sync"))]
    assert [(part.strip("| "), load) for part, _, _, load, *_ in rows] == [
        ("API", "4 clients"),
        ("API", "batches of 10 rows"),
        ("worker", "4 clients"),
        ("worker", "batches of 10 rows"),
        ("synchronous app", "4 clients"),
    ]


def test_the_capacity_model_is_checked_and_answers_and_can_use_its_figures_again(tmp_path: Path) -> None:
    figures = str(tmp_path / "capacity.json")
    options = ["--seconds", "0.5", "--rates", "500", "--price-per-core-hour", "0.05"]
    options += ["--out", figures, "--images", str(tmp_path)]
    output = run("capacity", "--clients", "4", "--stacks", "1", "1", "--rounds", "1", *options)
    checked = [line.split(" | ")[2] for line in output.splitlines() if line.startswith("| 1 | 1 |")]
    assert checked == ["1 (calibration)", "4", "64 (calibration)", "512 (calibration)"]
    assert "throughput: " in output
    assert len([line for line in output.splitlines() if line.startswith("| 1,000,000 |")]) == 1
    assert len(list(tmp_path.glob("*.png"))) == 3
    again = run("capacity", "--from", figures, *options)
    assert again == output
