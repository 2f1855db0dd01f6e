"""The rows of a batch as text: CSV, NDJSON and JSON are parsed in slices, results are formatted."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from api.batch_formats import CSV, JSON, NDJSON, InvalidRow, RowParser, RowSlice, format_end, format_results
from celery_task_app.errors import MalformedBatch
from celery_task_app.store.batches import ScoredRow
from models import Customer
from tests.harness.customers import Row, as_csv, as_ndjson

FORMATS = [CSV, NDJSON, JSON]
SECRET = 31415.9265
BLANK_ROW = "," * (len(Customer.model_fields) - 1) + "\n"


def feature_values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Generate the valid values of one feature."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    limits = schema["minimum"], schema["maximum"]
    return st.integers(*limits) if schema["type"] == "integer" else st.floats(*limits)


CUSTOMERS = st.fixed_dictionaries(
    {name: feature_values(schema) for name, schema in Customer.model_json_schema()["properties"].items()}
)


AS_TEXT: dict[str, Callable[[Sequence[Row]], str]] = {CSV: as_csv, NDJSON: as_ndjson, JSON: json.dumps}


PARSER = RowParser(Customer)


def slices(body: bytes | str, media_type: str, size: int = 50, parser: RowParser | None = None) -> list[RowSlice]:
    """Parse a batch of customers with a new parser, so that a change of the parser's constructor changes the result.

    Hypothesis calls it for each of many examples, with PARSER.
    """
    body = body.encode() if isinstance(body, str) else body
    return list((parser or RowParser(Customer)).parse(io.BytesIO(body), media_type, size))


def columns(parsed: list[RowSlice]) -> dict[str, list[Any]]:
    """Return the customers of all slices, column by column."""
    return {name: [value for part in parsed for value in part.columns[name]] for name in Customer.model_fields}


def columns_of(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in Customer.model_fields}


def invalid_rows(parsed: list[RowSlice]) -> list[InvalidRow]:
    return [row for part in parsed for row in part.invalid]


@pytest.fixture
def rows(customer: Row) -> list[Row]:
    """Return three slices of customers, of which the last is not full."""
    return [{**customer, "Total_Trans_Ct": number} for number in range(120)]


@pytest.mark.parametrize("media_type", FORMATS)
def test_rows_are_parsed_in_slices_in_the_order_sent(rows: list[Row], media_type: str) -> None:
    parsed = slices(AS_TEXT[media_type](rows), media_type)
    assert [len(part.rows) for part in parsed] == [50, 50, 20]
    assert [row for part in parsed for row in part.rows] == list(range(120))
    assert columns(parsed) == columns_of(rows)
    assert invalid_rows(parsed) == []


@given(st.lists(CUSTOMERS, min_size=1, max_size=20), st.integers(1, 25))
def test_the_three_formats_give_the_same_columns(rows: list[Row], size: int) -> None:
    for media_type in FORMATS:
        parsed = slices(AS_TEXT[media_type](rows), media_type, size, PARSER)
        assert columns(parsed) == columns_of(rows)
        assert list(itertools.chain(*(part.rows for part in parsed))) == list(range(len(rows)))
        assert all(len(part.rows) == size for part in parsed[:-1])


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "\n" + text.replace("\n", "\n\n"),
        lambda text: text.replace("\n", ',"more, of\nit"\n').replace(',"more, of\nit"', ",extra", 1),
        lambda text: text.rstrip("\n"),
    ],
    ids=["byte order mark and CRLF", "blank lines", "extra column of two lines", "no line end at the end"],
)
def test_a_variant_of_csv_gives_the_same_columns(rows: list[Row], dress: Callable[[str], str]) -> None:
    assert columns(slices(dress(as_csv(rows)), CSV)) == columns_of(rows)


def with_cells(text: str, change: Callable[[str], str]) -> str:
    """Return a CSV text whose cells were changed."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([map(change, row) for row in csv.reader(io.StringIO(text))])
    return out.getvalue()


