"""The page /docs: Swagger UI from the package fastapi-swagger, which needs no internet access."""

import hashlib
from base64 import b64encode

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from api.http.responses import page_headers

# The title has the name of the model, which only the workers know.
# `validatorUrl: null` keeps Swagger UI from sending the document to validator.swagger.io.
_SCRIPT = """
const read = async (path) => (await fetch(path)).json();
const [spec, { workers = {} }] = await Promise.all([read('openapi.json'), read('readyz').catch(() => ({}))]);
const name = Object.values(workers).find((worker) => worker.name)?.name;
if (name) spec.info.title = document.title = `${name[0].toUpperCase()}${name.slice(1)} predictions`;
SwaggerUIBundle({
    spec,
    dom_id: '#swagger-ui',
    layout: 'BaseLayout',
    deepLinking: true,
    showExtensions: true,
    showCommonExtensions: true,
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""

# All addresses are relative, so that a gateway may add a prefix to the paths.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>{title}</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="shortcut icon" href="docs/assets/favicon-32x32.png">
{style}
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script type="module">{script}</script>
</body>
</html>
"""

_DIGEST = b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_HEADERS = page_headers(f"script-src 'self' 'sha256-{_DIGEST}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:")
_WITHOUT_KEYS = "<style>.swagger-ui :is(.scheme-container, .authorization__btn) { display: none }</style>"  # padlocks


def add_docs(app: FastAPI, *, is_key_required: bool) -> None:
    """Serve /docs and its assets; padlocks only if `API_KEYS` is set."""
    page = _PAGE.format(title=app.title, script=_SCRIPT, style="" if is_key_required else _WITHOUT_KEYS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
