"""Request heads: no longer than allowed. uvicorn's fast parser takes any length, and no option limits it.

Seen: one connection that sent small headers without end made the API grow by ten times what it sent.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_BYTES = 65_536  # as h11, uvicorn's other parser, has it

_parse = HttpToolsProtocol.data_received


def limit_heads() -> None:
    """Let the server of this process hang up on who sends a longer one."""
    HttpToolsProtocol.data_received = _data_received  # type: ignore[method-assign]


def _data_received(self: HttpToolsProtocol, data: bytes) -> None:
    _parse(self, data)
    if self.cycle is not None and self.cycle.scope is self.scope:
        self.head_bytes = 0  # type: ignore[attr-defined]  # it is whole, and what comes is body
        return
    self.head_bytes = getattr(self, "head_bytes", 0) + len(data)  # type: ignore[attr-defined]
    if self.head_bytes > _MAX_BYTES:  # type: ignore[attr-defined]
        self.send_400_response("The head of the request is too long.")