def with_delimiter(
    text: str, delimiter: str, *, has_decimal_commas: bool = False, quoting: Any = csv.QUOTE_MINIMAL
) -> str:
    """Return a CSV text with another delimiter."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=quoting)
    for row in csv.reader(io.StringIO(text)):
        writer.writerow([cell.replace(".", ",") if has_decimal_commas else cell for cell in row])
    return out.getvalue()


SPREADSHEETS: dict[str, Callable[[str], str | bytes]] = {
    "empty columns": lambda text: text.replace("\n", ",,\n"),
    "a repeated column that is no feature": lambda text: text.replace("\n", ",Notes,Notes\n"),
    "semicolons": lambda text: with_delimiter(text, ";"),
    "semicolons and decimal commas": lambda text: with_delimiter(text, ";", has_decimal_commas=True),
    "sep=;": lambda text: "sep=;\r\n" + with_delimiter(text, ";"),
    "SEP=|": lambda text: "SEP=|\n" + with_delimiter(text, "|"),
    "every cell quoted": lambda text: with_delimiter(text, ",", quoting=csv.QUOTE_ALL),
    "every cell quoted, semicolons": lambda text: with_delimiter(text, ";", quoting=csv.QUOTE_ALL),
    "every cell quoted, sep=;": lambda text: "sep=;\n" + with_delimiter(text, ";", quoting=csv.QUOTE_ALL),
    "every cell quoted, tabs": lambda text: with_delimiter(text, "\t", quoting=csv.QUOTE_ALL),
    "a Ctrl-Z behind the last cell": lambda text: text.rstrip("\n") + "\x1a",
    "tabs": lambda text: with_delimiter(text, "\t"),
    "blanks after commas": lambda text: text.replace(",", ", "),
    "blanks around cells": lambda text: with_cells(text, lambda cell: f" {cell} "),
    "lower case": lambda text: text.split("\n")[0].lower() + "\n" + text.partition("\n")[2],
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "blank rows": lambda text: text.replace("\n", "\n" + BLANK_ROW),
    "a Ctrl-Z at the end": lambda text: text + "\x1a",
    "a name of two lines, semicolons": lambda text: with_delimiter(text.replace("\n", ',"two\nlines"\n'), ";"),
    "a first name of two lines, tabs": lambda text: with_delimiter(
        "".join(f'"two\nlines",{line}' for line in text.splitlines(keepends=True)), "\t"
    ),
    "extra cells that are empty": lambda text: (
        text.partition("\n")[0] + "\n" + text.partition("\n")[2].replace("\n", ",,\n")
    ),
}


@pytest.mark.parametrize("write", SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_csv_is_read_as_spreadsheets_write_it(rows: list[Row], write: Callable[[str], str | bytes]) -> None:
    parsed = slices(write(as_csv(rows)), CSV)
    assert columns(parsed) == columns_of(rows)
    assert invalid_rows(parsed) == []
    assert [row for part in parsed for row in part.rows] == list(range(120))


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FEATURES = {name.casefold() for name in Customer.model_fields}
ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": str.encode,
    "UTF-8 with a byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "UTF-16, big endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}


SPELLINGS: list[Callable[[str], str]] = [str, str.lower, str.upper, lambda name: f" {name}  "]


@st.composite
def written_tables(draw: st.DrawFn) -> tuple[list[Row], bytes]:
    """Generate customers, and a CSV file of them and of other columns, in any dialect and order."""
    rows = draw(st.lists(CUSTOMERS, min_size=1, max_size=4))
    others = draw(st.lists(CELLS.filter(lambda name: name.strip().casefold() not in FEATURES), max_size=3))
    names = draw(st.permutations([*Customer.model_fields, *others]))
    is_named, delimiter = draw(st.booleans()), draw(st.sampled_from(",;\t"))
    if is_named:
        delimiter = draw(st.sampled_from([delimiter, "|", ":"]))
    has_decimal_commas = delimiter == ";" and draw(st.booleans())
    spell = draw(st.sampled_from(SPELLINGS))
    end, encode = draw(st.sampled_from(["\n", "\r\n", "\r"])), draw(st.sampled_from(list(ENCODINGS.values())))
    quoting: Any = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))

    def text_of_another_column(value: str) -> str:
        # Before Python 3.13 csv.writer leaves a lone line break outside of quotes, which ends the row.
        return " ".join(value.splitlines()) if quoting == csv.QUOTE_MINIMAL else value

    def cell(row: Row, name: str) -> Any:
        if name not in row:
            return text_of_another_column(draw(CELLS))
        return str(row[name]).replace(".", ",") if has_decimal_commas and isinstance(row[name], float) else row[name]

    text = io.StringIO(newline="")
    text.write(f"sep={delimiter}{end}" if is_named else "")
    text.write(end * draw(st.integers(0, 2)))
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow([spell(name) if name in Customer.model_fields else text_of_another_column(name) for name in names])
    for row in rows:
        text.write(end * draw(st.integers(0, 1)))
        writer.writerow([cell(row, name) for name in names])
    content = text.getvalue()
    return rows, encode(content.removesuffix(end) if draw(st.booleans()) else content)


@given(written_tables())
def test_every_table_is_read_as_it_was_written(table: tuple[list[Row], bytes]) -> None:
    rows, body = table
    note(repr(body))
    parsed = slices(body, CSV, parser=PARSER)
    assert columns(parsed) == columns_of(rows)
    assert invalid_rows(parsed) == []


def test_a_row_without_its_last_empty_cells_is_a_row(rows: list[Row]) -> None:
    lines = as_csv(rows[:2]).splitlines()
    parsed = slices(f"{lines[0]},Notes,More\n{lines[1]},note\n{lines[2]}\n", CSV)
    assert columns(parsed) == columns_of(rows[:2])


def test_a_missing_cell_of_a_feature_is_a_fault_of_it(customer: Row) -> None:
    header, line = as_csv([customer]).splitlines()
    (invalid,) = invalid_rows(slices(f"{header}\n{line.rpartition(',')[0]}\n{line}\n", CSV))
    assert (invalid.row, invalid.line, [place for place, _, _ in invalid.faults]) == (0, 2, [list(customer)[-1]])


@pytest.mark.parametrize("cell", ["4_5", "\u0664\u0665", "0x2d", "4 5", "45,0", "nan", "inf", "1e400", "--45", ""])
def test_text_that_is_no_number_is_a_fault(customer: Row, cell: str) -> None:
    rows = [customer, {**customer, "Customer_Age": cell, "Credit_Limit": cell}]
    (invalid,) = invalid_rows(slices(as_csv(rows), CSV))
    assert [place for place, _, _ in invalid.faults] == ["Customer_Age", "Credit_Limit"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("HEADER,Gender", f"columns 2 and {len(Customer.model_fields) + 1} of the header are both Gender"),
        ("HEADER, gender ", f"columns 2 and {len(Customer.model_fields) + 1} of the header are both Gender"),
        ("Costumer_Age,REST", "lacks Customer_Age; column 1 may be Customer_Age: rename it"),
        ("age;sex", "none of the columns"),
        ('sep="', "none of the columns"),
        ("sep= ", "none of the columns"),
    ],
)
def test_a_wrong_header_is_refused_with_the_column_and_the_remedy(customer: Row, header: str, message: str) -> None:
    names = ",".join(customer)
    line = header.replace("HEADER", names).replace("REST", names.partition(",")[2])
    with pytest.raises(MalformedBatch, match=message):
        slices(f"{line}\n", CSV)


@pytest.mark.parametrize(
    ("body", "message"), [(b"HEADER\nROW\nROW,\xe9\n", "line 3 is not UTF-8: save the file as CSV UTF-8")]
)
def test_another_encoding_is_refused_with_the_line_and_the_remedy(customer: Row, body: bytes, message: str) -> None:
    header, row = as_csv([customer]).encode().splitlines()
    with pytest.raises(MalformedBatch, match=message):
        slices(body.replace(b"HEADER", header).replace(b"ROW", row), CSV)


def test_a_wide_header_with_a_repeated_name_is_refused_at_once() -> None:
    names = [f"c{number}" for number in range(300_000)]
    with pytest.raises(MalformedBatch):
        slices(",".join([*names, names[0]]), CSV)
    with pytest.raises(MalformedBatch):
        slices(",".join(f'"{name}\n"' for name in names), CSV)


@pytest.mark.parametrize(
    ("media_type", "blank"), [(CSV, "\n"), (CSV, BLANK_ROW), (NDJSON, "\n")], ids=["csv", "csv-cells", "ndjson"]
)
def test_many_blank_lines_are_many_short_steps(customer: Row, media_type: str, blank: str) -> None:
    parsed = slices(AS_TEXT[media_type]([customer]) + blank * 50_000, media_type)
    assert len(parsed) > 4
    assert columns([part for part in parsed if part.rows]) == columns_of([customer])


def test_a_header_after_many_blank_rows_is_refused(customer: Row) -> None:
    with pytest.raises(MalformedBatch, match="no header within"):
        slices("\n" * 2_000 + as_csv([customer]), CSV)


def test_the_faults_of_the_first_hundred_invalid_rows_are_described() -> None:
    parsed = slices("[" + ",".join(["{}"] * 500) + "]", JSON)
    assert [row.row for row in invalid_rows(parsed)] == list(range(500))
    assert all(row.faults for row in invalid_rows(parsed)[:100])
    assert invalid_rows(parsed)[100:] == [InvalidRow(number, None, []) for number in range(100, 500)]


@pytest.mark.parametrize("media_type", FORMATS)
def test_a_valid_row_after_a_hundred_invalid_ones_is_valid(customer: Row, media_type: str) -> None:
    rows = [{**customer, "Gender": "?"}] * 150 + [customer, {**customer, "Gender": "?"}]
    (part,) = slices(AS_TEXT[media_type](rows), media_type, 500)
    assert (part.rows, columns([part])) == ([150], columns_of([customer]))
    first_line = {CSV: 2, NDJSON: 1, JSON: None}[media_type]
    for row in part.invalid:
        assert row.line == (None if first_line is None else row.row + first_line)
        assert bool(row.faults) == (row.row < 100)
    assert [row.row for row in part.invalid] == [*range(150), 151]


@pytest.mark.parametrize("media_type", FORMATS)
@pytest.mark.parametrize("invalid", [[0], [260], [0, 249, 250, 599], [599]])
def test_invalid_rows_of_a_long_slice_are_left_out(customer: Row, media_type: str, invalid: list[int]) -> None:
    rows = [{**customer, "Total_Trans_Ct": number} for number in range(1_200)]
    for number in invalid:
        rows[number]["Gender"] = rows[600 + number]["Gender"] = "?"
    parsed = slices(AS_TEXT[media_type](rows), media_type, 600)
    valid = [number for number, row in enumerate(rows) if row["Gender"] != "?"]
    assert [number for part in parsed for number in part.rows] == valid
    assert columns(parsed) == columns_of([rows[number] for number in valid])
    assert [row.row for row in invalid_rows(parsed)] == [*invalid, *(600 + number for number in invalid)]


@pytest.mark.parametrize(("more", "is_refused"), [(0, False), (1, True)])
def test_a_line_of_ndjson_has_at_most_64_kib(customer: Row, more: int, is_refused: bool) -> None:
    line = json.dumps(customer)
    body = f"{line}\n{line}{' ' * (64 * 1024 - len(line) - 1 + more)}\n"
    if is_refused:
        with pytest.raises(MalformedBatch, match=r"^line 2 is longer than 65536 bytes$"):
            slices(body, NDJSON)
    else:
        assert columns(slices(body, NDJSON)) == columns_of([customer] * 2)


@pytest.mark.parametrize("media_type", FORMATS)
def test_blank_lines_alone_are_empty_slices_and_then_no_row(media_type: str) -> None:
    blank = {CSV: ",".join(Customer.model_fields) + "\n" + BLANK_ROW * 20_001, NDJSON: "\n" * 20_001, JSON: "[]"}[
        media_type
    ]
    parsed = RowParser(Customer).parse(io.BytesIO(blank.encode()), media_type, 50)
    empty = [RowSlice([], {}, [])] * (0 if media_type == JSON else 2)
    assert list(itertools.islice(parsed, len(empty))) == empty
    with pytest.raises(MalformedBatch, match=r"^the batch has no row$"):
        next(parsed)


def test_a_json_object_is_no_batch() -> None:
    with pytest.raises(MalformedBatch, match=r"^the body is not a JSON array$"):
        slices("{}", JSON)


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "\n" + text.replace("\n", "\n \n"),
        lambda text: text.replace(", ", " ,\t"),
        lambda text: text.rstrip("\n"),
    ],
    ids=["byte order mark and CRLF", "blank lines", "white space", "no line end at the end"],
)
def test_a_variant_of_ndjson_gives_the_same_columns(rows: list[Row], dress: Callable[[str], str]) -> None:
    assert columns(slices(dress(as_ndjson(rows)), NDJSON)) == columns_of(rows)


@pytest.mark.parametrize("dress", [lambda text: "\ufeff" + text, lambda text: text.replace(", ", "\r\n,\t") + "\n "])
def test_a_variant_of_json_gives_the_same_columns(rows: list[Row], dress: Callable[[str], str]) -> None:
    assert columns(slices(dress(json.dumps(rows)), JSON)) == columns_of(rows)


def test_columns_may_come_in_any_order(rows: list[Row]) -> None:
    reordered = [dict(sorted(row.items(), reverse=True)) for row in rows]
    for media_type in FORMATS:
        assert columns(slices(AS_TEXT[media_type](reordered), media_type)) == columns_of(rows)


@pytest.mark.parametrize("media_type", [NDJSON, JSON])
def test_other_fields_are_ignored_even_if_they_hold_lone_surrogates(customer: Row, media_type: str) -> None:
    row = customer | {"\ud800": "\ud800", "more": {"a": [1]}}
    assert columns(slices(AS_TEXT[media_type]([row]), media_type)) == columns_of([customer])


@pytest.mark.parametrize(("media_type", "line"), [(CSV, 6), (NDJSON, 5), (JSON, None)])
def test_an_invalid_row_has_the_line_in_which_it_begins(rows: list[Row], media_type: str, line: int | None) -> None:
    rows[3]["Gender"] = "?"
    body = AS_TEXT[media_type](rows)
    body = body if media_type == JSON else body.replace("\n", "\n\n", 1)
    (invalid,) = invalid_rows(slices(body, media_type))
    assert (invalid.row, invalid.line) == (3, line)


def test_an_invalid_row_of_csv_has_its_row_its_line_and_every_fault(rows: list[Row]) -> None:
    rows[3] |= {"Gender": "somebody's secret", "Customer_Age": 7.5}
    rows[70]["Credit_Limit"] = "NaN"
    parsed = slices(as_csv(rows), CSV)
    assert [(row.row, row.line) for row in invalid_rows(parsed)] == [(3, 5), (70, 72)]
    assert [place for place, _, _ in invalid_rows(parsed)[0].faults] == ["Customer_Age", "Gender"]
    assert "secret" not in repr(invalid_rows(parsed))
    assert [row for part in parsed for row in part.rows] == [row for row in range(120) if row not in (3, 70)]
    assert columns(parsed) == columns_of([row for number, row in enumerate(rows) if number not in (3, 70)])


FAULTS: dict[str, Row] = {
    "NaN": {"Credit_Limit": float("nan")},
    "infinity": {"Credit_Limit": float("inf")},
    "boolean": {"Customer_Age": True},
    "text": {"Customer_Age": "45"},
    "null": {"Gender": None},
    "lone surrogate": {"Gender": "\ud800"},
    "400 digits": {"Credit_Limit": 10**399},
}


@pytest.mark.parametrize("media_type", [NDJSON, JSON])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_an_invalid_value_is_the_only_fault_of_its_row(customer: Row, media_type: str, fault: Row) -> None:
    parsed = slices(AS_TEXT[media_type]([customer | fault, customer]), media_type)
    (row,) = invalid_rows(parsed)
    assert [place for place, _, _ in row.faults] == list(fault)
    assert columns(parsed) == columns_of([customer])


@pytest.mark.parametrize("media_type", [NDJSON, JSON])
def test_a_row_other_than_an_object_is_invalid(media_type: str) -> None:
    parsed = slices("5\n{}\n" if media_type == NDJSON else "[5, {}]", media_type)
    first, second = invalid_rows(parsed)
    assert [place for place, _, _ in first.faults] == [""]
    assert {place for place, _, _ in second.faults} == set(Customer.model_fields)


MALFORMED: dict[str, dict[str, bytes]] = {
    CSV: {
        "empty": b"",
        "only a header": b"HEADER\n",
        "a wrong header": b"age,gender\n1,2\n",
        "no header": b"ROW\nROW\n",
        "a long row": b"HEADER\nROW\nROW,5\nROW\n",
        "an unclosed quote": b'HEADER\nROW\n"ROW\n' + b"ROW\n" * 3000,
        "an unclosed quote at the end": b'HEADER\nROW\n"ROW\n',
        "a duplicate column": b"HEADER,Gender\nROW,F\n",
        "not UTF-8": b"HEADER\nROW\n\xff\xfe\n",
        "UTF-16 that is not": b"\xff\xfe\x00\xd8\x00",
        "Latin-1": b"HEADER\nROW,\xe9\n",
        "501 columns": b"HEADER" + b",x" * 482 + b"\nROW\n",
        "a header of many lines": b'HEADER,"' + b"x\n" * 40_000 + b'"\nROW\n',
        "an endless line": b"HEADER\n" + b"5" * 100_000,
    },
    NDJSON: {
        "empty": b"",
        "only white space": b" \n\t\n",
        "truncated": b"ROW\n{",
        "two rows in a line": b"ROW ROW\n",
        "a row in two lines": b'{"Gender":\n"M"}\n',
        "trailing comma": b"ROW,\nROW\n",
        "duplicate name": b'ROW\n{"Gender": "F", "Gender": "M"}\n',
        "5,000 digits": b"ROW\n" + b"9" * 5000 + b"\n",
        "deep": b"ROW\n" + b"[" * 10_000 + b"]" * 10_000 + b"\n",
        "an endless row": b'ROW\n"' + b"x" * 100_000 + b'"\n',
        "not UTF-8": b'ROW\n"\xff"\n',
    },
    JSON: {
        "empty": b"",
        "an empty array": b" [ ] ",
        "an object": b"{}",
        "truncated": b"[ROW,ROW",
        "no comma": b"[ROW ROW]",
        "trailing comma": b"[ROW,]",
        "text after the array": b"[ROW] []",
        "duplicate name": b'[ROW,{"Gender": "F", "Gender": "M"}]',
        "5,000 digits": b"[ROW," + b"9" * 5000 + b"]",
        "deep": b"[ROW," + b"[" * 10_000 + b"]" * 10_000 + b"]",
        "deep and truncated": b"[" * 100_000,
        "not UTF-8": b'[ROW,"\xff"]',
    },
}


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        pytest.param(media_type, body, id=f"{media_type.partition('/')[2]}-{name}")
        for media_type, bodies in MALFORMED.items()
        for name, body in bodies.items()
    ],
)
def test_a_malformed_batch_is_refused_with_a_reason_and_no_value(customer: Row, media_type: str, body: bytes) -> None:
    secret = {**customer, "Credit_Limit": SECRET}
    header, line = as_csv([secret]).encode().splitlines()
    row = line if media_type == CSV else json.dumps(secret).encode()
    with pytest.raises(MalformedBatch) as refused:
        slices(body.replace(b"HEADER", header).replace(b"ROW", row), media_type)
    assert len(str(refused.value)) > 10
    assert "31415" not in str(refused.value)


def test_a_missing_column_of_csv_is_named() -> None:
    with pytest.raises(MalformedBatch, match="Customer_Age"):
        slices("name\nsomebody\n", CSV)


NAMES = sorted(Customer.model_fields)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text() | st.sampled_from(NAMES), values),
    max_leaves=8,
)
PIECES = st.binary(max_size=5) | st.sampled_from(
    [b'"', b",", b";", b"\n", b"\r", b"\x1a", b"{", b"}", b"[", b"]", b"NaN"]
)

SEPARATORS = st.characters(exclude_categories=["Cs"]).map(lambda character: f"sep={character}\n")


@st.composite
def bodies(draw: st.DrawFn, media_type: str) -> bytes:
    """Generate any bytes, or rows of a format with other values and with damage in up to three places."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary())
    rows = draw(st.lists(CUSTOMERS, min_size=1, max_size=4))
    for row in rows:
        row.update({"Credit_Limit": SECRET}, **draw(st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=2)))
    if media_type == CSV:
        encode, first = draw(st.sampled_from(list(ENCODINGS.values()))), draw(st.just("") | SEPARATORS)
        body = encode(first + as_csv(rows).encode(errors="replace").decode())
    else:
        body = AS_TEXT[media_type](rows).encode()
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 10)))
        body = body[:start] + draw(PIECES) + body[end:]
    return body


