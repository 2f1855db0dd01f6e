"""The page at /: the files of api/static, which use the public API only."""

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from api.http.responses import page_headers

_FILES = Path(__file__).parent / "static"
_HEADERS = page_headers("script-src 'self'; style-src 'self'; img-src 'self'") | {
    "Cache-Control": "no-cache"  # the ETag makes a repeated request cheap, and an upgrade is seen at once
}


class _Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page and its assets; their routes come last, so that they cost no other request anything."""
    document = (_FILES / "index.html").read_text()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(document, headers=_HEADERS)

    app.mount("/static", _Assets(directory=_FILES))
