"""Command line of the preparation of training data: `latentsync prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync.cli.common import Device, OutputFolder, Weights, path_argument
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.cli.progress_bars import bars
from latentsync.options import declared
from latentsync.training.settings import PreparationSettings

if TYPE_CHECKING:
    from latentsync.training.preparation import FileCounts

__all__ = ["prepare"]


Given = Annotated[
    dict[str, Any],
    FieldsOf(
        PreparationSettings,
        tuple(name for name in declared(PreparationSettings) if name != "detect_every"),
    ),
]


@grouped
def prepare(
    raw: Annotated[
        Path, path_argument(help="Folder of videos, searched with the folders below it.")
    ],
    *,
    output: OutputFolder,
    workers: Annotated[int, typer.Option(min=1, help="Files prepared side by side.")] = 1,
    given: Given,
    weights: Weights = None,
    device: Device = None,
) -> None:
    """Choose clips to train on from a folder of videos: one face, in sync, clear, 5-10 s.

    Run the same command again to continue after a stop of any kind.
    OUTPUT gets clips/ (for `train unet --data OUTPUT`), index.jsonl,
    rejected.jsonl and summary.html.
    """
    from latentsync.training.preparation import prepare as run

    settings = PreparationSettings(**given, weights=weights, device=device)
    with bars("files") as drawn:
        task = drawn.add_task("preparing", total=None)

        def show(tally: "FileCounts") -> None:
            drawn.update(task, completed=tally.files, total=tally.total, description=_counts(tally))

        tally = run(raw, output, settings, workers=workers, progress=show)
    typer.echo(f"{_counts(tally)}, of {tally.files} files, in {output}")


def _counts(tally: "FileCounts") -> str:
    left_out = "".join(f"; {reason} {count}" for reason, count in tally.rejected.items())
    return f"{tally.clips} clips, {tally.seconds / 60:.1f} min{left_out}"
