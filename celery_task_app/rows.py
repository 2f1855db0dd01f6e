"""A batch's rows as text: CSV and JSON read in slices and checked, results written. Not what becomes of them.

Nothing here keeps more than a slice, and no error repeats a value: they are customers'.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import IO, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from celery_task_app.errors import MalformedBatch

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"

_LINE_CHARS = 64 * 1024  # of one row, in CSV or JSON: a quote that never closes must not swallow the whole file
_PIECE_CHARS = 1024 * 1024
_AT_ONCE = 250  # rows that pydantic checks: about a millisecond, in which no other thread of the process runs
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Refused:
    """One row that is not a customer.

    Attributes:
        row: its place among the rows sent, from 0.
        line: where it begins in a CSV file, from 1.
        faults: of each, the place below the row, pydantic's code and message.
    """

    row: int
    line: int | None
    faults: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows in the order sent: those that are customers, column by column, and the others."""

    rows: list[int]
    customers: dict[str, list[Any]]
    refused: list[Refused]


def slices(file: IO[bytes], media_type: str, schema: type[BaseModel], size: int) -> Iterator[Slice]:
    """Read a file of customers.

    Args:
        file: its bytes from here on, with a byte order mark or without.
        media_type: CSV (with a header row; columns that the schema has not are ignored) or JSON (one array).
        schema: of a customer. Text is converted to numbers in CSV, and is not a number in JSON.
        size: rows of a slice.

    Raises:
        MalformedBatch: it can't be read as what it should be; what was yielded before is worth nothing then.
    """
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    check = _Check(schema, lax=media_type == CSV)
    try:
        numbered = _csv_rows(text, schema) if media_type == CSV else _json_rows(text)
        first, lines, found = 0, list[int | None](), list[Any]()
        for line, row in numbered:
            lines.append(line)
            found.append(row)
            if len(found) == size:
                yield check.slice(first, lines, found)
                first, lines, found = first + size, [], []
        if found:
            yield check.slice(first, lines, found)
        elif not first:
            raise MalformedBatch("there is no customer in it")
    except UnicodeDecodeError as error:
        raise MalformedBatch("it is not UTF-8") from error
    finally:
        text.detach()


class _Check:
    def __init__(self, schema: type[BaseModel], *, lax: bool) -> None:
        self._names = list(schema.model_fields)
        self._many = TypeAdapter[list[Any]](list[schema])  # type: ignore[valid-type]
        self._strict = False if lax else None

    def slice(self, first: int, lines: Sequence[int | None], found: list[Any]) -> Slice:
        rows, valid, refused = list[int](), list[Any](), list[Refused]()
        for start in range(0, len(found), _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, len(found)))
            try:
                valid += self._many.validate_python(found[some.start : some.stop], strict=self._strict)
                rows += [first + place for place in some]
            except ValidationError:
                for place in some:
                    try:
                        valid += self._many.validate_python([found[place]], strict=self._strict)
                        rows.append(first + place)
                    except ValidationError as error:
                        refused.append(Refused(first + place, lines[place], _faults(error)))
        fields = [customer.__dict__ for customer in valid]
        return Slice(rows, {name: [field[name] for field in fields] for name in self._names}, refused)


def _faults(error: ValidationError) -> list[tuple[str, str, str]]:
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    return [("/".join(map(str, fault["loc"][1:])), fault["type"], fault["msg"]) for fault in faults]


