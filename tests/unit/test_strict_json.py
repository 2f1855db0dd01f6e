"""The body of POST /churn/predict: strict JSON, without duplicate names."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.strict_json import parse_json
from celery_task_app.errors import NotJSON

NOT_JSON = {
    "empty": b"",
    "only white space": b" \n\t",
    "truncated": b"{",
    "single quotes": b"{'Gender': 1}",
    "trailing comma": b'{"Gender": "M",}',
    "NUL byte": b"\x00",
    "two values": b"{}{}",
    "not UTF-8": b"\xff\xfe\xfd",
    "UTF-16": '{"Gender": "M"}'.encode("utf-16"),
    "half a character": b'{"Gender": "\xc3"}',
    "5,000 digits": b'{"Customer_Age": ' + b"9" * 5000 + b"}",
    "10,000 arrays deep": b"[" * 10_000,
    "2,000 objects deep": b'{"a":' * 2_000,
    "duplicate name": b'{"Customer_Age": 20, "Customer_Age": 45}',
    "duplicate name, nested and escaped": b'{"a": [{"b": 1, "\\u0062": 2}]}',
}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(), values, max_size=5), max_leaves=20
)


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_malformed_json_is_refused(body: bytes) -> None:
    with pytest.raises(NotJSON):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"secret": 1, "secret": 2}', "An object has two members with the same name"),
        (b'{"secret": secret}', "Expecting value at character 11"),
        (b'{"secret": "\xff"}', "not UTF-8 at byte 12"),
        (b'{"secret": ' + b"[" * 10_000, "nested too deep"),
        (b'{"secret": ' + b"9" * 5_000 + b"}", "too many digits"),
    ],
)
def test_the_error_gives_the_reason_and_no_input(body: bytes, reason: str) -> None:
    with pytest.raises(NotJSON, match=reason) as refused:
        parse_json(body)
    assert "secret" not in str(refused.value)
    assert "9999" not in str(refused.value)


@pytest.mark.parametrize("body", [b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"9" * 400])
def test_the_schema_judges_numbers_and_surrogates_and_the_parser_does_not(body: bytes) -> None:
    parse_json(body)


@given(VALUES, st.booleans())
def test_a_json_value_without_duplicate_names_survives_a_round_trip(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()), st.data())
def test_no_bytes_raise_another_error(body: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(body)))
    inserted = data.draw(st.binary(max_size=5))
    with contextlib.suppress(NotJSON):
        parse_json(body[:cut] + inserted + body[cut:])


@given(st.text(), VALUES, VALUES, st.lists(st.sampled_from(["[{}]", '{{"a": {}}}', '[1, {}, "x"]']), max_size=5))
def test_a_duplicate_name_is_refused_at_any_depth(name: str, first: Any, second: Any, around: list[str]) -> None:
    text = f"{{{json.dumps(name)}: {json.dumps(first)}, {json.dumps(name)}: {json.dumps(second)}}}"
    for template in around:
        text = template.format(text)
    with pytest.raises(NotJSON):
        parse_json(text.encode())


def test_a_byte_order_mark_is_ignored() -> None:
    assert parse_json(b'\xef\xbb\xbf{"Gender": "M"}') == {"Gender": "M"}
