"""The access log is honest: no text of a client imitates a line, and only answered probes are left out."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.logging import AccessFormatter

from api.http.access_log import AccessLogFilter


def logged(client: str, path: str, status: int = 200) -> str | None:
    """Return the line of a request; None if it is left out."""
    arguments = (client, "GET", path, "1.1", status)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)
    formatter = AccessFormatter('%(client_addr)s - "%(request_line)s" %(status_code)s', use_colors=False)
    return formatter.format(record) if AccessLogFilter().filter(record) else None


@pytest.mark.parametrize("prefix", ["", "/ml"])
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_answered_probes_are_left_out_with_and_without_a_prefix(prefix: str, path: str) -> None:
    assert logged("10.0.0.1:80", prefix + path) is None


def test_a_query_that_ends_like_a_probe_is_logged() -> None:
    assert logged("10.0.0.1:80", "/churn/result/1?x=/readyz") is not None


def test_an_unknown_path_that_ends_like_a_probe_is_logged() -> None:
    assert logged("10.0.0.1:80", "/secret/livez", status=404) is not None


def test_a_usual_line_stays_as_it_is() -> None:
    line = logged("[2001:db8::1]:80", "/churn/result/1?x=%20y&z=a+b")
    assert line == '[2001:db8::1]:80 - "GET /churn/result/1?x=%20y&z=a+b HTTP/1.1" 200 OK'


@given(st.text(), st.text())
def test_no_text_of_a_client_adds_a_field_or_a_line(client: str, path: str) -> None:
    line = logged(client, f"/{path}", status=404)
    assert line is not None
    assert line.isprintable()
    assert len(line.split(" ")) == 8  # 404 Not Found
    assert line.count('"') == 2
