"""The rows of a CSV file as spreadsheets write it: its encoding, its delimiter, its header and its blank rows.

No error repeats a cell, because cells are values of customers: a file without a header has them in its first line too.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain, islice
from operator import itemgetter
from typing import IO, Any

from pydantic import BaseModel

from celery_task_app.errors import MalformedBatch

MAX_RECORD = 64 * 1024
"""Most characters of a row or the header, line breaks within quotes included: an unclosed quote must end somewhere."""

MAX_COLUMNS = 500
_HEADER_WITHIN = 1_000  # rows
BLANK: Any = object()
"""A row whose cells are all empty; it has no number."""

_DELIMITERS = ",;\t"
# The first line that Excel writes and reads. From Python 3.13 on, csv raises ValueError for a quote or a blank.
_SEP = re.compile(r'sep=([^"\s]|\t)', re.IGNORECASE)
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_END_OF_FILE = "\x1a"  # Ctrl-Z, which old programs write at the end
_SUGGESTIONS = 3
_LONGEST_NAME = 64  # characters; a longer cell of the header is no misspelt feature

Row = list[str]


def read_csv(file: IO[bytes], schema: type[BaseModel]) -> Iterator[tuple[int, dict[str, str] | Any]]:
    """Yield each row as a mapping from feature to text, with the line in which the row begins, from 1.

    A row whose cells are all empty is BLANK. A row that lacks cells at its end has empty ones. Columns that
    are no features are ignored. Upper and lower case of the names in the header, and blanks around them, do not matter.

    Args:
        file: UTF-8, or UTF-16 with a byte order mark. Its cells are separated by commas, semicolons or tabs; with
            semicolons a number may have a decimal comma.
        schema: its fields are the features.

    Raises:
        MalformedBatch: the file cannot be read, with the line and the remedy.
    """
    encoding = "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"
    file.seek(0)
    text = io.TextIOWrapper(file, encoding, newline="")
    try:
        try:
            yield from _read_rows(_Records(text), schema)
        finally:
            text.detach()  # else it would close the file
    except UnicodeDecodeError as error:
        raise MalformedBatch(f"{_undecodable(file, encoding)}: save the file as CSV UTF-8") from error


class _Records:
    """The lines of a text, with a limit for those that one record takes."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self.line = 0
        self._of_record: list[str] = []
        self._left = MAX_RECORD

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(self._left + 1):
            self.line += 1
            self._left -= len(line)
            if self._left < 0:
                begin = self.line - len(self._of_record)
                raise MalformedBatch(
                    f"the row at line {begin} is longer than {MAX_RECORD} characters: close every quote"
                )
            if line := line.removesuffix(_END_OF_FILE):
                self._of_record.append(line)
                yield line

    def end_record(self) -> str:
        """Begin the next record; return the text of the last one."""
        text = "".join(self._of_record)
        self._of_record.clear()
        self._left = MAX_RECORD
        return text


def _read_rows(records: _Records, schema: type[BaseModel]) -> Iterator[tuple[int, dict[str, str] | Any]]:
    delimiter, header, lines = _read_header(records, iter(records), schema)
    select = _select_features(header, schema, has_decimal_commas=delimiter == ";")
    width = len(header)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    line = records.line + 1
    try:
        for row in reader:
            if len(row) != width:
                row.extend([""] * (width - len(row)))
                if any(map(str.strip, islice(row, width, None))):
                    raise MalformedBatch(
                        f"line {line} has {len(row)} cells, and the header has {width}: "
                        "put a cell that contains the delimiter in quotes"
                    )
            yield line, select(row) if row[0].strip() or any(map(str.strip, row)) else BLANK
            records.end_record()
            line = records.line + 1
    except csv.Error as error:
        raise MalformedBatch(f"from line {line}: {error}") from error


