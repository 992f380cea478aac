"""The application: routes, a bound on what a request may hold, and the work beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import CapacityLimiter, move_on_after
from anyio.to_thread import run_sync
from fastapi import FastAPI

from latentsync.service import file_routes, task_routes
from latentsync.service.answers import Health, answer_errors, problems
from latentsync.service.bodies import BoundedBody
from latentsync.service.core import Service
from latentsync.service.docs import add_docs
from latentsync.service.files import FILES
from latentsync.service.front import Front, FrontOf
from latentsync.service.gate import PAGE, Gate
from latentsync.service.housekeeping import Housekeeping
from latentsync.service.outages import Outage
from latentsync.service.settings import process_folder
from latentsync.service.signing import Signer

__all__ = ["create_app"]

HEALTH_SECONDS = 2.0  # after which the database is said not to answer


def _streamed(path: str) -> bool:
    """Whether a path bounds what it takes itself: uploads, and the page."""
    return path.startswith((FILES, f"{PAGE}/"))


def create_app(service: Service, *, needs_key: bool = True) -> FastAPI:
    """The application of an open service; it keeps house as long as it runs."""
    front = Front(service, Signer.from_folder(service.settings.data), needs_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with process_folder(front.incoming.parent, front.name):
            housekeeping = Housekeeping(front)
            housekeeping.start()
            yield
            housekeeping.stop()

    app = FastAPI(
        title="LatentSync",
        description="Lip-sync as tasks: a clip and a voice in, the clip speaking the voice out.",
        version=version("latentsync"),
        servers=[{"url": service.settings.base}],
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.front = front
    app.add_middleware(BoundedBody, streamed=_streamed)
    app.add_middleware(Gate, front=front)  # the one added last sees a request first
    answer_errors(app)
    app.include_router(file_routes.router)  # before the tasks', of which the last takes any path
    app.include_router(task_routes.router)

    look = CapacityLimiter(1)  # who asks without a key takes no thread from those who have one

    @app.get("/health", tags=["health"], responses=problems())
    @app.head("/health", include_in_schema=False)  # as monitors ask
    async def get_health(front: FrontOf) -> Health:
        """Whether the database answers, and how many tasks there are."""
        with move_on_after(HEALTH_SECONDS):
            counts = await run_sync(
                front.service.tasks.counts, limiter=look, abandon_on_cancel=True
            )
            return Health(tasks=counts)
        raise Outage(f"the database did not answer in {HEALTH_SECONDS} s")

    add_docs(app)
    return app
