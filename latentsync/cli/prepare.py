"""The command line of `latentsync prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsync.cli.common import Device, Weights, path_argument
from latentsync.cli.progress_bars import bars

if TYPE_CHECKING:
    from latentsync.training.preparation import FileCounts

__all__ = ["prepare"]


def prepare(
    raw: Annotated[Path, path_argument(help="A folder of videos, also in folders below it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to fill.")],
    workers: Annotated[int, typer.Option(min=1, help="Files worked on side by side.")] = 1,
    size: Annotated[int, typer.Option(help="256 or 512 px, of the face crops it is for.")] = 256,
    form: Annotated[
        str,
        typer.Option(help="around: the frame around the face; aligned: crops, as published."),
    ] = "around",
    min_seconds: Annotated[float, typer.Option(help="1-3600, of a clip.")] = 5.0,
    max_seconds: Annotated[float, typer.Option(help="1-3600, of a clip.")] = 10.0,
    detector: Annotated[
        str, typer.Option(help="insightface, yunet, builtin, or a cascade's .xml.")
    ] = "insightface",
    min_face: Annotated[
        int | None, typer.Option(help="px of the source from brows to chin; default SIZE / 2.")
    ] = None,
    sync: Annotated[
        str, typer.Option(help="auto (if SyncNet's weights are there), syncnet or none.")
    ] = "auto",
    min_confidence: Annotated[float, typer.Option(help="Of SyncNet.")] = 3.0,
    max_offset: Annotated[
        int, typer.Option(help="0-15 frames of 1/25 s by which sound may be moved.")
    ] = 6,
    quality: Annotated[
        str, typer.Option(help="auto (if hyperIQA's weights are there), hyperiqa or laplacian.")
    ] = "auto",
    min_quality: Annotated[float, typer.Option(help="0-100, of hyperIQA.")] = 40.0,
    min_sharpness: Annotated[
        float, typer.Option(help="Without hyperIQA: variance of the Laplacian of the face; 0: any.")
    ] = 10.0,
    weights: Weights = None,
    device: Device = None,
) -> None:
    """Choose clips to train on from a folder of videos: one face, in sync, clear, 5-10 s.

    The same command again goes on where it was stopped, however it was.
    OUTPUT gets clips/ (for `train unet --data OUTPUT`), index.jsonl,
    rejected.jsonl and summary.html.
    """
    from latentsync.training.preparation import PreparationSettings
    from latentsync.training.preparation import prepare as run

    given = {
        name: value
        for name, value in locals().items()
        if name in PreparationSettings.__annotations__
    }
    with bars("files") as drawn:
        task = drawn.add_task("preparing", total=None)

        def show(tally: "FileCounts") -> None:
            drawn.update(task, completed=tally.files, total=tally.total, description=_counts(tally))

        tally = run(raw, output, PreparationSettings(**given), workers=workers, progress=show)
    typer.echo(f"{_counts(tally)}, of {tally.files} files, in {output}")


def _counts(tally: "FileCounts") -> str:
    left_out = "".join(f"; {reason} {count}" for reason, count in tally.rejected.items())
    return f"{tally.clips} clips, {tally.seconds / 60:.1f} min{left_out}"
