"""The application: routes, a bound on what a request may hold, and the work beside them."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from latentsync.bodies import BoundedBody
from latentsync.service import file_routes, task_routes
from latentsync.service.answers import answer_errors
from latentsync.service.core import Service
from latentsync.service.file_routes import incoming
from latentsync.service.files import FILES
from latentsync.service.front import Front, FrontOf
from latentsync.service.gate import PAGE, Gate
from latentsync.service.housekeeping import Housekeeping
from latentsync.service.signing import Signer

__all__ = ["create_app"]


def _streamed(path: str) -> bool:
    """Whether a path bounds what it takes itself: uploads, and the page."""
    return path.startswith((FILES, f"{PAGE}/"))


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
    app.add_middleware(BoundedBody, streamed=_streamed)
    app.add_middleware(Gate, front=front)  # the one added last sees a request first
    answer_errors(app)
    app.include_router(file_routes.router)  # before the tasks', of which the last takes any path
    app.include_router(task_routes.router)

    @app.get("/health", tags=["health"])
    def health(front: FrontOf) -> dict[str, object]:
        """Whether the database answers, and how many tasks there are."""
        return {"status": "ok", "tasks": front.service.tasks.counts()}

    return app
