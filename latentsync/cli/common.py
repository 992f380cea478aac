"""What several commands share: their options, and how a result is printed as JSON."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsync.errors import InputError, OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "ENGINES",
    "LOOPBACK",
    "AsJson",
    "AudioTrack",
    "Codec",
    "Crf",
    "Device",
    "Dtype",
    "EngineName",
    "Face",
    "MaskSmooth",
    "MaxSide",
    "Model",
    "ModelsDetector",
    "Preset",
    "RayAddress",
    "SrRatio",
    "SrStability",
    "SrWeight",
    "Weights",
    "check_engine",
    "encoding_option",
    "face_option",
    "local_path",
    "machine_option",
    "path_argument",
    "path_option",
    "print_json",
    "restoring_option",
]

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # hosts that only this machine reaches
ENGINES = ("local", "ray")


def local_path(text: str) -> Path:
    """A path as it was typed; InputError for a URL, which a `Path` would alter."""
    from latentsync.media import refused_address

    if refused := refused_address(text):
        raise InputError(refused)
    return Path(text)


# Of a file or a folder that is read or written.
path_argument = partial(typer.Argument, parser=local_path)
path_option = partial(typer.Option, parser=local_path)

Model = Annotated[
    str, typer.Option(help="v1.6 (512 px), v1.5 (256 px), demo, or a folder training wrote.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

face_option = partial(typer.Option, rich_help_panel="Face")
Face = Annotated[
    str,
    face_option(
        help="largest, left, right, center, all, x,y or x,y,width,height in px (with @seconds for "
        "a later time), or a picture of the person."
    ),
]
ModelsDetector = Annotated[
    str | None,
    face_option(
        help="insightface, yunet, builtin, or an OpenCV cascade's .xml; default the model's."
    ),
]

restoring_option = partial(typer.Option, rich_help_panel="Super-resolution")
SrRatio = Annotated[
    float, restoring_option(help="1-4 times the model's resolution for a restored face.")
]
MaskSmooth = Annotated[
    float, restoring_option(help="0-1, how softly it goes over into the face around it.")
]
SrWeight = Annotated[
    float, restoring_option(help="0-1, CodeFormer's fidelity: 0 cleanest, 1 nearest to the clip.")
]
SrStability = Annotated[
    float, restoring_option(help="0-1, how much a restored frame takes on from those before it.")
]

AudioTrack = Annotated[
    str,
    typer.Option(
        metavar="N|LANGUAGE",
        help="Of a sound with several tracks the number, from 1, or the language (en, eng, ...); "
        "auto: the main one, unless that is silent.",
    ),
]

encoding_option = partial(typer.Option, rich_help_panel="Encoding")
Codec = Annotated[str, encoding_option(help="h264, hevc, h264_nvenc or hevc_nvenc.")]
Crf = Annotated[int, encoding_option(help="0 (lossless) - 51, quality.")]
Preset = Annotated[str, encoding_option(help="ultrafast ... placebo, x264's names.")]
MaxSide = Annotated[
    int | None, encoding_option(help="16-16384 px; larger pictures are scaled down to it.")
]

machine_option = partial(typer.Option, rich_help_panel="Machine")
Device = Annotated[str | None, machine_option(help="cuda, cuda:1, mps or cpu.")]
Dtype = Annotated[str | None, machine_option(help="float32, float16 or bfloat16.")]
Weights = Annotated[
    Path | None, machine_option(help="Folder of weights; default $LATENTSYNC_WEIGHTS, weights/.")
]
EngineName = Annotated[
    str, machine_option("--engine", help="local, or ray: many GPUs draw one clip together.")
]
RayAddress = Annotated[
    str | None,
    machine_option(help="HOST:6379 of a cluster, or auto; default $RAY_ADDRESS, or this machine."),
]


def check_engine(engine: str, **only_ray: object) -> None:
    """Raises OptionError where the engine is unknown, or its options are another's."""
    if engine not in ENGINES:
        raise OptionError(f"engine is {engine!r}; it must be {' or '.join(ENGINES)}")
    given = [name for name, value in only_ray.items() if value is not None]
    if given and engine != "ray":
        raise OptionError(f"--{given[0].replace('_', '-')} without --engine ray; give that, too")


def print_json(found: "DataclassInstance") -> None:
    typer.echo(json.dumps(asdict(found), indent=2, default=str))
