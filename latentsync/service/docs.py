"""openapi.json, from which clients are generated, and a page that shows it offline."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

from latentsync.runtime.extras import install_command

__all__ = ["add_docs"]

SCRIPT, STYLE, ICON = ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
NOT_INSTALLED = (
    "<!doctype html><html lang=en><title>LatentSync</title><p>What this service answers is in "
    "<a href=openapi.json>openapi.json</a>. This page shows it once its host has run "
    f"<code>{install_command('serve')}</code>, which brings Swagger UI.</p></html>"
)


def add_docs(app: FastAPI) -> None:
    """Add `/docs`, which shows openapi.json with Swagger UI, and its assets."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as in FastAPI's documentation

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        if _folder() is None:
            return HTMLResponse(NOT_INSTALLED)
        return get_swagger_ui_html(
            title=app.title,
            openapi_url="openapi.json",
            swagger_js_url=f"docs/{SCRIPT}",
            swagger_css_url=f"docs/{STYLE}",
            swagger_favicon_url=f"docs/{ICON}",
        )

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> FileResponse:
        folder = _folder()
        if folder is None or name not in ASSETS:
            raise HTTPException(404)
        return FileResponse(folder / name)


def _folder() -> Path | None:
    """The folder of Swagger UI's files in the package fastapi_swagger; None if not installed."""
    found = find_spec("fastapi_swagger")
    return Path(found.origin).parent / "resources" if found and found.origin else None


def _described(app: FastAPI) -> dict[str, Any]:
    """The document, without the 422 answers that FastAPI adds: here these are 400."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=app.servers,
    )
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document
