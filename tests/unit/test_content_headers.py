"""The right header is blamed: a compressed body, or one in another charset, is refused as such and not as bad JSON."""

import pytest
from starlette.requests import Request

from api.http.content_headers import read_content_headers
from celery_task_app.errors import UnsupportedEncoding


def read(**headers: str) -> tuple[str, int]:
    fields = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return read_content_headers(Request({"type": "http", "headers": fields}))


def test_the_media_type_is_read_without_its_parameters() -> None:
    assert read(content_type="Text/CSV; header=present", content_length="12") == ("text/csv", 12)
    assert read() == ("", 0)


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8", "us-ascii"])
def test_utf_8_may_be_declared(charset: str) -> None:
    assert read(content_type=f"application/json; charset={charset}") == ("application/json", 0)


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "", "latin1"])
def test_another_declared_charset_is_refused(charset: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="UTF-8"):
        read(content_type=f"text/csv; Charset={charset}")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
def test_a_content_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="Content-Encoding"):
        read(content_encoding=encoding)


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_identity_is_no_encoding(encoding: str) -> None:
    assert read(content_encoding=encoding, content_type="text/csv") == ("text/csv", 0)
