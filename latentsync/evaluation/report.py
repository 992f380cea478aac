"""The report folder: metrics.json, metrics.csv, and report.html, a self-contained page.

Names of files come from outside, so the page is a template that escapes every value.
"""

import base64
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from latentsync.errors import OutputError
from latentsync.evaluation.runner import ClipResult, Evaluation
from latentsync.evaluation.tables import as_csv, as_json, counted, interval, shown
from latentsync.pipeline.frame_source import FPS
from latentsync.runtime.files import replacing

__all__ = ["as_html", "write_report"]

Curve: TypeAlias = "array[float] | NDArray[np.float64] | None"

MAX_DETAILS = 50  # clips shown with plots and frames; the others only in the table
MAX_POINTS = 600  # of a line; more frames are averaged
WIDTH, HEIGHT = 480, 170  # px of a plot; its numbers can still be read on a phone
MARGIN = 52, 8, 8, 26  # px: left, top, right, bottom, for the numbers
COLOURS = "#1f6fb4", "#d9822b"
PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Line:
    """One curve of a plot."""

    label: str
    colour: str
    runs: list[str]  # "x,y x,y" in px, unbroken


@dataclass(frozen=True)
class Plot:
    """Curves over time; edges in px of the drawing."""

    title: str
    lines: list[Line]
    low: str
    high: str
    seconds: str
    left: int = MARGIN[0]
    top: int = MARGIN[1]
    right: int = WIDTH - MARGIN[2]
    bottom: int = HEIGHT - MARGIN[3]


def write_report(found: Evaluation, folder: Path) -> tuple[Path, ...]:
    """Write the three files into a folder, which is made; each appears whole or not at all.

    Raises:
        OutputError: the folder can't be made, or a file can't be written.
    """
    texts = {"metrics.json": as_json, "metrics.csv": as_csv, "report.html": as_html}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the report can't be written to {folder} ({error.strerror}); choose another folder"
        ) from error
    for name, make in texts.items():
        with replacing(folder / name) as file:
            file.write_text(make(found), encoding="utf-8", errors="backslashreplace")
    return tuple(folder / name for name in texts)


def as_html(found: Evaluation) -> str:
    """Render the page."""
    absent: dict[str, list[str]] = {}  # reason -> figures
    for figure in found.figures:
        if figure.name not in found.means:
            absent.setdefault(found.missing[figure.name], []).append(figure.name)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    measured = [clip for clip in found.clips if not clip.error]
    thinned = len(measured) > MAX_DETAILS
    if thinned:
        measured = sorted(measured, key=_quality)[:MAX_DETAILS]
    details = [
        {
            "clip": clip,
            "plots": list(_plots(clip.curves)),
            "sheet": base64.b64encode(clip.sheet).decode(),
            "worst": ", ".join(f"{i} ({float(i / FPS):.2f} s)" for i in clip.worst),
        }
        for clip in measured
    ]
    return page.render(
        found=found,
        clips=found.clips,
        columns=[
            figure.name
            for figure in found.figures
            if any(figure.name in clip.figures for clip in measured)
        ],
        absent=absent,
        left_over=found.pairs.unmatched_outputs + found.pairs.unmatched_references,
        details=details,
        thinned=thinned,
        shown=shown,
        interval=interval,
        counted=counted,
        width=WIDTH,
        height=HEIGHT,
    )


def _quality(clip: ClipResult) -> float:
    return clip.figures.get("psnr_face", clip.figures.get("psnr_frame", math.inf))


def _plots(curves: Mapping[str, "array[float]"]) -> list[Plot]:
    """Plots of PSNR, LPIPS, SyncNet, and of mouth and loudness."""
    both = ("the face", "_face"), ("the whole frame", "_frame")
    plots = [
        _plot(title, [(label, curves.get(name + end)) for label, end in both])
        for title, name in (("PSNR, dB:", "psnr"), ("LPIPS:", "lpips"))
    ]
    for title, name in (("confidence", "sync_conf_local"), ("offset, frames", "sync_offset_local")):
        plots.append(_plot("SyncNet:", [(title, curves.get(name))]))
    if "mouth" in curves:
        pair: list[tuple[str, Curve]] = []
        for label, name in (("opening of the mouth", "mouth"), ("loudness", "loudness")):
            values = np.asarray(curves[name], np.float64)
            pair.append((label, (values - np.nanmean(values)) / (np.nanstd(values) or 1.0)))
        plots.append(_plot("on one scale:", pair))
    return [plot for plot in plots if plot]


def _plot(title: str, curves: list[tuple[str, Curve]]) -> Plot | None:
    """Draw curves; None if none has a finite value."""
    drawn = [(label, *_thinned(curve)) for label, curve in curves if curve is not None]
    finite = np.concatenate([np.empty(0), *(y[np.isfinite(y)] for _, _, y in drawn)])
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    last = max(float(x[-1]) for _, x, _ in drawn)
    across, up = WIDTH - MARGIN[0] - MARGIN[2], HEIGHT - MARGIN[1] - MARGIN[3]
    lines = []
    for colour, (label, x, y) in zip(COLOURS, drawn, strict=False):
        px = MARGIN[0] + across * x / max(last, 1)
        py = MARGIN[1] + up * (high - y) / ((high - low) or 1.0)
        there = np.flatnonzero(np.isfinite(y))
        runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)
        lines.append(
            Line(label, colour, [" ".join(f"{px[i]:.1f},{py[i]:.1f}" for i in run) for run in runs])
        )
    return Plot(title, lines, shown(low), shown(high), f"{last / float(FPS):.1f}")


def _thinned(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average to at most MAX_POINTS: frame numbers, and values with NaN for infinite ones."""
    values = np.asarray(curve, np.float64)
    step = -(-len(values) // MAX_POINTS)
    padded = np.full(-(-len(values) // step) * step, np.nan)
    padded[: len(values)] = np.where(np.isfinite(values), values, np.nan)
    grouped = padded.reshape(-1, step)
    count = np.isfinite(grouped).sum(axis=1)
    means = np.where(count, np.nansum(grouped, axis=1) / np.maximum(count, 1), np.nan)
    return np.arange(len(means), dtype=np.float64) * step, means