Outcome = tuple[dict[str, list[Any]], list[int], list[InvalidRow]]


def outcome(body: bytes, media_type: str, size: int) -> Outcome | str:
    """Return the customers, their numbers and the refused rows of a body, or the message of the error."""
    try:
        parsed = slices(body, media_type, size, PARSER)
    except MalformedBatch as error:
        return str(error)
    return columns(parsed), [row for part in parsed for row in part.rows], invalid_rows(parsed)


@pytest.mark.parametrize("media_type", FORMATS)
@given(st.data())
def test_any_bytes_are_rows_refused_rows_or_a_malformed_batch(media_type: str, data: st.DataObject) -> None:
    body = data.draw(bodies(media_type))
    note(repr(body))
    found = outcome(body, media_type, 50)
    if isinstance(found, str):
        assert len(found) > 10
        assert "31415.9" not in found
        return
    customers, numbers, refused = found
    assert sorted([*numbers, *(row.row for row in refused)]) == list(range(len(numbers) + len(refused)))
    assert numbers or refused
    assert all(row.faults for row in refused)
    assert "31415.9" not in repr(refused)
    for values in zip(*customers.values(), strict=True):
        Customer.model_validate(dict(zip(customers, values, strict=True)), strict=True)
    # Rows are validated column by column, and one by one if a row is invalid: both must say the same.
    assert outcome(body, media_type, 1) == found


