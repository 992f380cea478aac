"""Command line of the task API: `latentsync serve`, `work` and `keys`."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync.cli.common import (
    LOOPBACK,
    Device,
    Model,
    RayAddress,
    Weights,
    check_engine,
    check_port,
    exit_on_sigterm,
    machine_option,
)
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.errors import OptionError
from latentsync.options import declared
from latentsync.runtime.extras import needs_extra
from latentsync.runtime.scratch import temporary_folder
from latentsync.service.settings import ServiceSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from latentsync.service.container import Service

__all__ = ["keys", "serve", "work"]

STOP_SECONDS = 5  # in which requests that are being answered may end

log = logging.getLogger(__name__)

keys = typer.Typer(no_args_is_help=True, help="Manage the keys of the task API.")

Data = Annotated[
    Path,
    typer.Option(envvar="LATENTSYNC_DATA", help="Folder of the service's database and files."),
]
database_option = partial(
    typer.Option,
    envvar="LATENTSYNC_DATABASE",
    help="Database: postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
)
DatabaseUrl = Annotated[str, database_option(show_default="SQLite in the data folder")]
Workers = Annotated[
    int, typer.Option(min=0, help="Worker processes, each with a model of its own.")
]
storage_option = partial(
    typer.Option,
    envvar="LATENTSYNC_STORAGE",
    help="Storage of uploads and outputs: s3://BUCKET/PREFIX, or a folder.",
)
Limits = Annotated[
    dict[str, Any],
    FieldsOf(
        ServiceSettings,
        tuple(declared(ServiceSettings)),
        flags={"max_upload_bytes": "--max-upload", "max_stored_bytes": "--max-stored"},
    ),
]


@dataclass(frozen=True)
class ServedModel:
    """Model that each worker loads, as fields of `ServiceSettings`."""

    model: Model = ServiceSettings.model
    weights: Weights = None
    device: Device = None
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile kernels as each worker starts, which takes minutes.",
            show_default="on a GPU",
        ),
    ] = None


@dataclass(frozen=True)
class Replicas:
    """Workers on the machines of a Ray cluster, as many as the queue needs."""

    engine: Annotated[
        str,
        machine_option(help="local: worker processes here; or ray: replicas on many machines."),
    ] = "local"
    min_replicas: Annotated[
        int | None,
        typer.Option(help="Replicas kept while idle, with --engine ray.", show_default="1"),
    ] = None
    max_replicas: Annotated[
        int | None,
        typer.Option(
            help="Replicas with a long queue, with --engine ray.", show_default="one a GPU"
        ),
    ] = None
    ray_address: RayAddress = None


@grouped
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    public_url: Annotated[
        str, typer.Option(help="Where clients reach it.", show_default="http://HOST:PORT")
    ] = "",
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask for no key; on 127.0.0.1 only.")
    ] = False,
    page: Annotated[
        bool,
        typer.Option("--page", help="Show the web page at /app too, with a model of its own."),
    ] = False,
    workers: Workers = 1,
    served: ServedModel,
    data: Data = ServiceSettings.data,
    database: DatabaseUrl = "",
    storage: Annotated[str, storage_option(show_default="a folder in the data folder")] = "",
    limits: Limits,
    replicas: Replicas,
) -> None:
    """Serve the task API, with the paths and fields of the hosted API, and run its tasks.

    Make keys with `latentsync keys create NAME`. The API is documented at /docs.
    `--workers 0` only accepts tasks; `latentsync work` runs them elsewhere.
    """
    given = {"min_replicas": replicas.min_replicas, "max_replicas": replicas.max_replicas}
    check_engine(replicas.engine, **given, ray_address=replicas.ray_address)
    if no_auth and host not in LOOPBACK:
        raise OptionError(f"--no-auth on {host} would be open to everybody; use 127.0.0.1, or keys")
    if not public_url and host in ("0.0.0.0", "::"):  # noqa: S104 - asked for, not chosen
        raise OptionError(
            f"on {host} answers can't tell where this is; give --public-url http://NAME:{port}"
        )
    settings = ServiceSettings(
        data=data.resolve(),  # replicas of Ray have a working folder of their own
        database=database,
        storage=storage,
        public_url=public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}",
        **vars(served),
        **limits,
    )
    working = partial(_processes, workers=workers)
    if replicas.engine == "ray":
        from latentsync.service.fleet import serving

        least, most = given.values()
        working = partial(serving, least=least, most=most, address=replicas.ray_address)
    _serve(settings, host, port, working, no_auth, page)


@contextmanager
def _processes(service: "Service", *, workers: int) -> Iterator[None]:
    """Run workers on this machine."""
    from latentsync.service.supervisor import Supervisor

    supervisor = Supervisor(service.settings, workers, service.settings.data / "work")
    supervisor.start()
    try:
        yield
    finally:
        supervisor.stop()


def _serve(
    settings: ServiceSettings,
    host: str,
    port: int,
    working: "Callable[[Service], AbstractContextManager[None]]",
    no_auth: bool,
    page: bool,
) -> None:
    with needs_extra("the task API", "serve"):
        import uvicorn

        from latentsync.service.app import create_app
        from latentsync.service.connections import Connection, connections_allowed
        from latentsync.service.container import Service
        from latentsync.service.signing import VARIABLE

    check_port(host, port)  # before anything that another server on this machine would notice
    exit_on_sigterm()
    logging.getLogger("latentsync.service").setLevel(logging.INFO)
    with Service.open(settings, decides=True) as service:
        if settings.database and settings.storage and not os.environ.get(VARIABLE):
            log.warning(
                "addresses and webhooks are signed with %s, which only this machine has: give all "
                "servers the same $%s, or links end when this one does",
                settings.data / "secret",
                VARIABLE,
            )
        if not no_auth and not service.keys.all():
            typer.echo(f"no key yet: make one by `latentsync keys create NAME{_where(settings)}`")
        app = create_app(service, needs_key=not no_auth)
        if page:
            _show_page(app)
        with working(service):
            uvicorn.run(
                app,
                host=host,
                port=port,
                access_log=False,
                timeout_graceful_shutdown=STOP_SECONDS,
                http=Connection,
                ws="none",
                limit_concurrency=connections_allowed(),
            )


def _show_page(app: "FastAPI") -> None:
    """Mount the web page on the task API's application, behind its keys."""
    from latentsync.pipeline.lipsync import LipSync
    from latentsync.service.middleware import PAGE

    with needs_extra("the page", "app"):
        from latentsync.service.page.blocks import mount

    settings = app.state.context.service.settings
    mount(
        app,
        lambda: LipSync.load(settings.model, weights=settings.weights, device=settings.device),
        path=PAGE,
        model=settings.model,
        max_upload_bytes=settings.max_upload_bytes,
        max_seconds=settings.max_seconds,
    )


