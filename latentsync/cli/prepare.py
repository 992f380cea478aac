"""Command line of the preparation of training data: `latentsync prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsync.cli.common import Device, OutputFolder, Weights, path_argument
from latentsync.cli.groups import grouped
from latentsync.cli.progress_bars import bars

if TYPE_CHECKING:
    from latentsync.training.preparation import FileCounts

__all__ = ["prepare"]


@dataclass(frozen=True)
class Choices:
    """Requirements for a clip, as fields of `PreparationSettings`."""

    size: Annotated[
        int, typer.Option(help="Side of the face crops that the clips are for: 256 or 512 px.")
    ] = 256
    form: Annotated[
        str,
        typer.Option(
            help="Form of the clips: around, the frame around the face; or aligned, affine crops "
            "as published."
        ),
    ] = "around"
    min_seconds: Annotated[float, typer.Option(help="Shortest clip in seconds. 1 to 3600.")] = 5.0
    max_seconds: Annotated[float, typer.Option(help="Longest clip in seconds. 1 to 3600.")] = 10.0
    detector: Annotated[
        str,
        typer.Option(
            help="Face detector: insightface, yunet, builtin, or the .xml of an OpenCV cascade."
        ),
    ] = "insightface"
    min_face: Annotated[
        int | None,
        typer.Option(
            help="Smallest face, in px of the source from brows to chin.", show_default="SIZE / 2"
        ),
    ] = None
    sync: Annotated[
        str,
        typer.Option(
            help="Measure of lip-sync: syncnet, none, or auto: syncnet if its weights are there."
        ),
    ] = "auto"
    min_confidence: Annotated[float, typer.Option(help="Lowest confidence of SyncNet.")] = 3.0
    max_offset: Annotated[
        int, typer.Option(help="Frames of 1/25 s by which the sound may be moved. 0 to 15.")
    ] = 6
    quality: Annotated[
        str,
        typer.Option(
            help="Measure of quality: hyperiqa, laplacian, or auto: hyperiqa if its weights are "
            "there."
        ),
    ] = "auto"
    min_quality: Annotated[float, typer.Option(help="Lowest score of hyperIQA. 0 to 100.")] = 40.0
    min_sharpness: Annotated[
        float,
        typer.Option(
            help="Lowest variance of the face's Laplacian, where hyperIQA is not used; 0: any."
        ),
    ] = 10.0
    weights: Weights = None
    device: Device = None


@grouped
def prepare(
    raw: Annotated[
        Path, path_argument(help="Folder of videos, searched with the folders below it.")
    ],
    *,
    output: OutputFolder,
    workers: Annotated[int, typer.Option(min=1, help="Files prepared side by side.")] = 1,
    choices: Choices,
) -> None:
    """Choose clips to train on from a folder of videos: one face, in sync, clear, 5-10 s.

    Run the same command again to continue after a stop of any kind.
    OUTPUT gets clips/ (for `train unet --data OUTPUT`), index.jsonl,
    rejected.jsonl and summary.html.
    """
    from latentsync.training.preparation import PreparationSettings
    from latentsync.training.preparation import prepare as run

    settings = PreparationSettings(**vars(choices))
    with bars("files") as drawn:
        task = drawn.add_task("preparing", total=None)

        def show(tally: "FileCounts") -> None:
            drawn.update(task, completed=tally.files, total=tally.total, description=_counts(tally))

        tally = run(raw, output, settings, workers=workers, progress=show)
    typer.echo(f"{_counts(tally)}, of {tally.files} files, in {output}")


def _counts(tally: "FileCounts") -> str:
    left_out = "".join(f"; {reason} {count}" for reason, count in tally.rejected.items())
    return f"{tally.clips} clips, {tally.seconds / 60:.1f} min{left_out}"