def repeated(start: str, line: str) -> Iterator[bytes]:
    yield start.encode()
    while True:
        yield line.encode()


class Endless(io.RawIOBase):
    """A file without an end, which is read as far as the reader asks."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # within the buffer of its reader

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        piece = next(self._pieces)
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)


@pytest.mark.parametrize("media_type", [CSV, NDJSON])
def test_the_first_slice_comes_before_the_end_of_the_file(customer: Row, media_type: str) -> None:
    header, line = as_csv([customer]).splitlines(keepends=True)
    pieces = repeated(header, line) if media_type == CSV else repeated(*[as_ndjson([customer])] * 2)
    parsed = RowParser(Customer).parse(io.BufferedReader(Endless(pieces)), media_type, 100)
    assert next(parsed).rows == list(range(100))
    assert next(parsed).rows == list(range(100, 200))


SCORED_ROWS = st.builds(ScoredRow, st.integers(0, 10**6), st.floats(0, 1), st.none()) | st.builds(
    ScoredRow, st.integers(0, 10**6), st.none(), st.sampled_from(["InvalidPrediction", "TooManyAttempts"])
)


def formatted(runs: list[list[ScoredRow]], media_type: str) -> str:
    """Return the text of a batch's results, written in runs."""
    pieces = [format_results(run, media_type, is_first=number == 0) for number, run in enumerate(runs)]
    return (b"".join(pieces) + format_end(media_type)).decode()


