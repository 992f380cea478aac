"""The application: routes, a bound on what a request may hold, and the work beside them."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentsync.service import file_routes, task_routes
from latentsync.service.answers import answer_errors
from latentsync.service.core import Service
from latentsync.service.file_routes import incoming
from latentsync.service.files import FILES
from latentsync.service.front import Front, FrontOf
from latentsync.service.housekeeping import Housekeeping
from latentsync.service.signing import Signer

__all__ = ["PAGE", "create_app"]

MAX_BODY = 256 * 1024  # bytes of a request that is no upload
PAGE = "/app"  # where the page is, which bounds its uploads itself


def create_app(service: Service, *, needs_key: bool = True) -> FastAPI:
    """The application of an open service; it keeps house as long as it runs."""
    front = Front(service, Signer.from_folder(service.settings.data), needs_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        shutil.rmtree(incoming(service.settings), ignore_errors=True)  # of one that was killed
        housekeeping = Housekeeping(front)
        housekeeping.start()
        yield
        housekeeping.stop()

    app = FastAPI(
        title="LatentSync",
        description="Lip-sync as tasks: a clip and a voice in, the clip speaking the voice out.",
        lifespan=lifespan,
    )
    app.state.front = front
    app.add_middleware(BoundedBody)
    answer_errors(app)
    app.include_router(file_routes.router)  # before the tasks', of which the last takes any path
    app.include_router(task_routes.router)

    @app.get("/health", tags=["health"])
    def health(front: FrontOf) -> dict[str, object]:
        """Whether the database answers, and how many tasks there are."""
        return {"status": "ok", "tasks": front.service.tasks.counts()}

    return app


class BoundedBody:
    """Refuses bodies over MAX_BODY, before they are held in memory; uploads are streamed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith((FILES, f"{PAGE}/")):
            await self._app(scope, receive, send)
            return
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {MAX_BODY} bytes"
                )
            return message

        await self._app(scope, bounded, send)
