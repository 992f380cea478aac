"""Command line of the web page: `latentsync app`."""

import os
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from latentsync.cli.common import (
    LOOPBACK,
    Device,
    Dtype,
    Model,
    ModelsDetector,
    Weights,
    check_port,
    exit_on_sigterm,
)
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.runtime.extras import needs_extra
from latentsync.service.settings import ServiceSettings

__all__ = ["app"]

Limits = Annotated[
    dict[str, Any],
    FieldsOf(
        ServiceSettings,
        ("max_upload_bytes", "max_seconds"),
        flags={"max_upload_bytes": "--max-upload"},
    ),
]


@grouped
def app(
    *,
    model: Model = "v1.6",
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0 lets in whoever reaches this machine."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = None,
    detector: ModelsDetector = None,
    limits: Limits,
    enable_sr: Annotated[bool, typer.Option("--enable_sr", "--enable-sr", hidden=True)] = False,
) -> None:
    """Serve a web page that puts clips and voices together.

    It offers super-resolution if the extra `restore` is installed. Uploads and
    outputs are deleted after an hour, and when the page is stopped.
    """
    ServiceSettings(**limits)  # refuses what is out of range
    check_port(host, port)
    with needs_extra("the page", "app"):
        import uvicorn
        from fastapi import FastAPI

        from latentsync.service.page.blocks import mount
    from latentsync.pipeline.lipsync import LipSync

    lipsync = LipSync.load(model, weights=weights, device=device, dtype=dtype, detector=detector)
    exit_on_sigterm()
    with TemporaryDirectory(prefix="latentsync-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = FastAPI(openapi_url=None)
        mount(
            page,
            lambda: lipsync,
            path="/",
            model=lipsync.nets.config.name,
            restoring=enable_sr or None,
            at_host=host in LOOPBACK,
            **limits,
        )
        typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        uvicorn.run(page, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)
