"""The formats of a batch: CSV, NDJSON and JSON are parsed and validated slice by slice, and results are formatted.

No error repeats a value, because values are customers'.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import getitem, itemgetter
from types import GenericAlias
from typing import IO, Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from api.strict_json import parse_json
from celery_task_app.errors import MalformedBatch, NotJSON
from celery_task_app.store.batches import ScoredRow

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Largest JSON array: it is parsed as a whole. CSV and NDJSON are parsed line by line."""

_MAX_LINE = 64 * 1024  # characters (CSV) or bytes (NDJSON): an unclosed quote must not consume the whole file
_VALIDATED_AT_ONCE = 250  # rows; Pydantic needs about a millisecond for them, during which no other thread runs

NumberedRow = tuple[int | None, Any]
"""A row with the line in which it begins, from 1; None in a JSON array."""


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that is not a valid customer.

    Attributes:
        row: the number of the row among the rows sent, from 0.
        line: the line of the file in which the row begins, from 1; None in a JSON array.
        faults: for each fault its place within the row, Pydantic's code and message.
    """

    row: int
    line: int | None
    faults: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Consecutive rows: the valid ones column by column, and the invalid ones.

    Attributes:
        rows: the numbers of the n valid rows.
        columns: by feature, the n values of the valid rows.
        invalid: the other rows.
    """

    rows: list[int]
    columns: dict[str, list[Any]]
    invalid: list[InvalidRow]


def parse_rows(file: IO[bytes], media_type: str, schema: type[BaseModel], size: int) -> Iterator[RowSlice]:
    """Parse and validate a file of customers.

    Args:
        file: bytes in UTF-8, with a byte order mark or without.
        media_type: CSV (with a header row; columns that the schema lacks are ignored), NDJSON (one object in each line)
            or JSON (one array of objects). Blank lines are ignored.
        schema: of a customer. Text is converted to numbers in CSV only.
        size: most rows of a slice.

    Raises:
        MalformedBatch: the file cannot be parsed; slices that were yielded before must be discarded.
    """
    validator = _row_validator(schema, media_type == CSV)
    parse = {CSV: _parse_csv, NDJSON: _parse_ndjson, JSON: _parse_json_array}[media_type]
    first, lines, rows = 0, list[int | None](), list[Any]()
    for line, row in parse(file, schema):
        lines.append(line)
        rows.append(row)
        if len(rows) == size:
            yield validator.validate(first, lines, rows)
            first, lines, rows = first + size, [], []
    if rows:
        yield validator.validate(first, lines, rows)
    elif not first:
        raise MalformedBatch("the batch has no row")


class _RowValidator:
    """Validates rows with a schema: column by column if the schema allows it, because that is faster."""

    def __init__(self, schema: type[BaseModel], *, is_text: bool) -> None:
        self._names = list(schema.model_fields)
        self._validate_rows = TypeAdapter[list[Any]](list[schema]).validate_python  # type: ignore[valid-type]
        self._columns = _column_types(schema)
        self._strict = False if is_text else None

    def validate(self, first: int, lines: Sequence[int | None], rows: list[Any]) -> RowSlice:
        """Return the slice of these rows, the first of which has the number `first`."""
        if self._columns:
            try:
                columns = {
                    name: column.validate_python(list(map(itemgetter(name), rows)), strict=self._strict)
                    for name, column in self._columns.items()
                }
                return RowSlice(list(range(first, first + len(rows))), columns, [])
            except (ValidationError, LookupError, TypeError):  # a row may be invalid: find it
                pass
        return self._validate_each(first, lines, rows)

    def _validate_each(self, first: int, lines: Sequence[int | None], rows: list[Any]) -> RowSlice:
        numbers, valid, invalid = list[int](), list[Any](), list[InvalidRow]()
        for start in range(0, len(rows), _VALIDATED_AT_ONCE):
            places = range(start, min(start + _VALIDATED_AT_ONCE, len(rows)))
            try:
                valid += self._validate_rows(rows[places.start : places.stop], strict=self._strict)
                numbers += [first + place for place in places]
            except ValidationError:
                for place in places:
                    try:
                        valid += self._validate_rows([rows[place]], strict=self._strict)
                        numbers.append(first + place)
                    except ValidationError as error:
                        invalid.append(InvalidRow(first + place, lines[place], _faults(error)))
        fields = [customer.__dict__ for customer in valid]
        return RowSlice(numbers, {name: [field[name] for field in fields] for name in self._names}, invalid)


@cache
def _row_validator(schema: type[BaseModel], is_text: bool) -> _RowValidator:
    return _RowValidator(schema, is_text=is_text)


