"""Command line of the evaluation: `latentsync evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from latentsync.cli.common import Device, VideoPath, Weights, path_argument, path_option
from latentsync.cli.progress_bars import run_with_bars
from latentsync.errors import MediaError, OptionError

__all__ = ["evaluate"]

FAST = ("psnr", "ssim", "sync_local", "lips")

Outputs = Annotated[
    list[Path] | None, path_argument(help="Clips to judge, or folders of them.", metavar="OUTPUTS")
]
Reference = Annotated[
    Path | None,
    path_option(
        "--reference",
        "-r",
        help="The originals: a folder of clips of the same names, or one clip. Without any, only "
        "sync, stable and lips are measured.",
        show_default="what a run's --report names",
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        help="Metrics to measure, separated by commas or repeated: psnr, ssim, lpips, fid, fvd, "
        "fvd_videomae, lmd, identity, flicker, sync (or, quicker, only sync_local), stable, lips. "
        "The last has leak, the share of frames without speech in which the mouth is open, and "
        "closure, the share of p, b and m at which the lips close.",
        show_default="all",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for metrics.json, metrics.csv, report.html."),
]
Fast = Annotated[
    bool, typer.Option("--fast", help="Print a table of one clip: psnr, ssim, sync_local and lips.")
]
Face = Annotated[
    str | None,
    typer.Option(
        help="Face to measure, named as in generate.",
        show_default="the one that a run's --report names, or the largest",
    ),
]
DetectorName = Annotated[str, typer.Option(help="Face detector: insightface, yunet or builtin.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print metrics.json.")]


def evaluate(
    outputs: Outputs = None,
    reference: Reference = None,
    metrics: Metrics = None,
    report: Report = None,
    fast: Fast = False,
    face: Face = None,
    detector: DetectorName = "builtin",
    device: Device = None,
    weights: Weights = None,
    as_json: AsJson = False,
    video_path: VideoPath = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", hidden=True)] = None,
) -> None:
    """Measure how close OUTPUTS are to their originals, and how well in sync."""
    from latentsync.evaluation.clips import find_pairs
    from latentsync.evaluation.report import write_report
    from latentsync.evaluation.runner import METRICS, names_of
    from latentsync.evaluation.runner import evaluate as measure
    from latentsync.evaluation.tables import as_json as json_of
    from latentsync.evaluation.tables import as_text

    paths, named = list(outputs or []), [*(metrics or []), *(metric or [])]
    if metric:  # `--metric psnr ssim fid`: all but the first come as arguments
        named += [str(path) for path in paths if str(path) in METRICS]
        paths = [path for path in paths if str(path) not in METRICS]
    paths += [video_path] if video_path else []
    if not paths:
        raise OptionError("OUTPUTS missing; see `latentsync evaluate --help`")
    names = names_of(named) if named else FAST if fast else tuple(METRICS)
    pairs = find_pairs(paths, reference)
    if fast and (len(pairs.pairs) > 1 or report):
        raise OptionError(
            f"--fast prints a table of one clip, but got {len(pairs.pairs)} clips"
            f"{' and --output' if report else ''}; leave --fast out"
        )
    how = {"weights": weights, "device": device, "detector": detector, "face": face}
    found = run_with_bars(measure, pairs, names, unit="", **how)
    written = write_report(found, report) if report else ()
    errors = [clip.error for clip in found.clips if clip.error]
    if len(errors) == len(found.clips):
        raise MediaError(f"none of {len(errors)} clips could be measured: {errors[0]}")
    typer.echo(json_of(found).rstrip() if as_json else as_text(found))
    for path in written:
        typer.echo(path, err=as_json)
