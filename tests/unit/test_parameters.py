"""Optional headers and query parameters: their values, their errors, and the negotiation of a media type."""

from collections.abc import Sequence

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.http.parameters import (
    CANCEL_AFTER,
    EXPLAIN,
    IDEMPOTENCY_KEY,
    PREFER,
    OptionalHeader,
    best_media_type,
    openapi_parameters,
    preferred_wait_s,
)

OFFERED = ("application/x-ndjson", "application/json", "text/csv")


def request(query: str = "", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "query_string": query.encode()})


@pytest.mark.parametrize("parameter", [IDEMPOTENCY_KEY, CANCEL_AFTER, EXPLAIN, PREFER])
def test_a_parameter_that_was_not_sent_has_no_value(parameter: OptionalHeader[object]) -> None:
    assert parameter.read(request()) is None


def test_a_value_has_its_documented_type() -> None:
    assert CANCEL_AFTER.read(request(cancel_after="60")) == 60
    assert CANCEL_AFTER.parameter["schema"] == {"minimum": 1, "type": "integer"}
    assert IDEMPOTENCY_KEY.read(request(idempotency_key="60")) == "60"
    assert EXPLAIN.read(request("explain=true")) == "true"


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        (CANCEL_AFTER, "cancel_after", "0"),
        (CANCEL_AFTER, "cancel_after", "-1"),
        (CANCEL_AFTER, "cancel_after", "1.5"),
        (CANCEL_AFTER, "cancel_after", "soon"),
        (CANCEL_AFTER, "cancel_after", ""),
        (IDEMPOTENCY_KEY, "idempotency_key", ""),
        (IDEMPOTENCY_KEY, "idempotency_key", "x" * 256),
    ],
)
def test_an_invalid_header_is_named_and_its_value_is_not_repeated(
    header: OptionalHeader[object], name: str, value: str
) -> None:
    with pytest.raises(RequestValidationError) as refused:
        header.read(request(**{name: value}))
    (fault,) = refused.value.errors()
    assert fault["loc"][0] == "header"
    assert fault["loc"][1].lower() == name.replace("_", "-")
    assert "input" not in fault


@pytest.mark.parametrize("value", ["maybe", "", "1", "True"])
def test_explain_is_true_or_false(value: str) -> None:
    with pytest.raises(RequestValidationError) as refused:
        EXPLAIN.read(request(f"explain={value}"))
    (fault,) = refused.value.errors()
    assert fault["loc"] == ("query", "explain")
    assert "input" not in fault


def test_openapi_parameters_are_optional_and_docs_prefills_none() -> None:
    for parameter in openapi_parameters(EXPLAIN, IDEMPOTENCY_KEY, CANCEL_AFTER, PREFER)["parameters"]:
        assert parameter["required"] is False
        assert parameter["in"] == ("query" if parameter["name"] == "explain" else "header")
        assert not {"example", "examples"} & {*parameter, *parameter["schema"]}
        assert "`" in parameter["description"]  # its example


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([], 0),
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10; why=not"], 10),
        (["wait=10, wait=20"], 10),
        (["wait=1000"], 25),
        (["wait=99999999999999999999999"], 25),
        (["wait=0"], 0),
        (["wait"], 0),
        (["wait="], 0),
        (["wait=-1"], 0),
        (["wait=1.5"], 0),
        (["wait=²"], 0),
        (["wait=soon"], 0),
        (["awaits=5"], 0),
    ],
)
def test_prefer_is_parsed_as_in_rfc_7240_and_limited(headers: list[str], wait_s: int) -> None:
    raw = [(b"prefer", header.encode("latin-1")) for header in headers]
    assert preferred_wait_s(Request({"type": "http", "headers": raw}), 25) == wait_s


@given(st.lists(st.text(st.characters(max_codepoint=255))), st.integers(0, 100))
def test_a_wait_is_never_longer_than_the_limit(headers: list[str], max_wait_s: int) -> None:
    raw = [(b"prefer", header.encode("latin-1")) for header in [*headers, "wait=99"]]
    assert 0 <= preferred_wait_s(Request({"type": "http", "headers": raw}), max_wait_s) <= max_wait_s