def _read_header(records: _Records, lines: Iterator[str], schema: type[BaseModel]) -> tuple[str, Row, Iterator[str]]:
    """Return the delimiter, the cells of the first row that is not blank, and the lines after it."""
    delimiters = _DELIMITERS
    for line in islice(lines, _HEADER_WITHIN):
        if found := _SEP.fullmatch(line.strip("\r\n")):
            delimiters = found[1]
        elif line.strip().strip(_DELIMITERS):
            break
        records.end_record()
    else:
        raise MalformedBatch(f"the body is empty, or has no header within its first {_HEADER_WITHIN} rows")
    header = [line]
    delimiter, has_names = _delimiter(line, delimiters, schema)
    quotes = line.count('"')
    while not has_names and quotes % 2 and (line := next(lines, "")):  # the line ends within quotes
        header.append(line)
        quotes += line.count('"')
    if not has_names:
        delimiter, _ = _delimiter("".join(header), delimiters, schema)
    rest = chain(header, lines)
    cells = next(csv.reader(rest, delimiter=delimiter, skipinitialspace=True))  # not strict: names may have a quote
    records.end_record()
    return delimiter, cells, rest


def _delimiter(text: str, delimiters: str, schema: type[BaseModel]) -> tuple[str, bool]:
    """Return the delimiter that makes most names of features from a header, and whether it makes one."""
    names = _names(schema)
    counts = {one: sum(_key(cell) in names for cell in _cells(text, one)) for one in delimiters}
    best = max(counts, key=counts.__getitem__)
    return best, counts[best] > 0


def _cells(text: str, delimiter: str) -> Row:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))


def _names(schema: type[BaseModel]) -> dict[str, str]:
    return {name.casefold(): name for name in schema.model_fields}


def _key(cell: str) -> str:
    return cell.strip().casefold()


def _select_features(
    header: Row, schema: type[BaseModel], *, has_decimal_commas: bool
) -> Callable[[Sequence[str]], dict[str, str]]:
    """Return a function that selects the features of a row."""
    if len(header) > MAX_COLUMNS:
        raise MalformedBatch(f"the header has {len(header)} columns, and {MAX_COLUMNS} are allowed")
    names, places = _names(schema), dict[str, int]()
    for place, cell in enumerate(header):
        if (name := names.get(_key(cell))) is None:
            continue
        if name in places:
            first = places[name] + 1
            raise MalformedBatch(f"columns {first} and {place + 1} of the header are both {name}: delete one of them")
        places[name] = place
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in places]:
        raise MalformedBatch(_missing(missing, header, places))
    features = tuple(places)
    if len(features) == 1:  # with one place itemgetter returns no tuple
        return lambda row: {features[0]: row[places[features[0]]]}
    values = itemgetter(*places.values())
    if has_decimal_commas:
        return lambda row: dict(zip(features, map(_with_point, values(row)), strict=True))
    return lambda row: dict(zip(features, values(row), strict=True))


def _missing(missing: Sequence[str], header: Row, places: Mapping[str, int]) -> str:
    """Return the message about missing columns, with the columns that may be meant."""
    if not places:
        return (
            f"the first line has none of the columns {', '.join(missing)}: it must be a header with these names, "
            "separated by commas, semicolons or tabs"
        )
    others = {_key(cell): place for place, cell in enumerate(header) if place not in places.values()}
    candidates = [cell for cell in others if cell and len(cell) <= _LONGEST_NAME]
    meant = [
        f"column {others[close[0]] + 1} may be {name}: rename it"
        for name in missing[:_SUGGESTIONS]
        if (close := get_close_matches(name.casefold(), candidates, 1, 0.75))
    ]
    return "; ".join([f"the header, which is the first line, lacks {', '.join(missing)}", *meant])


def _with_point(cell: str) -> str:
    """Return a number with a decimal comma as one with a point; every other text as it is."""
    return cell.replace(",", ".") if _WITH_COMMA.fullmatch(cell.strip()) else cell


def _undecodable(file: IO[bytes], encoding: str) -> str:
    """Return where a file is not encoded as it should be."""
    if encoding == "utf-16":
        return "the file is not UTF-16, although it begins like it"
    file.seek(0)
    for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD), b""), 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return f"line {number} is not UTF-8"
    return "the file is not UTF-8"


def clean_columns(columns: Mapping[str, list[Any]], numbers: frozenset[str]) -> dict[str, list[Any]]:
    """Strip each cell, and empty a number that has an underscore or a character beyond ASCII.

    Pydantic would read `4_5` as 45; an empty cell is a fault.

    Args:
        columns: by feature, n texts.
        numbers: the features that are numbers.
    """
    cleaned = {name: [cell.strip() for cell in cells] for name, cells in columns.items()}
    for name in numbers & cleaned.keys():
        cleaned[name] = ["" if "_" in cell or not cell.isascii() else cell for cell in cleaned[name]]
    return cleaned
