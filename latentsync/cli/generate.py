"""Command line of the main path: `latentsync generate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync.cli.common import (
    AsJson,
    Device,
    Dtype,
    EngineName,
    Model,
    ModelsDetector,
    RayAddress,
    VideoPath,
    Weights,
    check_engine,
    face_option,
    local_path,
    machine_option,
    path_argument,
    path_option,
    print_json,
)
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.cli.progress_bars import run_with_bars
from latentsync.errors import OptionError
from latentsync.options import PUBLISHED, Options, declared
from latentsync.types import Result

if TYPE_CHECKING:
    from latentsync.diffusion.generator import Engine

__all__ = ["PUBLISHED_SPELLINGS", "generate"]

# How users of the published scripts spell options; understood, and not shown in help.
PUBLISHED_SPELLINGS = {
    "inference_steps": "steps",
    "guidance_scale": "guidance-scale",
    "video_out_path": "output",
    "mask_smooth": "mask-smooth",
    "sr_ratio": "sr-ratio",
}
SHOWN = tuple(name for name, option in declared(Options).items() if option.group != PUBLISHED)

Given = Annotated[dict[str, Any], FieldsOf(Options, SHOWN)]
Video = Annotated[Path | None, path_argument(help="A clip or a picture.")]
Audio = Annotated[
    Path | None,
    path_argument(help="The voice: a sound, or a video's sound.", show_default="VIDEO's own"),
]
Output = Annotated[Path | None, path_option("--output", "-o", help="The mp4 or mov to write.")]
Published = Annotated[
    bool,
    typer.Option(
        "--published",
        help="Make the choices of the published code, except for its three encodes and its sound "
        "of 16 kHz mono.",
    ),
]
SpeakerNames = Annotated[
    list[str] | None,
    face_option(
        "--speaker",
        metavar="FACE=AUDIO",
        help="A face, named as in --face, and its voice. Repeat for each speaker. All voices "
        "start together; don't give AUDIO.",
    ),
]
Occluder = Annotated[
    Path | None,
    face_option(
        exists=True,
        dir_okay=False,
        help="Segmentation model (.onnx) that keeps a hand or a microphone in front of the mouth "
        "visible.",
    ),
]
Lossless = Annotated[
    bool,
    typer.Option(
        "--lossless",
        rich_help_panel="Encoding",
        help="Encode losslessly (crf 0), for masters; few players can play it.",
    ),
]


@dataclass(frozen=True)
class Machine:
    """Device, precision and engine of the model."""

    device: Device = None
    dtype: Dtype = None
    attention: Annotated[str, machine_option(help="Attention kernel: native or xformers.")] = (
        "native"
    )
    offload: Annotated[
        str,
        machine_option(
            help="auto, none, or sequential: keep the weights in CPU memory and move each layer to "
            "the GPU when it is needed."
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        machine_option(
            "--compile", help="Compile kernels by torch.compile first, which takes minutes."
        ),
    ] = False
    weights: Weights = None
    engine: EngineName = "local"
    replicas: Annotated[
        int | None,
        machine_option(help="Replicas of the model, with --engine ray.", show_default="one a GPU"),
    ] = None
    ray_address: RayAddress = None

    @property
    def load(self) -> dict[str, Any]:
        """Keyword arguments of `LipSync.load`, here or in a replica."""
        names = ("weights", "device", "dtype", "offload", "attention", "compile")
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def engine_of(self, model: str) -> "Iterator[Engine | None]":
        """Start the engine that computes elsewhere, and stop it at the end; None: compute here."""
        if self.engine == "local":
            yield None
            return
        from latentsync.diffusion.ray.engine import replicas

        pool = replicas(model, number=self.replicas, address=self.ray_address, **self.load)
        with pool as engine:
            yield engine


@grouped
def generate(
    video: Video = None,
    audio: Audio = None,
    *,
    output: Output = None,
    model: Model = "v1.6",
    given: Given,
    published: Published = False,
    speaker: SpeakerNames = None,
    detector: ModelsDetector = None,
    occluder: Occluder = None,
    lossless: Lossless = False,
    machine: Machine,
    as_json: AsJson = False,
    video_path: VideoPath = None,
    audio_path: Annotated[Path | None, path_option("--audio_path", hidden=True)] = None,
) -> None:
    """Lip-sync VIDEO to AUDIO."""
    video, audio = video or video_path, audio or audio_path
    voices = _voices(speaker or [], audio) or audio or video
    if video is None or voices is None or output is None:
        wanted = {"VIDEO": video, "--output": output}
        missing = ", ".join(name for name, value in wanted.items() if value is None)
        raise OptionError(f"{missing} missing; see `latentsync generate --help`")
    if lossless:
        if given.get("crf", 0) not in (0, Options.crf):
            raise OptionError(f"--crf is {given['crf']}, but --lossless means 0: leave out either")
        given["crf"] = 0
    options = Options(**given)
    if published:
        if options.restorer:
            raise OptionError(
                f"--superres is {options.superres!r}, but --published chooses the published "
                "resampling, which restored faces can't have: leave out one of the two"
            )
        options = Options.published(**given)
    check_engine(machine.engine, replicas=machine.replicas, ray_address=machine.ray_address)
    _check_files(video, voices, output, options)

    from latentsync.pipeline.lipsync import LipSync

    load = machine.load | {"compile": machine.compile and machine.engine == "local"}
    lipsync = LipSync.load(model, detector=detector, occluder=occluder, **load)
    with machine.engine_of(model) as engine:
        result = run_with_bars(lipsync.run, video, voices, output, options=options, engine=engine)
    if as_json:
        print_json(result)
    else:
        typer.echo(result.path)
        typer.echo(_summary(result))


def _voices(speakers: list[str], audio: Path | None) -> dict[str, Path]:
    """Parse FACE=AUDIO pairs as face -> sound; empty if no speaker is named."""
    if speakers and audio:
        raise OptionError(f"{audio} beside --speaker; the speakers bring the voices")
    pairs = [speaker.partition("=") for speaker in speakers]
    for text, (face, _, sound) in zip(speakers, pairs, strict=True):
        if not face or not sound:
            raise OptionError(
                f"--speaker {text!r}; it must be FACE=AUDIO, for example left=ann.wav"
            )
    voices = {face: local_path(sound) for face, _, sound in pairs}
    if len(voices) < len(speakers):
        raise OptionError(f"--speaker names one face twice: {', '.join(speakers)}")
    return voices


def _check_files(
    video: Path, voices: Path | dict[str, Path], output: Path, options: Options
) -> None:
    """Raise InputError for a bad file before gigabytes of weights are loaded."""
    from latentsync.media import Limits, check_output, open_media

    inputs = (video, *(voices.values() if isinstance(voices, dict) else [voices]))
    check_output(output, inputs)
    for path in inputs:
        open_media(path, Limits.of(options)).close()


def _summary(result: Result) -> str:
    """Describe a result in one line."""
    untouched = sum(stop - start for start, stop, _ in result.passed_through)
    several = {said for said in result.sound_tracks.values() if not said.startswith("track 1 of 1")}
    sound = f"sound: {' and '.join(sorted(several))}; " if several else ""
    return (
        f"{result.frames} frames, {result.seconds:.2f} s, {result.width}x{result.height}; "
        f"face in {result.faces_found} of {result.source_frames} source frames, "
        f"{untouched} frames untouched{_faces(result)}; "
        f"{sound}model {result.model}, detector {result.detector}, "
        f"{result.device} {result.dtype}, seed {result.seed}; "
        f"took {result.timings['total']:.1f} s"
    )


def _faces(result: Result) -> str:
    """Count the faces and shots; with one shot, name the place of the chosen faces."""
    from latentsync.pipeline.face_tracks import faces_at

    if not result.shots:
        return ""
    if result.cuts:
        most = max(len(shot.faces) for shot in result.shots)
        return f"; {len(result.shots)} shots of up to {most} {'face' if most == 1 else 'faces'}"
    (shot,) = result.shots
    taken = [shot.faces[one] for one in shot.taken if one is not None]
    chosen = "" if len(taken) == len(shot.faces) else f"; taken: {faces_at(taken)}"
    return f"; found {faces_at(shot.faces)}{chosen}"
