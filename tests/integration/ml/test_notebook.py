"""The notebook runs from its first cell to its last, and the committed outputs are those of one complete run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import DATA
from tests.harness.processes import ROOT

NOTEBOOK = ROOT / "notebooks" / "BankChurner.ipynb"


def run(data: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the notebook as `make notebook` does, with few trees, and without saving its outputs."""
    command = [sys.executable, "-m", "jupyter", "execute", "--timeout=200", str(NOTEBOOK)]
    environment = os.environ | {
        "DATA": str(data.resolve()),
        "QUICK": "1",
        "IPYTHONDIR": str(tmp_path),
        "MPLBACKEND": "agg",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_notebook_runs(csv: Path, tmp_path: Path) -> None:
    """It runs on 2,000 real customers if they are there, else on synthetic ones; nothing in it depends on the data."""
    before = NOTEBOOK.read_bytes()
    if DATA.is_file():
        csv = tmp_path / "BankChurners.csv"
        csv.write_text("".join(DATA.read_text().splitlines(keepends=True)[:2_001]))

    completed = run(csv, tmp_path)

    assert completed.returncode == 0, completed.stderr[-3000:]
    assert NOTEBOOK.read_bytes() == before


def test_the_committed_outputs_are_those_of_a_complete_run_and_small() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]

    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 9
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert "/home/" not in NOTEBOOK.read_text()
