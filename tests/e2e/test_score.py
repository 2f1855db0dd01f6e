"""`python -m celery_task_app.cli.score`: a CSV file goes through the API, and back with a probability in each row."""

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness import marked_model
from tests.harness.customers import as_csv
from tests.harness.processes import ROOT
from tests.harness.service import Service


def score(service: Service, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery_task_app.cli.score", str(path), "--url", service.url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_each_row_gets_a_probability_or_an_error(marked: Service, customer: dict[str, Any], tmp_path: Path) -> None:
    rows = [{**customer, "Total_Trans_Ct": number, "name": 'a "name"'} for number in range(120)]
    rows[1]["Gender"] = "X"
    rows[2]["Customer_Age"] = marked_model.RAISES
    (tmp_path / "customers.csv").write_text(as_csv(rows))

    run = score(marked, tmp_path / "customers.csv")

    assert run.returncode == 0, run.stderr
    scored = list(csv.DictReader(io.StringIO(run.stdout)))
    assert [row["name"] for row in scored] == ['a "name"'] * 120
    assert [row["churn_probability"] for row in scored[:4]] == ["0.0", "", "", "0.003"]
    errors = [row["churn_error"] for row in scored[:4]]
    assert errors == ["", "Gender: Input should be 'F' or 'M'", "InvalidPrediction", ""]
    assert "119 of 119" in run.stderr


def test_a_file_that_is_not_scored_is_exit_code_1_with_the_reason(marked: Service, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text("name\nAnna\n")

    refused = score(marked, tmp_path / "customers.csv")
    missing = score(marked, tmp_path / "missing.csv")

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "lacks Customer_Age" in refused.stderr
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "missing.csv" in missing.stderr
