"""The formats of a batch: CSV, NDJSON and JSON are parsed and validated slice by slice, and results are formatted.

No error repeats a value, because values are customers'.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import getitem, itemgetter
from types import GenericAlias
from typing import IO, Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from api.csv_rows import BLANK, clean_columns, read_csv
from api.strict_json import parse_json
from celery_task_app.errors import MalformedBatch, NotJSON
from celery_task_app.store.batches import ScoredRow

CSV, JSON, NDJSON = "text/csv", "application/json", "application/x-ndjson"

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Largest JSON array: it is parsed as a whole. CSV and NDJSON are parsed line by line."""

DESCRIBED_ROWS = 100
"""Invalid rows whose faults are worked out; further ones are counted only."""

_BLANK_AT_ONCE = 10_000  # lines
_MAX_LINE = 64 * 1024  # bytes of an NDJSON line
_VALIDATED_AT_ONCE = 250  # rows; Pydantic needs about a millisecond for them, during which no other thread runs

NumberedRow = tuple[int | None, Any]
"""A row with the line in which it begins, from 1; None in a JSON array."""


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that is not a valid customer.

    Attributes:
        row: the number of the row among the rows sent, from 0.
        line: the line of the file in which the row begins, from 1; None in a JSON array.
        faults: for each fault its place within the row, Pydantic's code and message; nothing beyond DESCRIBED_ROWS.
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


class RowParser:
    """Parses and validates files of customers. One serves all batches, because its validators take long to build."""

    def __init__(self, schema: type[BaseModel]) -> None:
        """Validate with a schema of customers. Text is converted to numbers in CSV only."""
        self._schema = schema
        self._text_validator = _TextRowValidator(schema)
        self._validator = _RowValidator(schema)

    def parse(self, file: IO[bytes], media_type: str, size: int) -> Iterator[RowSlice]:
        """Parse and validate a file of customers.

        A slice may be empty, so that many blank lines are no long step for the caller.

        Args:
            file: bytes in UTF-8, with a byte order mark or without; CSV may be UTF-16 with a byte order mark.
            media_type: CSV (see csv_rows.py), NDJSON (one object in each line) or JSON (one array of objects). Blank
                lines are ignored.
            size: most rows of a slice.

        Raises:
            MalformedBatch: the file cannot be parsed; slices that were yielded before must be discarded.
        """
        validator = self._text_validator if media_type == CSV else self._validator
        parse = {CSV: read_csv, NDJSON: _parse_ndjson, JSON: _parse_json_array}[media_type]
        first, described, blank, lines, rows = 0, DESCRIBED_ROWS, 0, list[int | None](), list[Any]()
        for line, row in parse(file, self._schema):
            if row is BLANK:
                blank += 1
                if blank % _BLANK_AT_ONCE == 0:
                    yield RowSlice([], {}, [])
                continue
            lines.append(line)
            rows.append(row)
            if len(rows) == size:
                part = validator.validate(first, lines, rows, described)
                described -= len(part.invalid)
                yield part
                first, lines, rows = first + size, [], []
        if rows:
            yield validator.validate(first, lines, rows, described)
        elif not first:
            raise MalformedBatch("the batch has no row")


class _RowValidator:
    """Validates rows with a schema: column by column if the schema allows it, because that is faster."""

    def __init__(self, schema: type[BaseModel], *, strict: bool | None = None) -> None:
        """Validate with a schema.

        Args:
            schema: of a row.
            strict: whether values must have the type of their field; None for the schema's own configuration.
        """
        self._names = list(schema.model_fields)
        rows: TypeAdapter[list[Any]] = TypeAdapter(list[schema])  # type: ignore[valid-type]
        self._validate_rows, self._are_valid = rows.validate_python, rows.validator.isinstance_python
        self._columns = _column_types(schema)
        self._strict = strict

    def validate(self, first: int, lines: Sequence[int | None], rows: list[Any], described: int) -> RowSlice:
        """Return the slice of these rows.

        Args:
            first: the number of the first row.
            lines: the line of each row.
            rows: as they were sent.
            described: invalid rows whose faults are worked out.
        """
        with suppress(LookupError, TypeError):  # a row lacks a field, or is no object: find it
            columns = {name: list(map(itemgetter(name), rows)) for name in self._columns}
            if part := self._validate_columns(first, columns):
                return part
        return self._validate_each(first, lines, rows, described)

    def _validate_columns(self, first: int, columns: dict[str, list[Any]]) -> RowSlice | None:
        """Return the slice of rows that are all valid, given their columns; None if a row may be invalid."""
        try:
            valid = {
                name: column.validate_python(columns[name], strict=self._strict)
                for name, column in self._columns.items()
            }
        except (ValidationError, LookupError):
            return None
        return RowSlice(list(range(first, first + len(valid[self._names[0]]))), valid, []) if valid else None

    def _validate_each(self, first: int, lines: Sequence[int | None], rows: list[Any], described: int) -> RowSlice:
        numbers, valid, invalid = list[int](), list[Any](), list[InvalidRow]()
        for start in range(0, len(rows), _VALIDATED_AT_ONCE):
            places = range(start, min(start + _VALIDATED_AT_ONCE, len(rows)))
            try:
                valid += self._validate_rows(rows[places.start : places.stop], strict=self._strict)
                numbers += [first + place for place in places]
            except ValidationError:
                for place in places:
                    row = [rows[place]]
                    if len(invalid) >= described and not self._are_valid(row, strict=self._strict):
                        invalid.append(InvalidRow(first + place, lines[place], []))
                        continue
                    try:
                        valid += self._validate_rows(row, strict=self._strict)
                        numbers.append(first + place)
                    except ValidationError as error:
                        invalid.append(InvalidRow(first + place, lines[place], _faults(error)))
        fields = [customer.__dict__ for customer in valid]
        return RowSlice(numbers, {name: [field[name] for field in fields] for name in self._names}, invalid)


class _TextRowValidator(_RowValidator):
    """Validates rows of text: it converts cells to numbers, and cleans those that Python would read differently."""

    def __init__(self, schema: type[BaseModel]) -> None:
        super().__init__(schema, strict=False)
        self._numbers = frozenset(
            name for name, field in schema.model_fields.items() if field.annotation in (int, float)
        )

    def validate(self, first: int, lines: Sequence[int | None], rows: list[Any], described: int) -> RowSlice:
        """Return the slice of these rows, which all have the columns of the first one."""
        columns = {name: list(map(itemgetter(name), rows)) for name in rows[0]}
        if self._is_plain(columns) and (part := self._validate_columns(first, columns)):
            return part
        columns = clean_columns(columns, self._numbers)
        if part := self._validate_columns(first, columns):
            return part
        cleaned = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return self._validate_each(first, lines, cleaned, described)

    def _is_plain(self, columns: dict[str, list[Any]]) -> bool:
        """Return whether no number needs `clean_columns`; one search for all cells of a column is cheap."""
        return all(
            "_" not in (cells := "".join(columns[name])) and cells.isascii() for name in self._numbers & columns.keys()
        )


def _column_types(schema: type[BaseModel]) -> dict[str, TypeAdapter[list[Any]]]:
    """Return the type of each column; none if a row of valid columns may be invalid for the schema, or the reverse.

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
        return {}
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
        if text.isspace():
            yield line, BLANK
        else:
            try:
                yield line, parse_json(text)
            except NotJSON as error:
                raise MalformedBatch(f"line {line} is not valid JSON: {error}") from error


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