def _csv_rows(text: IO[str], schema: type[BaseModel]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with the line that it begins in; blank lines are none."""
    reader = csv.reader(_lines(text), strict=True)
    line = 1
    try:
        while not (header := next(reader, None)):
            if header is None:
                raise MalformedBatch("it is empty")
            line = reader.line_num + 1
        pick = _columns(header, schema)
        line = reader.line_num + 1
        for row in reader:
            if len(row) == len(header):
                yield line, pick(row)
            elif row:
                raise MalformedBatch(f"line {line} has {len(row)} columns, and the header {len(header)}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise MalformedBatch(f"from line {line}: {error}") from error


def _lines(text: IO[str]) -> Iterator[str]:
    number = 0
    while line := text.readline(_LINE_CHARS + 1):
        number += 1
        if len(line) > _LINE_CHARS:
            raise MalformedBatch(f"line {number} is longer than {_LINE_CHARS} characters")
        yield line


def _columns(header: list[str], schema: type[BaseModel]) -> Callable[[list[str]], dict[str, str]]:
    """Return what picks the features out of a row. A file without a header has values there: none is repeated."""
    if len(set(header)) != len(header):
        twice = next(place for place, name in enumerate(header, 1) if name in header[: place - 1])
        raise MalformedBatch(f"the header names column {twice} as it has named another before")
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in header]:
        raise MalformedBatch(f"the header, its first line, lacks {', '.join(missing)}")
    names = [name for name in schema.model_fields if name in header]
    if len(names) == 1:  # of one, itemgetter makes no tuple
        place = header.index(names[0])
        return lambda row: {names[0]: row[place]}
    pick = itemgetter(*map(header.index, names))
    return lambda row: dict(zip(names, pick(row), strict=True))


def _json_rows(text: IO[str]) -> Iterator[tuple[None, Any]]:
    """Yield each element of an array, which is read a piece at a time."""
    pieces = _Pieces(text)
    if pieces.next_char() != "[":
        raise MalformedBatch("it is not a JSON array")
    pieces.at += 1
    row = 0
    if pieces.next_char() != "]":
        while True:
            pieces.next_char()
            try:
                yield None, pieces.element()
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else _REASONS.get(type(error), f"{error}")
                raise MalformedBatch(f"row {row} is not JSON, or too long: {reason}") from error
            row += 1
            if (separator := pieces.next_char()) == "]":
                break
            if separator != ",":
                raise MalformedBatch(f"after row {row - 1} there is neither a comma nor the array's end")
            pieces.at += 1
    pieces.at += 1
    if pieces.next_char():
        raise MalformedBatch("something follows the array")


_REASONS: dict[type[Exception], str] = {RecursionError: "nested too deep", ValueError: "a number too long"}


class _Odd(ValueError):
    """JSON, but not as it should be."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) != len(pairs):
        raise _Odd("a key comes twice")
    return fields


class _Pieces:
    """The text from a place on, of which there is always a whole element's length, or the end."""

    def __init__(self, text: IO[str]) -> None:
        self.at = 0
        self._text = text
        self._piece = ""
        self._ended = False
        self._decode = json.JSONDecoder(object_pairs_hook=_object).raw_decode

    def next_char(self) -> str:
        """Skip white space, and look at what follows; "" at the end."""
        while True:
            self._fill()
            self.at = cast("re.Match[str]", _SPACE.match(self._piece, self.at)).end()
            if self.at < len(self._piece):
                return self._piece[self.at]
            if self._ended:
                return ""

    def element(self) -> Any:
        """Parse the element that begins here, and go behind it."""
        self._fill()
        start = self.at
        element, self.at = self._decode(self._piece, start)
        if self.at - start > _LINE_CHARS:
            raise _Odd(f"it has more than {_LINE_CHARS} characters")
        return element

    def _fill(self) -> None:
        if not self._ended and len(self._piece) - self.at < _LINE_CHARS:
            more = self._text.read(_PIECE_CHARS)
            self._ended = not more
            self._piece = self._piece[self.at :] + more
            self.at = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of one row: its probability of churn, or the name of the error that it failed with."""

    row: int
    probability: float | None
    error: str | None


def written(scored: Iterable[Scored], media_type: str, *, first: bool) -> bytes:
    """Return a run of a batch's results as text; `first` says that none was written before.

    JSON's array is opened with the first run, and `end` closes it.
    """
    if media_type == CSV:
        header = "row,probability,error\r\n" if first else ""
        lines = (f"{one.row},{_text(one.probability)},{_text(one.error)}\r\n" for one in scored)
        return (header + "".join(lines)).encode()
    objects = [
        {"row": one.row, "probability": one.probability} if one.error is None else {"row": one.row, "error": one.error}
        for one in scored
    ]
    if media_type == NDJSON:
        return b"".join(to_json(one) + b"\n" for one in objects)
    start = b"[" if first else b"," if objects else b""
    return start + to_json(objects)[1:-1]


def end(media_type: str) -> bytes:
    """Return what stands behind the last result."""
    return b"]" if media_type == JSON else b""


def _text(value: object) -> str:
    return "" if value is None else str(value)
