"""The customers' file: a CSV file as spreadsheets write it, which is read row by row, twice. No HTTP here."""

import codecs
import contextlib
import csv
import difflib
import re
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_task_app.cli.score import ScoreError

OUTPUT_COLUMNS = ("churn_probability", "churn", "churn_error")
_DELIMITERS = (",", ";", "\t")
_BLANK = " \t\x1a"  # some programs end a file with Ctrl-Z
_LONGEST_CELL = 1_000  # characters that are sent; no feature has as many
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?')
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?%?|[-+]")  # or a lone sign, which is no formula


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        path: a file that can be opened several times.
        encoding: UTF-8 or UTF-16, of which a byte order mark is no part.
        has_byte_order_mark: the file begins with one.
        has_separator_line: the first line is `sep=` and the delimiter, as spreadsheets understand it.
        delimiter: between two cells.
    """

    path: Path
    encoding: str
    has_byte_order_mark: bool
    has_separator_line: bool
    delimiter: str

    def records(self) -> Generator[tuple[int, list[str]]]:
        """Yield each record that is not blank, with the line in which it begins.

        Raises:
            ScoreError: the file is not CSV, or has bytes of another encoding.
        """
        with self.path.open(encoding=self.encoding, newline="") as text:
            line = first = 2 if self.has_separator_line else 1
            try:
                if self.has_separator_line:
                    text.readline()
                reader = csv.reader(text, delimiter=self.delimiter, strict=True)
                for row in reader:
                    if not _is_blank(row):
                        yield line, row
                    line = first + reader.line_num
            except csv.Error as error:
                raise ScoreError(f"From line {line} the file is not CSV: {error}.") from error
            except UnicodeError as error:
                raise ScoreError(f"{_undecodable(self.path, self.encoding)}: save the file as CSV UTF-8.") from error

    def header(self) -> list[str]:
        """Return the first record; empty if there is none."""
        with contextlib.closing(self.records()) as records:
            return next((row for _, row in records), [])


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        dialect: of the file.
        header: the names of the columns, as the file has them.
        places: by feature, the place of its column.
    """

    dialect: Dialect
    header: list[str]
    places: dict[str, int]

    def rows(self) -> Generator[list[str]]:
        """Yield the cells of each row that is not blank; as many as the header has.

        Raises:
            ScoreError: a row has more cells than the header.
        """
        width = len(self.header)
        with contextlib.closing(self.dialect.records()) as records:
            next(records, None)
            for line, row in records:
                if not _is_blank(row[width:]):
                    raise ScoreError(
                        f"Line {line} has {len(row)} cells, and the header has {width}: put a cell that contains the "
                        "delimiter into double quotes."
                    )
                yield row[:width] + [""] * (width - len(row))

    def csv_header(self) -> bytes:
        """Return the header of `csv_rows`: a number, because of which no row is blank, and the features."""
        return csv_line(["#", *self.places])

    def csv_rows(self) -> Generator[bytes]:
        """Yield each row as a line of CSV (UTF-8, commas, decimal points) with nothing but the features."""
        with contextlib.closing(self.rows()) as rows:
            for number, row in enumerate(rows, 1):
                yield csv_line([str(number), *(self._sent(row[place]) for place in self.places.values())])

    def kept_columns(self, written: Collection[str]) -> list[int]:
        """Return the places of the columns that stay in the output, which gets the written columns anew.

        An earlier output of this command loses all of its columns: an old decision must not stand beside a new result.
        """
        names = [name.strip() for name in self.header]
        replaced = OUTPUT_COLUMNS if OUTPUT_COLUMNS[0] in names else written
        return [place for place, name in enumerate(names) if name not in replaced]

    def count(self) -> tuple[int, bool]:
        """Read every row; return how many there are, and whether a feature has a decimal comma."""
        count, has_decimal_commas = 0, False
        for row in self.rows():
            count += 1
            has_decimal_commas = has_decimal_commas or any(
                self._has_decimal_comma(row[place].strip()) for place in self.places.values()
            )
        return count, has_decimal_commas

    def _has_decimal_comma(self, cell: str) -> bool:
        return self.dialect.delimiter == ";" and _DECIMAL_COMMA.fullmatch(cell) is not None

    def _sent(self, cell: str) -> str:
        cell = cell.strip()
        if len(cell) > _LONGEST_CELL:
            return cell[:_LONGEST_CELL] + "…"  # stays invalid: a shortened number could be a valid one
        return cell.replace(",", ".") if self._has_decimal_comma(cell) else cell


