"""The command line of super-resolution alone: `latentsync upscale`."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latentsync.cli.common import (
    AsJson,
    AudioTrack,
    Codec,
    Crf,
    Device,
    Face,
    MaskSmooth,
    MaxSide,
    Preset,
    SrRatio,
    SrStability,
    SrWeight,
    Weights,
    face_option,
    path_argument,
    path_option,
    print_json,
)
from latentsync.cli.progress_bars import bars, progress_callback
from latentsync.errors import OptionError
from latentsync.runtime.progress import interruptible

__all__ = ["upscale"]

Clip = Annotated[Path, path_argument(help="A clip.")]
Output = Annotated[Path, path_option("--output", "-o", help="The mp4 or mov to write.")]
Net = Annotated[
    str | None,
    typer.Option(
        help="gfpgan (default), codeformer, or the file of a net that spandrel knows, which "
        "--whole-frame wants."
    ),
]
WholeFrame = Annotated[
    bool,
    typer.Option(
        "--whole-frame", help="Enlarge frames as a whole, with a net for any picture (RealESRGAN)."
    ),
]
DetectorName = Annotated[str, face_option(help="insightface, yunet or builtin.")]


def upscale(
    video: Clip,
    output: Output,
    superres: Net = None,
    sr_ratio: SrRatio = 2,
    mask_smooth: MaskSmooth = 0.5,
    sr_weight: SrWeight = 0.5,
    sr_stability: SrStability = 0.5,
    whole_frame: WholeFrame = False,
    audio_track: AudioTrack = "auto",
    face: Face = "all",
    detector: DetectorName = "insightface",
    codec: Codec = "h264",
    crf: Crf = 17,
    preset: Preset = "medium",
    max_side: MaxSide = None,
    device: Device = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Restore the faces of VIDEO, which keeps its words; or enlarge its frames."""
    given = dict(locals())  # the options, by name
    from latentsync import faces
    from latentsync.faces.restoration.nets import load_restorer
    from latentsync.media import check_output, open_media
    from latentsync.options import Options
    from latentsync.pipeline.upscale import upscale_clip
    from latentsync.runtime.checkpoints import root
    from latentsync.runtime.devices import choose, is_cuda

    if whole_frame and superres is None:
        raise OptionError(
            "--whole-frame wants a net for any picture, and none comes with this project: give "
            "--superres FILE, RealESRGAN_x2.pth say"
        )
    given["superres"] = superres = superres or "gfpgan"
    options = Options(**{one.name: given[one.name] for one in fields(Options) if one.name in given})
    if options.restorer is None:
        raise OptionError(f"superres is {superres!r}; it must name a net, such as gfpgan")
    check_output(output, (video,))
    open_media(video).close()
    place, _ = choose(device)
    folder, gpu = root(weights), is_cuda(place)
    net = load_restorer(options.restorer, folder=folder, device=place, weight=options.sr_weight)
    finder = None if whole_frame else faces.create(detector, root=folder / "auxiliary", gpu=gpu)
    with bars() as drawn:
        run = partial(
            upscale_clip,
            video,
            output,
            net,
            finder,
            options=options,
            progress=progress_callback(drawn),
        )
        result = interruptible(lambda cancelled: run(cancelled=cancelled))
    if as_json:
        print_json(result)
        return
    typer.echo(result.path)
    typer.echo(
        f"{result.frames} frames, {result.seconds:.2f} s, {result.width}x{result.height}; "
        f"face in {result.faces_found}; {result.net}, licence: {result.licence}; "
        f"took {result.timings['total']:.1f} s"
    )
