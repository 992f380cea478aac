"""The summary of a prepared folder as a page: what was kept, what was left out and why.

Names of files come from outside, so the page is a template that escapes every value.
"""

import base64
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined

from latentsync.media import VideoReader
from latentsync.runtime.extras import install_command
from latentsync.training.crops import aligned_crops
from latentsync.training.preparation.journal import Record, write_file
from latentsync.training.preparation.plan import hyper_iqa_file, make_steps, make_write
from latentsync.training.preparation.steps import LOW_CONFIDENCE
from latentsync.training.preparation.stretch import Versioned
from latentsync.training.preparation.work import Line
from latentsync.training.settings import PreparationSettings
from latentsync.types import Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["left_after", "write_summary"]

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("summary.html")
MAX_FACES, COLUMNS, THUMBNAIL_PX = 32, 8, 112  # of the contact sheet
MAX_REASONS = 30  # rows of a table
BINS = 24
COLOUR = "#3b6ea5"
QUALITY = {"hyper_iqa": "hyperIQA, 0-100", "laplacian": "sharpness, variance of Laplacian"}


def write_summary(output: Path, records: Sequence[Record], settings: PreparationSettings) -> None:
    """Write OUTPUT/summary.html, which needs no other file; without matplotlib, without plots."""
    clips = [line for record in records for line in record["clips"]]
    rejected = [line for record in records for line in record["rejected"]]
    steps: list[Versioned] = [*make_steps(settings), make_write(settings)]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(PAGE.read_text()).render(
        clips=len(clips),
        length=_duration(sum(map(_seconds, clips))),
        files=len(records),
        decoded=_duration(sum(record["seconds"] for record in records)),
        plots=_plots(records, clips, rejected, settings),
        reasons=_reasons(rejected),
        faces=_faces(output, clips, settings),
        steps=[
            (step.name, step.version, ", ".join(f"{k} {v}" for k, v in vars(step).items()))
            for step in steps
        ],
    )
    # Names of files may not be valid text.
    write_file(output / "summary.html", page.encode("utf-8", "backslashreplace"))


def left_after(
    looked_at: float, rejected: Sequence[Line], settings: PreparationSettings
) -> dict[str, float]:
    """Seconds that are left after each step, by its name, of those that could be decoded."""
    lost: dict[str, float] = defaultdict(float)
    for line in rejected:
        lost[line["step"]] += _seconds(line)
    left = {"all": looked_at}
    for step in make_steps(settings):
        looked_at -= lost[step.name]
        left[step.name] = max(0.0, looked_at)
    return left


def _reasons(rejected: Sequence[Line]) -> list[tuple[str, str, int, str, str]]:
    """Step, reason, count, length and an example, the most frequent ones first."""
    counts = Counter((line["step"], line["reason"]) for line in rejected)
    rows = []
    for (step, reason), count in counts.most_common(MAX_REASONS):
        lines = [one for one in rejected if (one["step"], one["reason"]) == (step, reason)]
        rows.append((step, reason, count, _duration(sum(map(_seconds, lines))), lines[0]["file"]))
    return rows


def _plots(
    records: Sequence[Record],
    clips: Sequence[Line],
    rejected: Sequence[Line],
    settings: PreparationSettings,
) -> str:
    """A PNG in base64; empty without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        log.warning("the summary has no plots (%s); %s", error, install_command("prepare"))
        return ""
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(3, 2)
    measured = [line["sync"] for line in clips if line.get("sync")]
    _histogram(axes[0, 0], "length of the clips, s", [_seconds(line) for line in clips])
    _histogram(axes[0, 1], "smallest face, px of the source", [c["face_px"] for c in clips])
    confidences = [sync["confidence"] for sync in measured]
    confidences += [one["figure"] for one in rejected if one["reason"] == LOW_CONFIDENCE]
    _histogram(axes[1, 0], "sync confidence, with stretches left out", confidences)
    _histogram(axes[1, 1], "sound moved by, frames", [sync["offset"] for sync in measured])
    measure = "hyper_iqa" if hyper_iqa_file(settings) else "laplacian"
    _histogram(axes[2, 0], QUALITY[measure], [c[measure] for c in clips])
    left = left_after(sum(record["seconds"] for record in records), rejected, settings)
    funnel, names = axes[2, 1], list(left)
    bars = funnel.barh(names, [left[name] / 60 for name in names], color=COLOUR)
    funnel.bar_label(bars, fmt="%.1f", fontsize=8, padding=3)
    funnel.margins(x=0.1)
    funnel.invert_yaxis()
    funnel.set_title("minutes left after each step", fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return base64.b64encode(file.getvalue()).decode()


def _histogram(axis: "Axes", title: str, values: Sequence[float]) -> None:
    axis.set_title(title, fontsize=10)
    if values:
        axis.hist(values, bins=BINS, color=COLOUR)
        axis.set_ylabel("clips", fontsize=8)
    else:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", color="grey")
        axis.set_axis_off()


def _faces(output: Path, clips: Sequence[Line], settings: PreparationSettings) -> str:
    """The middle face of some clips, evenly chosen, in the order of the index: JPEG, base64."""
    if not clips:
        return ""
    chosen = np.unique(np.linspace(0, len(clips) - 1, MAX_FACES).round().astype(int))
    faces = [_face(output, clips[i], settings) for i in chosen]
    blank = np.full((THUMBNAIL_PX, THUMBNAIL_PX, 3), 255, np.uint8)
    rows = -(-len(faces) // COLUMNS)
    faces += [blank] * (rows * COLUMNS - len(faces))
    lines = [np.concatenate(faces[i : i + COLUMNS], axis=1) for i in range(0, len(faces), COLUMNS)]
    sheet = np.concatenate(lines)
    good, data = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert good
    return base64.b64encode(data.tobytes()).decode()


def _face(output: Path, line: Line, settings: PreparationSettings) -> Frame:
    path, middle = output / line["clip"], line["frames"] // 2
    if settings.form == "around":
        affines = np.load(path.with_suffix(".npy"))[[middle]]
        (crop,) = aligned_crops(path, [middle], affines, settings.size)
    else:
        with VideoReader(path) as reader:
            crop = next(reader.frames([middle])).rgb()
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)


def _seconds(line: Line) -> float:
    return float(line["stop_seconds"] - line["start_seconds"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