def read_table(path: Path, features: Collection[str], required: Collection[str]) -> Table:
    """Find the dialect of a file and the columns of its features.

    Args:
        path: of the file.
        features: the columns that the service reads.
        required: the features that must be present.

    Raises:
        ScoreError: the file is not CSV, or its header lacks a required column or has a feature twice.
    """
    dialect = _dialect(path, features)
    header = dialect.header()
    places = _places(header, features)
    if not header:
        raise ScoreError("The file is empty.")
    if missing := [_with_guess(name, header) for name in required if name not in places]:
        raise ScoreError(f"The header, which is the first line, lacks {', '.join(missing)}.")
    names = [name.strip() for name in header]
    if twice := next((name for name in places if names.count(name) > 1), None):
        raise ScoreError(f"The header has the column {twice} twice.")
    return Table(dialect, header, places)


def as_text(cell: str) -> str:
    """Return a cell that a spreadsheet shows and does not run; numbers stay numbers."""
    return f"'{cell}" if cell.startswith(_RUN_BY_SPREADSHEETS) and not _NUMBER.fullmatch(cell) else cell


def csv_line(cells: list[str]) -> bytes:
    """Return a row of CSV."""
    line: bytes = _writer.writerow(cells)
    return line


class _Line:
    """A file for csv.writer, whose `writerow` returns the value of `write`: much faster than a buffer for each line."""

    def write(self, text: str) -> bytes:
        return text.encode()


_writer: Any = csv.writer(_Line())


def _is_blank(row: list[str]) -> bool:
    return not any(cell.strip(_BLANK) for cell in row)


def _dialect(path: Path, features: Collection[str]) -> Dialect:
    """Return the dialect of a file; its delimiter is the one with which the header has the most features."""
    with path.open("rb") as file:
        start = file.read(3)
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    has_mark = encoding == "utf-16" or start == codecs.BOM_UTF8
    with path.open(encoding=encoding, errors="replace", newline="") as text:
        separator = _SEPARATOR_LINE.fullmatch(text.readline(_LONGEST_CELL))
    if separator:
        return Dialect(path, encoding, has_mark, has_separator_line=True, delimiter=separator[1])
    dialects = [Dialect(path, encoding, has_mark, has_separator_line=False, delimiter=one) for one in _DELIMITERS]
    return max(dialects, key=lambda dialect: _feature_count(dialect, features))


def _feature_count(dialect: Dialect, features: Collection[str]) -> int:
    try:
        return len(_places(dialect.header(), features))
    except ScoreError:  # quotes may be in the wrong places for a wrong delimiter
        return -1


def _places(header: list[str], features: Collection[str]) -> dict[str, int]:
    """Return for each feature of the header its place; case matters only if two columns differ in nothing else."""
    names = [name.strip() for name in header]
    folded = [name.casefold() for name in names]
    places = {}
    for feature in features:
        if feature in names:
            places[feature] = names.index(feature)
        elif feature.casefold() in folded:
            places[feature] = folded.index(feature.casefold())
    return places


def _with_guess(name: str, header: list[str]) -> str:
    by_folded = {re.sub(r"\W|_", "", column).casefold(): column.strip() for column in header}
    guess = difflib.get_close_matches(re.sub("_", "", name).casefold(), by_folded, 1, 0.8)
    return f"{name} (did you mean {by_folded[guess[0]]!r}?)" if guess else name


def _undecodable(path: Path, encoding: str) -> str:
    if encoding == "utf-16":
        return "The file begins as UTF-16 and is not"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"Line {number} is not UTF-8"
    return "The file is not UTF-8"
