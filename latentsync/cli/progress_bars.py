"""Progress bars on a terminal; nothing is drawn if stderr is no terminal."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from latentsync.runtime.progress import interruptible
from latentsync.types import Progress, ProgressCallback

__all__ = ["bars", "console", "progress_callback", "run_with_bars", "transfer_bars"]

Answer = TypeVar("Answer")

console = Console(stderr=True)

STAGES = {
    "detect": "finding the face",
    "generate": "speaking",
    "restore": "restoring",
    "finish": "finishing",
    "draw": "drawing",
    "prepare": "preparing",
}


class _Speed(ProgressColumn):
    """Column: items per second over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


def bars(unit: str = "frames") -> Bars:
    return _drawn(MofNCompleteColumn(), TextColumn(unit), _Speed())


def transfer_bars() -> Bars:
    """Make bars that count bytes."""
    return _drawn(DownloadColumn(), TransferSpeedColumn())


def _drawn(*columns: ProgressColumn) -> Bars:
    return Bars(
        TextColumn("{task.description:>16}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty() or os.environ.get("TERM") == "dumb",
    )


def progress_callback(drawn: Bars) -> ProgressCallback:
    """Make a callback that moves one bar per stage."""
    tasks = {}

    def show(progress: Progress) -> None:
        if progress.stage not in tasks:
            tasks[progress.stage] = drawn.add_task(STAGES.get(progress.stage, progress.stage))
        drawn.update(tasks[progress.stage], completed=progress.done, total=progress.total)

    return show


def run_with_bars(
    run: Callable[..., Answer],
    *given: object,
    unit: str = "frames",
    **options: Any,  # noqa: ANN401 - as `run` takes them
) -> Answer:
    """Call `run(*given, **options, progress=, cancelled=)` with bars; Ctrl-C cancels it."""
    with bars(unit) as drawn:
        progress = progress_callback(drawn)
        return interruptible(
            lambda cancelled: run(*given, **options, progress=progress, cancelled=cancelled)
        )
