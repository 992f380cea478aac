"""The command line of the main path: `latentsync generate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync.cli.common import (
    AsJson,
    AudioTrack,
    Codec,
    Crf,
    Device,
    Dtype,
    EngineName,
    Face,
    MaskSmooth,
    MaxSide,
    Model,
    ModelsDetector,
    Preset,
    RayAddress,
    SrRatio,
    SrStability,
    SrWeight,
    Weights,
    check_engine,
    encoding_option,
    face_option,
    local_path,
    machine_option,
    path_argument,
    path_option,
    print_json,
    restoring_option,
)
from latentsync.cli.progress_bars import bars, progress_callback
from latentsync.errors import OptionError
from latentsync.runtime.progress import interruptible
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

Video = Annotated[Path | None, path_argument(help="A clip or a picture.")]
Audio = Annotated[
    Path | None, path_argument(help="The voice: sound, or a video's; default VIDEO's own.")
]
Output = Annotated[Path | None, path_option("--output", "-o", help="The mp4 or mov to write.")]
Guidance = Annotated[float, typer.Option(help="0-10; above 1, speech counts for more.")]
Seed = Annotated[
    int | None,
    typer.Option(help="0 (default) draws one; the one used is printed. With --published 1247."),
]
Silence = Annotated[
    str,
    typer.Option(help="While nobody speaks: generate, keep (VIDEO's own mouth) or close."),
]
Overlap = Annotated[
    int, typer.Option(help="0-12 frames that groups of 16 share: softer seams, more time.")
]
Published = Annotated[
    bool,
    typer.Option(
        "--published",
        help="The choices of the published code, but for its three encodes and 16 kHz mono sound.",
    ),
]
Report = Annotated[
    bool, typer.Option("--report", help="Write what was done to a .json beside the output, too.")
]

speed_option = partial(typer.Option, rich_help_panel="Speed")
Speed = Annotated[
    str, speed_option(help="exact, fast or preview: what the options below are unless given.")
]
Steps = Annotated[int | None, speed_option(help="1-50 denoising steps; exact 20.")]
Sampler = Annotated[str | None, speed_option(help="ddim (exact) or dpm++.")]
CacheInterval = Annotated[
    int | None,
    speed_option(help="1-10: the deep layers are computed every so many steps; exact 1."),
]
GuidanceStart = Annotated[
    float | None, speed_option(help="0-1: share of the steps before guidance begins; exact 0.")
]
GuidanceStop = Annotated[
    float | None, speed_option(help="0-1: share of the steps after which it ends; exact 1.")
]
DetectEvery = Annotated[
    int | None,
    speed_option(help="1-50: frames from one search for faces to the next; exact 1."),
]
Batch = Annotated[
    int | None,
    speed_option(help="1-16 groups of 16 frames at once; default what memory allows."),
]
CacheDir = Annotated[
    str | None,
    speed_option(
        help="A folder that remembers VIDEO, so that another voice on it needs less work."
    ),
]
CacheBytes = Annotated[int, speed_option(help="What that folder may hold, about.")]

length_option = partial(typer.Option, rich_help_panel="Length and pace")
SyncMode = Annotated[
    str | None,
    length_option(
        help="Where the voice is longer, or shorter: bounce (default), pingpong, loop, freeze, "
        "cut_off, silence or remap."
    ),
]
LeadIn = Annotated[float, length_option(help="Seconds of VIDEO before the voice.")]
LeadOut = Annotated[float, length_option(help="Seconds of VIDEO after the voice.")]
Fps = Annotated[str, length_option(help="25, or source: every frame of VIDEO at its own time.")]
Fade = Annotated[
    int | None,
    length_option(
        help="0-25 frames in which the mouth comes and goes beside untouched ones; default 3."
    ),
]

SpeakerNames = Annotated[
    list[str] | None,
    face_option(
        "--speaker",
        metavar="FACE=AUDIO",
        help="A face, named as in --face, and the voice it speaks with; give it once a face. The "
        "voices begin together, and AUDIO is left out.",
    ),
]
OnMissing = Annotated[
    str | None, face_option(help="keep (default): frames without the face pass through; or error.")
]
Smooth = Annotated[
    int, face_option(help="0-51 frames over which the face's place is smoothed, an odd number.")
]
MaxYaw = Annotated[
    float | None,
    face_option(help="5-85 degrees; a face turned further keeps its own mouth. Default no limit."),
]
ColorMatch = Annotated[
    bool, face_option("--color-match", help="Give the mouth the colours of the face around it.")
]
Occluder = Annotated[
    Path | None,
    face_option(
        help="A segmentation net's .onnx: a hand or a microphone before the mouth stays on top."
    ),
]

Superres = Annotated[
    str,
    restoring_option(
        help="none, gfpgan, codeformer (not for commercial use), or the file of a net that "
        "spandrel knows: the face is restored, as well."
    ),
]

Lossless = Annotated[
    bool, encoding_option("--lossless", help="crf 0, for masters; few players show it.")
]

limit_option = partial(typer.Option, rich_help_panel="Limits on what an input may ask for")
MaxPixels = Annotated[int, limit_option(help="Of its frames.")]
MaxSeconds = Annotated[float, limit_option(help="Of its pictures, and of its sound.")]
MaxBytes = Annotated[int, limit_option(help="Of the file.")]

Attention = Annotated[str, machine_option(help="native or xformers.")]
OffloadName = Annotated[
    str,
    machine_option(
        "--offload", help="auto, none, or sequential: weights wait in the CPU's memory."
    ),
]
Compile = Annotated[bool, machine_option("--compile", help="Let torch.compile make kernels first.")]
Replicas = Annotated[
    int | None, machine_option(help="Of the model, with --engine ray; default one a GPU.")
]


def generate(
    video: Video = None,
    audio: Audio = None,
    output: Output = None,
    model: Model = "v1.6",
    audio_track: AudioTrack = "auto",
    guidance_scale: Guidance = 1.0,
    seed: Seed = None,
    silence: Silence = "generate",
    overlap: Overlap = 0,
    published: Published = False,
    speed: Speed = "exact",
    steps: Steps = None,
    sampler: Sampler = None,
    cache_interval: CacheInterval = None,
    guidance_start: GuidanceStart = None,
    guidance_stop: GuidanceStop = None,
    detect_every: DetectEvery = None,
    batch: Batch = None,
    cache_dir: CacheDir = None,
    cache_bytes: CacheBytes = 10 * 2**30,
    sync_mode: SyncMode = None,
    lead_in: LeadIn = 0.0,
    lead_out: LeadOut = 0.0,
    fps: Fps = "25",
    fade: Fade = None,
    face: Face = "largest",
    speaker: SpeakerNames = None,
    on_missing: OnMissing = None,
    smooth: Smooth = 0,
    max_yaw: MaxYaw = None,
    color_match: ColorMatch = False,
    detector: ModelsDetector = None,
    occluder: Occluder = None,
    superres: Superres = "none",
    sr_ratio: SrRatio = 2,
    mask_smooth: MaskSmooth = 0.5,
    sr_weight: SrWeight = 0.5,
    sr_stability: SrStability = 0.5,
    codec: Codec = "h264",
    crf: Crf = 17,
    preset: Preset = "medium",
    lossless: Lossless = False,
    max_side: MaxSide = None,
    max_pixels: MaxPixels = 8192 * 8192,
    max_seconds: MaxSeconds = 6 * 3600.0,
    max_bytes: MaxBytes = 64 * 2**30,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = "native",
    offload: OffloadName = "auto",
    compile_: Compile = False,
    weights: Weights = None,
    engine: EngineName = "local",
    replicas: Replicas = None,
    ray_address: RayAddress = None,
    report: Report = False,
    as_json: AsJson = False,
    video_path: Annotated[Path | None, path_option("--video_path", hidden=True)] = None,
    audio_path: Annotated[Path | None, path_option("--audio_path", hidden=True)] = None,
) -> None:
    """Make VIDEO speak AUDIO."""
    given = dict(locals())  # the options, by name
    video = video or video_path
    audio = audio or audio_path
    voices = _voices(speaker or [], audio) or audio or video
    if video is None or voices is None or output is None:
        wanted = {"VIDEO": video, "--output": output}
        missing = ", ".join(name for name, value in wanted.items() if value is None)
        raise OptionError(f"{missing} missing; see `latentsync generate --help`")
    from latentsync.media import Limits, check_output, open_media
    from latentsync.options import Options
    from latentsync.pipeline.lipsync import LipSync

    asked = {one.name: given.get(one.name) for one in fields(Options)}
    choices = {name: value for name, value in asked.items() if value is not None}
    if lossless:
        choices["crf"] = 0
    options = Options.published(**choices) if published else Options(**choices)
    check_engine(engine, replicas=replicas, ray_address=ray_address)
    # What can be seen at once is said before gigabytes are loaded.
    sounds = list(voices.values()) if isinstance(voices, dict) else [voices]
    check_output(output, (video, *sounds))
    limits = Limits.of(options)
    for path in (video, *sounds):
        open_media(path, limits).close()
    how: dict[str, Any] = {
        "weights": weights,
        "device": device,
        "dtype": dtype,
        "offload": offload,
        "attention": attention,
    }
    here = compile_ and engine == "local"  # else the replicas do
    lipsync = LipSync.load(model, detector=detector, occluder=occluder, compile=here, **how)
    crew = _engine(engine, model, replicas, ray_address, how | {"compile": compile_})
    with crew as elsewhere, bars() as drawn:
        run = partial(
            lipsync.run,
            video,
            voices,
            output,
            options=options,
            progress=progress_callback(drawn),
            engine=elsewhere,
        )
        result = interruptible(lambda cancelled: run(cancelled=cancelled))
    if as_json:
        print_json(result)
    else:
        typer.echo(result.path)
        typer.echo(_summary(result))


@contextmanager
def _engine(
    engine: str, model: str, number: int | None, address: str | None, how: dict[str, Any]
) -> "Iterator[Engine | None]":
    """What draws elsewhere; None: nobody does."""
    if engine == "local":
        yield None
        return
    from latentsync.diffusion.ray.engine import replicas

    with replicas(model, number=number, address=address, **how) as crew:
        yield crew


def _voices(speakers: list[str], audio: Path | None) -> dict[str, Path]:
    """Face -> sound; empty where no speaker is named."""
    if speakers and audio:
        raise OptionError(f"{audio} beside --speaker; the speakers bring the voices")
    pairs = [speaker.partition("=") for speaker in speakers]
    for text, (face, _, sound) in zip(speakers, pairs, strict=True):
        if not face or not sound:
            raise OptionError(f"--speaker {text!r}; it must be FACE=AUDIO, left=ann.wav say")
    voices = {face: local_path(sound) for face, _, sound in pairs}
    if len(voices) < len(speakers):
        raise OptionError(f"--speaker names one face twice: {', '.join(speakers)}")
    return voices


def _summary(result: Result) -> str:
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
    """How many faces and shots there were, and which face was taken where there is one shot."""
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
