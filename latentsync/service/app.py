"""The FastAPI application: middleware, routes, and background jobs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import CapacityLimiter, move_on_after
from anyio.to_thread import run_sync
from fastapi import FastAPI

from latentsync.service import file_routes, task_routes
from latentsync.service.background_jobs import BackgroundJobs
from latentsync.service.container import Service
from latentsync.service.context import ApiContext, Context
from latentsync.service.docs import add_docs
from latentsync.service.error_responses import add_error_handlers
from latentsync.service.files import FILES
from latentsync.service.middleware import PAGE, Authentication, BodyLimit
from latentsync.service.outages import Outage
from latentsync.service.schemas import Health, problems
from latentsync.service.settings import process_folder
from latentsync.service.signing import Signer

__all__ = ["create_app"]

HEALTH_SECONDS = 2.0  # in which the database must answer


def create_app(service: Service, *, needs_key: bool = True) -> FastAPI:
    """Create the application of an open service; its background jobs run as long as it does."""
    context = ApiContext(service, Signer.from_folder(service.settings.data), needs_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with process_folder(context.incoming.parent, context.name):
            jobs = BackgroundJobs(context)
            jobs.start()
            yield
            jobs.stop()

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
    app.state.context = context
    # Uploads and the page limit their bodies themselves.
    app.add_middleware(BodyLimit, streamed=lambda path: path.startswith((FILES, f"{PAGE}/")))
    app.add_middleware(Authentication, context=context)  # added last, so it comes first
    add_error_handlers(app)
    app.include_router(file_routes.router)  # before the tasks', whose last route takes any path
    app.include_router(task_routes.router)

    limiter = CapacityLimiter(1)  # requests without a key take no thread from those with one

    @app.get("/health", tags=["health"], responses=problems())
    @app.head("/health", include_in_schema=False)  # as monitors ask
    async def get_health(context: Context) -> Health:
        """State of the database, and the number of tasks by status."""
        with move_on_after(HEALTH_SECONDS):
            counts = await run_sync(
                context.service.tasks.counts, limiter=limiter, abandon_on_cancel=True
            )
            return Health(tasks=counts)
        raise Outage(f"the database did not answer in {HEALTH_SECONDS} s")

    add_docs(app)
    return app