def _column_types(schema: type[BaseModel]) -> dict[str, TypeAdapter[list[Any]]] | None:
    """Return the type of each column; None if a row of valid columns may be invalid for the schema, or the reverse.

    The reverse is allowed for a validator that the schema names in `WIDENING_VALIDATORS`: rows that only it accepts are
    validated one by one.
    """
    found = schema.__pydantic_decorators__
    validators = {*found.validators, *found.field_validators, *found.root_validators, *found.model_validators}
    has_aliases = any(field.validation_alias for field in schema.model_fields.values())
    if (
        validators - getattr(schema, "WIDENING_VALIDATORS", frozenset())
        or has_aliases
        or schema.model_config.get("extra") == "forbid"
        or schema.__pydantic_post_init__
    ):
        return None
    return {name: _column_type(field, schema.model_config) for name, field in schema.model_fields.items()}


def _column_type(field: FieldInfo, config: ConfigDict) -> TypeAdapter[list[Any]]:
    """Return the type of a list of values of a field."""
    values: Any = GenericAlias(list, (getitem(Annotated, (field.annotation, field)),))
    return TypeAdapter(values, config=config)


def _faults(error: ValidationError) -> list[tuple[str, str, str]]:
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    return [("/".join(map(str, fault["loc"][1:])), fault["type"], fault["msg"]) for fault in faults]


def _parse_json_array(file: IO[bytes], _schema: type[BaseModel]) -> Iterator[NumberedRow]:
    try:
        rows = parse_json(file.read())
    except NotJSON as error:
        raise MalformedBatch(f"the body is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise MalformedBatch("the body is not a JSON array")
    for row in rows:
        yield None, row


def _parse_ndjson(file: IO[bytes], _schema: type[BaseModel]) -> Iterator[NumberedRow]:
    line = 0
    while text := file.readline(_MAX_LINE + 1):
        line += 1
        if len(text) > _MAX_LINE:
            raise MalformedBatch(f"line {line} is longer than {_MAX_LINE} bytes")
        if not text.isspace():
            try:
                yield line, parse_json(text)
            except NotJSON as error:
                raise MalformedBatch(f"line {line} is not valid JSON: {error}") from error


def _parse_csv(file: IO[bytes], schema: type[BaseModel]) -> Iterator[NumberedRow]:
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    reader = csv.reader(_csv_lines(text), strict=True)
    line = 1
    try:
        while not (header := next(reader, None)):
            if header is None:
                raise MalformedBatch("the body is empty")
            line = reader.line_num + 1
        select = _select_features(header, schema)
        line = reader.line_num + 1
        for row in reader:
            if len(row) == len(header):
                yield line, select(row)
            elif row:
                raise MalformedBatch(f"line {line} has {len(row)} columns, and the header has {len(header)}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise MalformedBatch(f"from line {line}: {error}") from error
    except UnicodeDecodeError as error:
        raise MalformedBatch("the body is not UTF-8") from error
    finally:
        text.detach()


def _csv_lines(text: IO[str]) -> Iterator[str]:
    number = 0
    while line := text.readline(_MAX_LINE + 1):
        number += 1
        if len(line) > _MAX_LINE:
            raise MalformedBatch(f"line {number} is longer than {_MAX_LINE} characters")
        yield line


def _select_features(header: list[str], schema: type[BaseModel]) -> Callable[[list[str]], dict[str, str]]:
    """Return a function that selects the features of a row.

    Errors never quote the header: if the file has none, its first line holds the values of a customer.
    """
    if len(set(header)) != len(header):
        second = next(place for place, name in enumerate(header, 1) if name in header[: place - 1])
        raise MalformedBatch(f"column {second} of the header has the name of an earlier column")
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in header]:
        raise MalformedBatch(f"the header, which is the first line, lacks {', '.join(missing)}")
    names = [name for name in schema.model_fields if name in header]
    if len(names) == 1:  # with one place itemgetter returns no tuple
        place = header.index(names[0])
        return lambda row: {names[0]: row[place]}
    values = itemgetter(*map(header.index, names))
    return lambda row: dict(zip(names, values(row), strict=True))


def format_results(scored: Iterable[ScoredRow], media_type: str, *, is_first: bool) -> bytes:
    """Return consecutive results as text; `format_end` closes it.

    Args:
        scored: the results.
        media_type: CSV, NDJSON or JSON.
        is_first: these are the first results of the batch.
    """
    if media_type == CSV:
        header = "row,probability,error\r\n" if is_first else ""
        lines = (f"{one.row},{_csv_cell(one.probability)},{_csv_cell(one.error)}\r\n" for one in scored)
        return (header + "".join(lines)).encode()
    objects = [
        {"row": one.row, "probability": one.probability} if one.error is None else {"row": one.row, "error": one.error}
        for one in scored
    ]
    if media_type == NDJSON:
        return b"".join(to_json(one) + b"\n" for one in objects)
    start = b"[" if is_first else b"," if objects else b""
    return start + to_json(objects)[1:-1]


def format_end(media_type: str) -> bytes:
    """Return the text after the last result."""
    return b"]" if media_type == JSON else b""


def _csv_cell(value: object) -> str:
    return "" if value is None else str(value)