@grouped
def work(
    *,
    database: Annotated[str, database_option()],
    storage: Annotated[str, storage_option()],
    workers: Workers = 1,
    served: ServedModel,
) -> None:
    """Run the tasks of a service elsewhere that shares its database and storage.

    The limits are those that `latentsync serve` was given.
    """
    with needs_extra("the task API", "serve"):
        from latentsync.service.supervisor import Supervisor

    if not database or not storage:
        raise OptionError("give --database and --storage, the same as those of `latentsync serve`")
    settings = ServiceSettings(database=database, storage=storage, **vars(served))
    exit_on_sigterm()
    logging.getLogger("latentsync.service").setLevel(logging.INFO)
    with temporary_folder("latentsync-work-") as folder:
        supervisor = Supervisor(settings, workers, folder / "work")
        supervisor.start()
        try:
            supervisor.wait()
        finally:
            supervisor.stop()


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whom the key is for.")],
    per_minute: Annotated[int, typer.Option(help="Tasks and uploads begun in a minute.")] = 60,
    at_once: Annotated[int, typer.Option(help="Unfinished tasks at a time.")] = 20,
    max_bytes: Annotated[
        int | None,
        typer.Option(help="Bytes of uploads and outputs.", show_default="a fifth of --max-stored"),
    ] = None,
    data: Data = ServiceSettings.data,
    database: DatabaseUrl = "",
) -> None:
    """Create a key, and print it once."""
    with _opened(data, database) as service:
        _, shown = service.keys.create(
            name, per_minute=per_minute, at_once=at_once, max_bytes=max_bytes
        )
    typer.echo(shown)


@keys.command(name="list")
def show(data: Data = ServiceSettings.data, database: DatabaseUrl = "") -> None:
    """List all keys and their limits."""
    with _opened(data, database) as service:
        for use in service.keys.all():
            key = use.key
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.used_at or 0))
            last = f"used {used}" if key.used_at else "never used"
            state = "revoked" if key.revoked_at else f"{use.unfinished} unfinished"
            limits = f"{key.per_minute} a minute, {key.at_once} at once"
            share = service.settings.usual_share if key.max_bytes is None else key.max_bytes
            limits += f", {share / 2**30:.3g} GiB"
            typer.echo(f"{key.name:<20} {limits:<40} {last:<22} {state}")


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name that the key was created with.")],
    data: Data = ServiceSettings.data,
    database: DatabaseUrl = "",
) -> None:
    """Revoke a key."""
    with _opened(data, database) as service:
        service.keys.revoke(name)
    typer.echo(f"{name} is revoked")


@contextmanager
def _opened(data: Path, database: str) -> "Iterator[Service]":
    with needs_extra("the task API", "serve"):
        from latentsync.service.container import Service

    with Service.open(ServiceSettings(data=data, database=database)) as service:
        yield service


def _where(settings: ServiceSettings) -> str:
    if settings.database:
        return " --database ..."
    return "" if settings.data == ServiceSettings.data else f" --data {settings.data}"
