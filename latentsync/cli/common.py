"""Options that several commands share, and the printing of results."""

import json
import signal
import socket
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsync.errors import InputError, OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "LOOPBACK",
    "AsJson",
    "Device",
    "Dtype",
    "EngineName",
    "Model",
    "ModelsDetector",
    "OutputFolder",
    "RayAddress",
    "VideoPath",
    "Weights",
    "check_engine",
    "check_port",
    "exit_on_sigterm",
    "face_option",
    "local_path",
    "machine_option",
    "path_argument",
    "path_option",
    "print_json",
]

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # hosts that only this machine reaches
ENGINES = ("local", "ray")


def local_path(text: str) -> Path:
    """Return the path as it was typed; InputError for a URL, which a `Path` would alter."""
    from latentsync.media import refused_address

    if refused := refused_address(text):
        raise InputError(refused)
    return Path(text)


# For a file or a folder that is read or written.
path_argument = partial(typer.Argument, parser=local_path)
path_option = partial(typer.Option, parser=local_path)
face_option = partial(typer.Option, rich_help_panel="Face")
machine_option = partial(typer.Option, rich_help_panel="Machine")

OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to fill.")]
VideoPath = Annotated[Path | None, path_option("--video_path", hidden=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[
    str,
    typer.Option(
        help="Model: v1.6 (512 px), v1.5 (256 px), demo, or a folder that training wrote."
    ),
]
ModelsDetector = Annotated[
    str | None,
    face_option(
        help="Face detector: insightface, yunet, builtin, or the .xml of an OpenCV cascade.",
        show_default="the model's",
    ),
]

Device = Annotated[
    str | None,
    machine_option(help="Device: cuda, cuda:1, mps or cpu.", show_default="the best there is"),
]
Dtype = Annotated[
    str | None,
    machine_option(
        help="Precision: float32, float16 or bfloat16.", show_default="what suits the device"
    ),
]
Weights = Annotated[
    Path | None,
    machine_option(help="Folder of weights.", show_default="$LATENTSYNC_WEIGHTS, or weights/"),
]
EngineName = Annotated[
    str,
    machine_option("--engine", help="local, or ray: many GPUs compute one clip together."),
]
RayAddress = Annotated[
    str | None,
    machine_option(
        help="Ray cluster, as HOST:6379 or auto.", show_default="$RAY_ADDRESS, or this machine"
    ),
]


def check_engine(engine: str, **only_ray: object) -> None:
    """Raise OptionError if the engine is unknown, or options are given that only ray has."""
    if engine not in ENGINES:
        raise OptionError(f"--engine is {engine!r}; it must be {' or '.join(ENGINES)}")
    given = [name for name, value in only_ray.items() if value is not None]
    if given and engine != "ray":
        raise OptionError(f"--{given[0].replace('_', '-')} without --engine ray; give that, too")


def exit_on_sigterm() -> None:
    """Let SIGTERM end the program by SystemExit, so that `with` and `finally` clean up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def print_json(found: "DataclassInstance") -> None:
    """Print a dataclass as JSON."""
    typer.echo(json.dumps(asdict(found), indent=2, default=str))


def check_port(host: str, port: int) -> None:
    """Raise OptionError if nothing can listen there now."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise OptionError(
            f"can't listen on {host}, port {port} ({error.strerror}): end what does, or give "
            "another --port or --host"
        ) from error