OTHER_PREFERENCES = st.lists(st.sampled_from(["respond-async", "return=minimal", 'x="y"', "handling=lenient; z=1", ""]))
WAITS = st.sampled_from(["wait={}", "WAIT = {}", 'wait="{}"', "wait={}; why=not", " wait={} "])


@given(OTHER_PREFERENCES, WAITS, st.integers(0, 10**12), OTHER_PREFERENCES, st.integers(0, 100))
def test_a_wait_among_other_preferences_is_read_and_limited(
    before: list[str], wait: str, seconds: int, after: list[str], max_wait_s: int
) -> None:
    prefer = ",".join([*before, wait.format(seconds), *after])
    assert preferred_wait_s(request(prefer=prefer), max_wait_s) == min(seconds, max_wait_s)


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("*/*", "application/x-ndjson"),
        ("application/*", "application/x-ndjson"),
        ("text/*", "text/csv"),
        ("application/json", "application/json"),
        ("APPLICATION/JSON", "application/json"),
        ("application/json;q=0.5, text/csv;q=0.9, text/html", "text/csv"),
        ("application/json ; q=0.5 ,text/csv ; charset=utf-8 ; q=0.6", "text/csv"),
        ("application/json;q=0.5, text/csv;q=0.5", "application/json"),
        ("*/*;q=0.1, text/csv", "text/csv"),
        ("application/*, application/x-ndjson;q=0.1", "application/json"),
        ("*/*, application/x-ndjson;q=0", "application/json"),
        ("text/csv;q=0, */*", "application/x-ndjson"),
        ("text/html", None),
        ("text/html, text/csv;q=0", None),
        ("*/*;q=0", None),
        ("text/csv;q=0.0", None),
        ("text/csv;q=soon", None),
        ("text/csv;q=", None),
        ("text/csv;q=-1", None),
        ("text/csv;q=nan", None),
        ("application/x-ndjson;q=nan, text/csv", "text/csv"),
        (",;q=1,,", None),
        ("", None),
    ],
)
def test_the_offered_media_type_with_the_highest_quality_is_chosen(accept: str, best: str | None) -> None:
    assert best_media_type(accept, OFFERED) == best


RANGES = st.sampled_from([*OFFERED, "*/*", "text/*", "application/*", "text/html", ""])
QUALITIES = st.sampled_from(["", ";q=0", ";q=1", ";q=0.5", ";q=nan", ";q=inf", ";q=-1", ";q=x", ";charset=utf-8"])
ACCEPTS = st.lists(st.tuples(RANGES, QUALITIES).map("".join)).map(",".join) | st.text()


@given(ACCEPTS, st.lists(st.sampled_from(OFFERED), min_size=1, unique=True))
def test_the_chosen_media_type_is_offered_or_none(accept: str, offered: Sequence[str]) -> None:
    assert best_media_type(accept, offered) in {*offered, None}


@given(ACCEPTS)
def test_a_media_type_with_quality_0_is_never_chosen(accept: str) -> None:
    assert best_media_type(f"{accept},text/csv;q=0", OFFERED) != "text/csv"


@given(ACCEPTS)
def test_the_client_that_accepts_everything_gets_a_media_type(accept: str) -> None:
    others = ",".join(f"{media_type};q=1" for media_type in OFFERED)
    assert best_media_type(f"{accept},{others}", OFFERED) in OFFERED


@given(st.permutations(OFFERED), st.lists(st.integers(0, 1000), min_size=3, max_size=3))
def test_the_highest_quality_is_chosen_in_every_order(sent: Sequence[str], thousandths: list[int]) -> None:
    qualities = dict(zip(sent, thousandths, strict=True))
    accept = ", ".join(f"{media_type};q={quality / 1000:.3f}" for media_type, quality in qualities.items())
    best = best_media_type(accept, OFFERED)
    assert (qualities[best] if best else 0) == max(thousandths)
