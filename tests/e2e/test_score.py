"""`python -m celery_task_app.cli.score` against the real service.

Kind of fault: a row loses its result, its reason or its text on the way through the command.
"""

import csv
import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.harness import marked_model
from tests.harness.customers import as_csv
from tests.harness.processes import ROOT
from tests.harness.service import Service

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

COMMAND = [sys.executable, "-m", "celery_task_app.cli.score"]


def score(service: Service, *options: object, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; it gets the text as standard input."""
    run = subprocess.run(
        [*COMMAND, "--url", service.url, *map(str, options)],
        cwd=ROOT,
        env=os.environ | env,
        input=text.encode() if text is not None else None,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in run.stderr
    return subprocess.CompletedProcess(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())


def rows_of(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "customers.csv"


def test_each_row_gets_a_probability_or_an_error(marked: Service, customer: dict[str, Any], path: Path) -> None:
    rows = [{**customer, "Total_Trans_Ct": number, "name": 'a "name"'} for number in range(120)]
    rows[1]["Gender"] = "X"
    rows[2]["Customer_Age"] = marked_model.RAISES
    path.write_text(as_csv(rows))

    run = score(marked, path)

    assert run.returncode == 0, run.stderr
    scored = rows_of(run.stdout)
    assert [row["name"] for row in scored] == ['a "name"'] * 120
    assert [row["churn_probability"] for row in scored[:4]] == ["0.0", "", "", "0.003"]
    errors = [row["churn_error"] for row in scored[:4]]
    assert errors == ["", "Gender: Input should be 'F' or 'M'", "InvalidPrediction", ""]
    assert run.stderr == "118 rows scored, 2 not: churn_error has the reasons.\n"  # no progress outside of a terminal


def test_a_file_that_is_not_scored_is_exit_code_1_with_the_reason(marked: Service, path: Path) -> None:
    path.write_text("name\nAnna\n")

    refused = score(marked, path)
    missing = score(marked, "missing.csv")

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "lacks Customer_Age" in refused.stderr
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "Not scored. missing.csv: No such file or directory.\n"


def test_each_of_many_refused_rows_has_its_own_reason(marked: Service, customer: dict[str, Any], path: Path) -> None:
    rows = [{**customer, "Customer_Age": 45 if number % 2 else number - 1000} for number in range(700)]
    rows[-1]["Gender"] = "X"
    path.write_text(as_csv(rows))

    scored = rows_of(score(marked, path).stdout)

    errors = [row["churn_error"] for row in scored]
    assert errors[:-1] == ["Customer_Age: Input should be greater than or equal to 16", ""] * 349 + errors[:1]
    assert errors[-1] == "Gender: Input should be 'F' or 'M'"


def test_a_file_without_a_valid_row_is_written_with_the_reasons_and_is_exit_code_1(
    marked: Service, customer: dict[str, Any], path: Path
) -> None:
    path.write_text(as_csv([{**customer, "Gender": "X"}] * 120))
    run = score(marked, path)
    assert run.returncode == 1
    assert [row["churn_error"] for row in rows_of(run.stdout)] == ["Gender: Input should be 'F' or 'M'"] * 120
    assert run.stderr == "0 rows scored, 120 not: churn_error has the reasons.\n"


def test_a_file_beyond_the_limits_of_the_service_is_scored_in_several_batches(
    batches: Service, customer: dict[str, Any], path: Path
) -> None:
    rows = [{**customer, "Total_Trans_Ct": number % 1000, "note": "two\nlines"} for number in range(12_345)]
    path.write_text(as_csv(rows))

    scored = rows_of(score(batches, path).stdout)

    assert [float(row["churn_probability"]) for row in scored] == [row["Total_Trans_Ct"] / 1000 for row in rows]
    assert {row["note"] for row in scored} == {"two\nlines"}


def test_standard_input_and_a_pipe_are_read(marked: Service, customer: dict[str, Any], tmp_path: Path) -> None:
    text = as_csv([customer])
    expected = score(marked, "-", text=text)
    assert expected.returncode == 0, expected.stderr
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["sh", "-c", 'printf %s "$1" > "$2"', "sh", text, fifo]):
        assert score(marked, fifo).stdout == expected.stdout


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_the_output_is_utf8_with_crlf_in_every_locale(
    marked: Service, customer: dict[str, Any], path: Path, env: dict[str, str]
) -> None:
    path.write_text(as_csv([{**customer, "name": "Ångström 東京"}]), "utf-8")
    run = score(marked, path, PYTHONUTF8="0", **env)
    assert rows_of(run.stdout)[0]["name"] == "Ångström 東京"
    assert run.stdout.count("\n") == run.stdout.count("\r\n") == 2


def test_a_european_file_comes_back_in_its_own_dialect(marked: Service, customer: dict[str, Any], path: Path) -> None:
    european = {**customer, "Credit_Limit": "12691,5", "name": "Ü", "note": "=1+1", "change": "-5,2"}
    lines = [";".join(map(str, row)) for row in (european, european.values())]
    path.write_text("\n".join([*lines, ";" * 20, ""]), "utf-8-sig")

    run = score(marked, path, "--threshold", "0.042")

    assert run.stdout.startswith("\ufeff")
    (scored,) = rows_of(run.stdout.removeprefix("\ufeff"), ";")
    assert scored["Credit_Limit"] == "12691,5"
    assert (scored["churn_probability"], scored["churn"]) == ("0,042", "yes")
    assert (scored["name"], scored["note"], scored["change"]) == ("Ü", "'=1+1", "-5,2")


def test_raw_copies_cells_unchanged(marked: Service, customer: dict[str, Any], path: Path) -> None:
    path.write_text(as_csv([{**customer, "note": "=1+1"}]))
    assert rows_of(score(marked, path, "--raw").stdout)[0]["note"] == "=1+1"


def test_the_output_can_be_scored_again(marked: Service, customer: dict[str, Any], path: Path) -> None:
    path.write_text(as_csv([{**customer, "note": "=1+1"}, {**customer, "Gender": "X", "note": ""}]))
    first = score(marked, path, "--threshold", "0.5").stdout
    assert score(marked, "-", "--threshold", "0.5", text=first).stdout == first
    again = score(marked, "-", text=first)
    assert list(rows_of(again.stdout)[0])[-3:] == ["note", "churn_probability", "churn_error"]


def test_out_replaces_a_file_only_with_a_complete_one(marked: Service, customer: dict[str, Any], path: Path) -> None:
    path.write_text(as_csv([customer]))
    out = path.with_name("scored.csv")
    out.write_text("earlier")
    out.chmod(0o640)

    failed = score(marked, "--out", out, "-", text="name\nAnna\n")
    assert (failed.returncode, out.read_text()) == (1, "earlier")
    done = score(marked, "--out", out, path)

    assert (done.returncode, done.stdout) == (0, "")
    assert rows_of(out.read_text())[0]["churn_probability"] == "0.042"
    assert out.stat().st_mode & 0o777 == 0o640
    assert {file.name for file in path.parent.iterdir()} == {"customers.csv", "scored.csv"}


def test_out_may_be_a_device(marked: Service, customer: dict[str, Any], path: Path) -> None:
    path.write_text(as_csv([customer]))
    assert rows_of(score(marked, path, "--out", "/dev/stdout").stdout)[0]["churn_probability"] == "0.042"
    full = score(marked, path, "--out", "/dev/full")
    assert full.returncode == 1
    assert full.stderr.startswith("Not scored. The output: No space left on device.")


def test_a_terminal_shows_the_rows_per_second_and_the_time_left(
    marked: Service, customer: dict[str, Any], path: Path
) -> None:
    path.write_text(as_csv([customer] * 100))
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 100))
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        words = [*COMMAND, "--url", marked.url, str(path)]
        subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, timeout=60, check=True)
        shown = screen.read(10_000).decode()
        os.close(stderr)
    assert re.search(r"100/100 \[\d+:\d+<\d+:\d+, *[\d.]+ rows/s\]", shown)


def test_a_reader_that_ends_early_ends_the_command_quietly(
    marked: Service, customer: dict[str, Any], path: Path
) -> None:
    path.write_text(as_csv([customer] * 5_000))
    command = '"$@" | head -n 1'
    words = ["sh", "-c", command, "sh", *COMMAND, "--url", marked.url, str(path)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.startswith("Customer_Age,")
    assert run.stderr == ""