def as_objects(scored: list[ScoredRow]) -> list[Row]:
    return [
        {"row": row.row, "probability": row.probability} if row.error is None else {"row": row.row, "error": row.error}
        for row in scored
    ]


@given(st.lists(SCORED_ROWS, min_size=1), st.lists(SCORED_ROWS))
def test_results_survive_a_round_trip_in_each_format(first: list[ScoredRow], second: list[ScoredRow]) -> None:
    expected = as_objects(first + second)
    assert [json.loads(line) for line in formatted([first, second], NDJSON).splitlines()] == expected
    assert json.loads(formatted([first, second], JSON)) == expected
    table = list(csv.DictReader(io.StringIO(formatted([first, second], CSV), newline="")))
    found: list[Row] = [
        {"row": int(row["row"]), "error": row["error"]}
        if row["error"]
        else {"row": int(row["row"]), "probability": float(row["probability"])}
        for row in table
    ]
    assert found == expected


def test_a_batch_without_results_is_an_empty_text_in_each_format() -> None:
    assert formatted([[]], NDJSON) == ""
    assert json.loads(formatted([[]], JSON)) == []
    assert formatted([[]], CSV) == "row,probability,error\r\n"


class Even(BaseModel):
    """A schema with a validator of its own."""

    number: int

    @field_validator("number")
    @classmethod
    def _is_even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


