"""Command line of super-resolution without lip-sync: `latentsync upscale`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latentsync.cli.common import (
    AsJson,
    Device,
    Weights,
    face_option,
    path_argument,
    path_option,
    print_json,
)
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.cli.progress_bars import run_with_bars
from latentsync.errors import OptionError
from latentsync.options import Options

__all__ = ["upscale"]

SHOWN = (
    *("audio_track", "sr_ratio", "mask_smooth", "sr_weight", "sr_stability", "face"),
    *("codec", "crf", "preset", "max_side"),
)

Given = Annotated[dict[str, Any], FieldsOf(Options, SHOWN, {"face": "all"})]
Clip = Annotated[Path, path_argument(help="A clip.")]
Output = Annotated[Path, path_option("--output", "-o", help="The mp4 or mov to write.")]
Net = Annotated[
    str | None,
    typer.Option(
        help="Net to use: gfpgan, codeformer (not for commercial use), or the file of a net that "
        "spandrel knows, which --whole-frame requires.",
        show_default="gfpgan",
    ),
]
WholeFrame = Annotated[
    bool,
    typer.Option(
        "--whole-frame", help="Enlarge whole frames, with a net for any picture (RealESRGAN)."
    ),
]
DetectorName = Annotated[str, face_option(help="Face detector: insightface, yunet or builtin.")]


@grouped
def upscale(
    video: Clip,
    *,
    output: Output,
    superres: Net = None,
    whole_frame: WholeFrame = False,
    given: Given,
    detector: DetectorName = "insightface",
    device: Device = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Restore the faces of VIDEO without lip-sync, or enlarge its frames."""
    from latentsync import faces
    from latentsync.faces.restoration.nets import load_restorer
    from latentsync.media import check_output, open_media
    from latentsync.pipeline.upscale import upscale_clip
    from latentsync.runtime.checkpoints import root
    from latentsync.runtime.devices import choose, is_cuda

    if whole_frame and superres is None:
        raise OptionError(
            "--whole-frame wants a net for any picture, and none comes with this project: give "
            "--superres FILE, RealESRGAN_x2.pth say"
        )
    options = Options(superres=superres or "gfpgan", **given)
    if options.restorer is None:
        raise OptionError(f"--superres is {superres!r}; it must name a net, such as gfpgan")
    check_output(output, (video,))
    open_media(video).close()
    place, _ = choose(device)
    folder, gpu = root(weights), is_cuda(place)
    net = load_restorer(options.restorer, folder=folder, device=place, weight=options.sr_weight)
    finder = None if whole_frame else faces.create(detector, root=folder / "auxiliary", gpu=gpu)
    result = run_with_bars(upscale_clip, video, output, net, finder, options=options)
    if as_json:
        print_json(result)
        return
    typer.echo(result.path)
    typer.echo(
        f"{result.frames} frames, {result.seconds:.2f} s, {result.width}x{result.height}; "
        f"face in {result.faces_found}; {result.net}, licence: {result.licence}; "
        f"took {result.timings['total']:.1f} s"
    )
