"""A limit of 64 KiB for the request line and the headers. httptools has no limit, and uvicorn has no option for one.

Without it one connection that sent small headers without end made the API grow by ten times the bytes that it sent.
`--http module:Class` would be uvicorn's extension point, but plain `uvicorn app:app` does not use it. So the method of
uvicorn's class is replaced; docs/adr/0002 says when this can go.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_BYTES = 65_536  # the limit of h11, uvicorn's other parser

for _name in ("data_received", "send_400_response"):
    if not hasattr(HttpToolsProtocol, _name):
        raise ImportError(f"uvicorn's HttpToolsProtocol has no {_name} any more: see docs/adr/0002")

_parse = HttpToolsProtocol.data_received


def limit_header_size() -> None:
    """Make the server of this process close a connection whose incomplete request line and headers exceed 64 KiB."""
    HttpToolsProtocol.data_received = _data_received  # type: ignore[method-assign]


def _data_received(self: HttpToolsProtocol, data: bytes) -> None:
    _parse(self, data)
    if self.cycle is not None and self.cycle.scope is self.scope:
        self.header_bytes = 0  # type: ignore[attr-defined]  # the headers are complete, and the data is a body
        return
    self.header_bytes = getattr(self, "header_bytes", 0) + len(data)  # type: ignore[attr-defined]
    if self.header_bytes > _MAX_BYTES:  # type: ignore[attr-defined]
        self.send_400_response("The request line and the headers exceed 64 KiB.")
