"""Evaluations as text, JSON and CSV. Equal inputs give equal files: no times, no dates."""

import csv
import io
import json
import math
import textwrap
from typing import Any

from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.runner import ClipResult, Evaluation, Mean

__all__ = ["as_csv", "as_json", "as_text", "counted", "interval", "shown"]

BEFORE_FIGURES = ("clip", "reference", "frames")
AFTER_FIGURES = ("notes", "error")
MAX_REASON = 160  # characters of why a metric is missing


def shown(value: float | None) -> str:
    """Format a figure: four digits, "inf" for equal images, "" for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def interval(mean: Mean) -> str:
    return "" if mean.low is None else f"{shown(mean.low)} .. {shown(mean.high)}"


def counted(mean: Mean) -> str:
    if mean.whole_set:
        return f"{mean.count} samples"
    return f"{mean.count} clip{'s' * (mean.count > 1)}"


def as_text(found: Evaluation) -> str:
    """Format one line for each figure: mean, interval, clips; or why there is none."""
    width = max(len(figure.name) for figure in found.figures)
    lines = [f"{'metric':<{width}}  {'mean':>8}  {'95 %':<17}  {'of':<11}  better"]
    last_reason = ""
    for figure in found.figures:
        mean = found.means.get(figure.name)
        if mean is None:
            why = textwrap.shorten(found.missing[figure.name], MAX_REASON, placeholder=" ...")
            reason = "as above" if why == last_reason else why
            lines.append(f"{figure.name:<{width}}  {'-':>8}  {reason}")
            last_reason = why
            continue
        values = f"{shown(mean.mean):>8}  {interval(mean):<17}  {counted(mean):<11}"
        line = f"{figure.name:<{width}}  {values}  {figure.better:<6} {figure.unit}"
        lines.append(line.rstrip())
    for clip in found.clips:
        remarks = [clip.error] if clip.error else clip.notes
        lines += [f"{clip.pair.name}: {remark}" for remark in remarks]
    lines += [f"{name}: no reference of this name" for name in found.pairs.unmatched_outputs]
    lines += [f"{name}: no output of this name" for name in found.pairs.unmatched_references]
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def as_json(found: Evaluation) -> str:
    """Format everything but the curves. The PSNR of equal images is the string "inf"."""
    means = {
        figure.name: {
            "unit": figure.unit,
            "better": figure.better,
            "what": figure.what,
            **_mean(found.means.get(figure.name), found.missing.get(figure.name)),
        }
        for figure in found.figures
    }
    document = {
        "metrics": means,
        "clips": [_clip(clip) for clip in found.clips],
        "outputs_without_reference": list(found.pairs.unmatched_outputs),
        "references_without_output": list(found.pairs.unmatched_references),
        "detector": found.detector,
        "face_px": CROP,
        "fps": 25,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _mean(mean: Mean | None, missing: str | None) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "missing": missing}
    return {
        "mean": _number(mean.mean),
        "interval_95": None if mean.low is None else [_number(mean.low), _number(mean.high or 0.0)],
        "samples" if mean.whole_set else "clips": mean.count,
    }


def _clip(clip: ClipResult) -> dict[str, Any]:
    return {
        "clip": clip.pair.name,
        "reference": clip.pair.reference and clip.pair.reference.name,
        "face": clip.face or None,
        "frames": clip.frames,
        "figures": {name: _number(value) for name, value in sorted(clip.figures.items())},
        "missing": dict(sorted(clip.missing.items())),
        "worst_frames": list(clip.worst),
        "notes": clip.notes,
        "error": clip.error or None,
    }


def _number(value: float) -> float | str | None:
    """A number as JSON allows it: "inf" and "-inf" as strings, None for NaN."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def as_csv(found: Evaluation) -> str:
    """Format a row for each clip and a column for each figure, empty where there is none."""
    names = [figure.name for figure in found.figures]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*BEFORE_FIGURES, *names, *AFTER_FIGURES])
    for clip in found.clips:
        reference = clip.pair.reference.name if clip.pair.reference else ""
        values = [repr(clip.figures[name]) if name in clip.figures else "" for name in names]
        remarks = "; ".join(clip.notes), clip.error
        table.writerow([clip.pair.name, reference, clip.frames, *values, *remarks])
    return text.getvalue()
