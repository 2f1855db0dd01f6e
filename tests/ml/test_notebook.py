"""The notebook runs from the top, and what is committed of it is what a whole run printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.ml.conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "BankChurner.ipynb"


def run(data: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the notebook as `make notebook` does, quickly, and throw away what it draws."""
    command = [sys.executable, "-m", "jupyter", "execute", "--timeout=200", str(NOTEBOOK)]
    environment = os.environ | {
        "DATA": str(data.resolve()),
        "QUICK": "1",
        "IPYTHONDIR": str(tmp_path),
        "MPLBACKEND": "agg",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_notebook_runs_from_the_top_on_other_data(csv: Path, tmp_path: Path) -> None:
    before = NOTEBOOK.read_bytes()

    done = run(csv, tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]
    assert NOTEBOOK.read_bytes() == before


def test_the_notebook_runs_on_the_real_data(real_csv: Path, tmp_path: Path) -> None:
    done = run(real_csv, tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]


def test_the_committed_notebook_is_a_whole_run_and_small() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]

    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 9
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert "/home/" not in NOTEBOOK.read_text()