class Reversed(BaseModel):
    """A schema that reads a field under another name."""

    number: int = Field(validation_alias="rebmun")


class Closed(BaseModel):
    """A schema that allows no other fields."""

    model_config = ConfigDict(extra="forbid")

    number: int


class Defaulted(BaseModel):
    """A schema with a field that may be missing."""

    number: int
    other: int = 7


class Named(BaseModel):
    """A schema with a constraint, and a validator in the type of the field."""

    name: Annotated[str, Field(max_length=3), AfterValidator(str.upper)]


class Inner(BaseModel):
    """A part of a customer."""

    number: int


class Nested(BaseModel):
    """A schema with a field that has fields."""

    inner: list[Inner]


def test_a_fault_within_a_field_is_named_with_its_path() -> None:
    rows = [{"inner": [{"number": 1}, {"number": "secret"}]}]
    (part,) = RowParser(Nested).parse(io.BytesIO(json.dumps(rows).encode()), JSON, 50)
    assert [place for place, _, _ in part.invalid[0].faults] == ["inner/1/number"]


@pytest.mark.parametrize(
    ("schema", "rows", "columns", "invalid"),
    [
        (Even, [{"number": 2}, {"number": 3}], {"number": [2]}, [1]),
        (Reversed, [{"rebmun": 2}, {"number": 3}], {"number": [2]}, [1]),
        (Closed, [{"number": 2}, {"number": 3, "more": 1}], {"number": [2]}, [1]),
        (Defaulted, [{"number": 2}, {"number": 3, "other": 4}], {"number": [2, 3], "other": [7, 4]}, []),
        (Named, [{"name": "a"}, {"name": "abcd"}, {"name": "b"}], {"name": ["A", "B"]}, [1]),
        (Named, [{"name": "a"}, {"name": "b"}], {"name": ["A", "B"]}, []),
    ],
    ids=["validator", "alias", "extra fields", "default", "constraint", "validator in the type"],
)
def test_every_rule_of_the_schema_applies_to_a_batch(
    schema: type[BaseModel], rows: list[Row], columns: dict[str, list[Any]], invalid: list[int]
) -> None:
    for media_type in (NDJSON, JSON):
        (part,) = RowParser(schema).parse(io.BytesIO(AS_TEXT[media_type](rows).encode()), media_type, 50)
        assert part.columns == columns
        assert [row.row for row in part.invalid] == invalid


@pytest.mark.parametrize("media_type", FORMATS)
@pytest.mark.parametrize("at", [0, 60])
def test_a_whole_number_with_a_point_is_an_integer(rows: list[Row], media_type: str, at: int) -> None:
    rows[at]["Customer_Age"] = float(rows[at]["Customer_Age"])
    parsed = slices(AS_TEXT[media_type](rows), media_type)
    assert columns(parsed) == columns_of(rows)
    assert {type(age) for age in columns(parsed)["Customer_Age"]} == {int}
