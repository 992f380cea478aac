"""Plots of the tables that `loop.fit` writes."""

import csv
from collections.abc import Sequence
from pathlib import Path

from latentsync.errors import InputError
from latentsync.runtime.extras import needs_extra

__all__ = ["draw_curves"]

HIDDEN = ("step", "seconds", "learning_rate", "gradient_norm")
LOG_SCALE_RATIO = 5  # of largest to smallest value, above which a figure has a log scale


def draw_curves(tables: Sequence[Path], picture: Path) -> None:
    """Plot each figure of the tables (`<name>.csv`) over the steps, a row for each table, as PNG.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InputError: a table without a row.
    """
    with needs_extra("drawing curves", "train"):
        from matplotlib.figure import Figure
    rows = [_columns(table) for table in tables]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(3 * columns, 2.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, table, row in zip(axes, tables, rows, strict=True):
        for axis in line[len(row) :]:
            axis.set_axis_off()
        for axis, (name, points) in zip(line, row.items(), strict=False):
            axis.plot(*zip(*points, strict=True), linewidth=1)
            axis.set_title(f"{table.stem}: {name}", fontsize=8)
            axis.tick_params(labelsize=7)
            values = [value for _, value in points]
            if min(values) > 0 and max(values) > LOG_SCALE_RATIO * min(values):
                axis.set_yscale("log")
    figure.savefig(picture, dpi=90)


def _columns(table: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each figure of a table."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(
            f"{table} has no rows; give the table of a training run that logged some steps"
        )
    names = [name for name in rows[0] if name not in HIDDEN]
    return {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in names
    }
