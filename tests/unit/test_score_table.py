"""Kind of fault: a file that a spreadsheet wrote is misread, or a cell of the output is run by a spreadsheet."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_task_app.cli.score import ScoreError
from celery_task_app.cli.score.table import as_text, read_table

FEATURES = ["Age", "Credit"]


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "customers.csv"
    path.write_bytes(text.encode(encoding))
    return path


def sent(path: Path) -> str:
    """Return the lines that the service gets, without the header."""
    return b"".join(read_table(path, FEATURES, FEATURES).csv_rows()).decode()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Age,Credit\n45,12.5\n", "utf-8"),
        ("Age,Credit\r\n45,12.5\r\n", "utf-8-sig"),
        ("Age,Credit\r45,12.5\r", "utf-8"),
        ('"Age";"Name";"Credit"\n"45";"a;b,c";"12,5"\n', "utf-8"),
        ("Age;Credit\n45;12.5\n", "utf-8"),
        ("Age\tCredit\n45\t12.5\n", "utf-16"),
        ("sep=;\r\nAge;Credit\r\n45;12,5\r\n", "utf-8-sig"),
        ("sep=|\nAge|Credit\n45|12.5\n", "utf-8"),
        (" age , CREDIT ,,\n 45 , 12.5 ,,\n,,,\n\n\x1a", "utf-8"),
        ("\n\nAge,Credit,Note\n45,12.5\n", "utf-8"),
        ('Age,Note,Credit\n45,"two\nlines ""and"" quotes",12.5\n', "utf-8"),
        ("Name,Name,Age,Credit\nJosé,Müller,45,12.5\n", "utf-8"),
    ],
)
def test_every_dialect_of_a_spreadsheet_is_sent_as_the_same_features_and_nothing_else(
    tmp_path: Path, text: str, encoding: str
) -> None:
    assert sent(write(tmp_path, text, encoding)) == "1,45,12.5\r\n"


def test_a_comma_in_a_number_of_a_file_with_commas_is_not_taken_for_a_decimal_comma(tmp_path: Path) -> None:
    assert sent(write(tmp_path, 'Age,Credit\n45,"12,691"\n')) == '1,45,"12,691"\r\n'


def test_a_row_without_features_keeps_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, "Age,Credit,Name\n,,Anna\n45,12.5,Ben\n")
    assert sent(path) == "1,,\r\n2,45,12.5\r\n"


def test_a_very_long_cell_is_shortened_to_text_that_is_no_number(tmp_path: Path) -> None:
    path = write(tmp_path, f"Age,Credit\n{'0' * 70_000}45,1\n")
    assert len(sent(path)) < 2_000
    with pytest.raises(ValueError, match="invalid literal"):
        int(sent(path).split(",")[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "The file is empty"),
        (b"Name\nAnna\n", "lacks Age, Credit"),
        (b"Age,Credit limit\n", "lacks Credit"),
        (b"Age,Cre dit\n", r"lacks Credit \(did you mean 'Cre dit'\?\)"),
        (b"Age,Credit,Age\n1,2,3\n", "the column Age twice"),
        (b"Age,Credit\n1,2\n1,2,3\n", "Line 3 has 3 cells, and the header has 2"),
        (b'Age,Credit\n1,2\n"1,2\n', "From line 3 the file is not CSV"),
        (b"Age,Credit,Name\n1,2,Ann\n1,2,Jos\xe9\n", "Line 3 is not UTF-8: save the file as CSV UTF-8"),
        (b"\xff\xfeA", "is not: save the file as CSV UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place_and_the_remedy(
    tmp_path: Path, text: bytes, message: str
) -> None:
    (tmp_path / "customers.csv").write_bytes(text)
    with pytest.raises(ScoreError, match=message):
        sent(tmp_path / "customers.csv")


def test_the_columns_of_an_earlier_output_are_replaced(tmp_path: Path) -> None:
    earlier = read_table(write(tmp_path, "Age,churn_probability,churn,churn_error,Credit\n"), FEATURES, FEATURES)
    assert earlier.kept_columns(["churn_probability", "churn_error"]) == [0, 4]


def test_a_column_churn_of_another_source_stays_unless_it_is_written(tmp_path: Path) -> None:
    labelled = read_table(write(tmp_path, "Age,churn,Credit\n"), FEATURES, FEATURES)
    assert labelled.kept_columns(["churn_probability", "churn_error"]) == [0, 1, 2]
    assert labelled.kept_columns(["churn_probability", "churn", "churn_error"]) == [0, 2]


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-", "+49 151"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe_once(cell: str) -> None:
    written = as_text(cell)
    assert written == (cell if cell == "-" else f"'{cell}")
    assert as_text(written) == written


@pytest.mark.parametrize("cell", ["-5.2", "+3", "-1,5", "1e-05", "-2.5E+3", "-.5", "-5%", "", "O'Hara", "a=b"])
def test_numbers_and_other_text_stay_unchanged(cell: str) -> None:
    assert as_text(cell) == cell


@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=2), min_size=1))
def test_cells_of_any_text_are_read_as_csv_wrote_them(
    rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [["1", "2", *row] for row in rows if "\0" not in "".join(row)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["Age", "Credit", "a", "b"], *rows])
    path = write(tmp_path_factory.mktemp("any"), text.getvalue())
    assert list(read_table(path, FEATURES, FEATURES).rows()) == rows
