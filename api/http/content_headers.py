"""The headers that describe a body: its media type, its encoding and its length."""

from fastapi import Request

from celery_task_app.errors import UnsupportedEncoding

_UTF_8 = {"utf-8", "utf8", "us-ascii", "ascii"}


def read_content_headers(request: Request) -> tuple[str, int]:
    """Return the media type in lower case, without parameters, and the Content-Length, 0 if it is unknown.

    Raises:
        UnsupportedEncoding: the body is compressed, or its declared charset is not UTF-8.
    """
    content_type, length = "", 0
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value)  # the server has checked that it is a number
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedEncoding("Send the body without Content-Encoding")
    media_type, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";") if parameters else ():
        name, _, charset = parameter.partition("=")
        if name.strip().lower() == "charset" and charset.strip().strip('"').lower() not in _UTF_8:
            raise UnsupportedEncoding("Send the body as UTF-8")
    return media_type.strip().lower(), length
